//! Makes up operations: every request of the API with every option, valid and not, on few keys, so
//! that operations meet. What brings an etcd server down is left out: an unknown sort target, an
//! unknown alarm action or type, and a put that keeps a value or lease in a transaction that may
//! have deleted its key.

mod kv;
mod lease;
mod maintenance;
mod recipes;
mod txn;
mod watch;

use std::collections::VecDeque;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::op::Op;
use super::world::World;

/// All keys that are written, but for those of locks and elections.
const KEYS: &[&[u8]] = &[
    b"\0",
    b"\0\0",
    b"\0\xff",
    b"a",
    b"a\0",
    b"a\0\0",
    b"a\0b",
    b"a\xff",
    b"a\xff\xff",
    b"aa",
    b"ab",
    b"b",
    b"b/1",
    b"b/2",
    b"b/3",
    b"c",
    b"\xfe",
    b"\xff",
    b"\xff\0",
    b"\xff\xff",
];

/// Bounds that are no keys.
const ENDS: &[&[u8]] = &[b"b/", b"b0", b"a\x01", b"d", b"\xff\xff\xff", b"\0\0\0"];

/// A source of operations.
#[derive(Debug)]
pub(crate) struct Generator {
    random: StdRng,
    /// What has to follow next.
    planned: VecDeque<Op>,
    /// Operations until a raised alarm is lifted.
    alarm_left: usize,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            planned: VecDeque::new(),
            alarm_left: 0,
        }
    }

    /// The next operation, on stores that have come to `world`.
    pub(crate) fn next(&mut self, world: &World) -> Op {
        if let Some(op) = self.planned.pop_front() {
            return op;
        }
        if let Some(lift) = self.lift(world) {
            return lift;
        }
        match self.random.random_range(0..1000) {
            0..240 => Op::Range(self.range(world)),
            240..440 => Op::Put(self.put(world, true)),
            440..510 => Op::DeleteRange(self.delete_range()),
            510..760 => Op::Txn(self.txn(world)),
            760..770 => self.compact(world),
            770..860 => self.lease(world),
            860..930 => self.watch(world),
            930..965 => self.maintenance(world),
            _ => self.recipe(world),
        }
    }

    /// Whether something happens that does so `percent` times in a hundred.
    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        *all.choose(&mut self.random)
            .expect("something to choose from")
    }

    fn key(&mut self) -> Bytes {
        Bytes::from_static(self.one_of(KEYS))
    }

    /// A key as requests name it: seldom an empty one.
    fn key_given(&mut self) -> Bytes {
        if self.random.random_ratio(1, 150) {
            return Bytes::new();
        }
        self.key()
    }

    /// A range as requests name it, in all forms.
    fn range_given(&mut self) -> (Bytes, Bytes) {
        let key = self.key_given();
        let end = match self.random.random_range(0..100) {
            0..35 => Bytes::new(),
            35..45 => Bytes::from_static(b"\0"),
            45..70 => self.key(),
            70..80 => Bytes::from_static(self.one_of(ENDS)),
            80..85 => key.clone(),
            // The key's own next one: a range of one.
            85..90 => [&key[..], b"\0"].concat().into(),
            _ => prefix_end(&key),
        };
        if self.chance(4) {
            return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        }
        (key, end)
    }

    fn value(&mut self) -> Bytes {
        match self.random.random_range(0..100) {
            0..10 => Bytes::new(),
            10..70 => Bytes::from_static(self.one_of(&[b"1", b"2", b"3", b"\0", b"\xff"])),
            70..98 => format!("v{}", self.random.random_range(0..1000)).into(),
            _ => vec![b'x'; self.random.random_range(100..20_000)].into(),
        }
    }

    /// A revision: mostly one that can be read, else compacted, future or negative.
    fn revision(&mut self, world: &World) -> i64 {
        let World {
            revision,
            compacted,
            ..
        } = *world;
        match self.random.random_range(0..100) {
            0..50 => self.random.random_range(compacted.max(1)..=revision),
            50..70 => self.random.random_range((revision - 20).max(1)..=revision),
            70..80 => compacted + self.random.random_range(-2..=2),
            80..88 => revision + self.random.random_range(0..=3),
            88..94 => self.random.random_range(1..=revision),
            94..98 => -self.random.random_range(1..=5),
            _ => self.one_of(&[i64::MIN, i64::MAX, 0]),
        }
    }
}

/// The end of the range of all keys that begin with `key`.
fn prefix_end(key: &[u8]) -> Bytes {
    let kept = key.iter().rposition(|&byte| byte < 0xff);
    match kept {
        Some(last) => {
            let mut end = key[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => Bytes::from_static(b"\0"),
    }
}
