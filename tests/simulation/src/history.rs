//! What happened in a world: what clients were told, and what the store committed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;

use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::keys::LeaseId;
use quorate_recipes::store::Commit;

/// What was told, line by line, in virtual time.
#[derive(Debug, Clone)]
pub struct Log {
    lines: Rc<RefCell<Vec<(Instant, String)>>>,
    start: Instant,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            lines: Rc::default(),
            start: SystemClock.now(),
        }
    }

    /// Notes something that happened now.
    pub fn note(&self, text: impl Into<String>) {
        let now = SystemClock.now();
        self.lines.borrow_mut().push((now, text.into()));
    }

    /// All of it, and what the store committed, in the order of time. Values are left out: some tell
    /// the real time.
    pub(crate) fn text(&self, commits: &[Arc<Commit>]) -> String {
        let mut all: Vec<(Instant, u8, String)> = Vec::new();
        for (at, line) in &*self.lines.borrow() {
            all.push((*at, 1, line.clone()));
        }
        for commit in commits {
            let mut line = format!("    revision {}:", commit.revision);
            for change in &commit.changes {
                let sign = match change.r#type() {
                    EventType::Put => '+',
                    EventType::Delete => '-',
                };
                // Writing to a string does not fail.
                let _ = write!(line, " {sign}{}", key_of(change));
            }
            all.push((commit.at, 0, line));
        }
        all.sort_by_key(|(at, order, _)| (*at, *order));
        let mut text = String::new();
        for (at, _, line) in all {
            let millis = at.saturating_duration_since(self.start).as_millis();
            let _ = writeln!(text, "{:>6}.{:03} {line}", millis / 1000, millis % 1000);
        }
        text
    }
}

/// What a checker looks at.
#[derive(Debug)]
pub struct History {
    /// Every commit, in the order of revisions.
    pub commits: Vec<Arc<Commit>>,
    /// What the store itself did to its clients.
    pub losses: Losses,
    /// Since when nothing failed any more, if it came to that.
    pub calm: Option<Instant>,
}

/// What the store lost, of what a store keeps by its promise.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    /// The leases that were ended before their time.
    pub leases: BTreeSet<LeaseId>,
    /// When all that was before was compacted, and all watches ended: who had not seen it never will.
    pub resyncs: Vec<Instant>,
}

impl History {
    /// Every change with its commit, in order.
    pub fn changes(&self) -> impl Iterator<Item = (&Commit, &Event)> {
        let each = self.commits.iter();
        each.flat_map(|commit| commit.changes.iter().map(|change| (&**commit, change)))
    }
}

/// The key of a change, as text.
#[must_use]
pub fn key_of(change: &Event) -> String {
    let key = change.kv.as_ref().map(|kv| &kv.key[..]).unwrap_or_default();
    String::from_utf8_lossy(key).into_owned()
}

/// The decimal number that a change wrote; 0 for a deletion, or for anything else.
#[must_use]
pub fn number_of(change: &Event) -> i64 {
    change.kv.as_ref().map_or(0, value_of)
}

/// The decimal number that a key has; 0 for anything else.
#[must_use]
pub fn value_of(kv: &KeyValue) -> i64 {
    let text = std::str::from_utf8(&kv.value).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What there was at a revision, of what there was after each one that changed it; `None`: nothing had been noted by
/// then.
#[must_use]
pub fn state_at<T>(states: &BTreeMap<i64, T>, revision: i64) -> Option<&T> {
    let state = states.range(..=revision).next_back();
    state.map(|(_, state)| state)
}
