//! What one consumer knows of the front of its queue, and which item it takes next. Without any call of the
//! store, so that it can be looked at from all sides.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
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

/// Most items that one consumer knows at a time, however many of them cannot be taken; and most bytes of them.
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
    me: u64,
    /// Of the other consumers.
    others: HashMap<Bytes, u64>,
    items: BTreeMap<Position, Item>,
    /// Of the values of all items.
    bytes: usize,
    /// Whether nothing could be taken when somebody last wanted to.
    starved: bool,
    places: HashMap<ItemId, Position>,
    tries: HashMap<ItemId, Tries>,
    /// The revision up to which news of claims and attempts has been taken in.
    tries_at: Revision,
    /// Being taken here, or taken.
    ours: HashSet<ItemId>,
}

#[derive(Debug)]
struct Item {
    value: Bytes,
    about: About,
    /// What its ranks are made of.
    number: u64,
    /// When it was first seen, or seen to be given up.
    since: Instant,
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
    /// Of a consumer with this name, which no other has.
    pub(super) fn new(order: Order, me: &[u8]) -> Self {
        Self {
            order,
            me: number_of(me),
            others: HashMap::new(),
            items: BTreeMap::new(),
            bytes: 0,
            starved: false,
            places: HashMap::new(),
            tries: HashMap::new(),
            tries_at: Revision(0),
            ours: HashSet::new(),
        }
    }

    /// Another consumer has come.
    pub(super) fn joined(&mut self, name: Bytes) {
        let number = number_of(&name);
        if number != self.me {
            self.others.insert(name, number);
        }
    }

    /// Another consumer has gone.
    pub(super) fn left(&mut self, name: &[u8]) {
        self.others.remove(name);
    }

    /// No other consumer is known.
    pub(super) fn left_alone(&mut self) {
        self.others.clear();
    }

    /// An item is in the queue.
    pub(super) fn came(&mut self, position: Position, value: Bytes, about: About, now: Instant) {
        let number = number_of(position.id().to_string().as_bytes());
        let before = self.places.insert(position.id().clone(), position.clone());
        if let Some(before) = before.filter(|before| *before != position) {
            // A late copy has put it there anew.
            self.remove(&before);
        }
        // Known already, it is the same: items are never written again.
        if let Entry::Vacant(place) = self.items.entry(position) {
            self.bytes += value.len();
            place.insert(Item {
                value,
                about,
                number,
                since: now,
            });
        }
    }

    fn remove(&mut self, position: &Position) {
        if let Some(item) = self.items.remove(position) {
            self.bytes -= item.value.len();
        }
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
            Order::Keyed => few || (self.starved && !self.has_free(1, now)),
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

    /// Whether nothing could be taken when somebody last wanted to.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Notes whether there was something to take. Returns whether that is news.
    pub(super) fn starves(&mut self, starves: bool) -> bool {
        std::mem::replace(&mut self.starved, starves) != starves
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
        let item = self
            .places
            .get(id)
            .and_then(|place| self.items.get_mut(place));
        if let Some(item) = item {
            item.since = now + SETTLING;
        }
        self.tidy(id);
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

    /// An item is being taken here, or has been: it is not chosen.
    pub(super) fn reserve(&mut self, id: ItemId) {
        self.ours.insert(id);
    }

    /// Ends a [`Window::reserve`].
    pub(super) fn unreserve(&mut self, id: &ItemId) {
        self.ours.remove(id);
    }

    /// What to take now.
    pub(super) fn choose(&self, turn: Turn, now: Instant) -> Choice {
        // Beyond that many, the other consumers find enough that is theirs.
        let look = (2 * (self.others.len() + 1)).min(LOOK_MAX);
        let mut looked = 0;
        let mut best: Option<(usize, &Position)> = None;
        let mut next: Option<Instant> = None;
        let mut blocked: HashSet<Option<&str>> = HashSet::new();
        for (position, item) in &self.items {
            let free = self.free_at(position, item);
            if !self.is_first(item, &mut blocked) {
                if self.order == Order::Strict {
                    break;
                }
                continue;
            }
            let Some(free) = free else { continue };
            let rank = match turn {
                Turn::Ranked => self.rank(item),
                Turn::Anybody => 0,
            };
            let from = match turn {
                Turn::Ranked => free + delay(rank),
                // What is settling may be free.
                Turn::Anybody => free.min(self.paused(position).unwrap_or(now)),
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

    /// From when on an item can be taken; `None`: somebody has it.
    fn free_at(&self, position: &Position, item: &Item) -> Option<Instant> {
        let id = position.id();
        if self.ours.contains(id)
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

    /// How many consumers come before this one for an item, by rendezvous hashing (Thaler and Ravishankar,
    /// 1998): everybody finds the same without a word.
    fn rank(&self, item: &Item) -> usize {
        let mine = weight(self.me, item.number);
        let before = |other: &&u64| weight(**other, item.number) > mine;
        self.others.values().filter(before).count()
    }
}

fn number_of(bytes: &[u8]) -> u64 {
    mix(fnv1a(bytes))
}

fn weight(consumer: u64, item: u64) -> u64 {
    mix(consumer ^ item.rotate_left(32))
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
