//! Recipes that are broken on purpose, built of the kit: what is broken must be found within a few
//! hundred worlds, or the checkers are worth nothing.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use quorate_proto::etcdserverpb::{TxnRequest, WatchCreateRequest};
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::keys::{Key, KeyRange, KeySpace, LeaseId, Revision};
use quorate_recipes::kit::{Actor, Claim, Claimed, Owned};
use quorate_recipes::lock::ExclusiveGuard;
use quorate_recipes::lock::Fenced;
use quorate_recipes::store::ops::{self, Compare};
use quorate_recipes::{Client, Error, Result, Session, TxnError};
use quorate_simulation::fenced::{Holding, Ledger, Line};
use quorate_simulation::scenarios::Sides;
use quorate_simulation::sweep::sweep;
use quorate_simulation::{History, Player, Scenario, run};

/// Worlds in which it must be found.
const WORLDS: u64 = 300;

pub(super) fn is_found<S: Scenario>(as_what: &str) {
    let report = sweep(run::<S>, 0..WORLDS, 2);
    let outcome = report.broken.expect("the checkers find it");
    let what = outcome.broken.unwrap();
    assert!(what.contains(as_what), "{what}");
}

/// A place in a line that nobody has any more.
const ORPHAN: &str = r#"nobody holds or waits for keys ["quorate/lock/m/"#;

/// A key that is taken to be held while it exists as created.
pub(super) struct Hold {
    client: Client,
    owned: Owned,
    lease: LeaseId,
}

impl Hold {
    pub(super) fn new(session: &Session, owned: Owned) -> Self {
        Self {
            client: session.client().clone(),
            owned,
            lease: session.lease(),
        }
    }
}

impl Holding for Hold {
    fn token(&self) -> Revision {
        self.owned.revision()
    }

    async fn write(&self, key: &str, value: String) -> std::result::Result<Revision, TxnError> {
        let own = self.owned.key();
        let txn = self.client.txn();
        let txn = txn.when(Compare::create_revision(own, self.owned.revision()));
        let txn = txn.when(Compare::lease(own, self.lease));
        let done = txn.put(key, value).commit().await;
        Ok(done.map_err(refused)?.revision())
    }
}

/// What a write meets that the store refuses, because what it is made under is not held any more.
fn refused(error: TxnError) -> TxnError {
    match error {
        TxnError::Conflict { .. } => TxnError::Fenced { owner: None },
        error => error,
    }
}

pub(super) async fn claim(session: &Session, claim: Claim) -> Result<Claimed> {
    let actor = session.actor();
    actor
        .run(|actor| async move { actor.claim(claim).await })
        .await
}

pub(super) fn fresh(player: &Player) -> String {
    format!("{:016x}", player.below(u64::MAX))
}

