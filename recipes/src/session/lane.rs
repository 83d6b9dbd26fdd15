//! Effects on what others may change, consume or overwrite, exactly once although answers get lost:
//! under counters, latches and transactional memory. Each effect moves a key of the session's own, its *lane*,
//! to a nonce in the same transaction; when an answer is lost the lane is sealed, and its value then
//! says whether the effect took place.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, ResponseOp, TxnRequest, TxnResponse};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Actor;
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, ROOT, Revision};
use crate::store::{ops, ops::Compare};
use crate::wait::Backoff;

/// Most lanes of one session, and so most effects of it in progress at a time; more wait for one.
const LANES_MAX: usize = 16;

/// What a lane adds to the compares, and to the operations of either branch.
pub(crate) const LANE_OPS: usize = 1;

/// A conditional change of the store that must take place exactly once.
#[derive(Debug, Clone, Default)]
pub struct Effect {
    /// The conditions.
    pub when: Vec<Compare>,
    /// Done, all in one transaction, when they hold. At most one less than the store's limit.
    pub then: Vec<RequestOp>,
    /// Reads done when they do not.
    pub otherwise: Vec<RequestOp>,
}

/// What became of an [`Effect`].
#[derive(Debug)]
pub enum Effected {
    /// It took place, once.
    Applied {
        /// The revision at which it did.
        revision: Revision,
        /// The answers to `then`; `None` when the answer was lost and the lane told.
        responses: Option<Vec<ResponseOp>>,
    },
    /// A condition did not hold; nothing was written, and nothing will be.
    Refused {
        /// The store's revision at which the conditions were judged.
        revision: Revision,
        /// The answers to `otherwise`.
        responses: Vec<ResponseOp>,
    },
}

/// One of a session's lanes, taken for one effect after the other. Dropping it gives it back, also
/// with an effect on the way: the next user of the lane then finds it moved, or keeps it from moving.
pub struct Lane {
    actor: Actor,
    number: usize,
    /// The lane's mod revision as last known; 0 before it is created.
    at: Revision,
    _place: OwnedSemaphorePermit,
}

/// The lanes that nobody uses at present.
pub(super) struct Lanes {
    places: Arc<Semaphore>,
    free: Mutex<Vec<(usize, Revision)>>,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(LANES_MAX)),
            free: Mutex::new((0..LANES_MAX).rev().map(|n| (n, Revision(0))).collect()),
        }
    }
}

impl Actor {
    /// Takes a free lane, the one used last if there are several; waits when all are in use.
    ///
    /// # Errors
    /// [`Error::SessionLost`].
    pub async fn lane(&self) -> Result<Lane> {
        self.check()?;
        let lanes = &self.core.lanes;
        let place = Arc::clone(&lanes.places).acquire_owned().await;
        let place = place.map_err(|_| Error::Closed)?;
        let free = lanes
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let (number, at) = free.expect("there are as many places as lanes");
        Ok(Lane {
            actor: self.clone(),
            number,
            at,
            _place: place,
        })
    }

    /// [`Lane::apply`] on a lane of its own, run to its end by the session.
    ///
    /// # Errors
    /// As [`Lane::apply`].
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: what has been sent takes effect once or not at all, and
    /// nothing is sent for the first time.
    pub async fn apply(&self, effect: Effect) -> Result<Effected> {
        let mut lane = self.lane().await?;
        self.run(move |_| async move { lane.apply(&effect).await })
            .await
    }
}

impl Lane {
    /// Applies an effect exactly once, or finds its conditions unmet. To be called inside
    /// [`Actor::run`]. Trouble with the store is waited out.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when an answer was lost and the session ended before the lane could
    /// tell. [`Error::SessionLost`], [`Error::Removed`] (somebody deleted the lane),
    /// [`Error::Invalid`] (more operations than the store takes) and the store's final refusals:
    /// not applied.
    pub async fn apply(&mut self, effect: &Effect) -> Result<Effected> {
        self.check_size(effect)?;
        let nonce = self.fresh();
        let mut pause = Backoff::between_attempts(self.actor.client());
        loop {
            if self.actor.core.over.is_cancelled() {
                return Err(self.actor.loss());
            }
            if Actor::is_abandoned() {
                // Nothing that was sent before can take effect any more.
                return Err(Error::Closed);
            }
            if self.at == Revision(0) {
                self.open().await?;
            }
            match self.actor.send(self.request(effect, &nonce)).await {
                None => return Err(self.unknown(&self.actor.loss())),
                Some(Ok(answer)) => {
                    if let Some(effected) = self.judge(answer, &nonce).await? {
                        return Ok(effected);
                    }
                }
                Some(Err(Error::Store(error))) if error.is_retryable() => pause.pause().await,
                Some(Err(Error::Store(error))) if error.is_ambiguous() => {
                    tracing::debug!(lane = %self.key(), %error, "outcome of an effect unknown; sealing");
                    if let Some(revision) = self.seal(&nonce).await? {
                        let responses = None;
                        return Ok(Effected::Applied {
                            revision,
                            responses,
                        });
                    }
                    pause.pause().await;
                }
                Some(Err(error)) => return Err(error),
            }
        }
    }

