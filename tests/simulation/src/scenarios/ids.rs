//! Blocks of ids: no number twice, and those of one handle grow.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::mvccpb::KeyValue;
use quorate_recipes::counter::IdBlocks;
use quorate_recipes::{KeyRange, Result, Session};

use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// The key that has the largest number taken.
const LAST: &str = "quorate/ids/i/last";

fn number(kv: &KeyValue) -> u64 {
    String::from_utf8_lossy(&kv.value).parse().unwrap_or(0)
}

/// Clients that take numbers, in blocks of several sizes.
#[derive(Debug)]
pub struct Ids {
    handles: RefCell<BTreeMap<usize, (IdBlocks, u64)>>,
    given: RefCell<BTreeSet<u64>>,
    broken: RefCell<Option<String>>,
}

impl Ids {
    fn broke(&self, what: String) {
        self.broken.borrow_mut().get_or_insert(what);
    }
}

impl Scenario for Ids {
    const NAME: &'static str = "ids";

    fn new() -> Self {
        Self {
            handles: RefCell::default(),
            given: RefCell::default(),
            broken: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, _session: &Session) -> Result<()> {
        if player.one_in(8) {
            self.handles.borrow_mut().remove(&player.index());
        }
        let ids = {
            let mut handles = self.handles.borrow_mut();
            let (ids, _) = handles.entry(player.index()).or_insert_with(|| {
                let block = 1 + player.below(4);
                (player.client().ids("i").block(block), 0)
            });
            ids.clone()
        };
        for _ in 0..=player.below(4) {
            let id = ids.next().await?;
            player.note(format!("got {id}"));
            if !self.given.borrow_mut().insert(id) {
                self.broke(format!("{id} was given out twice"));
            }
            if let Some((_, last)) = self.handles.borrow_mut().get_mut(&player.index()) {
                if id <= *last {
                    self.broke(format!("{id} after {last} of one handle"));
                }
                *last = id;
            }
        }
        Ok(())
    }

    /// Sees how many are taken.
    async fn attend(&self, player: &Player) {
        let mut watcher = player.client().watch(KeyRange::one(LAST));
        let mut last = 0;
        loop {
            match watcher.next().await {
                Ok(batch) => drop(batch),
                Err(error) => return self.broke(format!("a watcher failed: {error}")),
            }
            let taken = watcher.known().get(LAST.as_bytes()).map_or(0, number);
            if taken < last {
                self.broke(format!("{taken} numbers taken, seen after {last}"));
            }
            last = taken;
        }
    }

    fn may_remain(&self, key: &str) -> bool {
        key == LAST
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(broken) = &*self.broken.borrow() {
            return Err(broken.clone());
        }
        let mut last = 0;
        for (commit, change) in history.changes() {
            if key_of(change) != LAST {
                continue;
            }
            let taken = change.kv.as_ref().map_or(0, number);
            if taken <= last {
                let at = commit.revision;
                return Err(format!("revision {at}: {taken} numbers taken after {last}"));
            }
            last = taken;
        }
        match self.given.borrow().last().copied() {
            Some(id) if id > last => Err(format!("{id} was given out; {last} were taken")),
            _ => Ok(()),
        }
    }
}
