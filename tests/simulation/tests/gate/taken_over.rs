//! A lock's key that somebody writes over under a lease of its own, as any client of the store may: it still
//! is as created, and says nothing of the lease it was created under. Who held it holds it no more.

use std::marker::PhantomData;
use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::keys::{Key, KeySpace, LeaseId, Revision};
use quorate_recipes::lock::{ExclusiveGuard, Fenced};
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Result, Session, TxnError};
use quorate_simulation::fenced::{Holding, Ledger, Order};
use quorate_simulation::sweep::sweep;
use quorate_simulation::{History, Player, Scenario, key_of, run};

use super::mutants::is_found;

fn owner_key() -> Key {
    KeySpace::of("exclusive", "x").key("owner")
}

/// How writes under the lock are fenced.
trait Way: Holding + 'static {
    const NAME: &'static str;

    fn of(guard: ExclusiveGuard) -> Self;

    async fn release(self) -> Result<()>;
}

/// Clients that lock and write, and now and then one that takes the lock's key for itself.
struct TakenOver<W>(Ledger, PhantomData<W>);

/// Writes the key that is there under a lease that nobody knows of, and gives it up after a while.
async fn take_over(player: &Player) -> Result<()> {
    let session = player
        .client()
        .session()
        .ttl(Duration::from_secs(3))
        .await?;
    let request = TxnRequest {
        compare: vec![Compare::present(owner_key()).into()],
        success: vec![ops::put(owner_key(), "".into(), Some(session.lease()))],
        failure: Vec::new(),
    };
    let taken = session.actor().attempt(request).await;
    player.note(format!(
        "takes over: {:?}",
        taken.map(|answer| answer.succeeded)
    ));
    player.pause(600).await;
    session.close().await
}

impl<W: Way> Scenario for TakenOver<W> {
    const NAME: &'static str = W::NAME;

    fn new() -> Self {
        Self(Ledger::default(), PhantomData)
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        if player.one_in(5) {
            return take_over(player).await;
        }
        let guard = player.client().exclusive("x").lock(session).await?;
        let held = self.0.granted(player, W::of(guard));
        player.pause(500).await;
        self.0.put(player, &held, "data/mark", "").await?;
        held.into_inner().release().await
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check_by(history, &mut UnderLease::default())
    }
}

/// Whoever created the key may write while it is under the lease it was created with.
#[derive(Default)]
struct UnderLease {
    /// When the key was created, and under which lease.
    created: Option<(i64, LeaseId)>,
    /// Under which it is now.
    now: Option<LeaseId>,
}

impl Order for UnderLease {
    fn take(&mut self, change: &Event) {
        if key_of(change).as_bytes() != owner_key().as_bytes() {
            return;
        }
        let kv = change
            .kv
            .as_ref()
            .filter(|_| change.r#type() == EventType::Put);
        self.now = kv.map(|kv| LeaseId(kv.lease));
        let known = self.created;
        self.created = kv.map(|kv| match known {
            Some(created) if created.0 == kv.create_revision => created,
            _ => (kv.create_revision, LeaseId(kv.lease)),
        });
    }

    fn has(&self, _: &str) -> bool {
        // Whose key goes is not asked: anybody may take it.
        false
    }

    fn allows(&mut self, _: &str, token: i64) -> std::result::Result<(), String> {
        match self.created {
            Some((created, lease)) if created == token && Some(lease) == self.now => Ok(()),
            Some((created, _)) if created == token => Err(format!(
                "accepted under {token}, whose key is under another lease"
            )),
            created => Err(format!("accepted under {token}, and there is {created:?}")),
        }
    }
}

impl Way for ExclusiveGuard {
    const NAME: &'static str = "a lock that is taken over";

    fn of(guard: ExclusiveGuard) -> Self {
        guard
    }

    async fn release(self) -> Result<()> {
        ExclusiveGuard::release(self).await
    }
}

/// A fence that compares when the key was created and not its lease.
struct ByRevision(ExclusiveGuard);

impl Holding for ByRevision {
    fn token(&self) -> Revision {
        self.0.fence().revision()
    }

    async fn write(&self, key: &str, value: String) -> std::result::Result<Revision, TxnError> {
        let fence = self.0.fence();
        let held = Compare::create_revision(fence.key(), fence.revision());
        let txn = self.0.unfenced().txn().when(held).put(key, value);
        match txn.commit().await {
            Ok(done) => Ok(done.revision()),
            Err(TxnError::Conflict { .. }) => Err(TxnError::Fenced { owner: None }),
            Err(error) => Err(error),
        }
    }
}

impl Way for ByRevision {
    const NAME: &'static str = "a fence without the lease";

    fn of(guard: ExclusiveGuard) -> Self {
        Self(guard)
    }

    async fn release(self) -> Result<()> {
        self.0.release().await
    }
}

#[test]
fn a_lock_that_is_taken_over_is_not_held() {
    let report = sweep(run::<TakenOver<ExclusiveGuard>>, 0..50, 2);
    assert_eq!(report.broken.and_then(|outcome| outcome.broken), None);
}

#[test]
fn a_fence_without_the_lease_is_found() {
    is_found::<TakenOver<ByRevision>>("whose key is under another lease");
}
