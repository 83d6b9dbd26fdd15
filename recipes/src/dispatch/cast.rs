//! One command for all that are there: who they are is written down in one transaction, from what there was at one
//! revision, and a job is sent to each of them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::job::Known;
use super::record::{CastRecord, Ended, HereRecord, JobState, Labels, Layout};
use super::spread::Spread;
use super::{Dispatcher, Job, Sending};
use crate::clock::{Instant, whole_seconds};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::session::{Effect, Effected, Session};
use crate::store::{StoreError, ops};
use crate::value::{Json, Value, from_json};
use crate::wait::{self, Backoff};
use crate::watch::{Batch, Change};

/// How long what is said of a cast without a deadline is kept, besides the retention of jobs.
const CAST_RETENTION: Duration = Duration::from_secs(7 * 86_400);

/// The least of it: shorter, sending it to all might take longer.
const CAST_RETENTION_MIN: Duration = Duration::from_secs(3_600);

/// Of how many jobs the end is asked for at once.
const ENDS_AT_ONCE: usize = 64;

/// How long the end of a job whose time is over may take to be heard of, before it is asked for again.
const EXPIRED_AGAIN: Duration = Duration::from_secs(1);

/// The jobs of one command that was sent to many. A handle: holds nothing.
pub struct Cast<R> {
    layout: Layout,
    id: String,
    revision: Revision,
    jobs: Vec<(String, Job<R>)>,
}

/// An instance whose inbox is open, for [`Dispatcher::send_all`] to choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recipient {
    /// Its name.
    pub instance: String,
    /// What is [said](Dispatcher::label) of it; of one with several inboxes, by any of them, and by the one opened last
    /// where they differ.
    pub labels: BTreeMap<String, String>,
}

impl Recipient {
    /// Whether this is said of it.
    #[must_use]
    pub fn is(&self, key: &str, value: &str) -> bool {
        self.labels.get(key).is_some_and(|said| said == value)
    }
}

impl<R> Cast<R> {
    /// The id, by which any process finds it again: see [`Dispatcher::cast`].
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The revision at which exactly its recipients had an open inbox and were selected.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The job of each recipient, by the instance's name, in the order of names.
    #[must_use]
    pub fn jobs(&self) -> &[(String, Job<R>)] {
        &self.jobs
    }

    /// Asks for the end of all of them that are there, some at a time. As [`Job::cancel`].
    ///
    /// # Errors
    /// As [`Job::cancel`]; some may be asked by then.
    ///
    /// # Cancel safety
    /// As [`Job::cancel`].
    pub async fn cancel(&self) -> Result<()> {
        let each = self
            .jobs
            .iter()
            .map(async |(_, job)| match job.cancel().await {
                Ok(_) | Err(Error::Removed(_)) => Ok(()),
                Err(error) => Err(error),
            });
        let each = stream::iter(each).buffer_unordered(ENDS_AT_ONCE);
        each.try_for_each(async |()| Ok(())).await
    }
}

impl<R: DeserializeOwned> Cast<R> {
    /// Waits until all have ended, and returns how, in the order of names. As [`Job::wait`], with one watch for all.
    ///
    /// # Errors
    /// As [`Job::wait`], the first of any job.
    ///
    /// # Cancel safety
    /// Nothing is held.
    pub async fn wait(&self) -> Result<Vec<(String, Ended<R>)>> {
        let client = &self.layout.client;
        let mut watcher = client.watch(self.layout.jobs_of_cast(&self.id));
        let mut waiting = Waiting {
            cast: self,
            jobs: BTreeMap::new(),
            next_due: None,
            ended: BTreeMap::new(),
        };
        let listed = watcher.next().await?;
        waiting.take(listed)?;
        for (_, job) in &self.jobs {
            let key = self.layout.job(job.id());
            if !watcher.known().contains_key(key.as_bytes()) {
                return Err(Error::Removed(key));
            }
        }
        while waiting.ended.len() < self.jobs.len() {
            match waiting.next_due {
                None => waiting.take(watcher.next().await?)?,
                Some(due) => match client.before(due, watcher.next()).await {
                    Some(batch) => waiting.take(batch?)?,
                    None => waiting.expire().await?,
                },
            }
        }
        let ended = waiting.ended.into_values();
        let names = self.jobs.iter().map(|(name, _)| name.clone());
        Ok(names.zip(ended).collect())
    }
}

