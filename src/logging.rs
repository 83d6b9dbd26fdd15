//! Where log lines go: standard error, our own modules at the level asked for, the libraries under
//! them only when something is wrong.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts logging at `level` (`error`, `warn`, `info`, `debug`, `trace`).
///
/// # Errors
/// When `level` is none of these.
pub(crate) fn start(level: &str) -> anyhow::Result<()> {
    let level: LevelFilter = level.parse()?;
    let targets = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        // It warns of what it heals itself at every election; our `raft` module tells what matters.
        .with_target("openraft", level.min(LevelFilter::ERROR))
        .with_targets(["quorate", "quorate_core", "quorate_recipes"].map(|target| (target, level)));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(lines)
        .with(targets)
        .init();
    Ok(())
}
