//! Generates the Rust types, clients and servers from `proto/`, with no system protoc.

use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

type Failure = Box<dyn std::error::Error>;

/// Import root of all files below.
const ROOT: &str = "proto";

/// Every file, relative to [`ROOT`].
const FILES: [&str; 7] = [
    "mvccpb/kv.proto",
    "authpb/auth.proto",
    "etcdserverpb/rpc.proto",
    "v3lockpb/v3lock.proto",
    "v3electionpb/v3election.proto",
    "quorate/log.proto",
    "quorate/peer.proto",
];

fn main() -> Result<(), Failure> {
    println!("cargo::rerun-if-changed=build.rs");
    for file in FILES {
        println!("cargo::rerun-if-changed={ROOT}/{file}");
    }
    let descriptors = protox::compile(FILES, [ROOT])?;
    let out_dir = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?;
    fs::write(
        PathBuf::from(out_dir).join("descriptors.bin"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
