//! Taking items: an item is chosen from what is known of the front, claimed in the store, and handed out as a
//! delivery.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use futures::{Stream, stream};
use quorate_proto::etcdserverpb::TxnRequest;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::delivery::{Delivery, Taken, used_up};
use super::record::{AttemptsRecord, DeadRecord, ItemRecord, Layout, Order, Settings};
use super::seat::{News, Reserved, Seat, There, Waits, Want};
use super::window::{Candidate, Turn};
use crate::clock::Instant;
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::kit::{Claim, Claimed, Owned, fresh_key};
use crate::lock::{ContenderRecord, Hold};
use crate::session::Session;
use crate::store::StoreError;
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value, from_json};

/// Takes items of a [`Queue`](super::Queue), for as long as it and its session live. May be asked by several
/// tasks at a time. Dropping it ends no delivery.
///
/// Costs: consumers of a session, if they are of equal settings, follow the front of the queue together. That is
/// about one segment of items and all before that somebody has or that are held up (at most 16,384, or 64 MiB), with
/// what is said about their taking. An item that comes wakes all consumers, one of which claims it with one
/// transaction. If that one is busy others do, 20 to 200 ms later. So a take costs the same with ten items and with a
/// million.
pub struct Consumer<T> {
    layout: Arc<Layout>,
    order: Order,
    limits: Limits,
    seat: Seat,
    session: Session,
    _listed: Owned,
    /// Reads any item; those that cannot be read are put aside if there is none.
    reads_all: Option<fn(&Key, &Bytes) -> T>,
    of: PhantomData<fn() -> T>,
}

/// How long and how often an item is taken, if there is a limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How often.
    pub(super) attempts: Option<u32>,
    /// How long at a time.
    pub(super) work: Option<Duration>,
}

impl<T> Consumer<T> {
    pub(super) async fn start(
        layout: Layout,
        order: Order,
        limits: Limits,
        session: &Session,
    ) -> Result<Self> {
        session.belongs_to(&layout.client)?;
        if !layout.of_recipe {
            agree(&layout, order, session).await?;
        }
        let consumers = layout.consumers();
        let key = fresh_key(session, &consumers);
        let name = consumers.suffix(key.as_bytes());
        let name = name.expect("a consumer's key lies there");
        let seat = Seat::take(session, &layout, order, limits.attempts, name);
        let record = Value::from(Json(ContenderRecord::of(session, ""))).into_bytes(&key)?;
        let claim = Claim::of(key, record);
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(claim).await });
        let Claimed::Made { owned, .. } = claimed.await? else {
            // The key has a fresh nonce, and the claim no condition.
            return Err(Error::Conflict);
        };
        Ok(Self {
            layout: Arc::new(layout),
            order,
            limits,
            seat,
            session: session.clone(),
            _listed: owned,
            reads_all: None,
            of: PhantomData,
        })
    }

    /// The session that items are taken under.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }
}

impl<T: DeserializeOwned> Consumer<Result<T, String>> {
    /// Has items that cannot be read taken like others, with the reason in place of the value.
    pub(crate) fn with_unreadable(mut self) -> Self {
        let read = |key: &Key, item: &Bytes| match ItemRecord::read(key, item) {
            Ok(record) => Ok(record.value),
            Err(error) => Err(error.to_string()),
        };
        self.reads_all = Some(read);
        self
    }
}