/// The jobs of a cast that somebody waits for, by their places in it.
struct Waiting<'a, R> {
    cast: &'a Cast<R>,
    /// Those that have not ended, and when they expire.
    jobs: BTreeMap<usize, (Known, Option<Instant>)>,
    /// When the first of them does, or one did that has ended since.
    next_due: Option<Instant>,
    ended: BTreeMap<usize, Ended<R>>,
}

impl<R: DeserializeOwned> Waiting<'_, R> {
    fn take(&mut self, batch: Batch) -> Result<()> {
        for change in batch.changes {
            match change {
                Change::Put { kv, .. } => self.put(&kv)?,
                Change::Delete { key, .. } => {
                    // Of one that has ended, it is known how.
                    let kept = self.place(key.as_bytes());
                    if kept.is_some_and(|place| !self.ended.contains_key(&place)) {
                        return Err(Error::Removed(key));
                    }
                }
            }
        }
        Ok(())
    }

    /// Which of its jobs a key is of.
    fn place(&self, key: &[u8]) -> Option<usize> {
        let id = self.cast.layout.job_of(key)?;
        let (_, place) = id.rsplit_once('.')?;
        let place = usize::from_str_radix(place, 16).ok()?;
        let (_, job) = self.cast.jobs.get(place)?;
        (job.id() == id).then_some(place)
    }

    fn put(&mut self, kv: &KeyValue) -> Result<()> {
        let Some(place) = self.place(&kv.key) else {
            return Ok(());
        };
        let known = Known::of(kv)?;
        if known.record.state.is_end() {
            self.jobs.remove(&place);
            let key = kv.key.clone().into();
            if let JobState::Ended(ended) = JobState::of(&key, known.record.state)? {
                self.ended.insert(place, ended);
            }
            return Ok(());
        }
        let client = &self.cast.layout.client;
        let due = known.record.due_ms().map(|due| {
            let left = due.saturating_sub(client.wall_millis());
            client.deadline(Duration::from_millis(left))
        });
        self.next_due = self.next_due.into_iter().chain(due).min();
        self.jobs.insert(place, (known, due));
        Ok(())
    }

    /// Ends those whose time is over. That they have ended, or that they go on, comes with the watch.
    async fn expire(&mut self) -> Result<()> {
        let client = &self.cast.layout.client;
        let now = client.now();
        let over = self.jobs.iter_mut();
        let over = over.filter(|(_, (_, due))| due.is_some_and(|due| due <= now));
        let each = stream::iter(over.map(|(place, (known, due))| {
            *due = Some(client.deadline(EXPIRED_AGAIN));
            self.cast.jobs[*place].1.expire(known)
        }));
        let each = each.buffer_unordered(ENDS_AT_ONCE);
        each.try_for_each(async |()| Ok(())).await?;
        self.next_due = self.jobs.values().filter_map(|(_, due)| *due).min();
        Ok(())
    }
}

impl<C: Serialize, R> Dispatcher<C, R> {
    /// Sends a command to all instances that `selected` picks of those whose inbox is open: the recipients are
    /// exactly those of one revision, however many, and a job for each is returned. One that leaves in between
    /// has a job too, as if it had left afterwards.
    ///
    /// Costs: a listing of open inboxes, a lease, a transaction that names the recipients, and then a read and a
    /// transaction for as many of them as those have room for: 62 with etcd's limits.
    ///
    /// # Errors
    /// [`Error::Conflict`] when somebody is [required](Sending::require_live) to be there and nobody is;
    /// [`Error::Invalid`] for a command, or names of recipients, that are too large for one transaction, or a session
    /// of another store; [`Error::Codec`]; [`Error::SessionLost`]; [`Error::OutcomeUnknown`] when the session ended
    /// with an answer still to come, or the store refused for good what was begun, which may go on then; the store's
    /// final refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: to all, or to nobody. Once the recipients are named, any open inbox
    /// of the dispatcher sees to it within a few seconds that all of them get the command.
    pub async fn send_all(
        &self,
        session: &Session,
        selected: impl Fn(&Recipient) -> bool + Send + Sync,
        command: &C,
        sending: Sending,
    ) -> Result<Cast<R>> {
        let layout = &self.layout;
        session.belongs_to(&layout.client)?;
        let id = layout.client.nonce();
        let command = self.raw(&id, command)?;
        let (revision, mut there) = recipients(layout).await?;
        there.retain(selected);
        let nobody = there.is_empty();
        if nobody && sending.require_live {
            return Err(Error::Conflict);
        }
        let names = there.into_iter().map(|one| one.instance).collect();
        let record = CastRecord::new(revision, self.times(sending), command, names);
        if nobody {
            return Ok(self.cast_of(&id, &record));
        }
        let spread = Spread::new(layout, &id, &record);
        let begun = spread.begun()?;
        let key = layout.cast(&id);
        let named = Value::from(Json(&record)).into_bytes(&key)?;
        let puts: Vec<_> = begun.into_iter().chain([(key, named)]).collect();
        let actor = session.actor();
        let mut pause = Backoff::between_attempts(&layout.client);
        loop {
            let lease = actor.grant_apart(self.kept(sending)).await?.id;
            let puts = puts.iter().cloned();
            let effect = Effect {
                then: puts
                    .map(|(key, value)| ops::put(key, value, Some(lease)))
                    .collect(),
                ..Effect::default()
            };
            match actor.apply(effect).await {
                Ok(Effected::Applied { .. }) => break,
                // No condition was given.
                Ok(Effected::Refused { .. }) => return Err(Error::Conflict),
                // Somebody revoked it. With another one then.
                Err(Error::Store(StoreError::LeaseNotFound)) => pause.pause().await,
                Err(error) => return Err(error),
            }
        }
        if let Err(error) = spread.finish().await {
            let why = format!("cast {id} was begun, and not sent to all yet: {error}");
            return Err(Error::OutcomeUnknown(why));
        }
        Ok(self.cast_of(&id, &record))
    }

