//! What the consumers of a session know of the front of their queue, and which item each takes next. Without any
//! call of the store, so that it can be looked at from all sides.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, btree_map};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;

use super::record::{About, Order};
use crate::clock::Instant;
use crate::hash::{fnv1a, mix};
use crate::keys::Revision;
use crate::kit::{ItemId, Position};

/// What the second and third in rank wait after an item has appeared; the next four wait twice that, and so
/// on.
const RANK_DELAY: Duration = Duration::from_millis(20);

/// The longest wait of any rank.
const RANK_DELAY_MAX: Duration = Duration::from_millis(200);

/// Most items that one choice looks at.
const LOOK_MAX: usize = 64;

/// As many items as a front should have that can be taken, however large the segments are.
const FREE_ITEMS: usize = 256;

/// Bytes of items that can be taken which are enough, however few the items.
const FREE_BYTES: usize = 8 << 20;

/// Most items that a session knows at a time, however many of them cannot be taken; and most bytes of them.
/// It looks no further before some are done.
const KNOWN_ITEMS_MAX: usize = 16_384;
const KNOWN_BYTES_MAX: usize = 64 << 20;

/// How long an item that was let go of is left alone: an item that is done goes at the same revision as its
/// claim, but the news of that comes by another way.
const SETTLING: Duration = Duration::from_millis(20);

/// The front of a queue.
#[derive(Debug)]
pub(super) struct Window {
    order: Order,
    /// Of all consumers.
    consumers: HashMap<Bytes, Number>,
    /// How often they have changed, from 1 on.
    changes: u64,
    items: BTreeMap<Position, Item>,
    /// Of the values of all items.
    bytes: usize,
    /// How many of those who want an item found none.
    starving: usize,
    places: HashMap<ItemId, Position>,
    tries: HashMap<ItemId, Tries>,
    /// The revision up to which news of claims and attempts has been taken in.
    tries_at: Revision,
    /// Being taken by a consumer of the session.
    reserved: HashSet<ItemId>,
    /// Not to be taken by any of them.
    left_alone: HashSet<Position>,
    /// By consumers of the session: what they have taken and not let go of, whatever has become of their claims.
    kept: HashMap<Number, HashSet<ItemId>>,
}

#[derive(Debug)]
struct Item {
    value: Bytes,
    about: About,
    number: Number,
    weights: RefCell<Weights>,
    /// When it was first seen, or seen to be given up.
    since: Instant,
}

/// Those of all consumers for an item, in their order, once somebody has asked for a rank.
#[derive(Debug, Default)]
struct Weights {
    /// After how many changes of the consumers.
    at: u64,
    sorted: Vec<u64>,
}

/// What is known of the taking of one item.
#[derive(Debug, Clone, Default)]
struct Tries {
    /// The revision at which somebody took it, who has it.
    claimed: Option<Revision>,
    attempts: u32,
    /// The mod revision of the key that counts; 0: there is none.
    attempts_at: Revision,
    /// To be left alone until then.
    paused: Option<Instant>,
}

impl Tries {
    /// Whether it says nothing.
    fn is_idle(&self) -> bool {
        self.claimed.is_none() && self.attempts_at == Revision(0)
    }
}

/// An item that can be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) position: Position,
    pub(super) value: Bytes,
    pub(super) about: About,
    /// How often it was taken at this place.
    pub(super) attempts: u32,
    /// The mod revision of the key that says so; 0: there is none.
    pub(super) attempts_at: Revision,
}

/// What can be taken now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Take(Box<Candidate>),
    /// Nothing now; from this moment on perhaps something, if there is one.
    Wait(Option<Instant>),
}

/// Whose turn an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// One consumer's first, then that of a few more, so that not all try at once.
    Ranked,
    /// Everybody's.
    Anybody,
}

impl Window {
    pub(super) fn new(order: Order) -> Self {
        Self {
            order,
            consumers: HashMap::new(),
            changes: 1,
            items: BTreeMap::new(),
            bytes: 0,
            starving: 0,
            places: HashMap::new(),
            tries: HashMap::new(),
            tries_at: Revision(0),
            reserved: HashSet::new(),
            left_alone: HashSet::new(),
            kept: HashMap::new(),
        }
    }

    /// A consumer has come.
    pub(super) fn joined(&mut self, name: Bytes) {
        let number = Number::of(&name);
        self.consumers.insert(name, number);
        self.changes += 1;
    }

    /// A consumer has gone.
    pub(super) fn left(&mut self, name: &[u8]) {
        self.consumers.remove(name);
        self.changes += 1;
    }