    fn key(&self) -> Key {
        format!("{ROOT}/lane/{}/{}", self.actor.lease(), self.number).into()
    }

    fn fresh(&self) -> Bytes {
        self.actor.client().nonce().into()
    }

    fn check_size(&self, effect: &Effect) -> Result<()> {
        let most = self.actor.client().store().capabilities().max_txn_ops;
        let branches = effect.then.len().max(effect.otherwise.len());
        let used = effect.when.len().max(branches) + LANE_OPS;
        if used > most {
            return Err(Error::Invalid(format!(
                "an effect of {used} compares or operations, the lane's included; the store takes {most}"
            )));
        }
        Ok(())
    }

    fn request(&self, effect: &Effect, nonce: &Bytes) -> TxnRequest {
        let key = self.key();
        let lane = Compare::mod_revision(&key, self.at);
        let put = ops::put(&key, nonce.clone(), Some(self.actor.lease()));
        let get = ops::read(ops::get(&key));
        TxnRequest {
            compare: [lane]
                .into_iter()
                .chain(effect.when.iter().cloned())
                .map(Into::into)
                .collect(),
            success: [put].into_iter().chain(effect.then.clone()).collect(),
            failure: [get].into_iter().chain(effect.otherwise.clone()).collect(),
        }
    }

    /// What an answer means; `None`: the lane had been moved on by an effect given up before, so
    /// send this one again.
    async fn judge(&mut self, mut answer: TxnResponse, nonce: &Bytes) -> Result<Option<Effected>> {
        let revision = Revision(answer.header.map_or(0, |header| header.revision));
        if answer.succeeded {
            self.at = revision;
            return Ok(Some(Effected::Applied {
                revision,
                responses: Some(answer.responses.split_off(1)),
            }));
        }
        let Some(lane) = ops::kvs(&answer.responses, 0).first() else {
            return Err(self.gone().await);
        };
        let now = Revision(lane.mod_revision);
        if now == self.at {
            return Ok(Some(Effected::Refused {
                revision,
                responses: answer.responses.split_off(1),
            }));
        }
        self.at = now;
        // Ours if the request arrived twice, and this is the answer to the second.
        Ok((lane.value == *nonce).then_some(Effected::Applied {
            revision: now,
            responses: None,
        }))
    }

    /// Creates the lane's key. Repeating is safe: it is only created, and only while the session
    /// lives.
    async fn open(&mut self) -> Result<()> {
        let (key, session) = (self.key(), self.actor.session_key().clone());
        let request = TxnRequest {
            compare: vec![
                Compare::absent(&key).into(),
                Compare::create_revision(&session, self.actor.session_created()).into(),
            ],
            success: vec![ops::put(&key, self.fresh(), Some(self.actor.lease()))],
            failure: vec![ops::read(ops::get(&key))],
        };
        let (answer, _) = self.actor.repeat(request).await?;
        let revision = if answer.succeeded {
            answer.header.map_or(0, |header| header.revision)
        } else if let Some(kv) = ops::kvs(&answer.responses, 0).first() {
            kv.mod_revision
        } else {
            self.actor.lose(LostReason::LeaseGone);
            return Err(self.actor.loss());
        };
        self.at = Revision(revision);
        Ok(())
    }

