//! Appending to a log, and rolling it on to the next segment.

use std::sync::{MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, ResponseOp, TxnRequest, response_op::Response};

use super::{Head, ItemId, Known, Record, SegmentedLog};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::register::read;
use crate::session::{Effect, Effected, LANE_OPS, Session};
use crate::store::{ops, ops::Compare};
use crate::value::{Json, V1, Value};
use crate::wait::{self, Backoff};

/// What an append needs besides one operation an item: the compare and the read of the head, or the count.
const APPEND_OPS: usize = 1;

/// Bytes of items after which a segment is full, however few they are: who reads a segment has all of it in
/// memory.
const SEGMENT_BYTES: usize = 4 * 1_024 * 1_024;

/// What an item's key costs of a request's bytes, about.
const KEY_BYTES: usize = 160;

/// Items to be appended in one transaction, in this order, and what is done in it besides.
#[derive(Debug, Clone, Default)]
pub struct Append {
    /// The items; at least one.
    pub items: Vec<Bytes>,
    /// Conditions, done and read besides.
    pub besides: Effect,
}

/// What became of an [`Append`].
#[derive(Debug)]
pub enum Appended {
    /// The items are in the log.
    Done {
        /// Their ids, in order.
        ids: Vec<ItemId>,
        /// The revision at which they were committed.
        revision: Revision,
    },
    /// A condition besides did not hold; nothing was written.
    Refused {
        /// The answers to `besides.otherwise`.
        responses: Vec<ResponseOp>,
    },
}

/// What became of a roll.
#[derive(Debug)]
pub enum Rolled {
    /// The segment is closed, and what was to be done besides is done.
    Done {
        /// The segment that is appended to from now on.
        head: Head,
        /// The answers to `besides.then`.
        responses: Vec<ResponseOp>,
    },
    /// The segment was not the head any more; nothing was written.
    Moved(Head),
    /// A condition besides did not hold; nothing was written.
    Refused {
        /// The answers to `besides.otherwise`.
        responses: Vec<ResponseOp>,
    },
}

impl SegmentedLog {
    /// How many of `items`, from the first on, fit into one transaction with so much besides; at least one.
    #[must_use]
    pub fn fitting(&self, items: &[Bytes], besides: &Effect) -> usize {
        let limits = self.client.store().capabilities();
        let other = besides.then.len().max(besides.when.len());
        let most = limits
            .max_txn_ops
            .saturating_sub(APPEND_OPS + LANE_OPS + other);
        // The rest is for what is besides, and for the envelope.
        let room = limits.max_request_bytes / 10 * 9;
        let mut bytes = 0;
        let fits = items.iter().take(most).take_while(|item| {
            bytes += item.len() + KEY_BYTES;
            bytes <= room
        });
        fits.count().max(1)
    }

    /// Appends exactly once, through a lane of the session. Costs one round trip; one more when the segment
    /// was full, or another than this handle knew.
    ///
    /// # Errors
    /// [`Error::Invalid`] without items, or for a session of another store; [`Error::Codec`] when the
    /// head's key is damaged; else as [`Lane::apply`](crate::kit::Lane::apply).
    ///
    /// # Cancel safety
    /// An unknown outcome: what is on its way ends by itself, once or not at all.
    pub async fn append(&self, session: &Session, append: &Append) -> Result<Appended> {
        session.belongs_to(&self.client)?;
        check(append)?;
        let batch = self.client.nonce();
        let mut pause = Backoff::contended(&self.client);
        loop {
            let head = self.head(Some(session)).await?;
            let effect = self.effect(head, &batch, append);
            match session.actor().apply(effect).await? {
                Effected::Applied {
                    revision,
                    responses,
                } => {
                    let live = responses.and_then(|found| count(&found, append.items.len()));
                    self.appended(head, &append.items, live).await;
                    let ids = ids(head, &batch, append);
                    return Ok(Appended::Done { ids, revision });
                }
                Effected::Refused { responses, .. } => {
                    if let Some(responses) = self.refused(head, responses)? {
                        return Ok(Appended::Refused { responses });
                    }
                }
            }
            pause.pause().await;
        }
    }

