//! Taking what has passed a gate all together: one taker has a batch, and only that one ends it.

use std::fmt;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::mvccpb::event::EventType;
use serde::de::DeserializeOwned;

use super::look::Looker;
use super::record::{AttemptsRecord, Gate, Layout, Task};
use crate::error::{Error, LostReason, Result, TxnError};
use crate::keys::{KeyRange, Revision, decode};
use crate::kit::{Claim, Claimed};
use crate::lock::{ContenderRecord, Fence, Fenced, Hold};
use crate::queue::{Gated, read_item};
use crate::session::{Lost, Session};
use crate::store::ops::{self, Compare};
use crate::txn::Txn;
use crate::value::{Json, Value};
use crate::wait::{self, Backoff};

/// How many open gates are read at a time.
const PAGE: i64 = 64;

/// All tasks that passed a gate, in the order in which they joined. Nobody else has them as long as the
/// session lives; dropping it gives them back, to the next taker.
#[must_use = "a dropped batch is given back"]
pub struct Batch<T> {
    gate: Gate,
    tasks: Vec<Task<T>>,
    attempt: u32,
    layout: Layout,
    gated: Gated,
    /// `None` once it is done.
    hold: Option<Hold>,
    fence: Fence,
}

/// An open gate whose batch nobody has.
struct Free {
    epoch: u64,
    kv: KeyValue,
    /// What says how often it was taken.
    attempts: Option<KeyValue>,
}

impl Looker {
    /// Waits for a gate to open, and takes the batch.
    pub(super) async fn take<T: DeserializeOwned>(
        &self,
        session: &Session,
        gated: &Gated,
    ) -> Result<Batch<T>> {
        let mut pause = Backoff::between_attempts(&self.layout.client);
        loop {
            let look = self.look().await?;
            let (mut look, free) = (look, self.free().await?);
            match free {
                (_, Some(free)) => {
                    if let Some(batch) = self.claim(session, free, gated).await? {
                        return Ok(batch);
                    }
                }
                (revision, None) => {
                    look.revision = look.revision.min(revision);
                    let also = [
                        (self.layout.gates().range(), EventType::Put),
                        (self.layout.claims().range(), EventType::Delete),
                    ];
                    self.wait(&look, &also, &mut pause).await?;
                }
            }
        }
    }

    /// The first open gate whose batch nobody has, and the revision of that.
    async fn free(&self) -> Result<(Revision, Option<Free>)> {
        let (gates, claims) = (self.layout.gates(), self.layout.claims());
        let attempts = self.layout.all_attempts();
        let mut from = gates.range();
        loop {
            let mut page = ops::range(from.clone());
            page.limit = PAGE;
            let mut taken = ops::range(claims.range());
            taken.keys_only = true;
            let request = TxnRequest {
                success: vec![
                    ops::read(page),
                    ops::read(taken),
                    ops::read(ops::range(attempts.range())),
                ],
                ..TxnRequest::default()
            };
            let (answer, _) = wait::repeat(&self.layout.client, request).await?;
            let revision = Revision(answer.header.map_or(0, |header| header.revision));
            let epoch = |space, kv: &KeyValue| Layout::epoch_of(space, &kv.key);
            let taken = ops::kvs(&answer.responses, 1).iter();
            let taken: Vec<u64> = taken.filter_map(|kv| epoch(&claims, kv)).collect();
            let found = ops::kvs(&answer.responses, 0);
            let tried = ops::kvs(&answer.responses, 2);
            let mut open = found.iter().filter_map(|kv| {
                let of = epoch(&gates, kv)?;
                let attempts = tried.iter().find(|kv| epoch(&attempts, kv) == Some(of));
                Some(Free {
                    epoch: of,
                    kv: kv.clone(),
                    attempts: attempts.cloned(),
                })
            });
            let free = open.find(|gate| !taken.contains(&gate.epoch));
            let full = i64::try_from(found.len()).is_ok_and(|found| found == PAGE);
            match found.last() {
                Some(last) if free.is_none() && full => {
                    from.start = [&last.key[..], &[0]].concat().into();
                }
                _ => return Ok((revision, free)),
            }
        }
    }

    async fn claim<T: DeserializeOwned>(
        &self,
        session: &Session,
        free: Free,
        gated: &Gated,
    ) -> Result<Option<Batch<T>>> {
        let layout = &self.layout;
        let gate = Gate::of(free.epoch, &free.kv)?;
        let key = layout.claim(gate.epoch);
        let record = ContenderRecord::of(session, "");
        let record = record.with_nonce(layout.client.nonce());
        let mut claim = Claim::of(key.clone(), Value::from(Json(record)).into_bytes(&key)?);
        let attempts = layout.attempts(gate.epoch);
        let before = free.attempts.as_ref().map_or(0, AttemptsRecord::count_of);
        let counted_at = free.attempts.as_ref().map_or(0, |kv| kv.mod_revision);
        let attempt = before.saturating_add(1);
        claim.when = vec![
            Compare::create_revision(layout.gate(gate.epoch), gate.revision),
            Compare::mod_revision(&attempts, Revision(counted_at)),
        ];
        claim.also = vec![AttemptsRecord::put(&attempts, attempt)?];
        // Until it is in the user's hands, the attempt is none.
        claim.when_released = vec![match before {
            0 => ops::delete(KeyRange::one(&attempts)),
            _ => AttemptsRecord::put(&attempts, before)?,
        }];
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(claim).await });
        let Claimed::Made { owned, .. } = claimed.await? else {
            return Ok(None);
        };
        let contenders = vec![KeyRange::one(owned.key())];
        let mut hold = Hold::new(session.clone(), owned, contenders);
        // Whoever lost the batch meanwhile, and is not told yet, would else be given what another one has left of it.
        let Some(tasks) = listed(layout, &gate).await? else {
            return Ok(None);
        };
        hold.nothing_when_released();
        Ok(Some(Batch {
            gate,
            tasks,
            attempt,
            layout: layout.clone(),
            gated: gated.clone(),
            fence: hold.fence().clone(),
            hold: Some(hold),
        }))
    }
}

