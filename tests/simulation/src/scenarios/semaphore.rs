//! The semaphore: never more permits than the limit was when they were given, to those who wait at the
//! door in the order of their coming, and nobody writes under permits that are not there any more.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use quorate_recipes::lock::Limit;
use quorate_recipes::store::Commit;
use quorate_recipes::{Result, Session};
use serde::Deserialize;

use crate::fenced::{Ledger, Order};
use crate::history::{History, key_of, number_of};
use crate::player::Player;
use crate::scenario::Scenario;

const PERMITS: &str = "quorate/semaphore/s/permit/";
const DOOR: &str = "quorate/semaphore/s/door/";
const LIMIT: &str = "quorate/semaphore/s/limit";

/// Clients that take permits, and now and then another number of them.
#[derive(Debug)]
pub struct Semaphore {
    ledger: Ledger,
}

impl Scenario for Semaphore {
    const NAME: &'static str = "semaphore";

    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let mut semaphore = player.client().semaphore("s", Limit::Initially(3));
        if player.one_in(25) {
            let limit = u32::try_from(2 + player.below(3)).expect("small");
            player.note(format!("resizes to {limit}"));
            return semaphore.resize(limit).await;
        }
        let wanted = u32::try_from(1 + player.below(2)).expect("small");
        let wanted = NonZeroU32::new(wanted).expect("not zero");
        let permit = match player.one_in(3) {
            true => match semaphore.try_acquire(session, wanted).await? {
                Some(permit) => permit,
                None => return Ok(()),
            },
            false => semaphore.acquire_many(session, wanted).await?,
        };
        let held = self.ledger.granted(player, permit);
        for _ in 0..=player.below(2) {
            player.pause(400).await;
            self.ledger.put(player, &held, "data/mark", "").await?;
        }
        if player.one_in(3) {
            drop(held);
            return Ok(());
        }
        held.into_inner().release().await
    }

    fn may_remain(&self, key: &str) -> bool {
        key == LIMIT
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        Permits::check(history, &self.ledger)
    }
}

/// The permits of the semaphore `s` that are out.
#[derive(Debug, Default)]
pub struct Permits {
    /// Who has any, by the create revision of the key.
    out: BTreeSet<i64>,
}

impl Permits {
    /// Judges how permits were given, and what was written under them.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(history: &History, ledger: &Ledger) -> std::result::Result<(), String> {
        let mut giving = Giving::default();
        for commit in &history.commits {
            giving
                .take(commit)
                .map_err(|broken| format!("revision {}: {broken}", commit.revision))?;
        }
        ledger.check_by(history, &mut Self::default())
    }
}

/// Whoever has a permit writes.
impl Order for Permits {
    fn take(&mut self, change: &Event) {
        if !self.has(&key_of(change)) {
            return;
        }
        let (now, before) = (change.kv.as_ref(), change.prev_kv.as_ref());
        if let Some(kv) = now.filter(|_| change.r#type() == EventType::Put) {
            self.out.insert(kv.create_revision);
        } else if let Some(kv) = before {
            self.out.remove(&kv.create_revision);
        }
    }

    fn has(&self, key: &str) -> bool {
        key.starts_with(PERMITS)
    }

    fn allows(&mut self, _key: &str, token: i64) -> std::result::Result<(), String> {
        match self.out.contains(&token) {
            true => Ok(()),
            false => Err(format!("accepted under permits {token}, which were lost")),
        }
    }
}

/// Somebody who has permits or waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Party {
    lease: i64,
    permits: i64,
}

#[derive(Deserialize)]
struct Record {
    permits: i64,
}

impl Party {
    fn read(kv: &KeyValue) -> std::result::Result<Self, String> {
        let record: Record = serde_json::from_slice(&kv.value)
            .map_err(|error| format!("{}: {error}", String::from_utf8_lossy(&kv.key)))?;
        Ok(Self {
            lease: kv.lease,
            permits: record.permits,
        })
    }
}

/// How permits were given, commit by commit.
#[derive(Debug, Default)]
struct Giving {
    limit: i64,
    out: BTreeMap<String, Party>,
    /// Those who wait, by the create revision of the key.
    door: BTreeMap<i64, Party>,
}

impl Giving {
    fn take(&mut self, commit: &Commit) -> std::result::Result<(), String> {
        let first = self.door.first_key_value().map(|(at, party)| (*at, *party));
        let (mut given, mut left) = (None, BTreeSet::new());
        for change in &commit.changes {
            let key = key_of(change);
            let put = change.kv.as_ref();
            let put = put.filter(|_| change.r#type() == EventType::Put);
            if key == LIMIT {
                self.limit = number_of(change);
            } else if key.starts_with(DOOR) {
                if let Some(kv) = put {
                    self.door.insert(kv.create_revision, Party::read(kv)?);
                } else if let Some(kv) = &change.prev_kv {
                    self.door.remove(&kv.create_revision);
                    left.insert(kv.create_revision);
                }
            } else if key.starts_with(PERMITS) {
                match put {
                    Some(kv) => {
                        let party = Party::read(kv)?;
                        if self.out.insert(key, party).is_none() {
                            given = Some(party);
                        }
                    }
                    None => drop(self.out.remove(&key)),
                }
            }
        }
        given.map_or(Ok(()), |party| self.judge(party, first, &left))
    }

    /// Judges permits that were given when `first` was first at the door, where those in `left` have
    /// gone from with it.
    fn judge(
        &self,
        given: Party,
        first: Option<(i64, Party)>,
        left: &BTreeSet<i64>,
    ) -> std::result::Result<(), String> {
        let now: i64 = self.out.values().map(|party| party.permits).sum();
        if now > self.limit {
            return Err(format!("{now} permits of {}", self.limit));
        }
        match first {
            Some((at, party)) if left.len() != 1 || !left.contains(&at) || party != given => {
                let who = format!("{given:?}, from the door {left:?}");
                Err(format!("given to {who}; first there was {party:?} at {at}"))
            }
            _ => Ok(()),
        }
    }
}
