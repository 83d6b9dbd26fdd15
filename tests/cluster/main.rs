//! Clusters of member processes under load, with members killed, paused, cut off, restarted, added
//! and removed, also behind a proxy.

mod catch_up;
mod crash_points;
mod cuts;
mod leader_kill;
mod lock_safety;
mod membership;
mod pauses;
mod proxy;
mod queue_kills;
mod rolling_restart;
mod set_under_lock;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The program to test.
fn program() -> PathBuf {
    quorate_harness::cluster::program(env!("CARGO_BIN_EXE_quorate"))
}

/// An example's program: cargo builds the examples with the tests, beside the binary.
fn example(name: &str) -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_BIN_EXE_quorate"))
        .parent()
        .context("a folder")?;
    let path = folder.join("examples").join(name);
    anyhow::ensure!(
        path.is_file(),
        "{} is not built: run `cargo build --examples`",
        path.display()
    );
    Ok(path)
}
