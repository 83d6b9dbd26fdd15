//! The command line: what there is to say, and which part of the program it goes to.

pub(crate) mod initial_cluster;
mod limits;
mod server;

use std::ffi::OsString;
use std::num::NonZero;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

pub(crate) use server::ServerArgs;

use crate::{bench, ctl, demo, dev, proxy, server as serve, snapshot};

/// Coordination for services: a replicated key-value store that speaks the etcd v3 API, and
/// recipes on it.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    outer: ctl::OuterArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a member of a cluster, or a single node. Flags are etcd's.
    Server(Box<ServerArgs>),
    /// Pass clients' calls on to a cluster, sharing their watches and keep-alives.
    Proxy(Box<proxy::ProxyArgs>),
    /// Run a single node with its data in memory, for trying out.
    Dev(dev::DevArgs),
    /// Save a member's data to a file, look into such a file, make a new cluster from it.
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Hash a folder with several workers while a worker and the leading member are killed, and
    /// check the result.
    Demo(demo::DemoArgs),
    /// Measure throughput and latencies of any etcd v3 servers.
    Bench(Box<bench::BenchArgs>),
    /// One worker of `quorate demo`.
    #[command(hide = true)]
    DemoWorker(demo::WorkerArgs),
    #[command(flatten)]
    Cluster(ctl::Command),
}

/// Parses the command line and does what it says.
///
/// # Errors
/// What the command could not do.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse_from(with_etcd_environment(std::env::args_os().collect()));
    if cli.outer.0.any() && !matches!(cli.command, Command::Cluster(_)) {
        let text = "this command takes no flags of the cluster commands";
        Cli::command()
            .error(ErrorKind::ArgumentConflict, text)
            .exit();
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let is_member = matches!(cli.command, Command::Server(_) | Command::Dev(_));
    if is_member && std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        // One core is for the member's own thread.
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        runtime.worker_threads((cores - 1).max(1));
    }
    let runtime = runtime.enable_all().build()?;
    let code = match cli.command {
        Command::Server(args) => runtime.block_on(serve::run(*args)),
        Command::Proxy(args) => runtime.block_on(proxy::run(*args)),
        Command::Dev(args) => runtime.block_on(dev::run(args)),
        Command::Snapshot(command) => runtime.block_on(snapshot::run(command)),
        Command::Demo(args) => runtime.block_on(demo::run(args)),
        Command::Bench(args) => runtime.block_on(bench::run(*args)),
        Command::DemoWorker(args) => runtime.block_on(demo::work(args)),
        Command::Cluster(command) => Ok(runtime.block_on(ctl::run(command, cli.outer))),
    };
    // Each command has waited for what matters. A thread that still reads standard input would
    // hold up the end until somebody types.
    runtime.shutdown_background();
    code
}

/// Shows an error and what was behind it.
#[expect(clippy::print_stderr, reason = "the program's last word to its user")]
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut told = error.to_string();
    eprintln!("error: {told}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some errors tell their cause in their own text.
        if !told.contains(&cause) {
            eprintln!("  because: {cause}");
            told = cause;
        }
    }
}

/// Adds what etcd's environment says (`ETCD_DATA_DIR`) to `quorate server`'s arguments, so that a unit
/// file moves over. A flag wins over `QUORATE_DATA_DIR`, and that wins over `ETCD_DATA_DIR`.
fn with_etcd_environment(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_none_or(|command| command != "server") {
        return arguments;
    }
    let given: Vec<String> = arguments
        .iter()
        .filter_map(|argument| argument.to_str()?.strip_prefix("--"))
        .map(|flag| flag.split('=').next().unwrap_or_default().to_owned())
        .collect();
    let cli = Cli::command();
    let Some(server) = cli.find_subcommand("server") else {
        return arguments;
    };
    for argument in server.get_arguments() {
        let Some(flag) = argument.get_long() else {
            continue;
        };
        let name = flag.replace('-', "_").to_uppercase();
        let ours = std::env::var_os(format!("QUORATE_{name}"));
        if given.iter().any(|given| given == flag) || ours.is_some() {
            continue;
        }
        if let Some(value) = std::env::var_os(format!("ETCD_{name}")) {
            let mut argument = OsString::from(format!("--{flag}="));
            argument.push(value);
            arguments.push(argument);
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
