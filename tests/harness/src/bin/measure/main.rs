//! What a server promises under load, measured on a real one: history that is compacted beside
//! writes, or given up without being asked, leases that all end at once, a watcher that does not read,
//! a large service that many follow; and, without a server, what it costs to pick one of many instances.
//!
//! ```sh
//! cargo build --release
//! cargo run --release --bin measure -- compaction target/release/quorate
//! cargo run --release --bin measure -- retention target/release/quorate
//! cargo run --release --bin measure -- leases target/release/quorate
//! cargo run --release --bin measure -- watcher target/release/quorate
//! cargo run --release --bin measure -- discovery target/release/quorate
//! cargo run --release --bin measure -- balance
//! ```
//!
//! In place of `quorate` an `etcd` can be named, to see both on the same machine. Everything runs
//! over loopback, with data on disk below the folder for temporary files, and ends by itself. Each
//! measurement exits with 1 when something was lost or a promise was not kept.

#![expect(clippy::print_stdout, reason = "a tool that prints what it measured")]
#![expect(clippy::disallowed_methods, reason = "measures what clients see")]

mod balance;
mod compaction;
mod discovery;
mod leases;
mod retention;
mod server;
mod watcher;
mod writers;

use std::path::PathBuf;

use anyhow::Context as _;

const USAGE: &str = "\
usage: measure compaction|retention|leases|watcher|discovery PATH-OF-QUORATE-OR-ETCD [SIZE]
       measure balance [SIZE]";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let what = arguments.next().context(USAGE)?;
    let has_server = what != "balance";
    let program = match has_server {
        true => PathBuf::from(arguments.next().context(USAGE)?),
        false => PathBuf::new(),
    };
    let size = arguments
        .next()
        .map(|size| size.to_string_lossy().parse())
        .transpose()
        .context(USAGE)?;
    let server = async || server::Server::start(&program, &[]).await;
    match what.to_str() {
        Some("balance") => balance::measure(size).await,
        Some("compaction") => compaction::measure(server().await?, size).await,
        Some("retention") => retention::measure(&program, size).await,
        Some("leases") => leases::measure(server().await?, size).await,
        Some("discovery") => discovery::measure(&program, size).await,
        Some("watcher") => watcher::measure(server().await?, size).await,
        _ => anyhow::bail!(USAGE),
    }
}
