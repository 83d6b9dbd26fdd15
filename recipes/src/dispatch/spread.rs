//! How a cast comes to its recipients: as many as one transaction has room for at a time, in their order. Each
//! transaction compares how far it is, so that anybody may go on with it, several at once as well.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::TxnRequest;

use super::cast;
use super::record::{CastRecord, JobRecord, Layout, Target};
use crate::client::Client;
use crate::clock::Instant;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, LeaseId, Revision, decode};
use crate::kit::{Head, SegmentedLog};
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value, from_json};
use crate::wait::{self, Backoff};
use crate::watch::{Batch, Change};

/// How long, at most, a cast may stand still before an inbox looks after it; before it goes on with it, twice that.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a recipient takes of a transaction besides its command: keys, its job, and their envelopes, in bytes.
const RECIPIENT_BYTES: usize = 1_024;

/// The sending of one cast.
pub(super) struct Spread<'a> {
    layout: &'a Layout,
    id: &'a str,
    record: &'a CastRecord,
}

/// How far it is.
struct Far {
    /// To how many of its recipients it was sent.
    sent: usize,
    /// Since when, and the lease of that.
    at: Revision,
    lease: LeaseId,
}

/// Whom a part of it goes to.
struct Part<'a> {
    recipients: Vec<(Target, &'a str)>,
    logs: Vec<SegmentedLog>,
}

impl<'a> Spread<'a> {
    pub(super) fn new(layout: &'a Layout, id: &'a str, record: &'a CastRecord) -> Self {
        Self { layout, id, record }
    }

    /// What is written with the recipients' names.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the command is too large for one of them.
    pub(super) fn begun(&self) -> Result<Vec<(Key, Bytes)>> {
        if self.record.recipients.is_empty() {
            return Ok(Vec::new());
        }
        let limits = self.layout.client.store().capabilities();
        let bytes = self.recipient_bytes();
        if bytes > limits.max_request_bytes {
            return Err(Error::Invalid(format!(
                "a command that takes {bytes} bytes; the store takes {}",
                limits.max_request_bytes
            )));
        }
        let sent = self.layout.sent(self.id);
        let none = Value::from(Json(&0_usize)).into_bytes(&sent)?;
        Ok(vec![(self.unsent(), Bytes::new()), (sent, none)])
    }

    fn unsent(&self) -> Key {
        self.layout.unsent().child(self.id).itself()
    }

    fn recipient_bytes(&self) -> usize {
        let names = self.record.recipients.iter().map(String::len);
        // A name is part of two keys and of the record, each time perhaps in escapes.
        self.record.command.get().len() + 9 * names.max().unwrap_or(0) + RECIPIENT_BYTES
    }

    /// How many recipients one transaction has room for: two operations for each, and two of its own, as two at
    /// most of a read.
    fn most(&self) -> usize {
        let limits = self.layout.client.store().capabilities();
        let fit = limits.max_request_bytes / self.recipient_bytes();
        let operations = limits.max_txn_ops.saturating_sub(2) / 2;
        fit.min(operations).max(1)
    }

    /// Sends it to those that it was not sent to. Trouble with the store is waited out.
    pub(super) async fn finish(&self) -> Result<()> {
        let client = &self.layout.client;
        let jobs: Vec<(&String, String)> = self.record.jobs(self.id).collect();
        let mut pause = Backoff::contended(client);
        let mut from = 0;
        while from < jobs.len() {
            let to = jobs.len().min(from + self.most());
            let part = self.part(&jobs[from..to]);
            let Some((far, heads)) = self.look(&part).await? else {
                return Ok(());
            };
            if far.sent != from {
                from = far.sent;
                continue;
            }
            match self.send(&part, &heads, &far, to < jobs.len()).await? {
                true => from = to,
                false => pause.pause().await,
            }
        }
        Ok(())
    }

