//! The primary of the demo: the worker that was elected. It lists the files, publishes batches, and
//! writes the manifest from the results, all by transactions that its leadership guards: a primary
//! that was replaced without knowing writes nothing.

use std::path::{Path, PathBuf};

use quorate::proto::mvccpb::KeyValue;
use quorate::recipes::progress::{Outcome, TaskName};
use quorate::recipes::watch::Mirror;
use quorate::recipes::{Client, Compare, Error, Json, KeyRange, Leadership, Session, from_json};
use tracing::info;

use super::write::until_written;
use super::{files, keys};

/// Files in a batch: enough batches to spread, few enough to claim each under a lock.
const BATCHES_WANTED: usize = 60;
const BATCH_FILES_MAX: usize = 200;
/// A batch's paths stay well below the store's limit on a request.
const BATCH_BYTES_MAX: usize = 512 * 1024;

/// Stands for primary until the manifest is complete, and does the primary's work when elected.
///
/// # Errors
/// The store's; a lost session or leadership.
pub(crate) async fn stand(
    client: &Client,
    session: &Session,
    name: &str,
    root: &Path,
) -> Result<(), Error> {
    let mut complete = client.mirror(KeyRange::one(keys::COMPLETE)).await?;
    let election = client.election::<String>(keys::ELECTION);
    let leadership = tokio::select! {
        elected = election.campaign(session, name.to_owned()) => elected?,
        done = until_there(&mut complete) => return done,
    };
    info!(token = %leadership.token(), "elected primary");
    if complete.view().entries.is_empty() {
        lead(client, session, &leadership, root).await?;
    }
    leadership.resign().await
}

/// Waits for the plan of a primary.
///
/// # Errors
/// The store's.
pub(crate) async fn wait_for_plan(client: &Client) -> Result<keys::Plan, Error> {
    let mut plan = client.mirror(KeyRange::one(keys::PLAN)).await?;
    until_there(&mut plan).await?;
    let view = plan.view();
    let (key, pair) = view
        .entries
        .iter()
        .next()
        .expect("until_there saw it, and a plan is never deleted");
    from_json(key, &pair.value)
}

async fn until_there(mirror: &mut Mirror) -> Result<(), Error> {
    while mirror.view().entries.is_empty() {
        mirror.changed().await?;
    }
    Ok(())
}

async fn lead(
    client: &Client,
    session: &Session,
    leadership: &Leadership<String>,
    root: &Path,
) -> Result<(), Error> {
    let plan = match client.get(keys::PLAN).await? {
        Some(pair) => from_json(&pair.key, &pair.value)?,
        None => publish(leadership, root).await?,
    };
    let whole = session
        .reporter(TaskName::new(keys::JOB, keys::WHOLE))
        .under(leadership);
    let whole = whole
        .unit("files")
        .total(plan.files as u64)
        .wait()
        .start()
        .await?;
    let mut results = client.mirror(KeyRange::prefix(keys::RESULTS)).await?;
    let written = client.list(KeyRange::prefix(keys::MANIFEST)).await?.1;
    let mut written: Vec<bool> = {
        let mut there = vec![false; plan.batches];
        for pair in &written {
            if let Some(n) = keys::number(keys::MANIFEST, &pair.key) {
                there[n] = true;
            }
        }
        there
    };
    // What was done under another primary tells nothing about the speed now.
    whole.skip(results.view().entries.values().map(files_in).sum());
    loop {
        let view = results.view();
        for (key, pair) in &view.entries {
            let Some(n) = keys::number(keys::RESULTS, key) else {
                continue;
            };
            if !written[n] {
                let chunk = keys::numbered(keys::MANIFEST, n);
                until_written(|| leadership.txn().put(chunk.as_str(), pair.value.clone())).await?;
                written[n] = true;
            }
        }
        whole.set_done(view.entries.values().map(files_in).sum());
        if view.entries.len() == plan.batches {
            break;
        }
        results.changed().await?;
    }
    until_written(|| {
        leadership
            .txn()
            .put(keys::COMPLETE, plan.batches.to_string())
    })
    .await?;
    whole.finish(Outcome::Done).await
}

/// How many lines a result has.
fn files_in(result: &KeyValue) -> u64 {
    result.value.iter().filter(|byte| **byte == 0).count() as u64
}

/// Lists the files and publishes them in batches, the plan last: a plan means that all is there.
async fn publish(leadership: &Leadership<String>, root: &Path) -> Result<keys::Plan, Error> {
    let root = root.to_owned();
    let listing = tokio::task::spawn_blocking(move || files::list(&root)).await;
    let files = listing
        .expect("listing does not panic")
        .map_err(|error| Error::Invalid(format!("listing the files: {error}")))?
        .files;
    let batches = cut(&files);
    for (n, paths) in batches.iter().enumerate() {
        let key = keys::numbered(keys::BATCHES, n);
        until_written(|| {
            leadership
                .txn()
                .put(key.as_str(), files::encode_paths(paths))
        })
        .await?;
    }
    let plan = keys::Plan {
        batches: batches.len(),
        files: files.len(),
    };
    until_written(|| {
        leadership
            .txn()
            .when(Compare::absent(keys::PLAN))
            .put(keys::PLAN, Json(&plan))
    })
    .await?;
    info!(batches = plan.batches, files = plan.files, "published");
    Ok(plan)
}

/// Cuts the list into batches, the same way for everyone who has the same list.
fn cut(files: &[PathBuf]) -> Vec<&[PathBuf]> {
    let size = files
        .len()
        .div_ceil(BATCHES_WANTED)
        .clamp(1, BATCH_FILES_MAX);
    let mut batches = Vec::new();
    for chunk in files.chunks(size) {
        let (mut start, mut bytes) = (0, 0);
        for (i, path) in chunk.iter().enumerate() {
            bytes += path.as_os_str().len() + 1;
            if bytes > BATCH_BYTES_MAX && i > start {
                batches.push(&chunk[start..i]);
                (start, bytes) = (i, path.as_os_str().len() + 1);
            }
        }
        batches.push(&chunk[start..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_file_once_and_stay_below_their_limits() {
        for count in [1, 59, 60, 61, 500, 20_000] {
            let files: Vec<_> = (0..count)
                .map(|i| PathBuf::from(format!("{i:04000}")))
                .collect();
            let batches = cut(&files);
            assert_eq!(batches.concat(), files);
            for batch in batches {
                assert!(!batch.is_empty() && batch.len() <= BATCH_FILES_MAX);
                assert!(files::encode_paths(batch).len() <= BATCH_BYTES_MAX);
            }
        }
        assert!(cut(&[]).is_empty());
    }
}
