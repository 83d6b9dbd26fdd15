//! Broken queues.

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::kit::{Claim, Claimed, Effect};
use quorate_recipes::queue::{AckError, Delivery, Nack};
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Error, Fenced as _, Key, KeyRange, Result, Session};
use quorate_simulation::scenarios::{Work, check_limit, effect, handle, may_remain};
use quorate_simulation::{History, Player, Scenario};
use serde_json::{Value, json};

use super::mutants::{fresh, is_found};

const SEGMENTS: &str = "quorate/queue/q/segment/";

/// One of the ways to break a queue.
trait Broken: Default + 'static {
    const NAME: &'static str;
    /// By how many keys items are to be taken in order.
    const KEYS: Option<i64> = None;

    fn work(&self) -> &Work;

    async fn push(player: &Player, session: &Session, number: i64) -> Result<()> {
        handle(player).push(session, &number).await.map(drop)
    }

    async fn take(&self, player: &Player, session: &Session) -> Result<()> {
        match self.work().take(player, session, &handle(player)).await? {
            Some(delivery) => self.end(player, delivery).await,
            None => Ok(()),
        }
    }

    async fn end(&self, player: &Player, delivery: Delivery<i64>) -> Result<()> {
        self.work().work(player, delivery).await
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.work().check(history, Self::KEYS)
    }
}

struct World<B>(B);

impl<B: Broken> Scenario for World<B> {
    const NAME: &'static str = B::NAME;

