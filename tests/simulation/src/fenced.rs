//! What clients were told about what they hold and what they wrote under it, and the judgement that
//! holds for everything fenced: locks and leaderships of every kind.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Deref;
use std::rc::Rc;

use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::keys::{LeaseId, Revision, session_key};
use quorate_recipes::lock::Hold;
use quorate_recipes::store::Commit;
use quorate_recipes::{Result, TxnError};

use crate::history::{History, key_of};
use crate::player::Player;

/// Something held, with which one can write.
pub trait Holding {
    /// The revision at which the hold's key was created: its token.
    fn token(&self) -> Revision;

    /// A write that the store refuses once this is not held any more.
    fn write(
        &self,
        key: &str,
        value: String,
    ) -> impl Future<Output = std::result::Result<Revision, TxnError>>;
}

impl<G: Deref<Target = Hold>> Holding for G {
    fn token(&self) -> Revision {
        Hold::token(self).revision
    }

    async fn write(&self, key: &str, value: String) -> std::result::Result<Revision, TxnError> {
        self.put(key, value).await
    }
}

/// What all clients of a world were told. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    inner: Rc<RefCell<Told>>,
}

#[derive(Debug, Default)]
struct Told {
    writes: Vec<Write>,
    /// The holds by token, and since when each has been given up.
    holds: BTreeMap<i64, Option<Instant>>,
}

#[derive(Debug)]
struct Write {
    token: i64,
    fate: Fate,
}

/// What a client knows of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Unknown,
    Refused,
    Done(Revision),
}

/// A hold that is noted; giving it up, and dropping it, is noted too.
#[derive(Debug)]
pub struct Held<G> {
    ledger: Ledger,
    token: i64,
    guard: Option<G>,
}

impl<G> Held<G> {
    /// The guard, to be given up in its own way.
    #[must_use]
    pub fn into_inner(mut self) -> G {
        self.guard.take().expect("taken only here")
    }
}

impl<G> Deref for Held<G> {
    type Target = G;

    fn deref(&self) -> &G {
        self.guard.as_ref().expect("taken only at the end")
    }
}

impl<G> Drop for Held<G> {
    fn drop(&mut self) {
        let mut told = self.ledger.inner.borrow_mut();
        let ended = told.holds.entry(self.token).or_default();
        ended.get_or_insert(SystemClock.now());
    }
}

impl Ledger {
    /// Notes that a client was told to hold something.
    pub fn granted<G: Holding>(&self, player: &Player, guard: G) -> Held<G> {
        let token = guard.token();
        player.note(format!("holds {token}"));
        self.inner.borrow_mut().holds.insert(token.0, None);
        Held {
            ledger: self.clone(),
            token: token.0,
            guard: Some(guard),
        }
    }

    /// Writes under a hold, and notes what the client is told.
    ///
    /// # Errors
    /// What the client is told.
    pub async fn put<G: Holding>(
        &self,
        player: &Player,
        held: &Held<G>,
        key: &str,
        payload: impl ToString,
    ) -> Result<Revision> {
        let id = {
            let mut told = self.inner.borrow_mut();
            told.writes.push(Write {
                token: held.token,
                fate: Fate::Unknown,
            });
            told.writes.len() - 1
        };
        let value = format!("{} {id} {}", held.token, payload.to_string());
        let outcome = held.write(key, value).await;
        let fate = match &outcome {
            Ok(revision) => Fate::Done(*revision),
            Err(error) if error.is_ambiguous() => Fate::Unknown,
            Err(_) => Fate::Refused,
        };
        player.note(format!("write {id} under {}: {fate:?}", held.token));
        self.inner.borrow_mut().writes[id].fate = fate;
        Ok(outcome?)
    }

    /// Adds one to the number at a key, by a read and a write. Once a hold: a copy of the write that
    /// comes late, and while it still is held, must not undo another one.
    ///
    /// # Errors
    /// What the client is told.
    pub async fn increment<G: Holding>(
        &self,
        player: &Player,
        held: &Held<G>,
        key: &str,
    ) -> Result<Revision> {
        let read = player.client().get(key).await?;
        let known = read.as_ref().and_then(|kv| Written::parse(&kv.value));
        let next = known.map_or(0, |written| written.payload) + 1;
        player.pause(200).await;
        self.put(player, held, key, next).await
    }

    /// Judges every write under `data/`: only who is first in line writes; tokens never go back, so
    /// between two writes of one holder there is nobody else's; numbers at keys that end with `count`
    /// grow by one; what was acknowledged is there, and what was refused is not; a holder's key goes
    /// only with its lease, or after it was given up.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn check(&self, history: &History, line: &Line) -> std::result::Result<(), String> {
        self.check_by(history, &mut line.clone())
    }

    /// As [`Ledger::check`], where others may write than the one who is first in line.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn check_by(
        &self,
        history: &History,
        order: &mut dyn Order,
    ) -> std::result::Result<(), String> {
        let told = self.inner.borrow();
        let mut judge = Judge {
            told: &told,
            order,
            numbers: BTreeMap::new(),
            seen: BTreeSet::new(),
        };
        for (commit, change) in history.changes() {
            judge
                .take(commit, change)
                .map_err(|broken| format!("revision {}: {broken}", commit.revision))?;
        }
        let writes = told.writes.iter().enumerate();
        for (id, write) in writes {
            if let Fate::Done(at) = write.fate
                && !judge.seen.contains(&(id, at.0))
            {
                return Err(format!(
                    "write {id} was acknowledged at {at} and is not there"
                ));
            }
        }
        Ok(())
    }
}

