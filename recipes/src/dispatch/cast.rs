//! One command for all that are there: a job for each, sent in one transaction to exactly those whose inbox is
//! open at its revision.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use futures::future::try_join_all;
use quorate_proto::etcdserverpb::TxnRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{CastRecord, Ended, Layout, Target};
use super::{Dispatcher, Job, Sending};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::kit::{Head, ItemId, SegmentedLog};
use crate::session::{Effect, Effected, Session};
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value, from_json};
use crate::wait::{self, Backoff};

/// The jobs of one command that was sent to many. A handle: holds nothing.
pub struct Cast<R> {
    id: String,
    jobs: Vec<(String, Job<R>)>,
}

impl<R> Cast<R> {
    /// The id, by which any process finds it again: see [`Dispatcher::cast`].
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The job of each recipient, by the instance's name, in the order of names.
    #[must_use]
    pub fn jobs(&self) -> &[(String, Job<R>)] {
        &self.jobs
    }

    /// Asks for the end of all of them. As [`Job::cancel`].
    ///
    /// # Errors
    /// As [`Job::cancel`]; some may be asked by then.
    ///
    /// # Cancel safety
    /// As [`Job::cancel`].
    pub async fn cancel(&self) -> Result<()> {
        try_join_all(self.jobs.iter().map(|(_, job)| job.cancel())).await?;
        Ok(())
    }
}

impl<R: DeserializeOwned> Cast<R> {
    /// Waits until all have ended. As [`Job::wait`].
    ///
    /// # Errors
    /// As [`Job::wait`], the first of any job.
    ///
    /// # Cancel safety
    /// Nothing is held.
    pub async fn wait(&self) -> Result<Vec<(String, Ended<R>)>> {
        let each = self.jobs.iter().map(async |(name, job)| {
            let ended = job.wait().await?;
            Ok::<_, Error>((name.clone(), ended))
        });
        try_join_all(each).await
    }
}

/// Who is there, at one revision.
struct Recipients {
    revision: Revision,
    names: BTreeSet<String>,
}

impl<C: Serialize, R> Dispatcher<C, R> {
    /// Sends a command to all instances that `selected` picks of those whose inbox is open, in one
    /// transaction: the recipients are exactly those at its revision. Returns a job for each, possibly none.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are more recipients than one transaction of the store has room for, or
    /// the session is of another store; else as [`Dispatcher::send_with`].
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: to all, or to nobody.
    pub async fn send_all(
        &self,
        session: &Session,
        selected: impl Fn(&str) -> bool + Send + Sync,
        command: &C,
        sending: Sending,
    ) -> Result<Cast<R>> {
        let layout = &self.layout;
        session.belongs_to(&layout.client)?;
        let id = layout.client.nonce();
        let command = self.raw(&id, command)?;
        let lease = session.actor().grant_apart(self.kept(sending)).await?;
        let mut pause = Backoff::contended(&layout.client);
        loop {
            let there = recipients(layout, &selected).await?;
            let names: Vec<&String> = there.names.iter().collect();
            let heads = heads(layout, &names).await?;
            let jobs: Vec<(String, String)> = names
                .iter()
                .enumerate()
                .map(|(index, name)| ((*name).clone(), format!("{id}.{index:04x}")))
                .collect();
            let key = layout.cast(&id);
            let record = Value::from(Json(CastRecord::new(jobs.clone()))).into_bytes(&key)?;
            let here = layout.here().range();
            let mut effect = Effect {
                // Nobody has come since, and whoever is written to has not gone.
                when: vec![Compare::unwritten_since(here, there.revision)],
                then: vec![ops::put(&key, record, Some(lease.id))],
                otherwise: Vec::new(),
            };
            let mut placed = Vec::with_capacity(jobs.len());
            for ((name, job), (log, head)) in jobs.iter().zip(heads) {
                let target = Target::Instance(name.clone());
                let item = self.item(&target, job, &command)?;
                let job_key = layout.job(job);
                let queued = self.queued(&target, head.segment, sending);
                let open = layout.here().child(name).range();
                effect
                    .when
                    .extend([log.is_head(head), Compare::occupied(open)]);
                effect.then.extend([
                    ops::put(
                        log.key(&ItemId::named(head.segment, job)),
                        item.clone(),
                        None,
                    ),
                    ops::put(&job_key, queued.write(&job_key)?, None),
                ]);
                placed.push((log, head, item));
            }
            if let Effected::Applied { .. } = session.actor().apply(effect).await? {
                for (log, head, item) in placed {
                    log.appended(head, &[item], None).await;
                }
                return Ok(self.cast_of(id, jobs));
            }
            pause.pause().await;
        }
    }

