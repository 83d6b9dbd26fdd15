//! Which instance each key keeps to: a bounded memory, in which a key that was not used lately makes room
//! (the clock algorithm of Corbató, 1968).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::incarnation::Incarnation;

/// What sticky picks remember. All its room is made at the start.
#[derive(Debug)]
pub(super) struct Memory(Mutex<Slots>);

#[derive(Debug)]
struct Slots {
    most: usize,
    by_key: HashMap<u64, usize>,
    slots: Vec<Slot>,
    /// The slot that is looked at next when room is needed.
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    key: u64,
    /// Nothing that belongs to it outlives its leaving for a key's sake.
    one: Weak<Incarnation>,
    /// Since the hand last came by.
    is_used: bool,
}

impl Memory {
    pub(super) fn new(keys: usize) -> Self {
        Self(Mutex::new(Slots {
            most: keys,
            // Twice the room, so that the table is tidied up in place instead of growing.
            by_key: HashMap::with_capacity(keys.saturating_mul(2)),
            slots: Vec::with_capacity(keys),
            hand: 0,
        }))
    }

    /// What `key` keeps to if it `may_stay` there, else what `choose` gives, which is remembered. Picks
    /// of other keys wait meanwhile.
    pub(super) fn keep<T>(
        &self,
        key: u64,
        may_stay: impl FnOnce(&Arc<Incarnation>) -> Option<T>,
        choose: impl FnOnce() -> Option<(T, Arc<Incarnation>)>,
    ) -> Option<T> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = slots.by_key.get(&key).copied();
        if let Some(at) = known {
            let slot = &mut slots.slots[at];
            slot.is_used = true;
            let one = slot.one.upgrade();
            if let Some(same) = one.as_ref().and_then(may_stay) {
                return Some(same);
            }
        }
        let (chosen, one) = choose()?;
        let one = Arc::downgrade(&one);
        match known {
            Some(at) => slots.slots[at].one = one,
            None => slots.insert(key, one),
        }
        Some(chosen)
    }
}

impl Slots {
    fn insert(&mut self, key: u64, one: Weak<Incarnation>) {
        let slot = Slot {
            key,
            one,
            is_used: false,
        };
        if self.slots.len() < self.most {
            self.by_key.insert(key, self.slots.len());
            self.slots.push(slot);
            return;
        }
        // Ends: every slot that is passed is unused the next time.
        loop {
            let at = self.hand;
            self.hand = (at + 1) % self.most;
            if std::mem::take(&mut self.slots[at].is_used) {
                continue;
            }
            self.by_key.remove(&self.slots[at].key);
            self.by_key.insert(key, at);
            self.slots[at] = slot;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Revision;

    #[test]
    fn a_key_not_used_lately_makes_room() {
        let memory = Memory::new(3);
        let one = Arc::new(Incarnation::new("a", Revision(1), None));
        let fresh = |key| {
            let chosen = || Some((true, Arc::clone(&one)));
            memory.keep(key, |_| Some(false), chosen).unwrap()
        };
        assert!(fresh(1) && fresh(2) && fresh(3));
        assert!(!fresh(1) && !fresh(3));
        assert!(fresh(4), "in the place of 2");
        assert!(!fresh(1) && !fresh(3) && !fresh(4));
        assert!(fresh(2));
    }
}