    /// No consumer is known.
    pub(super) fn forget_consumers(&mut self) {
        self.consumers.clear();
        self.changes += 1;
    }

    /// An item is in the queue.
    pub(super) fn came(&mut self, position: Position, value: Bytes, about: About, now: Instant) {
        let number = Number::of(position.id().to_string().as_bytes());
        let before = self.places.insert(position.id().clone(), position.clone());
        if let Some(before) = before.filter(|before| *before != position) {
            // A late copy has put it there anew.
            self.remove(&before);
        }
        // Known already, it is the same: items are never written again.
        if let btree_map::Entry::Vacant(place) = self.items.entry(position) {
            self.bytes += value.len();
            place.insert(Item {
                value,
                about,
                number,
                weights: RefCell::default(),
                since: now,
            });
        }
    }

    fn remove(&mut self, position: &Position) {
        if let Some(item) = self.items.remove(position) {
            self.bytes -= item.value.len();
        }
        self.left_alone.remove(position);
    }

    /// An item is no longer in the queue.
    pub(super) fn went(&mut self, id: &ItemId) {
        if let Some(position) = self.places.remove(id) {
            self.remove(&position);
        }
    }

    /// The item that stood there is no longer in the queue.
    pub(super) fn went_from(&mut self, position: &Position) {
        self.remove(position);
        if self.places.get(position.id()) == Some(position) {
            self.places.remove(position.id());
        }
    }

    /// Nothing is known of items any more.
    pub(super) fn forget_items(&mut self) {
        self.items.clear();
        self.bytes = 0;
        self.places.clear();
        self.left_alone.clear();
    }

    /// Exactly these items of some segments are there.
    pub(super) fn only(&mut self, segments: RangeInclusive<u64>, there: &HashSet<ItemId>) {
        let gone: Vec<ItemId> = self
            .of_segments(segments)
            .map(Position::id)
            .filter(|id| !there.contains(*id))
            .cloned()
            .collect();
        gone.iter().for_each(|id| self.went(id));
    }

    fn of_segments(&self, segments: RangeInclusive<u64>) -> impl Iterator<Item = &Position> {
        let (first, last) = segments.into_inner();
        let from = self.items.range(Position::before(first)..);
        from.map(|(position, _)| position)
            .take_while(move |position| position.segment() <= last)
    }

    /// Whether a segment has no item.
    pub(super) fn is_empty(&self, segment: u64) -> bool {
        self.of_segments(segment..=segment).next().is_none()
    }

    /// Whether it should know more of the queue, whose segments have about so many items.
    pub(super) fn wants_more(&self, segment_items: usize, now: Instant) -> bool {
        if self.items.len() >= KNOWN_ITEMS_MAX || self.bytes >= KNOWN_BYTES_MAX {
            return false;
        }
        let enough = segment_items.min(FREE_ITEMS) / 2 + 1;
        let few = self.items.len() < enough && self.bytes < FREE_BYTES;
        match self.order {
            // What is behind the first only has to be there in time.
            Order::Strict => few,
            // Other keys may come behind those that are held up.
            Order::Keyed => few || (self.is_starved() && !self.has_free(1, now)),
            Order::Parallel => !self.has_free(enough, now),
        }
    }

    /// Whether so many items, or enough bytes of them, can be taken without waiting for others to be done, as far
    /// as is known.
    fn has_free(&self, enough: usize, now: Instant) -> bool {
        let mut blocked = HashSet::new();
        let (mut free, mut bytes) = (0, 0);
        for (position, item) in &self.items {
            let tries = self.tries.get(position.id());
            let taken = tries.is_some_and(|tries| tries.claimed.is_some());
            let taken = taken || self.left_alone.contains(position);
            let paused = self.paused(position).is_some_and(|until| until > now);
            // An exact order asks every item before it.
            if self.is_first(item, &mut blocked) && !paused && !taken {
                free += 1;
                bytes += item.value.len();
            }
            if free >= enough || bytes >= FREE_BYTES {
                return true;
            }
        }
        false
    }

    /// Whether somebody in the session wants an item and found none.
    pub(super) fn is_starved(&self) -> bool {
        self.starving > 0
    }

    /// One more who wants an item found none. Returns whether it is the only one.
    pub(super) fn starves(&mut self) -> bool {
        self.starving += 1;
        self.starving == 1
    }

    /// One of those has found an item, or wants none any more.
    pub(super) fn is_fed(&mut self) {
        self.starving -= 1;
    }

