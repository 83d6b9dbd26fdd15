//! `quorate snapshot restore`: a backup file to a data folder. Flags are etcdutl's.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{ArgAction, Args};
use quorate::core::config::{ClusterConfig, ClusterState, Config, Data};
use quorate::core::node::restore::{RestoreOptions, RestoredMember, restore};

use crate::cli::initial_cluster;
use crate::logging;

/// Flags of `quorate snapshot restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The file, of quorate or of etcd; the same for every member of the new cluster
    file: PathBuf,

    /// Where this member's data will be; must not exist, or be empty [default: <name>.quorate]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// This member's name, as in --initial-cluster
    #[arg(long, default_value = "default")]
    name: String,

    /// All members of the new cluster: name=url,name=url,… (the same for each of them, and again when
    /// they are started) [default: this member alone]
    #[arg(long, value_name = "MEMBERS")]
    initial_cluster: Option<String>,

    /// Keeps clusters with the same addresses apart. Restoring the same file a second time, take
    /// another one, unless nothing is left of the first
    #[arg(long, value_name = "TOKEN", default_value = "etcd-cluster")]
    initial_cluster_token: String,

    /// Where the other members reach this one
    #[arg(
        long,
        value_name = "URLS",
        value_delimiter = ',',
        default_value = "http://localhost:2380"
    )]
    initial_advertise_peer_urls: Vec<String>,

    /// Take a file without a checksum, as one copied from an etcd member's folder
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    skip_hash_check: bool,

    /// By how much to raise the current revision, above all that were given out after the backup
    #[arg(long, value_name = "REVISIONS", default_value_t = 0)]
    bump_revision: u64,

    /// Make all history up to the raised revision compacted, so that whoever watches or reads on from
    /// a revision of before is told (required with --bump-revision, disallowed without)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    mark_compacted: bool,
}

impl RestoreArgs {
    fn options(&self) -> anyhow::Result<RestoreOptions> {
        ensure!(
            self.mark_compacted == (self.bump_revision > 0),
            "--bump-revision and --mark-compacted go together"
        );
        let bump = i64::try_from(self.bump_revision).context("--bump-revision: too large")?;
        let folder = self.data_dir.clone();
        Ok(RestoreOptions {
            file: self.file.clone(),
            config: Config {
                name: self.name.clone(),
                data: Data::Folder(
                    folder.unwrap_or_else(|| format!("{}.quorate", self.name).into()),
                ),
                token: self.initial_cluster_token.clone(),
                cluster: Some(ClusterConfig {
                    members: initial_cluster::members(
                        &self.name,
                        self.initial_cluster.as_deref(),
                        &self.initial_advertise_peer_urls,
                    )?,
                    state: ClusterState::New,
                    listen_peer_urls: Vec::new(),
                }),
                ..Config::default()
            },
            skip_hash_check: self.skip_hash_check,
            bump_revision: (bump > 0).then_some(bump),
        })
    }
}

/// Restores a member.
///
/// # Errors
/// A flag or the file is wrong, or the folder cannot be made: it is not there then.
pub(super) fn run(args: &RestoreArgs) -> anyhow::Result<()> {
    logging::start("warn")?;
    let options = args.options()?;
    let restored = restore(&options)?;
    tell(&options, &restored);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what the command was called for")]
fn tell(options: &RestoreOptions, member: &RestoredMember) {
    if let Data::Folder(folder) = &options.config.data {
        println!("Restored to {}", folder.display());
    }
    println!(
        "Revision {}, {} keys, {} leases; member {:016x} of the new cluster {:016x}",
        member.restored.revision,
        member.restored.keys,
        member.restored.leases,
        member.member_id,
        member.cluster_id
    );
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RestoreArgs,
    }

    fn options(line: &str) -> anyhow::Result<RestoreOptions> {
        let words = std::iter::once("restore").chain(line.split_whitespace());
        Line::try_parse_from(words)?.args.options()
    }

    #[test]
    fn the_defaults_are_those_of_the_server() {
        let options = options("f").unwrap();
        assert_eq!(options.config.data, Data::Folder("default.quorate".into()));
        assert_eq!(options.config.token, "etcd-cluster");
        let urls = options.config.peer_urls();
        assert_eq!(urls, ["http://localhost:2380"]);
        assert_eq!(
            (options.skip_hash_check, options.bump_revision),
            (false, None)
        );
    }

    #[test]
    fn an_etcdutl_line_moves_over() {
        let options = options(
            "snap.db --name b --data-dir /d --initial-cluster a=http://h:1,b=http://i:1 \
             --initial-cluster-token t --initial-advertise-peer-urls http://i:1 \
             --skip-hash-check=true --bump-revision 1000000000 --mark-compacted",
        )
        .unwrap();
        assert_eq!(options.config.initial_members().len(), 2);
        assert_eq!(options.config.data, Data::Folder("/d".into()));
        assert!(options.skip_hash_check);
        assert_eq!(options.bump_revision, Some(1_000_000_000));
    }

    #[test]
    fn flags_that_do_not_go_together_are_refused() {
        for (line, said) in [
            ("f --bump-revision 5", "go together"),
            ("f --mark-compacted", "go together"),
            (
                "f --bump-revision 9300000000000000000 --mark-compacted",
                "too large",
            ),
            ("f --name b --initial-cluster a=http://h:1", "does not list"),
            (
                "f --initial-cluster default=http://h:1",
                "--initial-advertise-peer-urls",
            ),
        ] {
            let error = format!("{:#}", options(line).unwrap_err());
            assert!(error.contains(said), "{line}: {error}");
        }
    }
}
