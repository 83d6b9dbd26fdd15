//! `quorate snapshot`: backups as files. They are etcd's, both ways: what `save` writes, `etcdctl` and
//! `etcdutl` take, and `restore` takes what they write.

mod restore;
mod save;
mod status;

use std::process::ExitCode;

use clap::Subcommand;

/// What to do with a backup. Flags are those of `etcdctl` and `etcdutl`.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Save the data of one member to a file
    Save(save::SaveArgs),
    /// Look into a file: its hash, its revision, and how much is in it
    Status(status::StatusArgs),
    /// Make the data folder of one member of a new cluster from a file
    Restore(restore::RestoreArgs),
}

/// Does it.
///
/// # Errors
/// What could not be done; nothing is half done then.
pub(crate) async fn run(command: SnapshotCommand) -> anyhow::Result<ExitCode> {
    match command {
        SnapshotCommand::Save(args) => save::run(args).await?,
        SnapshotCommand::Status(args) => {
            tokio::task::spawn_blocking(move || status::run(&args)).await??;
        }
        SnapshotCommand::Restore(args) => {
            tokio::task::spawn_blocking(move || restore::run(&args)).await??;
        }
    }
    Ok(ExitCode::SUCCESS)
}