    /// All claims and counts of attempts at this revision are those that follow; of which items there is a
    /// count, is told.
    pub(super) fn tries_listed(&mut self, at: Revision, counted: &HashSet<ItemId>) {
        for (id, tries) in &mut self.tries {
            // What an answer told of later times stays.
            tries.claimed = tries.claimed.filter(|claimed| *claimed > at);
            if !counted.contains(id) && tries.attempts_at <= at {
                *tries = Tries {
                    claimed: tries.claimed,
                    ..Tries::default()
                };
            }
        }
        self.tries.retain(|_, tries| !tries.is_idle());
    }

    /// News of claims and attempts up to this revision has been taken in.
    pub(super) fn tries_until(&mut self, revision: Revision) {
        self.tries_at = revision;
    }

    /// An item is taken, since this revision.
    pub(super) fn claimed(&mut self, id: ItemId, since: Revision) {
        if let Some(item) = self.item(&id) {
            // Nobody asks for its ranks.
            item.weights.take();
        }
        self.tries.entry(id).or_default().claimed = Some(since);
    }

    /// As [`Window::claimed`], told at this revision and not by the news, which may be ahead of it.
    pub(super) fn claimed_at(&mut self, id: ItemId, revision: Revision) {
        if revision > self.tries_at {
            self.claimed(id, revision);
        }
    }

    /// An item is given up, or done.
    pub(super) fn unclaimed(&mut self, id: &ItemId, now: Instant) {
        if let Some(tries) = self.tries.get_mut(id) {
            tries.claimed = None;
        }
        let place = self.places.get(id);
        if let Some(item) = place.and_then(|place| self.items.get_mut(place)) {
            item.since = now + SETTLING;
        }
        self.tidy(id);
    }

    fn item(&self, id: &ItemId) -> Option<&Item> {
        self.items.get(self.places.get(id)?)
    }

    /// How often an item was taken: what the key says that counts, written at this revision; and until when it is
    /// to be left alone.
    pub(super) fn attempted(
        &mut self,
        id: ItemId,
        at: Revision,
        count: u32,
        paused: Option<Instant>,
    ) {
        let tries = self.tries.entry(id).or_default();
        if at <= tries.attempts_at {
            // Known: a pause ends when it was first seen to end, whatever becomes of the wall clock.
            return;
        }
        tries.attempts = count;
        tries.attempts_at = at;
        tries.paused = paused;
    }

    /// The key that counts an item's attempts is not there.
    pub(super) fn not_attempted(&mut self, id: &ItemId) {
        if let Some(tries) = self.tries.get_mut(id) {
            tries.attempts = 0;
            tries.attempts_at = Revision(0);
            tries.paused = None;
        }
        self.tidy(id);
    }

    fn tidy(&mut self, id: &ItemId) {
        if self.tries.get(id).is_some_and(Tries::is_idle) {
            self.tries.remove(id);
        }
    }

    /// An item is being taken here: it is not chosen.
    pub(super) fn reserve(&mut self, id: ItemId) {
        self.reserved.insert(id);
    }

    /// Ends a [`Window::reserve`].
    pub(super) fn unreserve(&mut self, id: &ItemId) {
        self.reserved.remove(id);
    }

    /// What was reserved has been taken by this consumer, at this revision: it does not choose it again. Returns
    /// whether it is known to have lost it already.
    pub(super) fn keep(&mut self, id: ItemId, by: Number, revision: Revision) -> bool {
        self.claimed_at(id.clone(), revision);
        self.reserved.remove(&id);
        let is_lost = self.is_free(&id);
        self.kept.entry(by).or_default().insert(id);
        is_lost
    }

    /// What was reserved is not to be taken by anybody here, as long as it stands there.
    pub(super) fn leave_alone(&mut self, position: &Position) {
        self.reserved.remove(position.id());
        if self.items.contains_key(position) {
            self.left_alone.insert(position.clone());
        }
    }

    /// The items that are there and being taken, so that it is not known yet who has them.
    pub(super) fn unsettled(&self) -> Vec<ItemId> {
        let there = |id: &&ItemId| self.places.contains_key(*id);
        self.reserved.iter().filter(there).cloned().collect()
    }

    /// Whether an item is there, and nobody is known to have it.
    fn is_free(&self, id: &ItemId) -> bool {
        let tries = self.tries.get(id);
        self.places.contains_key(id) && tries.is_none_or(|tries| tries.claimed.is_none())
    }

