//! Broken waits, waits without end, waits that leave something, and tasks that end unheard.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use futures::StreamExt;
use quorate_proto::etcdserverpb::WatchCreateRequest;
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::keys::KeySpace;
use quorate_recipes::kit::{Claim, Claimed, Owned};
use quorate_recipes::store::ops;
use quorate_recipes::{Result, Session};
use quorate_simulation::fenced::{Ledger, Line};
use quorate_simulation::scenarios::Waits;
use quorate_simulation::{History, Player, Scenario, run};

use super::mutants::{claim, fresh, is_found};

/// A barrier whose wait takes the end of its watch for the end of what it waits for.
struct EndOfWatch(Waits);

async fn wait(player: &Player) -> Result<()> {
    let range = KeySpace::of("barrier", "b").range();
    let store = player.client().store();
    let answer = store.range(ops::range(range.clone())).await?;
    if answer.kvs.is_empty() {
        return Ok(());
    }
    let mut there = answer.kvs.len();
    let request = WatchCreateRequest {
        key: range.start,
        range_end: range.end,
        start_revision: answer.header.unwrap().revision + 1,
        ..Default::default()
    };
    let mut answers = store.watch(vec![request]).await?;
    while let Some(Ok(answer)) = answers.next().await {
        for event in &answer.events {
            match event.r#type() {
                EventType::Put => there += 1,
                EventType::Delete => there -= 1,
            }
            if there == 0 {
                return Ok(());
            }
        }
    }
    Ok(())
}

impl Scenario for EndOfWatch {
    const NAME: &'static str = "a wait that ends with its watch";

    fn new() -> Self {
        Self(Waits::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        if player.one_in(2) {
            let hold = player.client().barrier("b").hold(session).await?;
            player.pause(3_000).await;
            return hold.release().await;
        }
        self.0.attempt(player, wait(player)).await
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

#[test]
fn a_wait_that_ends_with_its_watch_is_found() {
    is_found::<EndOfWatch>("a wait ended, closed from");
}

/// A barrier whose wait goes on after a compaction where the store can tell again, without a look at what
/// it has missed.
struct NoLook(Waits);

async fn wait_on(player: &Player) -> Result<()> {
    let range = KeySpace::of("barrier", "b").range();
    let store = player.client().store();
    let answer = store.range(ops::range(range.clone())).await?;
    let mut there: BTreeSet<Bytes> = answer.kvs.into_iter().map(|kv| kv.key).collect();
    let mut next = answer.header.unwrap().revision + 1;
    while !there.is_empty() {
        let request = WatchCreateRequest {
            key: range.start.clone(),
            range_end: range.end.clone(),
            start_revision: next,
            ..Default::default()
        };
        if let Ok(mut answers) = store.watch(vec![request]).await {
            while let Some(Ok(answer)) = answers.next().await {
                for event in &answer.events {
                    let kv = event.kv.clone().unwrap();
                    next = kv.mod_revision + 1;
                    match event.r#type() {
                        EventType::Put => there.insert(kv.key),
                        EventType::Delete => there.remove(&kv.key),
                    };
                }
                next = next.max(answer.compact_revision);
                if there.is_empty() {
                    return Ok(());
                }
            }
        }
        player.pause(100).await;
    }
    Ok(())
}

impl Scenario for NoLook {
    const NAME: &'static str = "a wait that does not look after a compaction";

    fn new() -> Self {
        Self(Waits::default())
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        if player.one_in(2) {
            let hold = player.client().barrier("b").hold(session).await?;
            player.pause(3_000).await;
            return hold.release().await;
        }
        self.0.attempt(player, wait_on(player)).await
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        self.0.check(history)
    }
}

#[test]
fn a_wait_that_does_not_look_after_a_compaction_is_found() {
    is_found::<NoLook>("to an end in the calm, and nothing was in the way");
}

/// A barrier that lets nobody through, and clients that give up in time, each alone.
struct NeverOpens;

impl Scenario for NeverOpens {
    const NAME: &'static str = "a barrier that never opens";

    fn new() -> Self {
        Self
    }

    async fn step(&self, player: &Player, _: &Session) -> Result<()> {
        player.pause(300).await;
        Ok(())
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let barrier = players[0].client().barrier("b");
        let session = players[0].client().session().await;
        let session = session.map_err(|error| error.to_string())?;
        let hold = barrier.hold(&session).await;
        let waited = barrier.wait().await;
        drop(hold);
        waited.map_err(|error| error.to_string())
    }

    fn check(&self, _: &History) -> std::result::Result<(), String> {
        Ok(())
    }
}

#[test]
fn a_barrier_that_never_opens_is_found() {
    is_found::<NeverOpens>("all together did not come to an end");
}

/// A lock whose waiters say that they wait, in a key that nobody waits for. Who is dropped while it waits
/// forgets its key, which goes with its session only.
struct Forgetful {
    ledger: Ledger,
    forgotten: Forgotten,
}

type Forgotten = Rc<RefCell<Vec<Owned>>>;

struct Note {
    key: Option<Owned>,
    forgotten: Forgotten,
}

impl Drop for Note {
    fn drop(&mut self) {
        self.forgotten.borrow_mut().extend(self.key.take());
    }
}

impl Scenario for Forgetful {
    const NAME: &'static str = "a waiter that leaves its key";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            forgotten: Rc::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let notes = KeySpace::of("waiting", "x");
        let key = notes.key(&format!("{}/{}", session.lease(), fresh(player)));
        let Claimed::Made { owned, .. } = claim(session, Claim::of(key, "".into())).await? else {
            return Ok(());
        };
        let mut note = Note {
            key: Some(owned),
            forgotten: Rc::clone(&self.forgotten),
        };
        let guard = player.client().exclusive("x").lock(session).await?;
        if let Some(key) = note.key.take() {
            key.release().await?;
        }
        let held = self.ledger.granted(player, guard);
        self.ledger.put(player, &held, "data/mark", "").await?;
        player.pause(500).await;
        held.into_inner().release().await
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        let line = Line::under("quorate/exclusive/x/");
        self.ledger.check(history, &line)
    }
}

#[test]
fn a_waiter_that_leaves_its_key_until_its_session_ends_is_found() {
    is_found::<Forgetful>(r#"nobody holds or waits for keys ["quorate/waiting/x/"#);
}

/// What panics in the background, where nobody waits for it.
struct Panics;

impl Scenario for Panics {
    const NAME: &'static str = "a panic in the background";

    fn new() -> Self {
        Self
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        player.pause(100).await;
        session.actor().spawn("test", async {
            let none: Option<()> = std::hint::black_box(None);
            none.expect("a task of the recipe");
        });
        Ok(())
    }

    fn check(&self, _: &History) -> std::result::Result<(), String> {
        Ok(())
    }
}

#[test]
fn a_panic_in_the_background_is_found_and_has_its_log() {
    let outcome = run::<Panics>(0);
    let what = outcome.broken.unwrap();
    assert!(what.contains("a task of the recipe"), "{what}");
    assert!(outcome.log.contains("player 0: session"), "{}", outcome.log);
}
