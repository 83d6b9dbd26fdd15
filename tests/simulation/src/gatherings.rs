//! The judgement of what gathers a number of members: double and cyclic barriers. Replays what was
//! written and says which generations opened and which broke, and whether they did so rightly.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;

use futures::future::join_all;
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::{Error, Result, Session};
use serde_json::Value;

use crate::history::{History, key_of};
use crate::player::Player;

/// How many make a generation open.
pub const PARTIES: u32 = 3;

/// How many generations all together open in the end.
pub(crate) const LAST_GENERATIONS: usize = 2;

/// What the members of a barrier were told.
#[derive(Debug, Default)]
pub struct Told {
    /// The generation and the place of each who passed.
    passed: RefCell<Vec<(u64, u32)>>,
    broken: RefCell<BTreeSet<u64>>,
    wrong: Wrong,
}

/// Errors that no storm explains.
#[derive(Debug, Default)]
pub(crate) struct Wrong(RefCell<Option<String>>);

impl Wrong {
    pub(crate) fn note(&self, error: &Error) {
        if let Error::Codec { .. }
        | Error::Mismatch { .. }
        | Error::Invalid(_)
        | Error::ForeignKey(_)
        | Error::Conflict = error
        {
            self.0.borrow_mut().get_or_insert(error.to_string());
        }
    }

    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        self.0.borrow().clone().map_or(Ok(()), Err)
    }
}

impl Told {
    /// Notes that somebody passed.
    pub fn passed(&self, player: &Player, generation: u64, place: u32) {
        player.note(format!("passed {generation} as {place}"));
        self.passed.borrow_mut().push((generation, place));
    }

    /// Notes that somebody was told of an error.
    pub fn failed(&self, error: &Error) {
        if let Error::Broken { generation, .. } = error {
            self.broken.borrow_mut().insert(*generation);
        }
        self.wrong.note(error);
    }

    /// Judges the barrier below `prefix`.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, history: &History, prefix: &str) -> std::result::Result<(), String> {
        self.wrong.check()?;
        let (opened, broken) = replay(history, prefix)?;
        if opened.len() < LAST_GENERATIONS {
            return Err(format!("it opened {} times", opened.len()));
        }
        let mut places = BTreeSet::new();
        for passed in &*self.passed.borrow() {
            if !opened.contains(&passed.0) {
                return Err(format!("{passed:?} passed what did not open"));
            }
            if passed.1 >= PARTIES || !places.insert(*passed) {
                return Err(format!("{passed:?}: no place, or taken twice"));
            }
        }
        match self.broken.borrow().difference(&broken).next() {
            Some(generation) => Err(format!("told that {generation} broke, which did not")),
            None => Ok(()),
        }
    }

    /// Has as many as are needed do something together, each under a session of its own: what one alone
    /// waits for for ever comes then.
    ///
    /// # Errors
    /// That of any of them.
    pub async fn together<F>(
        players: &[Player],
        each: impl Fn(Player, Session) -> F,
    ) -> std::result::Result<(), String>
    where
        F: Future<Output = Result<()>>,
    {
        let parties = usize::try_from(PARTIES).expect("there are few");
        let one = |player: &Player| {
            let (player, each) = (player.clone(), &each);
            async move {
                let session = player.client().session().await?;
                each(player, session.clone()).await?;
                session.close().await
            }
        };
        let all = join_all(players[..parties].iter().map(one)).await;
        let failed = all.into_iter().find_map(Result::err);
        failed.map_or(Ok(()), |error| Err(format!("in the calm: {error}")))
    }
}

/// The register, as far as it is judged.
struct Register {
    generation: u64,
    arrived: Vec<String>,
    broken: BTreeSet<u64>,
}

impl Register {
    fn read(value: &[u8]) -> Option<Self> {
        let json: Value = serde_json::from_slice(value).ok()?;
        let ids = json["arrived"].as_array()?.iter();
        let broken = json["broken"].as_array()?.iter();
        Some(Self {
            generation: json["generation"].as_u64()?,
            arrived: ids
                .map(|one| Some(one["id"].as_str()?.to_owned()))
                .collect::<Option<_>>()?,
            broken: broken.filter_map(Value::as_u64).collect(),
        })
    }
}

/// The generations that opened, and those that broke.
fn replay(
    history: &History,
    prefix: &str,
) -> std::result::Result<(BTreeSet<u64>, BTreeSet<u64>), String> {
    let mut live = BTreeSet::new();
    let mut register = Register {
        generation: 1,
        arrived: Vec::new(),
        broken: BTreeSet::new(),
    };
    let (mut opened, mut broken) = (BTreeSet::new(), BTreeSet::new());
    for commit in &history.commits {
        let mut next = None;
        for change in &commit.changes {
            let key = key_of(change);
            let value = change.kv.as_ref().map(|kv| &kv.value[..]);
            if key == format!("{prefix}meta") {
                next = Some(Register::read(value.unwrap_or_default()));
            } else if change.r#type() == EventType::Put {
                live.insert(key);
            } else {
                live.remove(&key);
            }
        }
        let place = format!("at {}", commit.revision);
        let next = match next {
            Some(Some(next)) => next,
            Some(None) => return Err(format!("{place}: not a register")),
            None => continue,
        };
        let members = format!("{prefix}member/{}/", register.generation);
        let alive = |register: &Register| {
            let keys = register.arrived.iter().map(|id| format!("{members}{id}"));
            keys.filter(|key| live.contains(key)).count()
        };
        let there = live.iter().filter(|key| key.starts_with(&members)).count();
        if next.generation == register.generation {
            let change = next.arrived.len().abs_diff(register.arrived.len());
            if there != alive(&next) || change != 1 {
                return Err(format!("{place}: the register does not say who is there"));
            }
        } else if next.broken.contains(&register.generation) {
            if alive(&register) == register.arrived.len() {
                return Err(format!("{place}: broken, and all lived"));
            }
            broken.insert(register.generation);
        } else {
            if there != PARTIES as usize || alive(&register) + 1 != PARTIES as usize {
                return Err(format!("{place}: opened with {there} there"));
            }
            opened.insert(register.generation);
        }
        register = next;
    }
    Ok((opened, broken))
}
