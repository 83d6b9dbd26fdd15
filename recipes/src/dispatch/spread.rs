//! How a cast comes to its recipients: as many as one transaction has room for at a time, in their order. Each
//! transaction compares how far it is, so that anybody may go on with it, several at once as well.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use quorate_proto::etcdserverpb::TxnRequest;

use super::cast;
use super::record::{CastRecord, JobRecord, Layout, Target};
use crate::client::Client;
use crate::clock::Instant;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, LeaseId, Revision, decode};
use crate::kit::{Head, SegmentedLog};
use crate::store::StoreError;
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value, from_json};
use crate::wait::{self, Backoff};
use crate::watch::{Batch, Change};

/// How long, at most, a cast may stand still before an inbox looks after it; before it goes on with it, twice that.
const PATIENCE: Duration = Duration::from_secs(2);

/// A look whose answer took longer than this says nothing about who sends: the store was slow for all.
const PROMPT: Duration = Duration::from_millis(500);

/// What a recipient takes of a transaction besides its item and job: messages around them, in bytes.
const RECIPIENT_BYTES: usize = 256;

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
    /// None comes after it.
    is_last: bool,
}

/// What sending a part came to.
enum Step {
    /// It was this call that sent it.
    Sent,
    /// So many were sent before: it begins there.
    At(usize),
    /// Somebody else has sent it meanwhile, or an inbox has gone on to another segment.
    Refused,
}

impl<'a> Spread<'a> {
    pub(super) fn new(layout: &'a Layout, id: &'a str, record: &'a CastRecord) -> Self {
        Self { layout, id, record }
    }

    /// What is written with the recipients' names.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the command is too large for one of them.
    pub(super) fn begun(&self) -> Result<[(Key, Bytes); 2]> {
        self.most()?;
        let sent = self.layout.sent(self.id);
        let none = Value::from(Json(&0_usize)).into_bytes(&sent)?;
        Ok([(self.unsent(), Bytes::new()), (sent, none)])
    }

    fn unsent(&self) -> Key {
        self.layout.unsent().child(self.id).itself()
    }

    /// How many recipients one transaction has room for: two operations for each, and three of its own, as two of a
    /// read.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no room for one.
    fn most(&self) -> Result<usize> {
        let limits = self.layout.client.store().capabilities();
        let longest = self.record.recipients.iter().max_by_key(|name| name.len());
        let to = Target::Instance(longest.cloned().unwrap_or_default());
        let job = CastRecord::job(self.id, self.record.recipients.len());
        let command = self.record.command()?;
        let item = self.layout.item(&to, &job, command)?;
        let queued = JobRecord::queued(to.clone(), u64::MAX, self.record.times);
        let log = self.layout.log_of(&to);
        let keys = [
            log.key(&queued.item(&job)),
            self.layout.job(&job),
            log.head_key(),
        ];
        let job = queued.write(&keys[1])?;
        let keys: usize = keys.iter().map(|key| key.as_bytes().len()).sum();
        let bytes = item.len() + job.len() + keys + RECIPIENT_BYTES;
        // The last one writes the names once more.
        let rest = self.record.names_bytes() + 4_096;
        let fit = limits.max_request_bytes.saturating_sub(rest) / bytes;
        if fit == 0 {
            return Err(Error::Invalid(format!(
                "a command of {bytes} bytes and recipients' names of {rest}; the store takes {} in all",
                limits.max_request_bytes
            )));
        }
        Ok(fit.min(limits.max_txn_ops.saturating_sub(3) / 2).max(1))
    }

    /// Sends it to those that it was not sent to, whoever else does. Trouble with the store is waited out.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when the cast is not kept any more; the store's final refusals.
    pub(super) async fn finish(&self) -> Result<()> {
        let mut pause = Backoff::contended(&self.layout.client);
        let mut most = self.most()?;
        let mut from = 0;
        while from < self.record.recipients.len() {
            match self.part(&mut from, &mut most).await? {
                true => pause.reset(),
                false => pause.pause().await,
            }
        }
        Ok(())
    }

