//! Broken kept keys.

use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::keys::{KeyRange, LeaseId};
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Error, Result, Session, StoreError};
use quorate_simulation::scenarios::{Leased, Written};
use quorate_simulation::{History, Player, Scenario};

use super::mutants::is_found;

/// A keeper that puts its key in place under a new lease when there was no answer under the last one,
/// and says that the key is gone when it has deleted it: until the lease before has ended too, the write
/// that nobody answered may come.
struct NoPatience(Leased);

/// How often it tries.
const TRIES: usize = 4;

async fn put_in_place(player: &Player, key: &str, value: Written) -> Result<bool> {
    let store = player.client().store();
    for _ in 0..TRIES {
        let id = LeaseId(i64::try_from(1 + player.below(1 << 40)).unwrap());
        let lease = store.lease_grant(id, Duration::from_secs(5)).await?;
        let request = TxnRequest {
            compare: vec![Compare::absent(key).into()],
            success: vec![ops::put(key, value.text().into(), Some(lease.id))],
            ..Default::default()
        };
        match store.txn(request).await {
            Ok(answer) => return Ok(answer.succeeded),
            Err(error) if error.is_transient() => player.pause(100).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

impl Scenario for NoPatience {
    const NAME: &'static str = "a removal that does not wait for lost leases";

    fn new() -> Self {
        Self(Leased::new())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let value = self.0.new_owner(false);
        let key = format!("data/kept-{}", player.index());
        player.note(format!("keeps {key} as owner {}", value.owner()));
        if !put_in_place(player, &key, value).await? {
            return Ok(());
        }
        player.pause(300).await;
        let removal = TxnRequest {
            compare: vec![Compare::value(key.as_str(), value.text()).into()],
            success: vec![ops::delete(KeyRange::one(key.as_str()))],
            ..Default::default()
        };
        session.actor().repeat(removal).await?;
        self.0.removed(value);
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
fn a_removal_that_does_not_wait_for_lost_leases_is_found() {
    is_found::<NoPatience>("it is there after it was removed");
}
