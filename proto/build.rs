//! Generates the Rust types, clients and servers from `proto/`, and the JSON forms of what clients
//! speak, with no system protoc.

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

/// Packages whose messages have a JSON form: what the gateway carries.
const WITH_JSON: [&str; 5] = [
    ".mvccpb",
    ".authpb",
    ".etcdserverpb",
    ".v3lockpb",
    ".v3electionpb",
];

fn main() -> Result<(), Failure> {
    println!("cargo::rerun-if-changed=build.rs");
    for file in FILES {
        println!("cargo::rerun-if-changed={ROOT}/{file}");
    }
    let descriptors = protox::compile(FILES, [ROOT])?;
    let out_dir = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?;
    let encoded = descriptors.encode_to_vec();
    fs::write(PathBuf::from(out_dir).join("descriptors.bin"), &encoded)?;
    // The names that etcd's gateway prints; both spellings are read.
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .preserve_proto_field_names()
        .ignore_unknown_fields()
        .build(&WITH_JSON)?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