/// Who may write, as the store's history goes on.
pub trait Order {
    /// Takes in a change of any key.
    fn take(&mut self, change: &Event);

    /// Whether a key is one of a contender.
    fn has(&self, key: &str) -> bool;

    /// Judges a write of `key` under `token`, made when all changes so far had been.
    ///
    /// # Errors
    /// Why it must not have been accepted.
    fn allows(&mut self, key: &str, token: i64) -> std::result::Result<(), String>;
}

/// Where the contenders of something stand: who is first may write.
#[derive(Debug, Clone)]
pub struct Line {
    prefix: String,
    /// The create revisions of the keys in line.
    contenders: BTreeSet<i64>,
    /// Of the last write.
    token: i64,
}

impl Line {
    /// All keys that begin with `prefix`, first come first.
    #[must_use]
    pub fn under(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            contenders: BTreeSet::new(),
            token: 0,
        }
    }

    /// Who is first.
    #[must_use]
    pub fn first(&self) -> Option<i64> {
        self.contenders.first().copied()
    }
}

impl Order for Line {
    fn take(&mut self, change: &Event) {
        if !self.has(&key_of(change)) {
            return;
        }
        let (now, before) = (change.kv.as_ref(), change.prev_kv.as_ref());
        if let Some(kv) = now.filter(|_| change.r#type() == EventType::Put) {
            self.contenders.insert(kv.create_revision);
        } else if let Some(kv) = before {
            self.contenders.remove(&kv.create_revision);
        }
    }

    fn has(&self, key: &str) -> bool {
        key.starts_with(&self.prefix)
    }

    fn allows(&mut self, _key: &str, token: i64) -> std::result::Result<(), String> {
        let (first, last) = (self.first(), self.token);
        if first != Some(token) {
            return Err(format!(
                "accepted under {token}; first in line was {first:?}"
            ));
        }
        if token < last {
            return Err(format!("accepted under {token} after one under {last}"));
        }
        self.token = token;
        Ok(())
    }
}

/// A value as [`Ledger::put`] writes it.
#[derive(Debug, Clone, Copy)]
struct Written {
    token: i64,
    id: usize,
    payload: i64,
}

impl Written {
    fn parse(value: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(value).ok()?.split(' ');
        let token = words.next()?.parse().ok()?;
        let id = words.next()?.parse().ok()?;
        let payload = words.next().and_then(|word| word.parse().ok());
        Some(Self {
            token,
            id,
            payload: payload.unwrap_or(0),
        })
    }
}

struct Judge<'a> {
    told: &'a Told,
    order: &'a mut dyn Order,
    numbers: BTreeMap<String, Written>,
    /// Each write and the revisions at which it is.
    seen: BTreeSet<(usize, i64)>,
}

impl Judge<'_> {
    fn take(&mut self, commit: &Commit, change: &Event) -> std::result::Result<(), String> {
        let key = key_of(change);
        let put = change.r#type() == EventType::Put;
        self.order.take(change);
        if let Some(kv) = change.prev_kv.as_ref()
            && !put
            && self.order.has(&key)
        {
            self.removed(commit, kv.create_revision, LeaseId(kv.lease))?;
        }
        if put && key.starts_with("data/") {
            let kv = change.kv.as_ref().expect("a put has a pair");
            let written = Written::parse(&kv.value);
            let written = written.ok_or_else(|| format!("{key} is not of a holder"))?;
            self.written(&key, written, commit.revision)?;
        }
        Ok(())
    }

    fn removed(
        &self,
        commit: &Commit,
        token: i64,
        lease: LeaseId,
    ) -> std::result::Result<(), String> {
        let Some(given_up) = self.told.holds.get(&token) else {
            return Ok(());
        };
        let session = session_key(lease).to_string();
        let with_lease = commit
            .changes
            .iter()
            .any(|change| change.r#type() == EventType::Delete && key_of(change) == session);
        if with_lease || given_up.is_some_and(|at| at <= commit.at) {
            return Ok(());
        }
        Err(format!("the key of holder {token} was taken from it"))
    }

    fn written(
        &mut self,
        key: &str,
        written: Written,
        at: Revision,
    ) -> std::result::Result<(), String> {
        let Written { token, id, .. } = written;
        let write = self.told.writes.get(id);
        let write = write.filter(|write| write.token == token);
        let Some(write) = write else {
            return Err(format!("write {id} under {token} was never made"));
        };
        if write.fate == Fate::Refused {
            return Err(format!("write {id} is there and was refused"));
        }
        self.order
            .allows(key, token)
            .map_err(|why| format!("write {id} was {why}"))?;
        self.seen.insert((id, at.0));
        if key.ends_with("count") {
            let before = self.numbers.insert(key.to_owned(), written);
            let known = before.map_or(0, |before| before.payload);
            let again = before.is_some_and(|before| before.id == id);
            if !again && written.payload != known + 1 {
                return Err(format!(
                    "an update was lost: {} was written over {known}",
                    written.payload
                ));
            }
        }
        Ok(())
    }
}
