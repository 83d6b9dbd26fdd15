//! An item in somebody's hands, and how it ends there: done, given back, put off, or put aside. Each end is
//! one transaction that the store refuses once the claim is lost.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, ResponseOp};
use tokio::sync::oneshot;

use super::record::{About, AttemptsRecord, DeadRecord, Layout, Order, rewritten};
use super::seat::Reserved;
use crate::error::{Error, Result, TxnError};
use crate::keys::{KeyRange, Revision};
use crate::kit::{ItemId, Position};
use crate::lock::{Fence, Fenced, Hold, Holder};
use crate::session::Lost;
use crate::store::StoreError;
use crate::store::ops::{self, Compare};
use crate::txn::Txn;

/// How long work takes at most that ends without having watched its claim.
const SOON: Duration = Duration::from_secs(1);

/// An item that was taken: nobody else has it as long as the session lives. It is done once it is
/// acknowledged; dropping it gives it back at once.
#[must_use = "a dropped delivery is given back"]
pub struct Delivery<T> {
    value: T,
    // Dropped before what is kept of the item, so that it is let go in the store first.
    hold: Hold,
    taken: Box<Taken>,
}

/// What is known of an item that was taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) layout: Arc<Layout>,
    pub(super) order: Order,
    pub(super) position: Position,
    pub(super) item: Bytes,
    pub(super) about: About,
    /// How often it was taken at this place, this time included.
    pub(super) attempts: u32,
    /// After so many it is put aside.
    pub(super) max_attempts: Option<u32>,
    pub(super) reserved: Reserved,
}

/// Why an item that was taken so often is put aside.
pub(super) fn used_up(attempts: u32) -> String {
    format!("taken {attempts} times without success")
}

/// Where an item is when its claim has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Where it was.
    Kept,
    /// Elsewhere, or nowhere.
    Left,
}

/// What becomes of an item that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nack {
    /// It can be taken again at once, where it stands.
    Now,
    /// It can be taken again after this time. In a queue whose order is exact it keeps its place, and holds up
    /// what is behind it; else it goes to the end.
    After(Duration),
    /// It is put among the dead letters, for this reason.
    Dead(String),
}

/// How acknowledging fails.
#[derive(thiserror::Error)]
pub enum AckError<T> {
    /// The claim was lost before: another consumer has the item, or had it. Nothing was written.
    #[error("the item is no longer claimed")]
    Fenced {
        /// Who has it now, if anybody is known to.
        owner: Option<Box<Holder>>,
    },
    /// A condition of the transaction that was given does not hold. Nothing was written.
    #[error("conflict at revision {revision}")]
    Conflict {
        /// The item, still in the caller's hands.
        delivery: Box<Delivery<T>>,
        /// The store's revision at which the conditions were judged.
        revision: Revision,
        /// The answers of the transaction's own `otherwise` reads, in order.
        responses: Vec<ResponseOp>,
    },
    /// Such a transaction is not taken: it is too large, or not permitted, or the store has no room. Nothing
    /// was written.
    #[error("{error}")]
    Refused {
        /// The item, still in the caller's hands.
        delivery: Box<Delivery<T>>,
        /// Why.
        error: Error,
    },
    /// Everything else. An ambiguous one may have been done.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl<T> AckError<T> {
    /// As [`Error::is_ambiguous`].
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Failed(error) if error.is_ambiguous())
    }
}

impl<T> fmt::Debug for AckError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fenced { owner } => f.debug_struct("Fenced").field("owner", owner).finish(),
            Self::Conflict { revision, .. } => f
                .debug_struct("Conflict")
                .field("revision", revision)
                .finish_non_exhaustive(),
            Self::Refused { error, .. } => f
                .debug_struct("Refused")
                .field("error", error)
                .finish_non_exhaustive(),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

impl<T> From<AckError<T>> for Error {
    fn from(error: AckError<T>) -> Self {
        match error {
            AckError::Fenced { owner } => Self::Fenced { owner },
            AckError::Conflict { .. } => Self::Conflict,
            AckError::Refused { error, .. } | AckError::Failed(error) => error,
        }
    }
}

impl<T> Delivery<T> {
    /// In the user's hands: from now on the attempt counts.
    pub(super) fn new(value: T, mut hold: Hold, taken: Taken) -> Self {
        hold.nothing_when_released();
        Self {
            value,
            hold,
            taken: Box::new(taken),
        }
    }

    /// It is given up when it has not ended by then.
    pub(super) fn ends_after(&self, limit: Duration) {
        self.hold.ends_after(limit);
    }

