//! `quorate demo`.
mod files;
mod keys;
mod members;
use std::process::ExitCode;
/// x
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {}
/// x
#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {}
pub(crate) async fn run(_: DemoArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::FAILURE)
}
pub(crate) async fn work(_: WorkerArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::FAILURE)
}