    fn new() -> Self {
        Self(B::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let push = |number| B::push(player, session, number);
        match self.0.work().push(player, push).await {
            Ok(()) | Err(Error::Conflict) => {}
            Err(error) => return Err(error),
        }
        self.0.take(player, session).await
    }

    fn end(&self) {
        self.0.work().end();
    }

    fn may_remain(&self, key: &str) -> bool {
        may_remain(key) || key.starts_with("quorate/queue/")
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

/// What was pushed and done in the meantime is pushed again by a copy that comes late.
#[derive(Default)]
struct NoLane(Work);

impl Broken for NoLane {
    const NAME: &'static str = "a queue whose pushes have no lane";

    fn work(&self) -> &Work {
        &self.0
    }

    async fn push(player: &Player, _session: &Session, number: i64) -> Result<()> {
        handle(player).push_at_least_once(&number).await.map(drop)
    }

    async fn end(&self, player: &Player, delivery: Delivery<i64>) -> Result<()> {
        let lease = delivery.fence().lease().to_string();
        let txn = player.client().txn().put(effect(*delivery.value()), lease);
        // Whoever lost it has nothing to say.
        let _told = delivery.ack_with(txn).await;
        Ok(())
    }
}

/// An item is done by whoever had it once.
#[derive(Default)]
struct NoClaimCompare(Work);

impl Broken for NoClaimCompare {
    const NAME: &'static str = "a queue whose acknowledgements do not ask who has the item";

    fn work(&self) -> &Work {
        &self.0
    }

    async fn end(&self, player: &Player, delivery: Delivery<i64>) -> Result<()> {
        player.pause(2_000).await;
        let key: Key = format!("{SEGMENTS}{}", delivery.id()).into();
        let lease = delivery.fence().lease().to_string();
        let request = TxnRequest {
            compare: vec![Compare::create_revision(&key, delivery.position().created()).into()],
            success: vec![
                ops::delete(KeyRange::one(&key)),
                ops::put(effect(*delivery.value()), lease.into(), None),
            ],
            failure: Vec::new(),
        };
        match player.client().store().txn(request).await {
            Err(error) if !error.is_transient() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// An item that is put off is taken out, and then put back.
#[derive(Default)]
struct TwoSteps(Work);

impl Broken for TwoSteps {
    const NAME: &'static str = "a queue that puts items off in two steps";

    fn work(&self) -> &Work {
        &self.0
    }

    async fn end(&self, player: &Player, delivery: Delivery<i64>) -> Result<()> {
        let session = player.client().session().await?;
        let number = *delivery.value();
        delivery.ack().await?;
        handle(player).push(&session, &number).await?;
        Ok(())
    }
}

/// The first by its key is taken, and not the one that was committed first.
#[derive(Default)]
struct KeyOrder(Work);

impl Broken for KeyOrder {
    const NAME: &'static str = "a queue that goes by the order of keys";
    const KEYS: Option<i64> = Some(3);

    fn work(&self) -> &Work {
        &self.0
    }

    async fn take(&self, player: &Player, session: &Session) -> Result<()> {
        let (_, items) = player.client().list(KeyRange::prefix(SEGMENTS)).await?;
        let Some(first) = items.first() else {
            return Ok(());
        };
        let key = Key::from(first.key.clone());
        let id = key.to_string().replace(SEGMENTS, "");
        let claim: Key = format!("quorate/queue/q/try/{id}/claim").into();
        let mut wanted = Claim::of(claim, player.below(u64::MAX).to_string().into());
        wanted.when = vec![Compare::present(&key)];
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(wanted).await });
        if let Claimed::Made { owned, .. } = claimed.await? {
            player.pause(200).await;
            drop(owned);
        }
        Ok(())
    }
}

/// The head is read, and not compared: some are pushed to a segment that is closed by then.
#[derive(Default)]
struct NoHeadCompare(Work);

impl Broken for NoHeadCompare {
    const NAME: &'static str = "a queue whose pushes do not ask which segment is the last";

    fn work(&self) -> &Work {
        &self.0
    }

    async fn push(player: &Player, session: &Session, number: i64) -> Result<()> {
        if player.one_in(2) {
            return handle(player).push(session, &number).await.map(drop);
        }
        let head = player.client().get("quorate/queue/q/head").await?;
        let head = head.map(|kv| kv.value).unwrap_or_default();
        let head: Value = serde_json::from_slice(&head).unwrap_or_default();
        let segment = head["segment"].as_u64().unwrap_or(0);
        player.pause(100).await;
        let key = format!("{SEGMENTS}{segment:016x}/{}.0000", fresh(player));
        let item = json!({"v": 1, "since_ms": 0, "value": number});
        let effect = Effect {
            then: vec![ops::put(key, item.to_string().into(), None)],
            ..Effect::default()
        };
        session.actor().apply(effect).await.map(drop)
    }
}

/// Put aside without being taken out.
#[derive(Default)]
struct TwoPlaces(Work);

impl Broken for TwoPlaces {
    const NAME: &'static str = "a queue that puts items aside in two steps";

    fn work(&self) -> &Work {
        &self.0
    }

    async fn end(&self, player: &Player, delivery: Delivery<i64>) -> Result<()> {
        let value = format!(r#"{{"item":{{"value":{}}}}}"#, delivery.value());
        let dead = format!("quorate/queue/q/dead/{}", delivery.id());
        player.client().put(dead, value).await?;
        delivery.nack(Nack::Now).await
    }
}

/// Counted, and then pushed.
#[derive(Default)]
struct CountedBefore(Work);

impl Broken for CountedBefore {
    const NAME: &'static str = "a queue with a limit that is looked at before";

    fn work(&self) -> &Work {
        &self.0
    }

    async fn push(player: &Player, session: &Session, number: i64) -> Result<()> {
        let status = handle(player).status().await?;
        if status.items + status.delayed >= 4 {
            return Err(Error::Conflict);
        }
        handle(player).push(session, &number).await.map(drop)
    }

    async fn end(&self, player: &Player, delivery: Delivery<i64>) -> Result<()> {
        // Soon enough that there is room now and then.
        match delivery.ack_with(player.client().txn()).await {
            Err(AckError::Failed(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        check_limit(history, &[])
    }
}

#[test]
fn a_limit_that_is_looked_at_before_is_found() {
    is_found::<World<CountedBefore>>("items of 4");
}

#[test]
fn a_push_without_a_lane_is_found() {
    is_found::<World<NoLane>>("is at {\"effect/");
}

#[test]
fn an_acknowledgement_without_a_claim_is_found() {
    is_found::<World<NoClaimCompare>>("ended item");
}

#[test]
fn an_item_that_is_nowhere_for_a_moment_is_found() {
    is_found::<World<TwoSteps>>("is at {}");
}

#[test]
fn an_item_at_two_places_is_found() {
    is_found::<World<TwoPlaces>>("\", \"quorate/queue/q/segment/");
}

#[test]
fn a_push_to_a_segment_that_is_closed_is_found() {
    is_found::<World<NoHeadCompare>>("is pushed to");
}

#[test]
fn an_order_of_keys_is_found() {
    is_found::<World<KeyOrder>>("is taken before item");
}
