//! The `quorate` program.

use std::process::ExitCode;

mod cli;
mod demo;
mod dev;
mod files;
mod logging;
mod server;
mod services;
mod signals;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
