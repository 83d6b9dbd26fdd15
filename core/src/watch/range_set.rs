//! Which watchers a key concerns: exact keys in a hash map, ranges in a tree of intervals. Used by
//! the hub alone. A look-up costs the logarithm of the ranges plus the matches, not the watchers.
//!
//! The tree is a treap over the ranges, ordered by (start, end), in which every node also knows the
//! furthest end below it: a subtree that ends before the key is skipped whole. Its priorities come
//! from mixing a counter, so it needs no randomness and cannot be unbalanced by chosen keys.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use quorate_proto::KeyRange;

/// Watchers of one key or range, by number.
type Members<T> = BTreeMap<u64, T>;

/// A set of (range, number, item), searched by key.
#[derive(Debug)]
pub(super) struct RangeSet<T> {
    exact: HashMap<Bytes, Members<T>>,
    root: Link<T>,
    counter: u64,
}

type Link<T> = Option<Box<Node<T>>>;

#[derive(Debug)]
struct Node<T> {
    range: KeyRange,
    end: Reach,
    /// The furthest end in this subtree.
    reach: Reach,
    priority: u64,
    members: Members<T>,
    left: Link<T>,
    right: Link<T>,
}

/// An end of a range: the first key beyond it, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reach(Option<Bytes>);

impl Reach {
    fn of(range: &KeyRange) -> Self {
        Self(range.end_exclusive().map(Bytes::copy_from_slice))
    }

    fn beyond(&self, key: &[u8]) -> bool {
        self.0.as_ref().is_none_or(|end| *key < **end)
    }

    fn max(&self, other: &Self) -> Self {
        match (&self.0, &other.0) {
            (Some(one), Some(two)) => Self(Some(one.max(two).clone())),
            _ => Self(None),
        }
    }
}

impl<T> RangeSet<T> {
    pub(super) fn new() -> Self {
        Self {
            exact: HashMap::new(),
            root: None,
            counter: 0,
        }
    }

    pub(super) fn insert(&mut self, range: &KeyRange, number: u64, item: T) {
        if let Some(key) = range.as_single() {
            self.exact
                .entry(key.clone())
                .or_default()
                .insert(number, item);
            return;
        }
        self.counter += 1;
        let priority = mix(self.counter);
        self.root = Some(Node::insert(
            self.root.take(),
            range,
            priority,
            number,
            item,
        ));
    }

    pub(super) fn remove(&mut self, range: &KeyRange, number: u64) {
        if let Some(key) = range.as_single() {
            if let Some(members) = self.exact.get_mut(key) {
                members.remove(&number);
                if members.is_empty() {
                    self.exact.remove(key);
                }
            }
            return;
        }
        self.root = Node::remove(self.root.take(), range, number);
    }

    /// Calls `found` for every item whose range holds `key`.
    pub(super) fn each(&self, key: &[u8], found: &mut impl FnMut(u64, &T)) {
        let mut visit = |members: &Members<T>| {
            for (number, item) in members {
                found(*number, item);
            }
        };
        if let Some(members) = self.exact.get(key) {
            visit(members);
        }
        Node::each(&self.root, key, &mut visit);
    }
}

impl<T> Node<T> {
    fn insert(link: Link<T>, range: &KeyRange, priority: u64, number: u64, item: T) -> Box<Self> {
        let Some(mut node) = link else {
            let end = Reach::of(range);
            return Box::new(Self {
                range: range.clone(),
                reach: end.clone(),
                end,
                priority,
                members: BTreeMap::from([(number, item)]),
                left: None,
                right: None,
            });
        };
        match order(range, &node.range) {
            Ordering::Equal => {
                node.members.insert(number, item);
            }
            Ordering::Less => {
                let left = Self::insert(node.left.take(), range, priority, number, item);
                let rises = left.priority > node.priority;
                node.left = Some(left);
                if rises {
                    return Self::rotate_right(node);
                }
            }
            Ordering::Greater => {
                let right = Self::insert(node.right.take(), range, priority, number, item);
                let rises = right.priority > node.priority;
                node.right = Some(right);
                if rises {
                    return Self::rotate_left(node);
                }
            }
        }
        node.measure();
        node
    }

    fn remove(link: Link<T>, range: &KeyRange, number: u64) -> Link<T> {
        let mut node = link?;
        match order(range, &node.range) {
            Ordering::Equal => {
                node.members.remove(&number);
                if node.members.is_empty() {
                    return Self::join(node.left.take(), node.right.take());
                }
            }
            Ordering::Less => node.left = Self::remove(node.left.take(), range, number),
            Ordering::Greater => node.right = Self::remove(node.right.take(), range, number),
        }
        node.measure();
        Some(node)
    }

