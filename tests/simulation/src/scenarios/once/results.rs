//! What clients were told of a shared result, and the judgement of it. A result says what it is to
//! replace, so that what is stored can be judged by itself.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::keys::{KeySpace, Revision};
use serde_json::Value;

use crate::history::{History, key_of};
use crate::player::Player;

/// More than what fits into a piece.
const RESULT_BYTES: usize = 2_500;

/// What was told of the result of one name.
#[derive(Debug)]
pub struct Results {
    prefix: String,
    /// How many computations may begin in a row, if they are counted.
    attempts_max: Option<u32>,
    numbers: Cell<u64>,
    /// When computations were begun.
    begun: RefCell<Vec<Revision>>,
    computed: RefCell<BTreeSet<String>>,
    got: RefCell<Vec<Span>>,
    cached: RefCell<Vec<Span>>,
    exhausted: RefCell<Vec<Span>>,
}

/// What somebody was told between two revisions, or what was so from one to before the other.
#[derive(Debug)]
struct Span {
    what: String,
    from: Revision,
    to: Revision,
}

impl Span {
    fn meets(&self, all: &[Self]) -> bool {
        let there = |one: &&Self| one.from <= self.to && self.from <= one.to;
        let mut same = all.iter().filter(|one| one.what == self.what);
        same.any(|one| there(&one))
    }
}

impl Results {
    /// Of a name.
    #[must_use]
    pub fn of(name: &str, attempts_max: Option<u32>) -> Self {
        Self {
            prefix: format!("{}/", KeySpace::of("once", name).prefix()),
            attempts_max,
            numbers: Cell::default(),
            begun: RefCell::default(),
            computed: RefCell::default(),
            got: RefCell::default(),
            cached: RefCell::default(),
            exhausted: RefCell::default(),
        }
    }

    /// Where its keys lie.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Notes that a computation begins, and tells when.
    pub fn begin(&self, player: &Player) -> Revision {
        let now = player.revision();
        self.begun.borrow_mut().push(now);
        now
    }

    /// A number as there was none before.
    pub fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    /// A result as there was none before, to replace that of a revision, of a computation that was begun
    /// at another one. No part of it is one of another result.
    pub fn compute(&self, player: &Player, begun: Revision, stale: Revision) -> String {
        let number = self.number();
        let mut result = format!("{number} replaces {stale} begun {begun} ");
        player.note(format!("computed {result}"));
        while result.len() < RESULT_BYTES {
            result.push_str(&format!("{number};"));
        }
        self.computed.borrow_mut().insert(result.clone());
        result
    }

    /// Notes that a client has got a result.
    pub fn got(&self, player: &Player, from: Revision, result: &str) {
        let words: Vec<&str> = result.split(' ').take(5).collect();
        player.note(format!("has {}", words.join(" ")));
        let to = player.revision();
        let what = result.to_owned();
        self.got.borrow_mut().push(Span { what, from, to });
    }

    /// Notes that a client was told of a failure.
    pub fn cached(&self, player: &Player, from: Revision, text: &str) {
        player.note(format!("told that {text}"));
        let to = player.revision();
        let what = text.to_owned();
        self.cached.borrow_mut().push(Span { what, from, to });
    }

    /// Notes that a client was told that so many have begun.
    pub fn exhausted(&self, player: &Player, from: Revision, attempts: u32) {
        player.note(format!("told that {attempts} have begun"));
        let to = player.revision();
        let what = attempts.to_string();
        self.exhausted.borrow_mut().push(Span { what, from, to });
    }

    /// Judges it all.
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, history: &History) -> Result<(), String> {
        let mut replay = Replay::default();
        for commit in &history.commits {
            let place = |broken| format!("{} at {}: {broken}", self.prefix, commit.revision);
            let before = replay.keys.clone();
            for change in &commit.changes {
                let key = key_of(change);
                if let Some(kv) = &change.kv
                    && let Some(name) = key.strip_prefix(&self.prefix)
                {
                    match change.r#type() {
                        EventType::Delete => replay.keys.remove(name),
                        EventType::Put => {
                            let written = (commit.revision, kv.value.clone());
                            replay.keys.insert(name.to_owned(), written)
                        }
                    };
                }
            }
            replay.step(self, &before, commit.revision).map_err(place)?;
        }
        self.told(&replay)
    }

    fn told(&self, replay: &Replay) -> Result<(), String> {
        for (told, was, what) in [
            (&self.got, &replay.results, "published"),
            (&self.cached, &replay.failures, "a failure"),
            (&self.exhausted, &replay.tallies, "the count"),
        ] {
            if let Some(told) = told.borrow().iter().find(|told| !told.meets(was)) {
                return Err(format!("{told:?} was not {what} then"));
            }
        }
        let mut begun = self.begun.borrow().clone();
        begun.sort_unstable();
        for (at, before) in begun.iter().zip(0..) {
            let counted = replay.counted.iter().filter(|counted| *counted <= at);
            if self.attempts_max.is_some() && counted.count() <= before {
                return Err(format!("one began at {at} without being counted"));
            }
        }
        Ok(())
    }
}

type Keys = BTreeMap<String, (Revision, Bytes)>;

