//! The semaphore: never more permits than the limit was when they were given.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::lock::Limit;
use quorate_recipes::{Result, Session};
use serde::Deserialize;

use crate::history::{History, key_of, number_of};
use crate::player::Player;
use crate::scenario::Scenario;

const PERMITS: &str = "quorate/semaphore/s/permit/";
const LIMIT: &str = "quorate/semaphore/s/limit";

/// Clients that take permits, and now and then another number of them.
#[derive(Debug)]
pub struct Semaphore;

#[derive(Deserialize)]
struct Record {
    permits: i64,
}

impl Scenario for Semaphore {
    const NAME: &'static str = "semaphore";

    fn new() -> Self {
        Self
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
        player.note(format!(
            "has {} permits by {}",
            permit.count(),
            permit.token()
        ));
        player.pause(400).await;
        permit.put("data/mark", "").await?;
        if player.one_in(3) {
            drop(permit);
            return Ok(());
        }
        permit.release().await
    }

    fn may_remain(&self, key: &str) -> bool {
        key == LIMIT
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        let (mut out, mut limit) = (BTreeMap::new(), 0);
        for commit in &history.commits {
            let mut given = false;
            for change in &commit.changes {
                let key = key_of(change);
                let put = change.r#type() == EventType::Put;
                if key == LIMIT {
                    limit = number_of(change);
                } else if key.starts_with(PERMITS) {
                    given |= put;
                    match change.kv.as_ref().filter(|_| put) {
                        Some(kv) => {
                            let record: Record = serde_json::from_slice(&kv.value)
                                .map_err(|error| format!("{key}: {error}"))?;
                            out.insert(key, record.permits);
                        }
                        None => drop(out.remove(&key)),
                    }
                }
            }
            let now: i64 = out.values().sum();
            if given && now > limit {
                return Err(format!(
                    "revision {}: {now} permits of {limit}",
                    commit.revision
                ));
            }
        }
        Ok(())
    }
}