    /// One tree of two, all of `left` before all of `right`.
    fn join(left: Link<T>, right: Link<T>) -> Link<T> {
        match (left, right) {
            (None, one) | (one, None) => one,
            (Some(mut left), Some(right)) if left.priority >= right.priority => {
                left.right = Self::join(left.right.take(), Some(right));
                left.measure();
                Some(left)
            }
            (left, Some(mut right)) => {
                right.left = Self::join(left, right.left.take());
                right.measure();
                Some(right)
            }
        }
    }

    fn rotate_right(mut node: Box<Self>) -> Box<Self> {
        let mut left = node.left.take().expect("the risen child is there");
        node.left = left.right.take();
        node.measure();
        left.right = Some(node);
        left.measure();
        left
    }

    fn rotate_left(mut node: Box<Self>) -> Box<Self> {
        let mut right = node.right.take().expect("the risen child is there");
        node.right = right.left.take();
        node.measure();
        right.left = Some(node);
        right.measure();
        right
    }

    fn measure(&mut self) {
        let mut reach = self.end.clone();
        for child in [&self.left, &self.right].into_iter().flatten() {
            reach = reach.max(&child.reach);
        }
        self.reach = reach;
    }

    fn each(link: &Link<T>, key: &[u8], visit: &mut impl FnMut(&Members<T>)) {
        let Some(node) = link else { return };
        if !node.reach.beyond(key) {
            return;
        }
        Self::each(&node.left, key, visit);
        if *node.range.start() <= *key {
            if node.range.contains(key) {
                visit(&node.members);
            }
            Self::each(&node.right, key, visit);
        }
    }
}

/// By start, then by end; no end comes last.
fn order(one: &KeyRange, two: &KeyRange) -> Ordering {
    one.start()
        .cmp(two.start())
        .then_with(|| match (one.end_exclusive(), two.end_exclusive()) {
            (Some(one), Some(two)) => one.cmp(two),
            (one, two) => one.is_none().cmp(&two.is_none()),
        })
}

/// Spreads a counter over all 64 bits (the finalizer of SplitMix64).
fn mix(counter: u64) -> u64 {
    let mut mixed = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn found(set: &RangeSet<()>, key: &[u8]) -> BTreeSet<u64> {
        let mut numbers = BTreeSet::new();
        set.each(key, &mut |number, ()| {
            assert!(numbers.insert(number), "{number} found twice");
        });
        numbers
    }

    fn depth(link: &Link<()>) -> usize {
        link.as_ref()
            .map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    #[test]
    fn finds_what_a_list_finds_through_insertions_and_removals() {
        let mut set = RangeSet::new();
        let mut list: BTreeMap<u64, KeyRange> = BTreeMap::new();
        for step in 0..4000_u64 {
            let draw = mix(step + 1);
            let letter =
                |shift: u32| vec![b'a' + u8::try_from((draw >> shift) % 12).expect("small")];
            if draw.is_multiple_of(3) {
                if let Some((number, range)) = list.pop_first() {
                    set.remove(&range, number);
                }
            } else {
                let range = match draw % 5 {
                    0 => KeyRange::single(letter(8)),
                    1 => KeyRange::prefix(letter(8)),
                    2 => KeyRange::from_key(letter(8)),
                    _ => KeyRange::half_open(letter(8), letter(16)),
                };
                if !range.is_empty() {
                    set.insert(&range, step, ());
                    list.insert(step, range);
                }
            }
            let key = [letter(24), letter(32)].concat();
            for key in [&key[..1], &key[..]] {
                let expected: BTreeSet<u64> = list
                    .iter()
                    .filter(|(_, range)| range.contains(key))
                    .map(|(number, _)| *number)
                    .collect();
                assert_eq!(found(&set, key), expected, "step {step}");
            }
        }
        for (number, range) in list {
            set.remove(&range, number);
        }
        assert!(set.exact.is_empty() && set.root.is_none());
    }

    #[test]
    fn stays_shallow_when_ranges_come_in_order() {
        let mut set = RangeSet::new();
        for number in 0..10_000_u64 {
            let prefix = format!("{number:06}/");
            set.insert(&KeyRange::prefix(prefix), number, ());
        }
        assert!(depth(&set.root) < 60, "{}", depth(&set.root));
        assert_eq!(found(&set, b"004711/x"), BTreeSet::from([4711]));
        assert_eq!(found(&set, b"004711"), BTreeSet::new());
    }
}
