//! Broken semaphores and rate limiters.

use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::keys::{Key, KeyRange, KeySpace, LeaseId, Revision};
use quorate_recipes::kit::{Claim, Claimed, Owned};
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Error, Result, Session, StoreError};
use quorate_simulation::fenced::Ledger;
use quorate_simulation::scenarios::{Granted, Permits};
use quorate_simulation::{History, Player, Scenario};

use super::mutants::{Hold, claim, fresh, is_found};

/// A semaphore whose door is no line: of those who wait, whoever sees first that there is room takes it.
struct NoOrder(Ledger);

/// Its limit, and one permit.
const LIMIT: usize = 2;
const ONE: &str = r#"{"permits":1}"#;

async fn acquire(player: &Player, session: &Session) -> Result<Owned> {
    let space = KeySpace::of("semaphore", "s");
    let (door, permits) = (space.child("door"), space.child("permit"));
    let name = |space: &KeySpace| space.key(&format!("{}/{}", session.lease(), fresh(player)));
    let waiting = Claim::of(name(&door), ONE.into());
    let Claimed::Made { owned: waiting, .. } = claim(session, waiting).await? else {
        return Err(Error::Conflict);
    };
    loop {
        let known = player.client().store().range(ops::range(permits.range()));
        let known = known.await?;
        if known.kvs.len() < LIMIT {
            let seen = Revision(known.header.unwrap().revision);
            let mut wanted = Claim::of(name(&permits), ONE.into());
            wanted.when = vec![Compare::unwritten_since(permits.range(), seen)];
            wanted.also = vec![
                ops::delete(KeyRange::one(waiting.key())),
                ops::put(space.key("limit"), LIMIT.to_string().into(), None),
            ];
            if let Claimed::Made { owned, .. } = claim(session, wanted).await? {
                return Ok(owned);
            }
        }
        session.check()?;
        player.pause(200).await;
    }
}

impl Scenario for NoOrder {
    const NAME: &'static str = "a semaphore without order";

    fn new() -> Self {
        Self(Ledger::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let owned = acquire(player, session).await?;
        let held = self.0.granted(player, Hold::new(session, owned));
        player.pause(400).await;
        self.0.put(player, &held, "data/mark", "").await?;
        Ok(())
    }

    fn may_remain(&self, key: &str) -> bool {
        key == "quorate/semaphore/s/limit"
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        Permits::check(history, &self.0)
    }
}

#[test]
fn a_semaphore_without_order_is_found() {
    is_found::<NoOrder>("first there was");
}

/// A rate limiter that counts the grants, and adds one without a compare: two who have counted the same
/// both take the last permit.
struct NoCompare(Granted);

impl Scenario for NoCompare {
    const NAME: &'static str = "a grant that compares nothing";

    fn new() -> Self {
        Self(Granted::default())
    }

    async fn step(&self, player: &Player, _: &Session) -> Result<()> {
        let grants = KeySpace::of("rate", "r").child("grant");
        let store = player.client().store();
        let known = store.range(ops::range(grants.range())).await?;
        if known.kvs.len() >= usize::try_from(Granted::LIMIT).unwrap() {
            player.pause(1_000).await;
            return Ok(());
        }
        let id = LeaseId(i64::try_from(1 + player.below(1 << 40)).unwrap());
        let asked = Granted::PER + Duration::from_secs(1);
        let lease = store.lease_grant(id, asked).await?;
        let key: Key = grants.key(&fresh(player));
        let grant = TxnRequest {
            success: vec![ops::put(&key, "".into(), Some(lease.id))],
            ..Default::default()
        };
        store.txn(grant).await?;
        self.0.note(player, 1);
        Ok(())
    }

    fn may_meet(&self, error: &Error) -> bool {
        matches!(error, Error::Store(StoreError::LeaseNotFound))
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

#[test]
fn a_grant_that_compares_nothing_is_found() {
    is_found::<NoCompare>("5 permits from");
}
