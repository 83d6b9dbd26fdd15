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
mod rolling_restart;

use std::path::PathBuf;

/// The program to test.
fn program() -> PathBuf {
    quorate_harness::cluster::program(env!("CARGO_BIN_EXE_quorate"))
}
