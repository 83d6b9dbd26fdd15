//! What one who waits makes of the changes that it sees: whether a look is worth it. A change that leaves the
//! condition untrue costs the store nothing more.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;

use super::look::Looker;
use super::rule::Facts;
use crate::clock::{self, Instant};
use crate::keys::decode;

/// How much later those who wait look than a change that nobody else may look after, at most: a task was done.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// The same after a change by one who looks itself, and opens the gate: they look only if that one does not.
const OTHERS_PAUSE: Duration = Duration::from_millis(200);

/// The facts of an epoch, as known from a look and all changes since.
#[derive(Debug)]
pub(super) struct Following<'a> {
    looker: &'a Looker,
    /// Tasks that the condition asks for.
    named: BTreeSet<String>,
    facts: Facts,
    /// Whether the condition holds by those.
    holds: bool,
    /// When to look although no gate has opened.
    due: Option<Instant>,
}

impl<'a> Following<'a> {
    /// From a look on that found the condition untrue.
    pub(super) fn of(looker: &'a Looker, facts: Facts, due: Option<Instant>) -> Self {
        Self {
            looker,
            named: looker.named(),
            facts,
            holds: false,
            due,
        }
    }

    /// Takes a change in. Returns when to look.
    pub(super) fn sees(&mut self, event: &Event) -> Option<Instant> {
        let client = &self.looker.layout.client;
        let pause = client.jitter(self.take(event));
        let now = client.now();
        let (epoch, there) = (self.facts.epoch, self.facts.items > 0);
        self.facts.now = now;
        self.facts.since = self.looker.seen(epoch, there, now);
        match self.looker.judge(&self.facts) {
            Ok(_) if self.holds => {}
            Ok(_) => {
                self.holds = true;
                let paused = clock::after(now, pause);
                self.due = self.due.into_iter().chain([paused]).min();
            }
            Err(due) => {
                self.holds = false;
                self.due = due;
            }
        }
        self.due
    }

    /// Returns how much later to look, at most, should the condition hold now.
    fn take(&mut self, event: &Event) -> Duration {
        let Some(kv) = &event.kv else {
            return OTHERS_PAUSE;
        };
        let (layout, facts) = (&self.looker.layout, &mut self.facts);
        let there = event.r#type() == EventType::Put;
        if let Some(id) = decode_done(self.looker, &kv.key) {
            change(&mut facts.done, id, there);
            return LOOK_PAUSE;
        }
        if let Some(item) = layout.log.item(&kv.key) {
            match there {
                true if kv.version == 1 => facts.items += 1,
                true => {}
                false => facts.items = facts.items.saturating_sub(1),
            }
            if let Some(id) = decode(item.name()).filter(|id| self.named.contains(id)) {
                change(&mut facts.present, id, there);
            }
        } else if let Some(id) = layout.left_id(facts.epoch, &kv.key) {
            change(&mut facts.left, id, there);
        } else if kv.key == *layout.started(facts.epoch).as_bytes() {
            facts.started = there;
        }
        OTHERS_PAUSE
    }
}

fn decode_done(looker: &Looker, key: &[u8]) -> Option<String> {
    decode(looker.layout.all_done().suffix(key)?)
}

fn change(ids: &mut BTreeSet<String>, id: String, there: bool) {
    match there {
        true => drop(ids.insert(id)),
        false => drop(ids.remove(&id)),
    }
}
