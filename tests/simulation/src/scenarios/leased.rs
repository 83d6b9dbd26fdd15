//! Kept keys: in place with the newest value in the end, whoever deletes them, never with an older one
//! after a newer, and others' keys are left alone.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::{KeptState, Result, Session};

use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// How long it may take in the calm until a kept key is in place with its newest value: the longest
/// pause before it is put back, a new session and a watch that has to be opened again.
const IN_PLACE_WITHIN: Duration = Duration::from_secs(20);

/// Clients that keep a key of their own, and one that all of them want, set values and remove them; and
/// each keeps one from beginning to end that anybody deletes now and then.
#[derive(Debug)]
pub struct Leased {
    owners: Cell<u64>,
    /// When the removal by an owner was confirmed.
    removed: RefCell<BTreeMap<u64, Instant>>,
    /// The revisions at which an owner's value was said to be there.
    told: RefCell<Vec<(i64, Written)>>,
    /// The clients have done their last step.
    over: Cell<bool>,
    /// A kept key that was not in place in the end.
    missing: RefCell<Option<String>>,
}

/// A value: who wrote it, its number among the owner's, and whether the owner yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    owner: u64,
    number: u64,
    yields: bool,
}

impl Written {
    /// Whose it is.
    #[must_use]
    pub fn owner(self) -> u64 {
        self.owner
    }

    /// As it is in the store.
    #[must_use]
    pub fn text(self) -> String {
        format!("{} {} {}", self.owner, self.number, self.yields)
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(value).ok()?.split(' ');
        Some(Self {
            owner: words.next()?.parse().ok()?,
            number: words.next()?.parse().ok()?,
            yields: words.next()?.parse().ok()?,
        })
    }
}

impl Scenario for Leased {
    const NAME: &'static str = "leased";

    fn new() -> Self {
        Self {
            owners: Cell::new(0),
            removed: RefCell::default(),
            told: RefCell::default(),
            over: Cell::new(false),
            missing: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, _session: &Session) -> Result<()> {
        let shared = player.one_in(2);
        let key = match shared {
            true => "data/kept".to_owned(),
            false => format!("data/kept-{}", player.index()),
        };
        if player.one_in(4) {
            // Of one of the first three clients, of which there are always as many.
            let victim = format!("data/living-{}", player.below(3));
            player.note(format!("deletes {victim}"));
            player.client().delete(&victim).await?;
        }
        if shared && player.one_in(6) {
            player.client().put(&key, "somebody else's").await?;
            return Ok(());
        }
        let mut value = self.new_owner(shared && player.one_in(2));
        player.note(format!("keeps {key} as owner {}", value.owner));
        let ttl = Duration::from_secs(3 + player.below(4));
        let keep = player.client().keep(&key, value.text()).ttl(ttl);
        let kept = match value.yields {
            true => keep.yielding().await?,
            false => keep.await?,
        };
        for _ in 0..player.below(4) {
            player.pause(600).await;
            value.number += 1;
            let limit = match shared {
                // It may have yielded, or be at war with others.
                true => Duration::from_millis(player.below(2000)),
                false => Duration::MAX,
            };
            if let Ok(at) = tokio::time::timeout(limit, kept.set(value.text())).await {
                let at = at?;
                player.note(format!("{value:?} is there at {at}"));
                self.told.borrow_mut().push((at.0, value));
            }
        }
        if !shared {
            kept.wait_for(|state| state == KeptState::Kept).await;
        }
        player.pause(1000).await;
        if player.one_in(2) {
            kept.remove().await?;
            self.removed(value);
        }
        Ok(())
    }

    async fn attend(&self, player: &Player) {
        let key = format!("data/living-{}", player.index());
        let mut value = self.new_owner(false);
        let ttl = Duration::from_secs(3 + player.below(4));
        let kept = loop {
            let keep = player.client().keep(&key, value.text()).ttl(ttl);
            match keep.await {
                Ok(kept) => break kept,
                Err(error) => player.note(format!("{key} is not kept: {error}")),
            }
            player.pause(1000).await;
        };
        while !self.over.get() {
            player.pause(4000).await;
            value.number += 1;
            // The value stands when nobody waits for it any more.
            let limit = Duration::from_millis(player.below(2000));
            drop(tokio::time::timeout(limit, kept.set(value.text())).await);
        }
        if !is_in_place(player, &key, value).await {
            let broken = format!("{key} is {:?} without {value:?}", kept.state());
            *self.missing.borrow_mut() = Some(broken);
        }
        if let Err(error) = kept.remove().await {
            *self.missing.borrow_mut() = Some(format!("{key} was no longer kept: {error}"));
        }
    }

    fn end(&self) {
        self.over.set(true);
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(missing) = &*self.missing.borrow() {
            return Err(missing.clone());
        }
        let removed = self.removed.borrow();
        let mut told: BTreeMap<(i64, String), bool> = (self.told.borrow().iter())
            .map(|(at, value)| ((*at, value.text()), false))
            .collect();
        let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
        for (commit, change) in history.changes() {
            if !key_of(change).starts_with("data/") {
                continue;
            }
            let kv = change.kv.as_ref().expect("a change has a key");
            let before = change.prev_kv.as_ref();
            let foreign = before.filter(|kv| Written::parse(&kv.value).is_none());
            let put = change.r#type() == EventType::Put;
            let written = Written::parse(&kv.value).filter(|_| put);
            let broken = |what: &str| {
                let text = String::from_utf8_lossy(&kv.value);
                Err(format!("revision {}: {text}: {what}", commit.revision))
            };
            if foreign.is_some() && !put {
                return broken("a key of somebody else was deleted");
            }
            let Some(written) = written else { continue };
            if written.yields && before.is_some() {
                let before = before.and_then(|kv| Written::parse(&kv.value));
                if before.is_none_or(|before| before.owner != written.owner) {
                    return broken("it took the key and should have yielded");
                }
            }
            if removed
                .get(&written.owner)
                .is_some_and(|at| *at < commit.at)
            {
                return broken("it is there after it was removed");
            }
            let last = newest.entry(written.owner).or_insert(0);
            if written.number < *last {
                return broken("it was rolled back");
            }
            *last = written.number;
            if let Some(seen) = told.get_mut(&(commit.revision.0, written.text())) {
                *seen = true;
            }
        }
        match told.into_iter().find(|(_, seen)| !seen) {
            Some((missing, _)) => Err(format!("{missing:?} was acknowledged and is not there")),
            None => Ok(()),
        }
    }
}

impl Leased {
    /// Notes that an owner was told that its key is gone for good.
    pub fn removed(&self, value: Written) {
        let mut removed = self.removed.borrow_mut();
        removed.insert(value.owner, SystemClock.now());
    }

    /// The first value of an owner that was not there before.
    pub fn new_owner(&self, yields: bool) -> Written {
        self.owners.set(self.owners.get() + 1);
        Written {
            owner: self.owners.get(),
            number: 0,
            yields,
        }
    }
}

/// Whether the key comes to have this value in time.
async fn is_in_place(player: &Player, key: &str, value: Written) -> bool {
    let in_place = async {
        loop {
            let found = player.client().get(key).await;
            let found = found.ok().flatten();
            if found.is_some_and(|kv| kv.value == value.text()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(IN_PLACE_WITHIN, in_place)
        .await
        .is_ok()
}