    /// Sends it to those that it was not sent to, for as long as nobody else does.
    async fn go_on(&self) -> Result<()> {
        let mut most = self.most()?;
        let mut from = 0;
        // The first look tells where to begin.
        let mut refused = 0;
        while from < self.record.recipients.len() && refused < 2 {
            refused = match self.part(&mut from, &mut most).await? {
                true => 0,
                false => refused + 1,
            };
        }
        Ok(())
    }

    /// Sends the part that begins `from` there, of at most so many; both are what they are for the next one then.
    /// Returns false when somebody else was faster.
    async fn part(&self, from: &mut usize, most: &mut usize) -> Result<bool> {
        let all = self.record.recipients.len();
        let to = all.min(*from + *most);
        let ids: Vec<String> = (*from..to).map(|n| CastRecord::job(self.id, n)).collect();
        let names = &self.record.recipients[*from..to];
        let recipients = names.iter().map(|name| Target::Instance(name.clone()));
        let recipients: Vec<_> = recipients.zip(ids.iter().map(String::as_str)).collect();
        let part = Part {
            logs: recipients
                .iter()
                .map(|(to, _)| self.layout.log_of(to))
                .collect(),
            recipients,
            is_last: to == all,
        };
        match self.look_and_send(&part, *from).await {
            Ok(Step::Sent) => *from = to,
            Ok(Step::At(sent)) => {
                *from = sent;
                return Ok(false);
            }
            Ok(Step::Refused) => return Ok(false),
            // The store takes less than it is known for.
            Err(Error::Store(StoreError::Invalid(why))) if to - *from > 1 => {
                tracing::debug!(cast = self.id, %why, "fewer recipients at a time");
                *most = (to - *from) / 2;
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    async fn look_and_send(&self, part: &Part<'_>, from: usize) -> Result<Step> {
        let Some((far, heads)) = self.look(part).await? else {
            return Ok(Step::At(self.record.recipients.len()));
        };
        if far.sent != from {
            return Ok(Step::At(far.sent));
        }
        Ok(match self.send(part, &heads, &far).await? {
            true => Step::Sent,
            false => Step::Refused,
        })
    }

    /// How far it is, and the heads of a part's inboxes; `None`: it was sent to all.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when the cast is not kept any more.
    async fn look(&self, part: &Part<'_>) -> Result<Option<(Far, Vec<Head>)>> {
        let key = self.layout.cast(self.id);
        let mut named = ops::get(&key);
        named.keys_only = true;
        let heads = part.logs.iter().map(|log| ops::get(log.head_key()));
        let reads = [named, ops::get(self.layout.sent(self.id))]
            .into_iter()
            .chain(heads);
        let request = TxnRequest {
            success: reads.map(ops::read).collect(),
            ..TxnRequest::default()
        };
        let (found, _) = wait::repeat(&self.layout.client, request).await?;
        let Some(sent) = ops::kvs(&found.responses, 1).first() else {
            return match ops::kvs(&found.responses, 0).is_empty() {
                true => Err(Error::OutcomeUnknown(format!("{key} is not kept any more"))),
                false => Ok(None),
            };
        };
        let heads = part.logs.iter().enumerate();
        let heads =
            heads.map(|(index, log)| log.head_of(ops::kvs(&found.responses, index + 2).first()));
        let far = Far {
            sent: from_json(&sent.key, &sent.value)?,
            at: Revision(sent.mod_revision),
            lease: LeaseId(sent.lease),
        };
        let heads: Result<Vec<Head>> = heads.collect();
        Ok(Some((far, heads?)))
    }

    /// Sends a part of it, if it is as far. Returns whether it is.
    async fn send(&self, part: &Part<'_>, heads: &[Head], far: &Far) -> Result<bool> {
        let sent = self.layout.sent(self.id);
        let mut compare = vec![Compare::mod_revision(&sent, far.at)];
        let mut success = match part.is_last {
            false => {
                let next = far.sent + part.recipients.len();
                let next = Value::from(Json(&next)).into_bytes(&sent)?;
                vec![ops::put(&sent, next, Some(far.lease))]
            }
            true => {
                let key = self.layout.cast(self.id);
                let done = Value::from(Json(self.record.sent())).into_bytes(&key)?;
                let gone = [&sent, &self.unsent()].map(|key| ops::delete(KeyRange::one(key)));
                [ops::put(&key, done, Some(far.lease))]
                    .into_iter()
                    .chain(gone)
                    .collect()
            }
        };
        let mut full = Vec::new();
        for ((to, job), (log, head)) in part.recipients.iter().zip(part.logs.iter().zip(heads)) {
            let item = self.layout.item(to, job, self.record.command()?)?;
            if log.closes_by_chance(item.len()) {
                full.push(log.roll(*head));
            }
            let queued = JobRecord::queued(to.clone(), head.segment, self.record.times);
            let key = self.layout.job(job);
            compare.push(log.is_head(*head));
            success.extend([
                ops::put(log.key(&queued.item(job)), item, None),
                ops::put(&key, queued.write(&key)?, None),
            ]);
        }
        let request = TxnRequest {
            compare: compare.into_iter().map(Into::into).collect(),
            success,
            failure: Vec::new(),
        };
        let (answer, _) = wait::repeat(&self.layout.client, request).await?;
        if !answer.succeeded {
            return Ok(false);
        }
        for rolled in join_all(full).await {
            if let Err(error) = rolled {
                tracing::debug!(cast = self.id, %error, "an inbox does not go on to its next segment");
            }
        }
        Ok(true)
    }
}

/// Looks after casts that do not go on, because their senders are gone: until they have come to all recipients.
pub(super) async fn look_after(layout: Layout) {
    let mut pause = Backoff::between_attempts(&layout.client);
    let mut told = false;
    loop {
        let Err(error) = look_after_until_refused(&layout).await;
        match std::mem::replace(&mut told, true) {
            false => tracing::warn!(%error, "casts of senders that are gone wait"),
            true => tracing::debug!(%error, "they still wait"),
        }
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

/// Until the store refuses for good to tell which casts there are.
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
            None => look_at(layout, &mut unsent, &key).await,
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
async fn look_at(layout: &Layout, unsent: &mut BTreeMap<Key, Unsent>, key: &Key) {
    let client = &layout.client;
    let named = layout.unsent().suffix(key.as_bytes()).and_then(decode);
    let (Some(id), Some(cast)) = (named, unsent.get_mut(key)) else {
        unsent.remove(key);
        return;
    };
    match has_stood_still(layout, &id, cast).await {
        Ok(true) => {}
        Ok(false) => {
            cast.due = client.deadline(client.jitter(PATIENCE));
            return;
        }
        Err(error) => {
            tracing::warn!(cast = id, %error, "nobody here goes on with a cast");
            unsent.remove(key);
            return;
        }
    }
    tracing::info!(cast = id, "goes on with a cast that stood still");
    let went_on = async {
        match cast::named(layout, &id).await? {
            Some(record) if !record.is_sent() => Spread::new(layout, &id, &record).go_on().await,
            _ => Ok(()),
        }
    };
    match went_on.await {
        Ok(()) => {
            cast.due = client.deadline(client.jitter(PATIENCE));
            cast.seen = None;
        }
        // It would be refused again.
        Err(error) => {
            tracing::warn!(cast = id, %error, "nobody here goes on with a cast");
            unsent.remove(key);
        }
    }
}

/// Whether a cast is as far as when it was looked at before.
async fn has_stood_still(layout: &Layout, id: &str, cast: &mut Unsent) -> Result<bool> {
    let asked = layout.client.moment();
    let found = wait::read(&layout.client, ops::get(layout.sent(id))).await?;
    let at = found.kvs.first().map(|kv| Revision(kv.mod_revision));
    let before = std::mem::replace(&mut cast.seen, at);
    let prompt = asked.elapsed(&**layout.client.clock()) < PROMPT;
    Ok(prompt && at.is_some() && before == at)
}