    /// Moves the lane on, so that no copy of what was sent before can take effect any more. Returns
    /// the revision at which one already has, if it has.
    async fn seal(&mut self, nonce: &Bytes) -> Result<Option<Revision>> {
        let key = self.key();
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(&key, self.at).into()],
            success: vec![ops::put(&key, self.fresh(), Some(self.actor.lease()))],
            failure: vec![ops::read(ops::get(&key))],
        };
        let (answer, _) = match self.actor.persist(request).await {
            Ok(answer) => answer,
            Err(error) => return Err(self.unknown(&error)),
        };
        if answer.succeeded {
            self.at = Revision(answer.header.map_or(0, |header| header.revision));
            return Ok(None);
        }
        let Some(lane) = ops::kvs(&answer.responses, 0).first() else {
            let why = self.gone().await;
            return Err(self.unknown(&why));
        };
        self.at = Revision(lane.mod_revision);
        Ok((lane.value == *nonce).then_some(self.at))
    }

    fn unknown(&self, why: &Error) -> Error {
        Error::OutcomeUnknown(format!("{why}, with an answer still to come"))
    }

    /// Why the lane's key is gone.
    async fn gone(&mut self) -> Error {
        self.at = Revision(0);
        self.actor.why_gone(&self.key()).await
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let free = self.actor.core.lanes.free.lock();
        let mut free = free.unwrap_or_else(PoisonError::into_inner);
        free.push((self.number, self.at));
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("key", &self.key())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::Client;
    use crate::session::Session;
    use crate::store::faulty::{Calls, Fault, Stage};
    use crate::store::{Faulty, MemStore};

    /// Writes, whatever there was before: only the lane keeps a late copy from it.
    fn put(value: &'static str) -> Effect {
        Effect {
            then: vec![ops::put("k", value.into(), None)],
            ..Default::default()
        }
    }

    async fn set_up() -> (MemStore, Faulty<MemStore>, Session) {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::builder(faulty.clone()).seed(1).build();
        let session = client.session().await.unwrap();
        (store, faulty, session)
    }

    #[tokio::test(start_paused = true)]
    async fn late_copies_change_nothing() {
        let (store, faulty, session) = set_up().await;
        let actor = session.actor();
        let plans = [
            vec![Fault::Late],
            vec![Fault::Unanswered],
            vec![Fault::Late, Fault::Late, Fault::Unanswered, Fault::Late],
        ];
        for plan in plans {
            faulty.plan("quorate/lane/", plan.clone());
            let first = actor.apply(put("first")).await.unwrap();
            let Effected::Applied { revision, .. } = first else {
                panic!("{first:?}");
            };
            let kv = session.client().get("k").await.unwrap().unwrap();
            assert_eq!(kv.mod_revision, revision.0, "{plan:?}");
            actor.apply(put("second")).await.unwrap();
            assert_eq!(faulty.deliver().await.1, 0, "{plan:?}");
            let kv = session.client().get("k").await.unwrap().unwrap();
            assert_eq!(kv.value, "second", "{plan:?}");
        }
        assert_eq!(store.keys("quorate/lane/").len(), 1, "used again");
    }

    #[tokio::test(start_paused = true)]
    async fn conditions_and_limits() {
        let (store, _, session) = set_up().await;
        let actor = session.actor();
        let unmet = Effect {
            when: vec![Compare::present("k")],
            otherwise: vec![ops::read(ops::get("other"))],
            ..put("v")
        };
        session.client().put("other", "o").await.unwrap();
        let refused = actor.apply(unmet).await.unwrap();
        let Effected::Refused { responses, .. } = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(ops::kvs(&responses, 0)[0].value, "o");
        let most = session.client().store().capabilities().max_txn_ops;
        let wide = |count: usize| Effect {
            then: (0..count)
                .map(|n| ops::put(format!("wide/{n}"), Bytes::new(), None))
                .collect(),
            ..Default::default()
        };
        actor.apply(wide(most - LANE_OPS)).await.unwrap();
        let outcome = actor.apply(wide(most)).await;
        assert!(matches!(outcome, Err(Error::Invalid(_))), "{outcome:?}");
        // More at once than there are lanes.
        let all = (0..3 * LANES_MAX).map(|_| actor.apply(put("v")));
        futures::future::try_join_all(all).await.unwrap();
        assert_eq!(store.keys("quorate/lane/").len(), LANES_MAX);
        // A lane that somebody deleted is made anew, after one error.
        let lanes = store.keys("quorate/lane/");
        for lane in &lanes {
            session.client().delete(lane).await.unwrap();
        }
        let outcome = actor.apply(put("v")).await;
        assert!(matches!(outcome, Err(Error::Removed(_))), "{outcome:?}");
        actor.apply(put("v")).await.unwrap();
        session.close().await.unwrap();
        assert!(store.keys("quorate/").is_empty());
    }

    /// A lane given back with an effect on its way goes on being exact.
    #[tokio::test(start_paused = true)]
    async fn an_abandoned_effect_does_not_confuse_the_next() {
        for stage in [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered] {
            let (store, faulty, session) = set_up().await;
            let actor = session.actor();
            actor.apply(put("before")).await.unwrap();
            let held = faulty.hold(1, Calls::Txn, stage);
            let mut lane = actor.lane().await.unwrap();
            let abandoned = put("abandoned");
            tokio::select! {
                biased;
                () = held.reached() => {}
                _ = lane.apply(&abandoned) => panic!("it is held"),
            }
            drop(lane);
            held.release();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let next = actor.apply(put("next")).await.unwrap();
            assert!(
                matches!(
                    next,
                    Effected::Applied {
                        responses: Some(_),
                        ..
                    }
                ),
                "{next:?}"
            );
            assert_eq!(store.keys("quorate/lane/").len(), 1);
            assert_eq!(
                session.client().get("k").await.unwrap().unwrap().value,
                "next"
            );
        }
    }
}