    /// As [`SegmentedLog::append`], without a session and at least once: after a lost answer it is sent
    /// again, and a copy that comes late may append the items once more, when those were deleted meanwhile.
    ///
    /// # Errors
    /// [`Error::Invalid`] without items; [`Error::Codec`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// An unknown outcome.
    pub async fn append_at_least_once(&self, append: &Append) -> Result<Appended> {
        check(append)?;
        let batch = self.client.nonce();
        let mut pause = Backoff::contended(&self.client);
        let mut tried: Vec<Head> = Vec::new();
        loop {
            let head = self.head(None).await?;
            let effect = self.effect(head, &batch, append);
            let request = TxnRequest {
                compare: effect.when.into_iter().map(Into::into).collect(),
                success: effect.then,
                failure: effect.otherwise,
            };
            let (answer, repeated) = wait::repeat(&self.client, request).await?;
            let revision = Revision(answer.header.map_or(0, |header| header.revision));
            if answer.succeeded {
                let live = count(&answer.responses, append.items.len());
                self.appended(head, &append.items, live).await;
                let ids = ids(head, &batch, append);
                return Ok(Appended::Done { ids, revision });
            }
            if repeated {
                tried.push(head);
            }
            // A copy of before may have been applied, and then another one finds the segment gone.
            for head in &tried {
                let ids = ids(*head, &batch, append);
                if let Some(kv) = read(&self.client, &self.key(&ids[0]), None).await? {
                    let revision = Revision(kv.create_revision);
                    return Ok(Appended::Done { ids, revision });
                }
            }
            if let Some(responses) = self.refused(head, answer.responses)? {
                return Ok(Appended::Refused { responses });
            }
            pause.pause().await;
        }
    }

    fn effect(&self, head: Head, batch: &str, append: &Append) -> Effect {
        let ids = ids(head, batch, append);
        let puts = ids.iter().zip(&append.items);
        let puts = puts.map(|(id, item)| ops::put(self.key(id), item.clone(), None));
        let live = ops::counting(self.segment(head.segment));
        let besides = &append.besides;
        let is_head = Compare::mod_revision(self.head_key(), head.since);
        let read_head = ops::read(ops::get(self.head_key()));
        let then: Vec<RequestOp> = puts
            .chain([ops::read(live)])
            .chain(besides.then.iter().cloned())
            .collect();
        Effect {
            when: [is_head]
                .into_iter()
                .chain(besides.when.iter().cloned())
                .collect(),
            then,
            otherwise: [read_head]
                .into_iter()
                .chain(besides.otherwise.iter().cloned())
                .collect(),
        }
    }