    /// How long what is said of a cast is kept: until its jobs have ended, if they must, and then as long as they.
    fn kept(&self, sending: Sending) -> Duration {
        let until = sending.deadline.unwrap_or(CAST_RETENTION);
        let kept = until.saturating_add(self.retention.length());
        whole_seconds(kept.max(CAST_RETENTION_MIN))
    }
}

impl<C, R> Dispatcher<C, R> {
    fn cast_of(&self, id: &str, record: &CastRecord) -> Cast<R> {
        let jobs = record.jobs(id);
        Cast {
            layout: self.layout.clone(),
            id: id.to_owned(),
            revision: record.revision,
            jobs: jobs
                .map(|(name, job)| (name.clone(), self.job(job)))
                .collect(),
        }
    }

    /// A cast that was sent before, by whomever; `None` when there is none, it was for nobody, or it is not kept any
    /// more: from when it was sent, until its deadline, or for a week if it has none, then as long as a job that has
    /// ended, and an hour at least. One whose sender did not come to the end is sent to the rest of its recipients
    /// first; if the store refuses that for good, those have no job ([`Error::Removed`]).
    ///
    /// # Errors
    /// [`Error::Codec`]; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is half done when the future is dropped.
    pub async fn cast(&self, id: &str) -> Result<Option<Cast<R>>> {
        let Some(record) = named(&self.layout, id).await? else {
            return Ok(None);
        };
        if !record.is_sent()
            && let Err(error) = Spread::new(&self.layout, id, &record).finish().await
        {
            tracing::warn!(cast = id, %error, "not all recipients have got it");
        }
        Ok(Some(self.cast_of(id, &record)))
    }
}

/// A cast as it was written.
pub(super) async fn named(layout: &Layout, id: &str) -> Result<Option<CastRecord>> {
    let found = wait::read(&layout.client, ops::get(layout.cast(id))).await?;
    let record = found.kvs.first();
    record.map(|kv| from_json(&kv.key, &kv.value)).transpose()
}

/// Whose inbox is open, and at which revision, in the order of names.
async fn recipients(layout: &Layout) -> Result<(Revision, Vec<Recipient>)> {
    let mut listing = layout.client.watch(layout.here().range());
    let revision = listing.next().await?.revision;
    let mut open: Vec<_> = listing.known().values().collect();
    open.sort_unstable_by_key(|kv| kv.create_revision);
    let mut there: BTreeMap<String, Labels> = BTreeMap::new();
    for kv in open {
        let Some(instance) = layout.instance_of(&kv.key) else {
            continue;
        };
        let labels = there.entry(instance).or_default();
        match from_json::<HereRecord>(&kv.key, &kv.value) {
            Ok(record) => labels.extend(record.labels),
            Err(error) => tracing::warn!(%error, "nothing is known of an instance but its name"),
        }
    }
    let there = there.into_iter();
    let there = there.map(|(instance, labels)| Recipient { instance, labels });
    Ok((revision, there.collect()))
}

impl<R> fmt::Debug for Cast<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cast")
            .field("id", &self.id)
            .field("recipients", &self.jobs.len())
            .finish_non_exhaustive()
    }
}