/// The tasks that have passed a gate, in the order in which they joined; `None` when it is gone. Trouble with the
/// store is waited out.
pub(super) async fn listed<T: DeserializeOwned>(
    layout: &Layout,
    gate: &Gate,
) -> Result<Option<Vec<Task<T>>>> {
    let (_, mut kvs) = wait::list(&layout.client, layout.log.segment(gate.epoch)).await?;
    // They go together with it: as long as it is there, they all were.
    let kept = wait::read(&layout.client, ops::get(layout.gate(gate.epoch))).await?;
    let kept = kept.kvs.first();
    if kept.is_none_or(|kv| kv.create_revision != gate.revision.0) {
        return Ok(None);
    }
    kvs.sort_by(|a, b| (a.create_revision, &a.key).cmp(&(b.create_revision, &b.key)));
    let tasks = kvs.iter().filter_map(|kv| {
        let id = layout.log.item(&kv.key)?;
        let (value, since_ms) = read_item(kv);
        Some(Task {
            id: decode(id.name())?,
            value,
            since_ms,
            revision: Revision(kv.create_revision),
        })
    });
    Ok(Some(tasks.collect()))
}

impl<T> Batch<T> {
    /// The gate that they have passed.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The tasks, in the order in which they joined.
    #[must_use]
    pub fn tasks(&self) -> &[Task<T>] {
        &self.tasks
    }

    /// How often the batch was taken, this time included: 1 at first. One whose takers end with it comes back for
    /// ever: decide here what becomes of such a batch.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Completes when the batch is lost, with its session, or done. The future does not keep it.
    pub fn lost(&self) -> Lost {
        match &self.hold {
            Some(hold) => hold.lost(),
            None => Lost::new(std::future::ready(LostReason::Released)),
        }
    }

    /// Runs `work` while the batch is this taker's; drops it, wherever it stands, when the batch is lost.
    ///
    /// # Errors
    /// As [`Hold::scope`].
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`.
    pub async fn scope<F: Future>(&self, work: F) -> Result<F::Output> {
        match &self.hold {
            Some(hold) => hold.scope(work).await,
            None => Err(Error::SessionLost(LostReason::Released)),
        }
    }

    /// A transaction that the store refuses unless this taker still has the batch.
    pub fn txn(&self) -> Txn {
        self.layout.client.txn().guard(self)
    }

    /// Says that all of it is done: takes the batch out of the queue, exactly once, although answers get
    /// lost.
    ///
    /// # Errors
    /// [`TxnError::Fenced`] when the batch was lost before; [`Error::SessionLost`];
    /// [`Error::OutcomeUnknown`] when the session ended with an answer still to come; the store's final
    /// refusals.
    ///
    /// # Cancel safety
    /// When the future is dropped, the batch is done or given back.
    pub async fn ack(mut self) -> Result<Revision, TxnError> {
        let txn = self.layout.client.txn();
        self.ack_with(txn).await
    }

    /// As [`Batch::ack`], together with a transaction: either the batch is done and all of it is written, or
    /// nothing is. After an error the batch is still in the caller's hands, unless it was lost.
    ///
    /// # Errors
    /// As [`Batch::ack`], and again when the batch is done; [`TxnError::Conflict`] when a condition of the
    /// transaction does not hold.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome.
    pub async fn ack_with(&mut self, txn: Txn) -> Result<Revision, TxnError> {
        let Some(hold) = &self.hold else {
            return Err(TxnError::Fenced { owner: None });
        };
        let (layout, epoch) = (&self.layout, self.gate.epoch);
        let gone = [
            KeyRange::one(layout.claim(epoch)),
            KeyRange::one(layout.gate(epoch)),
            KeyRange::one(layout.attempts(epoch)),
            layout.log.segment(epoch),
        ];
        let done = self.tasks.iter().filter_map(|task| {
            let id = crate::kit::ItemId::named(epoch, &task.id);
            self.gated.when_done(&id)
        });
        let operations: Vec<_> = gone.into_iter().map(ops::delete).chain(done).collect();
        let session = hold.session().clone();
        let txn = txn.guard(hold).own(operations);
        hold.leaves(true);
        let outcome = txn.commit_once(&session).await;
        match (&outcome, self.hold.take()) {
            (Ok(_), Some(hold)) => hold.into_owned().disarm(),
            (Err(_), Some(hold)) => {
                hold.leaves(false);
                self.hold = Some(hold);
            }
            (_, None) => {}
        }
        outcome
    }
}

impl<T> Fenced for Batch<T> {
    fn fence(&self) -> &Fence {
        &self.fence
    }
}

impl<T: fmt::Debug> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("gate", &self.gate)
            .field("tasks", &self.tasks)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}