    /// Ends a [`Window::keep`]. Returns whether the item is free.
    pub(super) fn let_go(&mut self, id: &ItemId, by: Number) -> bool {
        if let Entry::Occupied(mut kept) = self.kept.entry(by) {
            kept.get_mut().remove(id);
            if kept.get().is_empty() {
                kept.remove();
            }
        }
        self.is_free(id)
    }

    /// What this consumer takes now.
    pub(super) fn choose(&self, me: Number, turn: Turn, now: Instant) -> Choice {
        // Beyond that many, the other consumers find enough that is theirs.
        let look = (2 * self.consumers.len().max(1)).min(LOOK_MAX);
        let mut looked = 0;
        let mut best: Option<(usize, &Position)> = None;
        let mut next: Option<Instant> = None;
        let mut blocked: HashSet<Option<&str>> = HashSet::new();
        for (position, item) in &self.items {
            let free = self.free_at(position, item, me);
            if !self.is_first(item, &mut blocked) {
                if self.order == Order::Strict {
                    break;
                }
                continue;
            }
            let Some(free) = free else { continue };
            let (rank, from) = match turn {
                // Whose turn it will be is seen then.
                Turn::Ranked if free > now => (0, free),
                Turn::Ranked => {
                    let rank = self.rank(me, item);
                    (rank, free + delay(rank))
                }
                // What is settling may be free.
                Turn::Anybody => (0, free.min(self.paused(position).unwrap_or(now))),
            };
            if from > now {
                next = Some(next.map_or(from, |next| next.min(from)));
                if self.paused(position).is_some_and(|until| until > now) {
                    // It stands in nobody's way here.
                    continue;
                }
            } else if best.is_none_or(|(lowest, _)| rank < lowest) {
                best = Some((rank, position));
            }
            looked += 1;
            if looked == look || best.is_some_and(|(rank, _)| rank == 0) {
                break;
            }
        }
        match best {
            Some((_, position)) => Choice::Take(Box::new(self.candidate(position))),
            None => Choice::Wait(next),
        }
    }

    /// Whether no item before is to be done first. Called for each in its turn.
    fn is_first<'a>(&self, item: &'a Item, blocked: &mut HashSet<Option<&'a str>>) -> bool {
        let key = match self.order {
            Order::Parallel => return true,
            Order::Strict => None,
            Order::Keyed => match &item.about.key {
                None => return true,
                key => key.as_deref(),
            },
        };
        blocked.insert(key)
    }

    /// From when on this consumer can take an item; `None`: somebody has it.
    fn free_at(&self, position: &Position, item: &Item, me: Number) -> Option<Instant> {
        let id = position.id();
        if self.reserved.contains(id)
            || self.left_alone.contains(position)
            || self.kept.get(&me).is_some_and(|kept| kept.contains(id))
            || self
                .tries
                .get(id)
                .is_some_and(|tries| tries.claimed.is_some())
        {
            return None;
        }
        let paused = self.paused(position).unwrap_or(item.since);
        Some(item.since.max(paused))
    }

    fn paused(&self, position: &Position) -> Option<Instant> {
        self.tries.get(position.id())?.paused
    }

    fn candidate(&self, position: &Position) -> Candidate {
        let item = &self.items[position];
        let tries = self.tries.get(position.id());
        Candidate {
            position: position.clone(),
            value: item.value.clone(),
            about: item.about.clone(),
            attempts: tries.map_or(0, |tries| tries.attempts),
            attempts_at: tries.map_or(Revision(0), |tries| tries.attempts_at),
        }
    }

    /// How many consumers come before one of them for an item, by rendezvous hashing (Thaler and Ravishankar,
    /// 1998): everybody finds the same without a word.
    fn rank(&self, me: Number, item: &Item) -> usize {
        let mut weights = item.weights.borrow_mut();
        if weights.at != self.changes {
            let all = self.consumers.values();
            weights.sorted = all.map(|one| one.weight(item.number)).collect();
            weights.sorted.sort_unstable();
            weights.at = self.changes;
        }
        let mine = me.weight(item.number);
        let up_to_mine = weights.sorted.partition_point(|weight| *weight <= mine);
        weights.sorted.len() - up_to_mine
    }
}

/// Of a consumer by its name, of an item by its id: what ranks are made of, and by which the consumers of a session
/// are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Number(u64);

impl Number {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(mix(fnv1a(bytes)))
    }

    /// A consumer's for an item.
    fn weight(self, item: Self) -> u64 {
        mix(self.0 ^ item.0.rotate_left(32))
    }
}