/// The history, replayed.
#[derive(Default)]
struct Replay {
    keys: Keys,
    results: Vec<Span>,
    failures: Vec<Span>,
    tallies: Vec<Span>,
    published: BTreeSet<String>,
    /// When computations were counted.
    counted: Vec<Revision>,
}

impl Replay {
    fn step(&mut self, told: &Results, before: &Keys, now: Revision) -> Result<(), String> {
        self.count(told, before, now)?;
        let manifest = self.keys.get("manifest").cloned();
        let was = before.get("manifest").map_or(Revision(0), |(at, _)| *at);
        if was != Revision(0) && manifest.as_ref().is_none_or(|(at, _)| *at == now) {
            end(&mut self.results, now);
        }
        if let Some((at, manifest)) = &manifest {
            let result = self.whole(manifest)?;
            if *at == now {
                if !told.computed.borrow().contains(&result) {
                    return Err("published what nobody has computed".to_owned());
                }
                self.follows(&result, was)?;
                if !self.published.insert(result.clone()) {
                    return Err("published for the second time".to_owned());
                }
                let ended = ["failure", "attempts"];
                if let Some(left) = ended.iter().find(|key| self.keys.contains_key(**key)) {
                    return Err(format!("published beside {left}"));
                }
                begin(&mut self.results, result, now);
            } else if self.results.last().is_some_and(|last| last.what != result) {
                return Err("what is published became something else".to_owned());
            }
        }
        let failure = self.keys.get("failure").cloned();
        if failure != before.get("failure").cloned() {
            end(&mut self.failures, now);
            if let Some((_, failure)) = failure {
                begin(&mut self.failures, text(&json(&failure)?["text"])?, now);
            }
        }
        Ok(())
    }

    /// Judges what a result takes the place of: of what was published at `was`, if anything is.
    fn follows(&self, result: &str, was: Revision) -> Result<(), String> {
        let mut words = result.split(' ').map(|word| word.parse().unwrap_or(0));
        let (named, begun) = (words.nth(2).unwrap_or(0), words.nth(1).unwrap_or(0));
        if was != Revision(0) && named != was.0 {
            return Err(format!("what is to replace {named} replaces {was}"));
        }
        // Whoever computes has its turn from before it begins until it publishes.
        if let Some(last) = self.results.last().filter(|last| last.from.0 > begun) {
            return Err(format!(
                "what was begun at {begun} comes after what was published at {}",
                last.from
            ));
        }
        if named == 0 || was != Revision(0) {
            return Ok(());
        }
        // There was nothing to replace: at its turn already, or else it may be as wrong.
        let replaced = self.results.iter().find(|one| one.from.0 == named);
        let replaced = replaced.ok_or_else(|| format!("nothing was published at {named}"))?;
        if replaced.to.0 > begun {
            return Err(format!(
                "the successor of {named}, which was taken back at {} after it had been begun at {begun}",
                replaced.to
            ));
        }
        Ok(())
    }

    /// The count, if it has changed.
    fn count(&mut self, told: &Results, before: &Keys, now: Revision) -> Result<(), String> {
        let tally = self.keys.get("attempts");
        if tally == before.get("attempts") {
            return Ok(());
        }
        let begun = |tally: Option<&(Revision, Bytes)>| match tally {
            Some((_, tally)) => json(tally)?["begun"].as_u64().ok_or("no count".to_owned()),
            None => Ok(0),
        };
        let (was, is) = (begun(before.get("attempts"))?, begun(tally)?);
        if is > was {
            self.counted.push(now);
            if is != was + 1 || is > told.attempts_max.map_or(0, u64::from) {
                return Err(format!("{is} have begun after {was}"));
            }
            if self.keys.contains_key("failure") {
                return Err("one begins in the time of a failure".to_owned());
            }
        } else if is != 0 && is < was {
            return Err(format!("{is} have begun after {was}"));
        }
        end(&mut self.tallies, now);
        if is > 0 {
            begin(&mut self.tallies, is.to_string(), now);
        }
        Ok(())
    }

    /// What is published.
    fn whole(&self, manifest: &Bytes) -> Result<String, String> {
        let attempt = text(&json(manifest)?["attempt"])?;
        let chunks = format!("chunk/{attempt}/");
        let pieces = self.keys.range(chunks.clone()..);
        let pieces = pieces.take_while(|(key, _)| key.starts_with(&chunks));
        let pieces: Vec<&[u8]> = pieces.map(|(_, (_, piece))| &piece[..]).collect();
        let bytes = pieces.concat();
        serde_json::from_slice(&bytes)
            .map_err(|error| format!("torn, of {} pieces: {error}", pieces.len()))
    }
}

fn begin(spans: &mut Vec<Span>, what: String, from: Revision) {
    let to = Revision(i64::MAX);
    spans.push(Span { what, from, to });
}

/// Ends the last one, if it has not ended.
fn end(spans: &mut [Span], now: Revision) {
    if let Some(last) = spans.last_mut()
        && last.to == Revision(i64::MAX)
    {
        last.to = now;
    }
}

fn json(value: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

fn text(value: &Value) -> Result<String, String> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| "no text".to_owned())
}