    /// The segment to append to, as last known, or as the store has it.
    pub(crate) async fn head(&self, session: Option<&Session>) -> Result<Head> {
        if let Some(known) = *self.known() {
            return Ok(known.head);
        }
        let found = read(&self.client, &self.head_key(), session).await?;
        let head = self.head_of(found.as_ref())?;
        Ok(self.learn(head))
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the head anew before it is used again.
    pub(crate) fn forget(&self) {
        *self.known() = None;
    }

    /// Notes the head as an answer had it. Returns what is known now: another task may have learnt of a
    /// later one meanwhile.
    pub(crate) fn learn(&self, head: Head) -> Head {
        let mut known = self.known();
        let now = known.filter(|known| known.head.since >= head.since);
        let now = now.unwrap_or(Known::new(head));
        *known = Some(now);
        now.head
    }

    /// What a refusal says: the answers of the reads besides, if it was a condition besides that did not
    /// hold; `None` when the segment was another one.
    pub(super) fn refused(
        &self,
        sent: Head,
        mut responses: Vec<ResponseOp>,
    ) -> Result<Option<Vec<ResponseOp>>> {
        let head = self.head_of(ops::kvs(&responses, 0).first())?;
        if head == sent {
            return Ok(Some(responses.split_off(1)));
        }
        if head.since < sent.since {
            // The key was deleted, or the store put back: what is known is of no use.
            *self.known() = None;
        }
        self.learn(head);
        Ok(None)
    }

    /// Notes an append, and rolls on if the segment is full: of items that are there, or of those that this
    /// handle has put there, since what was deleted costs the store's readers as well. Items of others are
    /// taken to be as large as its own.
    pub(crate) async fn appended(&self, head: Head, items: &[Bytes], live: Option<usize>) {
        if !self.rolls {
            return;
        }
        let full = {
            let mut known = self.known();
            let Some(now) = known.as_mut().filter(|known| known.head == head) else {
                return;
            };
            now.appended += items.len();
            now.bytes += items.iter().map(Bytes::len).sum::<usize>();
            let all = live.unwrap_or(0).max(now.appended);
            all >= self.segment_items || all * (now.bytes / now.appended) >= SEGMENT_BYTES
        };
        if full && let Err(error) = self.roll(head).await {
            // The next append finds it full too.
            tracing::debug!(log = self.space.prefix(), %error, "not rolled on to the next segment");
        }
    }

    /// Whether an item of so many bytes is to close the segment that it comes into, for who appends to so many logs
    /// that nobody counts what there is in each, nor what was taken since: one of as many as fill a segment, by chance.
    pub(crate) fn closes_by_chance(&self, bytes: usize) -> bool {
        let items = self.segment_items.min(SEGMENT_BYTES / bytes.max(1)).max(1);
        self.client.random().is_multiple_of(items as u64)
    }

    /// Closes a segment, if it is the head as given: names the next one. A copy that comes late changes
    /// nothing.
    ///
    /// # Errors
    /// The store's. May have been done then.
    pub async fn roll(&self, head: Head) -> Result<Head> {
        Ok(match self.roll_with(head, Effect::default()).await? {
            Rolled::Done { head, .. } | Rolled::Moved(head) => head,
            // There is no condition besides.
            Rolled::Refused { .. } => head,
        })
    }

    /// As [`SegmentedLog::roll`], with conditions, and what is done in the same transaction: everything in the
    /// segment is committed before, and nothing can come into it later. A copy that comes late changes
    /// nothing.
    ///
    /// # Errors
    /// The store's. May have been done then.
    pub async fn roll_with(&self, head: Head, besides: Effect) -> Result<Rolled> {
        let key = self.head_key();
        let segment = head.segment + 1;
        let value = Value::from(Json(Record { v: V1, segment })).into_bytes(&key)?;
        let when = [Compare::mod_revision(&key, head.since)];
        let when = when.into_iter().chain(besides.when).map(Into::into);
        let then = [ops::put(&key, value, None)];
        let request = TxnRequest {
            compare: when.collect(),
            success: then.into_iter().chain(besides.then).collect(),
            failure: [ops::read(ops::get(&key))]
                .into_iter()
                .chain(besides.otherwise)
                .collect(),
        };
        let mut answer = self.client.store().txn(request).await?;
        if answer.succeeded {
            let since = Revision(answer.header.map_or(0, |header| header.revision));
            let head = Head { segment, since };
            self.learn(head);
            let responses = answer.responses.split_off(1);
            return Ok(Rolled::Done { head, responses });
        }
        match self.refused(head, answer.responses)? {
            Some(responses) => Ok(Rolled::Refused { responses }),
            None => Ok(Rolled::Moved(self.head(None).await?)),
        }
    }
}

fn check(append: &Append) -> Result<()> {
    if append.items.is_empty() {
        return Err(Error::Invalid("an append of nothing".to_owned()));
    }
    Ok(())
}

fn ids(head: Head, batch: &str, append: &Append) -> Vec<ItemId> {
    let each = 0..append.items.len();
    each.map(|index| ItemId::of_batch(head.segment, batch, index))
        .collect()
}

/// How many items the segment has, which was read after so many puts.
fn count(responses: &[ResponseOp], puts: usize) -> Option<usize> {
    match responses.get(puts)?.response.as_ref()? {
        Response::ResponseRange(range) => usize::try_from(range.count).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::keys::KeySpace;
    use crate::store::faulty::Fault;
    use crate::store::{Counting, Faulty, MemStore};

    fn of(items: &[&str]) -> Append {
        let items = items
            .iter()
            .map(|item| Bytes::copy_from_slice(item.as_bytes()));
        Append {
            items: items.collect(),
            ..Append::default()
        }
    }

    fn log(client: &Client) -> SegmentedLog {
        SegmentedLog::new(client.clone(), KeySpace::of("log", "l"))
    }

    /// The items in the order of their positions.
    async fn items(client: &Client) -> Vec<String> {
        let log = log(client);
        let (_, kvs) = client.list(log.range(0, None)).await.unwrap();
        let mut found: Vec<_> = kvs
            .iter()
            .map(|kv| (log.position(kv).unwrap(), kv))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let text =
            |kv: &quorate_proto::mvccpb::KeyValue| String::from_utf8(kv.value.to_vec()).unwrap();
        found.into_iter().map(|(_, kv)| text(kv)).collect()
    }

    fn done(appended: Appended) -> Vec<ItemId> {
        match appended {
            Appended::Done { ids, .. } => ids,
            Appended::Refused { .. } => panic!("refused"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn order_is_that_of_commits_whoever_appends() {
        let client = Client::new(MemStore::new());
        let session = client.session().await.unwrap();
        let (one, two) = (
            log(&client).with_segment_items(3),
            log(&client).with_segment_items(3),
        );
        let mut expected = Vec::new();
        for n in 0..10 {
            let by = if n % 3 == 0 { &one } else { &two };
            let batch = [format!("{n}a"), format!("{n}b")];
            let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
            done(by.append(&session, &of(&batch)).await.unwrap());
            expected.extend(batch.iter().map(|item| (*item).to_owned()));
        }
        assert_eq!(items(&client).await, expected);
        let head = log(&client).head(None).await.unwrap();
        assert!(head.segment >= 5, "{head:?}");
        let last = head.segment;
        assert_eq!(one.first_with_items(0, last).await.unwrap(), Some(0));
        assert_eq!(one.first_with_items(last + 1, last).await.unwrap(), None);
        // Over any number of empty ones, and not beyond the last.
        let full = last - 1;
        let before = client.txn().delete_range(one.range(0, Some(full)));
        before.commit().await.unwrap();
        assert_eq!(one.first_with_items(0, last).await.unwrap(), Some(full));
        assert_eq!(one.first_with_items(0, full - 1).await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn large_items_fill_a_segment_sooner() {
        let client = Client::new(MemStore::new());
        let session = client.session().await.unwrap();
        let (one, two) = (log(&client), log(&client));
        let large = Append {
            items: vec![Bytes::from(vec![0; SEGMENT_BYTES / 8])],
            ..Append::default()
        };
        for _ in 0..8 {
            for by in [&one, &two] {
                done(by.append(&session, &large).await.unwrap());
            }
        }
        // Neither has put as much there as fills one.
        let head = log(&client).head(None).await.unwrap();
        assert_eq!(head.segment, 2, "{head:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_append_is_one_round_trip() {
        let counting = Counting::new(MemStore::new());
        let client = Client::new(counting.clone());
        let session = client.session().await.unwrap();
        let log = log(&client).with_segment_items(50);
        log.append(&session, &of(&["first"])).await.unwrap();
        let before = counting.counts();
        for _ in 0..100 {
            log.append(&session, &of(&["x"])).await.unwrap();
        }
        let used = counting.counts() - before;
        assert_eq!((used.txn, used.range), (102, 0), "two of them roll on");
    }

    #[tokio::test(start_paused = true)]
    async fn lost_answers_append_once_with_a_session() {
        let faulty = Faulty::new(MemStore::new());
        let client = Client::builder(faulty.clone()).seed(3).build();
        let session = client.session().await.unwrap();
        let log = log(&client);
        log.append(&session, &of(&["0"])).await.unwrap();
        let mut expected = vec!["0".to_owned()];
        for (n, plan) in [
            vec![Fault::Late],
            vec![Fault::Unanswered],
            vec![Fault::Late, Fault::Unanswered, Fault::Late],
        ]
        .into_iter()
        .enumerate()
        {
            faulty.plan("quorate/lane/", plan);
            let name = format!("n{n}");
            let ids = done(log.append(&session, &of(&[&name])).await.unwrap());
            // Taken out at once: a late copy must not put it back.
            if n == 0 {
                assert!(client.delete(log.key(&ids[0])).await.unwrap());
            } else {
                expected.push(name);
            }
            faulty.deliver().await;
            assert_eq!(items(&client).await, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_session_a_lost_answer_is_looked_up() {
        let faulty = Faulty::new(MemStore::new());
        let client = Client::builder(faulty.clone()).seed(3).build();
        let (one, two) = (log(&client).with_segment_items(1), log(&client));
        for plan in [
            vec![Fault::Unanswered],
            vec![Fault::Unanswered, Fault::Unanswered],
        ] {
            faulty.plan("quorate/log/", plan);
            done(one.append_at_least_once(&of(&["x"])).await.unwrap());
        }
        done(two.append_at_least_once(&of(&["y"])).await.unwrap());
        assert_eq!(items(&client).await, ["x", "x", "y"]);
    }

    #[tokio::test(start_paused = true)]
    async fn conditions_besides_refuse_it_with_what_was_read() {
        let client = Client::new(MemStore::new());
        let session = client.session().await.unwrap();
        let one = log(&client).with_segment_items(1);
        done(one.append(&session, &of(&["a"])).await.unwrap());
        client.put("gate", "closed").await.unwrap();
        let mut append = of(&["b"]);
        append.besides.when = vec![Compare::absent("gate")];
        append.besides.otherwise = vec![ops::read(ops::get("gate"))];
        // Also by a handle that knows no segment, or an old one.
        for log in [one, log(&client)] {
            let refused = [
                log.append(&session, &append).await.unwrap(),
                log.append_at_least_once(&append).await.unwrap(),
            ];
            for refused in refused {
                let Appended::Refused { responses } = refused else {
                    panic!("{refused:?}");
                };
                assert_eq!(ops::kvs(&responses, 0)[0].value, "closed");
            }
        }
        assert_eq!(items(&client).await, ["a"]);
        assert!(matches!(
            log(&client).append(&session, &Append::default()).await,
            Err(Error::Invalid(_))
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_fits_the_stores_limits() {
        let client = Client::new(MemStore::new());
        let log = log(&client);
        let limits = client.store().capabilities();
        let small = vec![Bytes::from_static(b"x"); 1_000];
        let count = log.fitting(&small, &Effect::default());
        assert_eq!(count, limits.max_txn_ops - APPEND_OPS - LANE_OPS);
        let session = client.session().await.unwrap();
        let append = Append {
            items: small[..count].to_vec(),
            ..Append::default()
        };
        assert_eq!(
            done(log.append(&session, &append).await.unwrap()).len(),
            count
        );
        let large = vec![Bytes::from(vec![0; limits.max_request_bytes / 3]); 10];
        assert_eq!(log.fitting(&large, &Effect::default()), 2);
        let huge = vec![Bytes::from(vec![0; 2 * limits.max_request_bytes])];
        assert_eq!(
            log.fitting(&huge, &Effect::default()),
            1,
            "the store refuses it"
        );
    }
}