/// What a rank waits.
fn delay(rank: usize) -> Duration {
    let group = (rank + 1).ilog2();
    match group {
        0 => Duration::ZERO,
        group => RANK_DELAY
            .saturating_mul(1_u32.checked_shl(group - 1).unwrap_or(u32::MAX))
            .min(RANK_DELAY_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn id(name: u32) -> ItemId {
        ItemId::named(0, &name.to_string())
    }

    fn position(name: u32) -> Position {
        Position::new(id(name), Revision(i64::from(name) + 1))
    }

    /// With so many items and consumers.
    fn window(order: Order, items: u32, consumers: u32, now: Instant) -> Window {
        let mut window = Window::new(order);
        for name in 0..consumers {
            window.joined(name.to_string().into());
        }
        for name in 0..items {
            let about = About::unknown();
            window.came(position(name), Bytes::from_static(b"1"), about, now);
        }
        window
    }

    fn consumer(name: u32) -> Number {
        Number::of(name.to_string().as_bytes())
    }

    fn chosen(window: &Window, by: u32, turn: Turn, now: Instant) -> Option<Position> {
        match window.choose(consumer(by), turn, now) {
            Choice::Take(candidate) => Some(candidate.position),
            Choice::Wait(_) => None,
        }
    }

    /// Whose turn the only item is first, of those who are there.
    fn first(window: &Window, there: &[u32], now: Instant) -> u32 {
        let is_first = |name: &&u32| chosen(window, **name, Turn::Ranked, now).is_some();
        let all: Vec<&u32> = there.iter().filter(is_first).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        *all[0]
    }

    #[tokio::test(start_paused = true)]
    async fn ranks_follow_those_who_come_and_go() {
        let now = clock::now();
        let mut there: Vec<u32> = (0..50).collect();
        let mut window = window(Order::Parallel, 1, 50, now);
        let mut gone = Vec::new();
        while there.len() > 1 {
            let one = first(&window, &there, now);
            window.left(one.to_string().as_bytes());
            there.retain(|other| *other != one);
            gone.push(one);
        }
        // Whoever came before all of these comes before them again.
        for one in gone.into_iter().rev() {
            window.joined(one.to_string().into());
            there.push(one);
            assert_eq!(first(&window, &there, now), one);
        }
        window.forget_consumers();
        window.joined("7".into());
        assert_eq!(first(&window, &[7], now), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_alone_is_nobodys_and_not_free() {
        let now = clock::now();
        let mut window = window(Order::Keyed, 2, 1, now);
        window.starves();
        window.reserve(id(0));
        window.leave_alone(&position(0));
        assert!(window.unsettled().is_empty());
        assert_eq!(chosen(&window, 0, Turn::Anybody, now), Some(position(1)));
        assert!(!window.wants_more(1, now));
        window.claimed(id(1), Revision(9));
        assert_eq!(chosen(&window, 0, Turn::Anybody, now), None);
        assert!(window.wants_more(1, now), "nothing is free");
        window.is_fed();
        assert!(!window.wants_more(1, now), "and nobody wants anything");
        // Put there anew, it is another item.
        window.went(&id(0));
        let about = About::unknown();
        let anew = Position::new(id(0), Revision(10));
        window.came(anew.clone(), Bytes::new(), about, now);
        assert_eq!(chosen(&window, 0, Turn::Anybody, now), Some(anew));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_lost_an_item_is_the_only_one_that_does_not_take_it_again() {
        let now = clock::now();
        let mut window = window(Order::Parallel, 1, 2, now);
        window.reserve(id(0));
        assert_eq!(window.unsettled(), [id(0)]);
        for by in [0, 1] {
            assert_eq!(chosen(&window, by, Turn::Anybody, now), None);
        }
        window.tries_until(Revision(5));
        // The news is ahead of the answer, and says that nobody has it.
        assert!(window.keep(id(0), consumer(0), Revision(5)));
        assert_eq!(chosen(&window, 0, Turn::Anybody, now), None);
        assert_eq!(chosen(&window, 1, Turn::Anybody, now), Some(position(0)));
        window.reserve(id(0));
        assert!(!window.keep(id(0), consumer(1), Revision(6)));
        assert_eq!(chosen(&window, 1, Turn::Anybody, now), None);
        assert!(!window.let_go(&id(0), consumer(0)), "the other one has it");
        window.unclaimed(&id(0), now);
        assert_eq!(chosen(&window, 0, Turn::Anybody, now), Some(position(0)));
        assert!(window.let_go(&id(0), consumer(1)));
        assert!(window.kept.is_empty());
    }
}