impl<T: DeserializeOwned + Send + 'static> Consumer<T> {
    /// Takes the next item, and waits for one while there is none.
    ///
    /// # Errors
    /// [`Error::SessionLost`] at once when the session is lost; the store's final refusals; [`Error::Closed`] when the
    /// session's runtime has ended. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// No item is lost when the future is dropped: one that was on its way goes back, and the attempt does
    /// not count.
    pub async fn pop(&self) -> Result<Delivery<T>> {
        self.pop_or(std::future::pending()).await
    }

    /// As [`Consumer::pop`]; while there is none to take, `meanwhile` goes on, which ends it with an error.
    pub(crate) async fn pop_or(
        &self,
        meanwhile: impl Future<Output = Result<Infallible>>,
    ) -> Result<Delivery<T>> {
        tokio::select! {
            biased;
            reason = self.session.lost() => Err(Error::SessionLost(reason)),
            taken = self.pop_while_live(meanwhile) => taken,
        }
    }

    async fn pop_while_live(
        &self,
        meanwhile: impl Future<Output = Result<Infallible>>,
    ) -> Result<Delivery<T>> {
        let mut meanwhile = pin!(meanwhile);
        let (mut news, mut want) = (self.seat.news(), self.seat.want());
        loop {
            news.borrow_and_update().check()?;
            let until = match self.take_free(Turn::Ranked, &mut want).await? {
                Ok(delivery) => return Ok(delivery),
                Err(waits) => waits.until,
            };
            let client = self.session.client();
            let news = async {
                match until {
                    Some(until) => {
                        let _in_time = client.before(until, news.changed()).await;
                    }
                    None => drop(news.changed().await),
                }
            };
            tokio::select! {
                biased;
                () = news => {}
                Err(error) = &mut meanwhile => return Err(error),
            }
        }
    }

    /// Takes an item that is there now; `None` when the store has none that is free. Reads the front of the
    /// queue again before it says so, and waits to hear what became of items that other consumers of the session
    /// are about to take.
    ///
    /// # Errors
    /// As [`Consumer::pop`].
    ///
    /// # Cancel safety
    /// As [`Consumer::pop`].
    pub async fn try_pop(&self) -> Result<Option<Delivery<T>>> {
        tokio::select! {
            biased;
            reason = self.session.lost() => Err(Error::SessionLost(reason)),
            taken = self.try_pop_while_live() => taken,
        }
    }

    async fn try_pop_while_live(&self) -> Result<Option<Delivery<T>>> {
        let (mut news, mut want) = (self.seat.news(), self.seat.want());
        news.borrow_and_update().check()?;
        if let Ok(delivery) = self.take_free(Turn::Anybody, &mut want).await? {
            return Ok(Some(delivery));
        }
        self.seat.sync().await?;
        let mut unsettled = None;
        loop {
            news.borrow_and_update().check()?;
            let settled = self.seat.settled();
            let waits = match self.take_free(Turn::Anybody, &mut want).await? {
                Ok(delivery) => return Ok(Some(delivery)),
                Err(waits) => waits,
            };
            // Only what was so at first: others may come and be taken for ever.
            let unsettled = unsettled.get_or_insert_with(|| waits.unsettled.clone());
            unsettled.retain(|id| waits.unsettled.contains(id));
            if unsettled.is_empty() {
                return Ok(None);
            }
            tokio::select! {
                biased;
                () = settled => {}
                _ = news.changed() => {}
            }
        }
    }

    /// To be kept by who calls [`Consumer::take_free`], until it has an item or gives up.
    pub(super) fn want(&self) -> Want<'_> {
        self.seat.want()
    }

    /// Takes an item that is known to be free; else tells why there is none.
    pub(super) async fn take_free(
        &self,
        turn: Turn,
        want: &mut Want<'_>,
    ) -> Result<Result<Delivery<T>, Waits>> {
        loop {
            let (candidate, reserved) = match self.seat.choose(turn, want) {
                Ok(chosen) => chosen,
                Err(waits) => return Ok(Err(waits)),
            };
            if let Some(delivery) = self.take(candidate, reserved).await? {
                return Ok(Ok(delivery));
            }
        }
    }

    /// Whether it is this one's turn to take something that is known to be free.
    pub(super) fn has_some(&self) -> bool {
        self.seat.has_some()
    }

    /// Tells of everything that may change what [`Consumer::take_free`] finds.
    pub(super) fn news(&self) -> watch::Receiver<News> {
        self.seat.news()
    }

    /// The items as they are taken, which ends after the first error.
    pub fn stream(&self) -> impl Stream<Item = Result<Delivery<T>>> + Send {
        stream::unfold(Some(self), |consumer| async move {
            let consumer = consumer?;
            match consumer.pop().await {
                Ok(delivery) => Some((Ok(delivery), Some(consumer))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Has `work` done for each item, for at most `most` at a time (at least one), until taking fails. What
    /// `work` does not acknowledge goes back when it drops the delivery.
    ///
    /// Work whose delivery is lost before it ends it is dropped, wherever it stands: at once when the session is
    /// lost, and a second later or two when somebody has removed the item.
    ///
    /// # Errors
    /// As [`Consumer::pop`], once the work in progress is done.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work in progress.
    pub async fn for_each_concurrent<F, Fut>(&self, most: usize, mut work: F) -> Result<()>
    where
        F: FnMut(Delivery<T>) -> Fut,
        Fut: Future<Output = ()>,
    {
        let mut working = FuturesUnordered::new();
        loop {
            if working.len() >= most.max(1) {
                working.next().await;
                continue;
            }
            // Goes on while work ends: a claim that is on its way is not taken back for that.
            let mut pop = pin!(self.pop());
            let taken = loop {
                tokio::select! {
                    biased;
                    taken = &mut pop => break taken,
                    Some(()) = working.next() => {}
                }
            };
            match taken {
                Ok(delivery) => {
                    let lost = lost_in_work(&delivery);
                    let work = work(delivery);
                    working.push(async move {
                        tokio::select! {
                            biased;
                            () = lost => {}
                            () = work => {}
                        }
                    });
                }
                Err(error) => {
                    while working.next().await.is_some() {}
                    return Err(error);
                }
            }
        }
    }

    /// Claims an item; `None` when it is not to be had, which is known then.
    async fn take(&self, candidate: Candidate, reserved: Reserved) -> Result<Option<Delivery<T>>> {
        let attempts = candidate.about.attempts.saturating_add(candidate.attempts);
        if self.limits.attempts.is_some_and(|most| attempts >= most) {
            let buried = self.bury(&candidate, attempts, used_up(attempts), reserved);
            return buried.await.map(|()| None);
        }
        let Some((owned, reserved)) = self.claim(&candidate, reserved).await? else {
            return Ok(None);
        };
        let key = self.layout.log.key(candidate.position.id());
        let contenders = vec![KeyRange::one(owned.key())];
        let hold = Hold::new(self.session.clone(), owned, contenders);
        let taken = Taken {
            layout: Arc::clone(&self.layout),
            order: self.order,
            position: candidate.position,
            item: candidate.value,
            about: candidate.about,
            attempts: candidate.attempts.saturating_add(1),
            max_attempts: self.limits.attempts,
            reserved,
        };
        let value = match self.reads_all {
            Some(read) => Ok(read(&key, &taken.item)),
            None => ItemRecord::<T>::read(&key, &taken.item).map(|record| record.value),
        };
        match value {
            Ok(value) => {
                let delivery = Delivery::new(value, hold, taken);
                if let Some(limit) = self.limits.work {
                    delivery.ends_after(limit);
                }
                Ok(Some(delivery))
            }
            Err(error) => {
                tracing::warn!(%key, %error, "an unreadable item becomes a dead letter");
                let why = format!("it cannot be read: {error}");
                let delivery = Delivery::new((), hold, taken);
                match delivery.bury(why).await {
                    Err(Error::Fenced { .. }) | Ok(()) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn claim(
        &self,
        candidate: &Candidate,
        mut reserved: Reserved,
    ) -> Result<Option<(Owned, Reserved)>> {
        let id = candidate.position.id();
        let (item, claim, attempts) = (
            self.layout.log.key(id),
            self.layout.claim(id),
            self.layout.attempts(id),
        );
        let record = ContenderRecord::of(&self.session, "");
        let record = record.with_nonce(self.session.client().nonce());
        let mut wanted = Claim::of(claim.clone(), Value::from(Json(record)).into_bytes(&claim)?);
        wanted.when = vec![
            Compare::create_revision(&item, candidate.position.created()),
            Compare::mod_revision(&attempts, candidate.attempts_at),
        ];
        let count = |count| AttemptsRecord::new(count).write(&attempts);
        let counted = count(candidate.attempts.saturating_add(1))?;
        wanted.also = vec![ops::put(&attempts, counted, None)];
        // Until it is in the user's hands, the attempt is none.
        wanted.when_released = vec![match candidate.attempts_at {
            Revision(0) => ops::delete(KeyRange::one(&attempts)),
            _ => ops::put(&attempts, count(candidate.attempts)?, None),
        }];
        wanted.otherwise = vec![ops::read(ops::get(&item)), ops::read(ops::get(&attempts))];
        // What has become of it is noted whether or not somebody still waits here.
        let claimed = self.session.actor().run(|actor| async move {
            match actor.claim(wanted).await? {
                Claimed::Made {
                    owned, revision, ..
                } => {
                    reserved.taken(revision);
                    Ok(Some((owned, reserved)))
                }
                Claimed::Refused {
                    existing,
                    responses,
                    ..
                } => {
                    reserved.refused(&There {
                        item: ops::kvs(&responses, 0).first(),
                        claim: existing.first(),
                        attempts: ops::kvs(&responses, 1).first(),
                    });
                    Ok(None)
                }
            }
        });
        claimed.await
    }

    /// Makes a dead letter of an item that nobody has.
    async fn bury(
        &self,
        candidate: &Candidate,
        attempts: u32,
        why: String,
        reserved: Reserved,
    ) -> Result<()> {
        let id = candidate.position.id();
        let dead = self.layout.dead_letter(id);
        let record = DeadRecord::write(&dead, &candidate.value, attempts, why)?;
        let unique = candidate.about.unique.as_deref();
        let unique = unique.map(|name| ops::delete(KeyRange::one(self.layout.unique(name))));
        let request = TxnRequest {
            compare: vec![
                Compare::create_revision(self.layout.log.key(id), candidate.position.created())
                    .into(),
                Compare::absent(self.layout.claim(id)).into(),
                Compare::mod_revision(self.layout.attempts(id), candidate.attempts_at).into(),
            ],
            success: [
                ops::delete(KeyRange::one(self.layout.log.key(id))),
                ops::delete(self.layout.tries_of(id)),
                ops::put(dead, record, None),
            ]
            .into_iter()
            .chain(unique)
            .collect(),
            failure: [
                ops::get(self.layout.log.key(id)),
                ops::get(self.layout.claim(id)),
                ops::get(self.layout.attempts(id)),
            ]
            .map(ops::read)
            .into(),
        };
        // A copy that comes late finds the item gone.
        let item = id.clone();
        let buried = self.session.actor().run(move |actor| async move {
            match actor.repeat(request).await {
                Ok((answer, _)) if answer.succeeded => {
                    tracing::info!(%item, attempts, "an item became a dead letter");
                    reserved.went();
                    Ok(true)
                }
                Ok((answer, _)) => {
                    let found = |index| ops::kvs(&answer.responses, index).first();
                    reserved.refused(&There {
                        item: found(0),
                        claim: found(1),
                        attempts: found(2),
                    });
                    Ok(false)
                }
                Err(Error::Store(StoreError::Invalid(why))) => {
                    tracing::error!(%item, %why, "an item that cannot be put aside is left alone");
                    reserved.leave_alone();
                    Ok(false)
                }
                Err(error) => Err(error),
            }
        });
        if buried.await? {
            self.layout.limit_dead_letters().await;
        }
        Ok(())
    }
}

/// Completes when a delivery is lost while somebody works at it; never once that one has ended it.
fn lost_in_work<T>(delivery: &Delivery<T>) -> impl Future<Output = ()> + Send + use<T> {
    let lost = delivery.lost_at_work();
    async move {
        if lost.await == LostReason::Released {
            std::future::pending().await
        }
    }
}

/// The earlier of two moments that may never come.
pub(super) fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Makes sure that all consumers give items out in the same order.
async fn agree(layout: &Layout, order: Order, session: &Session) -> Result<()> {
    let key = layout.settings();
    let request = TxnRequest {
        compare: vec![Compare::absent(&key).into()],
        success: vec![ops::put(
            &key,
            Value::from(Json(Settings::new(order))).into_bytes(&key)?,
            None,
        )],
        failure: vec![ops::read(ops::get(&key))],
    };
    // Only made once, so a late copy finds it there.
    let answer = session
        .actor()
        .run(|actor| async move { Ok(actor.repeat(request).await?.0) });
    let answer = answer.await?;
    let Some(kv) = ops::kvs(&answer.responses, 0).first() else {
        return Ok(());
    };
    let stored: Settings = from_json(&kv.key, &kv.value)?;
    if stored.order == order {
        return Ok(());
    }
    Err(Error::Mismatch {
        key,
        wanted: order.to_string(),
        stored: stored.order.to_string(),
    })
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("layout", &self.layout)
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}