    /// The item.
    #[must_use]
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The item's id, which stays the same until it is moved: put off in a queue without an exact order, or
    /// put aside and back.
    #[must_use]
    pub fn id(&self) -> &ItemId {
        self.taken.position.id()
    }

    /// Where the item stands in the queue.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.taken.position
    }

    /// How often the item has been taken, this time included: 1 at first.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        let before = self.taken.about.attempts;
        before.saturating_add(self.taken.attempts)
    }

    /// When the item was pushed, in milliseconds since the Unix epoch by the pusher's wall clock.
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        self.taken.about.since_ms
    }

    /// Completes when the claim is lost: with its session, because somebody removed the item, or because it was
    /// had for as long as [`Queue::max_work`](super::Queue::max_work) says. The future does not keep the claim.
    pub fn lost(&self) -> Lost {
        self.hold.lost()
    }

    /// As [`Delivery::lost`], for the consumer that hands the item to work of its own, which is mostly done soon.
    pub(super) fn lost_at_work(&self) -> Lost {
        self.hold.lost_unless_soon_over(SOON)
    }

    /// Runs `work` while the item is claimed; drops it, wherever it stands, when the claim is lost.
    ///
    /// # Errors
    /// As [`Hold::scope`].
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`.
    pub async fn scope<F: Future>(&self, work: F) -> Result<F::Output> {
        self.hold.scope(work).await
    }

    /// A transaction that the store refuses unless the item is still claimed. See also
    /// [`Delivery::ack_with`], which ends the claim with it.
    pub fn txn(&self) -> Txn {
        self.hold.txn()
    }
}

impl<T: Send + 'static> Delivery<T> {
    /// Says that the item is done: takes it out of the queue. Exactly once, although answers get lost.
    ///
    /// # Errors
    /// [`AckError::Fenced`] when the claim was lost before; [`Error::SessionLost`];
    /// [`Error::OutcomeUnknown`] when the session ended with an answer still to come; the store's final
    /// refusals.
    ///
    /// # Cancel safety
    /// Acknowledging goes on when the future is dropped.
    pub async fn ack(self) -> Result<Revision, AckError<T>> {
        let txn = self.taken.layout.client.txn();
        self.ack_with(txn).await
    }

    /// As [`Delivery::ack`], together with a transaction: either the item is done and all of it is written, or
    /// nothing is. What it writes is written exactly once for the item.
    ///
    /// # Errors
    /// As [`Delivery::ack`]; [`AckError::Conflict`] when a condition of the transaction does not hold, and
    /// [`AckError::Refused`] when no such transaction is taken, with the item in both; [`AckError::Failed`] with
    /// [`Error::Fenced`] when it has guards of its own that are lost.
    ///
    /// # Cancel safety
    /// As [`Delivery::ack`].
    pub async fn ack_with(self, txn: Txn) -> Result<Revision, AckError<T>> {
        let mut taken_out = self.taken.taken_out(true);
        let gated = self.taken.layout.gated.as_ref();
        taken_out.extend(gated.and_then(|gated| gated.when_done(self.id())));
        self.end(txn, taken_out, Place::Left).await
    }

    /// Gives the item back undone; puts it aside if it may not be taken again.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the claim was lost before; [`Error::SessionLost`]; [`Error::OutcomeUnknown`];
    /// the store's final refusals.
    ///
    /// # Cancel safety
    /// Giving back goes on when the future is dropped.
    pub async fn nack(self, how: Nack) -> Result<()> {
        let attempt = self.attempt();
        let is_last = self.taken.max_attempts.is_some_and(|most| attempt >= most);
        match how {
            Nack::Dead(why) => self.bury(why).await,
            Nack::Now | Nack::After(_) if is_last => self.bury(used_up(attempt)).await,
            Nack::Now => {
                let Self { hold, taken, .. } = self;
                let released = hold.release().await;
                drop(taken);
                released
            }
            Nack::After(pause) => self.put_off(pause).await,
        }
    }

    async fn put_off(self, pause: Duration) -> Result<()> {
        let (taken, attempt) = (&self.taken, self.attempt());
        let layout = &taken.layout;
        let id = taken.position.id();
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let (operations, place) = match taken.order {
            Order::Parallel => {
                let due = layout.client.wall_millis().saturating_add(pause_ms);
                let key = layout.delayed_item(due, &layout.client.nonce());
                let about = About {
                    attempts: attempt,
                    ..taken.about.clone()
                };
                let item = rewritten(&layout.log.key(id), &taken.item, about)?;
                let mut operations = taken.taken_out(false);
                operations.push(ops::put(key, item, None));
                (operations, Place::Left)
            }
            Order::Keyed | Order::Strict => {
                let attempts = layout.attempts(id);
                let record = AttemptsRecord::new(taken.attempts)
                    .paused(pause_ms, layout.client.wall_millis())
                    .write(&attempts)?;
                let operations = vec![
                    ops::delete(KeyRange::one(layout.claim(id))),
                    ops::put(attempts, record, None),
                ];
                (operations, Place::Kept)
            }
        };
        let txn = layout.client.txn();
        self.end(txn, operations, place).await?;
        Ok(())
    }

    pub(super) async fn bury(self, why: String) -> Result<()> {
        let attempt = self.attempt();
        let taken = &self.taken;
        let dead = taken.layout.dead_letter(taken.position.id());
        let record = DeadRecord::write(&dead, &taken.item, attempt, why)?;
        let mut operations = taken.taken_out(true);
        operations.push(ops::put(dead, record, None));
        let layout = Arc::clone(&taken.layout);
        self.end(layout.client.txn(), operations, Place::Left)
            .await?;
        layout.limit_dead_letters().await;
        Ok(())
    }

    /// Ends the claim in a task of the session, which goes on when the caller has gone.
    async fn end(
        self,
        txn: Txn,
        operations: Vec<RequestOp>,
        place: Place,
    ) -> Result<Revision, AckError<T>> {
        let session = self.hold.session().clone();
        let lost = session.lost();
        let (tell, answer) = oneshot::channel();
        session.actor().clone().spawn("settle", async move {
            drop(tell.send(self.end_at_the_store(txn, operations, place).await));
        });
        match answer.await {
            Ok(ended) => ended,
            Err(_) => Err(Error::SessionLost(lost.await).into()),
        }
    }

    async fn end_at_the_store(
        self,
        txn: Txn,
        operations: Vec<RequestOp>,
        place: Place,
    ) -> Result<Revision, AckError<T>> {
        let item = self.taken.layout.log.key(self.taken.position.id());
        let txn = txn
            .guard(&self.hold)
            .when(Compare::create_revision(
                &item,
                self.taken.position.created(),
            ))
            .otherwise(ops::get(&item))
            .own(operations);
        let session = self.hold.session().clone();
        self.hold.leaves(true);
        match txn.commit_once(&session).await {
            Ok(revision) => {
                self.hold.into_owned().disarm();
                if place == Place::Left {
                    self.taken.reserved.went();
                }
                Ok(revision)
            }
            Err(TxnError::Fenced { owner }) => {
                if self.hold.is_void() {
                    return Err(AckError::Fenced { owner });
                }
                // One of the guards that were given.
                self.hold.leaves(false);
                Err(AckError::Failed(Error::Fenced { owner }))
            }
            Err(TxnError::Conflict {
                revision,
                mut responses,
            }) => {
                self.hold.leaves(false);
                let there = responses.pop();
                let there = there.as_ref().is_some_and(|there| {
                    let there = ops::kvs(std::slice::from_ref(there), 0).first();
                    there.is_some_and(|kv| kv.create_revision == self.taken.position.created().0)
                });
                if !there {
                    self.taken.reserved.went();
                    return Err(AckError::Fenced { owner: None });
                }
                Err(AckError::Conflict {
                    delivery: Box::new(self),
                    revision,
                    responses,
                })
            }
            Err(TxnError::Failed(error)) if is_refusal(&error) => {
                self.hold.leaves(false);
                let delivery = Box::new(self);
                Err(AckError::Refused { delivery, error })
            }
            Err(TxnError::Failed(error)) => Err(AckError::Failed(error)),
        }
    }
}

/// Whether a transaction was refused for what it is, and certainly not applied.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::Invalid(_)
            | Error::Codec { .. }
            // That of the claim is gone with the session.
            | Error::Store(
                StoreError::Invalid(_)
                    | StoreError::Auth(_)
                    | StoreError::Refused(_)
                    | StoreError::LeaseNotFound
            )
    )
}

impl Taken {
    /// Takes the item out of its place, with its name if it has one and is `done`.
    fn taken_out(&self, done: bool) -> Vec<RequestOp> {
        let id = self.position.id();
        let unique = self.about.unique.as_deref().filter(|_| done);
        let unique = unique.map(|name| self.layout.unique(name));
        [self.layout.log.key(id)]
            .into_iter()
            .chain(unique)
            .map(KeyRange::one)
            .chain([self.layout.tries_of(id)])
            .map(ops::delete)
            .collect()
    }
}

impl<T> Fenced for Delivery<T> {
    fn fence(&self) -> &Fence {
        self.hold.fence()
    }
}

impl<T: fmt::Debug> fmt::Debug for Delivery<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("value", &self.value)
            .field("position", &self.taken.position)
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}