    /// How long what is said of a cast is kept: until its jobs have ended, if they must, and then as long as they.
    fn kept(&self, sending: Sending) -> Duration {
        let until = sending.deadline.unwrap_or(CAST_RETENTION);
        until.saturating_add(self.retention)
    }
}

/// How long what is said of a cast without a deadline is kept, besides the retention of jobs.
const CAST_RETENTION: Duration = Duration::from_secs(7 * 86_400);

impl<C, R> Dispatcher<C, R> {
    fn cast_of(&self, id: String, jobs: Vec<(String, String)>) -> Cast<R> {
        let jobs = jobs.into_iter();
        let jobs = jobs.map(|(name, job)| (name, self.job(job))).collect();
        Cast { id, jobs }
    }

    /// A cast that was sent before, by whomever; `None` when there is none, or it is not kept any more: a week
    /// longer than its jobs if they have no deadline.
    ///
    /// # Errors
    /// [`Error::Codec`]; the store's final refusals. Trouble with the store is waited out.
    pub async fn cast(&self, id: &str) -> Result<Option<Cast<R>>> {
        let key = self.layout.cast(id);
        let found = wait::read(&self.layout.client, ops::get(&key)).await?;
        let Some(kv) = found.kvs.first() else {
            return Ok(None);
        };
        let record: CastRecord = from_json(&kv.key, &kv.value)?;
        Ok(Some(self.cast_of(id.to_owned(), record.jobs)))
    }
}

async fn recipients(layout: &Layout, selected: impl Fn(&str) -> bool) -> Result<Recipients> {
    let mut here = ops::range(layout.here().range());
    here.keys_only = true;
    let found = wait::read(&layout.client, here).await?;
    let names = found.kvs.iter();
    let names = names.filter_map(|kv| layout.instance_of(&kv.key));
    Ok(Recipients {
        revision: Revision(found.header.map_or(0, |header| header.revision)),
        names: names.filter(|name| selected(name)).collect(),
    })
}

/// The heads of these instances' inboxes, in the same order.
async fn heads(layout: &Layout, names: &[&String]) -> Result<Vec<(SegmentedLog, Head)>> {
    let most = layout.client.store().capabilities().max_txn_ops;
    // A read of each head; two compares and two operations for each, and those of the cast and the lane.
    let room = most.saturating_sub(2) / 2;
    if names.len() > room {
        return Err(Error::Invalid(format!(
            "{} recipients; one transaction has room for {room}",
            names.len()
        )));
    }
    let targets = names.iter().map(|name| Target::Instance((*name).clone()));
    let logs: Vec<_> = targets.map(|target| layout.log(&target)).collect();
    let reads = logs.iter().map(|log| ops::read(ops::get(log.head_key())));
    let request = TxnRequest {
        success: reads.collect(),
        ..TxnRequest::default()
    };
    if logs.is_empty() {
        return Ok(Vec::new());
    }
    let (found, _) = wait::repeat(&layout.client, request).await?;
    let each = logs.into_iter().enumerate();
    each.map(|(index, log)| {
        let head = log.head_of(ops::kvs(&found.responses, index).first())?;
        log.learn(head);
        Ok((log, head))
    })
    .collect()
}

impl<R> fmt::Debug for Cast<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cast")
            .field("id", &self.id)
            .field("recipients", &self.jobs.len())
            .finish_non_exhaustive()
    }
}
