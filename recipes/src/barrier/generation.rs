//! What double and cyclic barriers store, and how it changes: a register of who has come to the
//! generation that gathers, and which of the last ones broke. Without I/O; `assembly` drives it.

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::keys::Key;
use crate::value::{Json, V1, Value, from_json};

/// How many generations back it is known whether one broke.
const REMEMBERED: u64 = 64;

/// The value of a barrier's register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Register {
    v: V1,
    /// The generation that gathers. All before it have opened or are broken.
    pub(super) generation: u64,
    /// How many make it open.
    pub(super) parties: u32,
    /// Who has come to it, in the order of coming.
    pub(super) arrived: Vec<Arrival>,
    /// Those of the last generations that are broken.
    broken: Vec<u64>,
}

/// One who has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Arrival {
    /// Which of the `0..parties` places it has.
    pub(super) place: u32,
    /// `<lease>/<nonce>`: the name of its key below the generation's.
    pub(super) id: String,
}

/// What has become of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It gathers, or has not begun.
    Gathers,
    /// All came.
    Opened,
    /// One of those who had come ended.
    Broken,
    /// It was over longer ago than is remembered.
    Forgotten,
}

impl Register {
    /// As it is before anybody has come.
    pub(super) fn first(parties: u32) -> Self {
        Self {
            v: V1,
            generation: 1,
            parties,
            arrived: Vec::new(),
            broken: Vec::new(),
        }
    }

    pub(super) fn read(kv: &KeyValue) -> Result<Self> {
        let register: Self = from_json(&kv.key, &kv.value)?;
        Ok(register)
    }

    pub(super) fn write(&self, key: &Key) -> Result<Bytes> {
        Value::from(Json(self)).into_bytes(key)
    }

    /// The lowest place that nobody has.
    pub(super) fn free_place(&self) -> u32 {
        let taken = |place: &u32| self.arrived.iter().any(|other| other.place == *place);
        (0..=self.parties).find(|place| !taken(place)).unwrap_or(0)
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.arrived.iter().any(|arrival| arrival.id == id)
    }

    /// With one more, who opens the generation if it is the last.
    pub(super) fn with(&self, arrival: Arrival) -> (Self, bool) {
        let mut next = self.clone();
        next.arrived.push(arrival);
        let opens = next.arrived.len() >= self.parties as usize;
        if opens {
            next.begin();
        }
        (next, opens)
    }

    /// Without one who has withdrawn.
    pub(super) fn without(&self, id: &str) -> Self {
        let mut next = self.clone();
        next.arrived.retain(|arrival| arrival.id != id);
        next
    }

    /// With the generation broken.
    pub(super) fn broken(&self) -> Self {
        let mut next = self.clone();
        next.broken.push(next.generation);
        next.begin();
        next
    }

    /// Begins the next generation.
    fn begin(&mut self) {
        self.generation += 1;
        self.arrived.clear();
        let now = self.generation;
        self.broken.retain(|broken| now - broken <= REMEMBERED);
    }

    pub(super) fn fate(&self, generation: u64) -> Fate {
        match self.generation.checked_sub(generation) {
            None | Some(0) => Fate::Gathers,
            Some(ago) if ago > REMEMBERED => Fate::Forgotten,
            Some(_) if self.broken.contains(&generation) => Fate::Broken,
            Some(_) => Fate::Opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn came(register: &Register, id: &str) -> (Register, bool) {
        let place = register.free_place();
        let id = id.to_owned();
        register.with(Arrival { place, id })
    }

    #[test]
    fn the_last_of_the_parties_opens() {
        let register = Register::first(2);
        let (register, opens) = came(&register, "a");
        assert!(!opens);
        assert_eq!(register.fate(1), Fate::Gathers);
        let (register, opens) = came(&register, "b");
        assert!(opens);
        assert_eq!(register.fate(1), Fate::Opened);
        assert_eq!((register.generation, register.arrived.len()), (2, 0));
        assert!(came(&Register::first(1), "alone").1);
    }

    #[test]
    fn places_of_those_who_withdrew_are_given_again() {
        let register = Register::first(4);
        let (register, _) = came(&register, "a");
        let (register, _) = came(&register, "b");
        let register = register.without("a");
        assert!(!register.has("a") && register.has("b"));
        let (register, _) = came(&register, "c");
        let (register, opens) = came(&register, "d");
        assert!(!opens, "who withdrew does not count");
        let mut places: Vec<_> = register.arrived.iter().map(|a| a.place).collect();
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2]);
    }

    #[test]
    fn broken_generations_are_remembered_for_a_while() {
        let mut register = came(&Register::first(3), "a").0.broken();
        assert_eq!(register.fate(1), Fate::Broken);
        assert!(register.arrived.is_empty());
        for _ in 1..REMEMBERED {
            register.begin();
            assert_eq!(register.fate(1), Fate::Broken);
        }
        register.begin();
        assert_eq!(register.fate(1), Fate::Forgotten);
        assert!(register.broken.is_empty(), "what is forgotten is not kept");
        assert_eq!(
            register.fate(register.generation - REMEMBERED),
            Fate::Opened
        );
    }

    #[test]
    fn the_register_reads_what_it_wrote() {
        let key = Key::from("k");
        let register = came(&Register::first(3), "a").0;
        let kv = KeyValue {
            key: "k".into(),
            value: register.write(&key).unwrap(),
            ..Default::default()
        };
        assert_eq!(Register::read(&kv).unwrap(), register);
        let other = KeyValue {
            value: r#"{"v":2,"generation":1,"parties":1,"arrived":[],"broken":[]}"#.into(),
            ..kv
        };
        assert!(matches!(Register::read(&other), Err(Error::Codec { .. })));
    }
}