    fn part<'j>(&self, jobs: &'j [(&String, String)]) -> Part<'j> {
        let recipients: Vec<_> = jobs
            .iter()
            .map(|(name, job)| (Target::Instance((*name).clone()), job.as_str()))
            .collect();
        let logs = recipients.iter().map(|(to, _)| self.layout.log(to));
        Part {
            logs: logs.collect(),
            recipients,
        }
    }

    /// How far it is, and the heads of a part's inboxes; `None`: it was sent to all.
    async fn look(&self, part: &Part<'_>) -> Result<Option<(Far, Vec<Head>)>> {
        let heads = part.logs.iter().map(SegmentedLog::head_key);
        let keys = [self.layout.sent(self.id)].into_iter().chain(heads);
        let request = TxnRequest {
            success: keys.map(|key| ops::read(ops::get(key))).collect(),
            ..TxnRequest::default()
        };
        let (found, _) = wait::repeat(&self.layout.client, request).await?;
        let Some(sent) = ops::kvs(&found.responses, 0).first() else {
            return Ok(None);
        };
        let heads = part.logs.iter().enumerate().map(|(index, log)| {
            let head = log.head_of(ops::kvs(&found.responses, index + 1).first())?;
            log.learn(head);
            Ok(head)
        });
        let far = Far {
            sent: from_json(&sent.key, &sent.value)?,
            at: Revision(sent.mod_revision),
            lease: LeaseId(sent.lease),
        };
        let heads: Result<Vec<Head>> = heads.collect();
        Ok(Some((far, heads?)))
    }

    /// Sends a part of it, after which there are `more` or not. Returns whether it was this call that did.
    async fn send(&self, part: &Part<'_>, heads: &[Head], far: &Far, more: bool) -> Result<bool> {
        let sent = self.layout.sent(self.id);
        let mut compare = vec![Compare::mod_revision(&sent, far.at)];
        let mut success = match more {
            true => {
                let next = far.sent + part.recipients.len();
                let next = Value::from(Json(&next)).into_bytes(&sent)?;
                vec![ops::put(&sent, next, Some(far.lease))]
            }
            false => [&sent, &self.unsent()]
                .map(|key| ops::delete(KeyRange::one(key)))
                .into(),
        };
        let mut items = Vec::with_capacity(heads.len());
        for ((to, job), (log, head)) in part.recipients.iter().zip(part.logs.iter().zip(heads)) {
            let item = self.layout.item(to, job, &self.record.command)?;
            let queued = JobRecord::queued(to.clone(), head.segment, self.record.times);
            let key = self.layout.job(job);
            compare.push(log.is_head(*head));
            success.extend([
                ops::put(log.key(&queued.item(job)), item.clone(), None),
                ops::put(&key, queued.write(&key)?, None),
            ]);
            items.push(item);
        }
        let request = TxnRequest {
            compare: compare.into_iter().map(Into::into).collect(),
            success,
            failure: Vec::new(),
        };
        let (answer, _) = wait::repeat(&self.layout.client, request).await?;
        if answer.succeeded {
            for ((log, head), item) in part.logs.iter().zip(heads).zip(items) {
                log.appended(*head, &[item], None).await;
            }
        }
        Ok(answer.succeeded)
    }
}

/// Looks after casts that do not go on, because their senders are gone: until they have come to all recipients.
pub(super) async fn look_after(layout: Layout) {
    let mut pause = Backoff::between_attempts(&layout.client);
    loop {
        let Err(error) = look_after_until_refused(&layout).await;
        tracing::warn!(%error, "casts of senders that are gone wait");
        pause.pause().await;
    }
}

/// A cast that some recipients have not got yet.
struct Unsent {
    /// When it is looked at.
    due: Instant,
    /// How far it was when it was looked at before.
    seen: Option<Revision>,
}

async fn look_after_until_refused(layout: &Layout) -> Result<Infallible> {
    let client = &layout.client;
    let mut watcher = client.watch(layout.unsent().range());
    let mut unsent: BTreeMap<Key, Unsent> = BTreeMap::new();
    loop {
        let first = unsent.iter().min_by_key(|(_, cast)| cast.due);
        let Some((key, due)) = first.map(|(key, cast)| (key.clone(), cast.due)) else {
            note(client, &mut unsent, watcher.next().await?);
            continue;
        };
        match client.before(due, watcher.next()).await {
            Some(batch) => note(client, &mut unsent, batch?),
            None => go_on(layout, &mut unsent, &key).await?,
        }
    }
}

/// Takes in which casts there are.
fn note(client: &Client, unsent: &mut BTreeMap<Key, Unsent>, batch: Batch) {
    for change in batch.changes {
        match change {
            Change::Put { kv, .. } => {
                let due = client.deadline(client.jitter(PATIENCE));
                unsent.insert(kv.key.into(), Unsent { due, seen: None });
            }
            Change::Delete { key, .. } => drop(unsent.remove(&key)),
        }
    }
}

/// Goes on with a cast if it has stood still since it was looked at before.
async fn go_on(layout: &Layout, unsent: &mut BTreeMap<Key, Unsent>, key: &Key) -> Result<()> {
    let client = &layout.client;
    let named = layout.unsent().suffix(key.as_bytes()).and_then(decode);
    let (Some(id), Some(cast)) = (named, unsent.get_mut(key)) else {
        unsent.remove(key);
        return Ok(());
    };
    cast.due = client.deadline(client.jitter(PATIENCE));
    let found = wait::read(client, ops::get(layout.sent(&id))).await?;
    let at = found.kvs.first().map(|kv| Revision(kv.mod_revision));
    if at.is_some() && cast.seen != at {
        cast.seen = at;
        return Ok(());
    }
    if let (Some(_), Some(record)) = (at, cast::named(layout, &id).await?) {
        tracing::info!(cast = id, "goes on with a cast that stood still");
        Spread::new(layout, &id, &record).finish().await?;
    }
    unsent.remove(key);
    Ok(())
}