/// Waits until a key is gone.
async fn gone(client: &Client, key: &Key) {
    loop {
        if let Ok(answer) = client.store().range(ops::get(key)).await {
            if answer.kvs.is_empty() {
                return;
            }
            let request = WatchCreateRequest {
                key: key.as_bytes().clone(),
                start_revision: answer.header.unwrap().revision + 1,
                ..Default::default()
            };
            let watch = client.store().watch(vec![request]).await;
            let Ok(mut answers) = watch else { continue };
            while let Some(Ok(answer)) = answers.next().await {
                let mut events = answer.events.iter();
                if events.any(|event| event.r#type() == EventType::Delete) {
                    return;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A queue in which whoever sees the one before it go believes that it is its turn, without the
/// transaction that confirms it: the one before may only have left the line.
struct NoTurn(Ledger);

impl Scenario for NoTurn {
    const NAME: &'static str = "no turn transaction";

    fn new() -> Self {
        Self(Ledger::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let space = KeySpace::of("lock", "m");
        let key = space.key(&format!("{}/{}", session.lease(), fresh(player)));
        let value = fresh(player).into();
        let wanted = Claim::of(key, value);
        let Claimed::Made { owned, .. } = claim(session, wanted).await? else {
            return Err(Error::Conflict);
        };
        let mut before = ops::newest(space.range(), 1);
        before.max_create_revision = owned.revision().0 - 1;
        let answer = player.client().store().range(before).await?;
        if let Some(ahead) = answer.kvs.into_iter().next() {
            let ahead = Key::from(ahead.key);
            tokio::select! {
                biased;
                reason = session.lost() => return Err(Error::SessionLost(reason)),
                () = gone(player.client(), &ahead) => {}
            }
        }
        let held = self.0.granted(player, Hold::new(session, owned));
        self.0.put(player, &held, "data/mark", "").await?;
        player.pause(300).await;
        self.0.increment(player, &held, "data/count").await?;
        held.into_inner().owned.release().await.map(drop)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history, &Line::under("quorate/lock/m/"))
    }
}

#[test]
fn a_queue_without_the_turn_transaction_is_found() {
    is_found::<NoTurn>("first in line was");
}

/// A lock that is released by its name: a copy of the release that comes late takes it from the next.
struct ReleaseByName(Ledger);

impl Scenario for ReleaseByName {
    const NAME: &'static str = "release by name";

    fn new() -> Self {
        Self(Ledger::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let key = KeySpace::of("exclusive", "x").key("owner");
        let value = fresh(player).into();
        let wanted = Claim::of(key.clone(), value);
        let Claimed::Made { owned, .. } = claim(session, wanted).await? else {
            return Ok(());
        };
        let held = self.0.granted(player, Hold::new(session, owned));
        self.0.put(player, &held, "data/mark", "").await?;
        player.pause(300).await;
        self.0.increment(player, &held, "data/count").await?;
        let hold = held.into_inner();
        let by_name = TxnRequest {
            success: vec![ops::delete(KeyRange::one(&key))],
            ..Default::default()
        };
        session.actor().repeat(by_name).await?;
        drop(hold);
        Ok(())
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history, &Line::under("quorate/exclusive/x/"))
    }
}

#[test]
fn a_release_by_name_is_found() {
    is_found::<ReleaseByName>("was taken from it");
}

/// A lock whose writes only ask whether somebody holds it.
struct LooseFence(Ledger);

struct Loose(ExclusiveGuard);

impl Holding for Loose {
    fn token(&self) -> Revision {
        self.0.fence().revision()
    }

    async fn write(&self, key: &str, value: String) -> std::result::Result<Revision, TxnError> {
        let held = Compare::present(self.0.fence().key());
        let txn = self.0.unfenced().txn().when(held).put(key, value);
        Ok(txn.commit().await.map_err(refused)?.revision())
    }
}

impl Scenario for LooseFence {
    const NAME: &'static str = "a fence without revision and lease";

    fn new() -> Self {
        Self(Ledger::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let guard = player.client().exclusive("x").lock(session).await?;
        let held = self.0.granted(player, Loose(guard));
        player.pause(500).await;
        self.0.put(player, &held, "data/mark", "").await?;
        held.into_inner().0.release().await
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history, &Line::under("quorate/exclusive/x/"))
    }
}

#[test]
fn a_fence_that_looks_only_at_the_key_is_found() {
    is_found::<LooseFence>("first in line was");
}

/// A queue that one enters again, under another name, when there was no answer: the first copy may be
/// there, or come yet, and stands in the line without anybody behind it.
struct Unsealed(Ledger);

struct InLine {
    client: Client,
    actor: Actor,
    key: Key,
    revision: Revision,
}

impl Drop for InLine {
    fn drop(&mut self) {
        let (actor, key, revision) = (self.actor.clone(), self.key.clone(), self.revision);
        self.actor.spawn("release", async move {
            let request = TxnRequest {
                compare: vec![Compare::create_revision(&key, revision).into()],
                success: vec![ops::delete(KeyRange::one(&key))],
                ..Default::default()
            };
            drop(actor.repeat(request).await);
        });
    }
}

impl Holding for InLine {
    fn token(&self) -> Revision {
        self.revision
    }

    async fn write(&self, key: &str, value: String) -> std::result::Result<Revision, TxnError> {
        let txn = self.client.txn();
        let txn = txn.when(Compare::create_revision(&self.key, self.revision));
        let txn = txn.when(Compare::lease(&self.key, self.actor.lease()));
        let done = txn.put(key, value).commit().await;
        Ok(done.map_err(refused)?.revision())
    }
}

impl InLine {
    fn new(actor: &Actor, key: Key, revision: i64) -> Self {
        Self {
            client: actor.client().clone(),
            actor: actor.clone(),
            key,
            revision: Revision(revision),
        }
    }

    /// Waits until nobody is before it.
    async fn first(&self, session: &Session, space: &KeySpace) -> Result<()> {
        loop {
            let first = ops::oldest(space.range(), 1);
            let answer = self.client.store().range(first).await?;
            session.check()?;
            let first = answer.kvs.first();
            if first.is_some_and(|kv| kv.create_revision == self.revision.0) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn enter(player: &Player, session: &Session, space: &KeySpace) -> Result<InLine> {
    let lease = session.lease();
    loop {
        let key = space.key(&format!("{lease}/{}", fresh(player)));
        let request = TxnRequest {
            success: vec![ops::put(&key, "".into(), Some(lease))],
            ..Default::default()
        };
        match session.actor().attempt(request).await {
            Ok(answer) => {
                let created = answer.header.unwrap().revision;
                return Ok(InLine::new(session.actor(), key, created));
            }
            Err(Error::Store(error)) if error.is_transient() => player.pause(100).await,
            Err(error) => return Err(error),
        }
    }
}

impl Scenario for Unsealed {
    const NAME: &'static str = "a claim without a seal";

    fn new() -> Self {
        Self(Ledger::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let space = KeySpace::of("lock", "m");
        let mine = enter(player, session, &space).await?;
        mine.first(session, &space).await?;
        let held = self.0.granted(player, mine);
        self.0.increment(player, &held, "data/count").await?;
        Ok(())
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history, &Line::under("quorate/lock/m/"))
    }
}

#[test]
fn a_claim_without_a_seal_is_found() {
    is_found::<Unsealed>(ORPHAN);
}

/// A queue that one enters by a claim as the real one, with a name of its own that is the same for every
/// copy, but which does not compare the session's key: a copy that comes late, when the place was given
/// up long ago, stands in the line without anybody behind it.
struct NoSessionCompare(Ledger);

async fn naive_claim(actor: Actor, key: Key, value: Bytes) -> Result<InLine> {
    let request = TxnRequest {
        compare: vec![Compare::absent(&key).into()],
        success: vec![ops::put(&key, value, Some(actor.lease()))],
        failure: vec![ops::read(ops::get(&key))],
    };
    let (answer, _) = actor.repeat(request).await?;
    let found = ops::kvs(&answer.responses, 0).first();
    let created = match found {
        Some(kv) if !answer.succeeded => kv.create_revision,
        _ => answer.header.unwrap().revision,
    };
    Ok(InLine::new(&actor, key, created))
}

impl Scenario for NoSessionCompare {
    const NAME: &'static str = "a claim without the session's revision";

    fn new() -> Self {
        Self(Ledger::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let space = KeySpace::of("lock", "m");
        let nonce = fresh(player);
        let key = space.key(&format!("{}/{nonce}", session.lease()));
        let actor = session.actor();
        let claimed = actor.run(|actor| naive_claim(actor, key, nonce.into()));
        let mine = claimed.await?;
        mine.first(session, &space).await?;
        let held = self.0.granted(player, mine);
        self.0.increment(player, &held, "data/count").await?;
        Ok(())
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history, &Line::under("quorate/lock/m/"))
    }
}

#[test]
fn a_claim_without_the_sessions_revision_is_found() {
    is_found::<NoSessionCompare>(ORPHAN);
}

/// A writer that becomes a reader by a new key: a writer that waited before that key is let in as well.
struct NewKey(Ledger);

impl Scenario for NewKey {
    const NAME: &'static str = "downgrade by a new key";

    fn new() -> Self {
        Self(Ledger::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let writer = player.client().rw_lock("r").write(session).await?;
        let writer = self.0.granted(player, writer);
        self.0.increment(player, &writer, "data/count").await?;
        let read = KeySpace::of("rwlock", "r").child("read");
        let key = read.key(&format!("{}/{}", session.lease(), fresh(player)));
        let Claimed::Made { owned, .. } = claim(session, Claim::of(key, "".into())).await? else {
            return Err(Error::Conflict);
        };
        writer.into_inner().release().await?;
        let reader = self.0.granted(player, Hold::new(session, owned));
        player.pause(300).await;
        self.0.put(player, &reader, "data/read", "").await?;
        reader.into_inner().owned.release().await.map(drop)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check_by(history, &mut Sides::of("r"))
    }
}

#[test]
fn a_downgrade_by_a_new_key_is_found() {
    is_found::<NewKey>("writer before it");
}
