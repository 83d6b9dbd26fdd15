//! Jobs by the clock: what was started last, what is next, and whose run goes on.

use std::collections::BTreeMap;

use serde::Serialize;

use super::look::{Look, by_name};
use crate::cron::{self, RunRecord, Slot};
use crate::error::Result;
use crate::keys::KeySpace;
use crate::lock::Holder;

/// A job by the clock. Of all that run it whoever is first starts the next time; those who wait for it leave no keys.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CronInfo {
    /// Its name.
    pub name: String,
    /// The schedule of whoever started it last, as it is shown. Others may go by another one.
    pub schedule: Option<String>,
    /// The newest time that counts as started; at first the moment at which it was run for the first time.
    pub last: Option<Slot>,
    /// The first time of that schedule after it. One that is over waits for the run before, or for somebody who runs
    /// the job; which of several that were missed is started then is up to that one.
    pub next: Option<Slot>,
    /// The last run.
    pub run: Option<RunRecord>,
    /// Who has the run that goes on.
    pub running: Option<Holder>,
    /// Keys that cannot be read, and why.
    pub unreadable: BTreeMap<String, String>,
}

/// All jobs by the clock.
pub(super) async fn crons(look: &Look) -> Result<Vec<CronInfo>> {
    let kvs = look.list_kind(cron::KIND).await?;
    let each = by_name(cron::KIND, kvs).into_iter().map(|(name, keys)| {
        let space = KeySpace::of(cron::KIND, &name);
        let keys: Vec<_> = keys.into_iter().map(|(_, kv)| kv).collect();
        let told = cron::told(&space, &keys);
        let mut unreadable = BTreeMap::new();
        let last = known("last", told.last, &mut unreadable);
        let run = known("run", told.run, &mut unreadable);
        known("running", told.which.map(Err::<(), _>), &mut unreadable);
        let schedule = last.as_ref().and_then(cron::Last::schedule);
        CronInfo {
            name,
            last: last.map(|last| last.slot),
            next: schedule.as_ref().and_then(|(_, next)| *next),
            schedule: schedule.map(|(text, _)| text),
            run,
            running: told.running.map(|kv| look.holder(kv)),
            unreadable,
        }
    });
    Ok(each.collect())
}

/// What a key says; told otherwise.
fn known<T>(
    key: &str,
    read: Option<Result<T>>,
    unreadable: &mut BTreeMap<String, String>,
) -> Option<T> {
    read?
        .inspect_err(|error| drop(unreadable.insert(key.to_owned(), error.to_string())))
        .ok()
}
