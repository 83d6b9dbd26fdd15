//! Broken kept keys.

use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_recipes::keys::{KeyRange, LeaseId, Revision};
use quorate_recipes::kit::{Claim, Claimed};
use quorate_recipes::store::faulty::{Calls, Fault, Outage, Stage};
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::store::{Faulty, MemStore};
use quorate_recipes::{Client, Error, Result, Session, StoreError};
use quorate_simulation::scenarios::{Leased, Written};
use quorate_simulation::{History, Losses, Player, Scenario};

use super::mutants::{claim, is_found};

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

const TTL: Duration = Duration::from_secs(4);

/// Keeps a key, and removes it: answered though a session that kept it before may live.
async fn keep_without_outlasting(client: Client, key: &str, value: String) -> Result<()> {
    let open = async || loop {
        match client.session().ttl(TTL).await {
            Err(Error::Store(error)) if error.is_transient() => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return opened,
        }
    };
    let mut session = open().await?;
    loop {
        let wanted = Claim::of(key.into(), value.clone().into());
        match claim(&session, wanted).await {
            Ok(Claimed::Made { owned, .. }) => return owned.release().await.map(drop),
            Err(Error::SessionLost(_)) => session = open().await?,
            claimed => panic!("{claimed:?}"),
        }
    }
}

async fn keep_as_it_is(client: Client, key: &str, value: String) -> Result<()> {
    client.keep(key, value).ttl(TTL).await?.remove().await
}

/// The answer to the claim of a key is lost, then the connection, for longer than the session lives; but
/// so many new leaders give its lease more time. The claim comes when the key has been removed. Seldom
/// comes so much together in a world that it could be left to chance.
async fn with_a_late_claim<F>(
    leaders: u32,
    keep: impl FnOnce(Client, &'static str, String) -> F,
) -> Verdict
where
    F: Future<Output = Result<()>>,
{
    let store = MemStore::new();
    let faulty = Faulty::new(store.clone());
    let client = Client::builder(faulty.clone()).seed(1).build();
    let judge = Leased::new();
    let value = judge.new_owner(false);
    faulty.plan("data/kept", [Fault::Late]);
    // After the one that opens the session: what makes sure that the claim comes no more.
    let sealing = faulty.hold(2, Calls::Txn, Stage::NotSent);
    let cut_off = async {
        sealing.reached().await;
        faulty.disconnect(Outage::Refused);
        for _ in 0..leaders {
            tokio::time::sleep(TTL * 3 / 4).await;
            store.rearm_leases();
        }
        tokio::time::sleep(TTL / 2).await;
        faulty.reconnect();
    };
    let (kept, ()) = tokio::join!(keep(client, "data/kept", value.text()), cut_off);
    kept.unwrap();
    judge.removed(value);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(faulty.deliver().await.0, 1);
    judge.check(&History {
        commits: store.history(Revision(0)),
        losses: Losses::default(),
        calm: None,
    })
}

type Verdict = std::result::Result<(), String>;

#[tokio::test(start_paused = true)]
async fn a_removal_that_does_not_wait_for_lost_sessions_is_found() {
    let broken = with_a_late_claim(1, keep_without_outlasting).await;
    let broken = broken.unwrap_err();
    assert!(
        broken.contains("it is there after it was removed"),
        "{broken}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_removal_waits_for_lost_sessions_however_long_they_live() {
    for leaders in 1..4 {
        assert_eq!(
            with_a_late_claim(leaders, keep_as_it_is).await,
            Ok(()),
            "{leaders} leaders"
        );
    }
}
