//! The `quorate` program.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

mod bench;
mod cli;
mod ctl;
mod demo;
mod dev;
mod files;
mod logging;
mod proxy;
mod server;
mod services;
mod signals;
mod snapshot;

/// What one thread decodes another one applies and a third one frees: the system's allocator spends
/// more on that than the work itself takes.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
