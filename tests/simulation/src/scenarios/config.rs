//! Settings: each publication takes place once and replaces what it expected, histories are whole, groups
//! are never torn, and followers go from older to newer and come to the last.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use quorate_recipes::config::{Config as Setting, Expect, Following, Rule, View};
use quorate_recipes::store::Commit;
use quorate_recipes::{Error, Result, Session};
use serde::{Deserialize, Serialize};

use crate::effects::{Effects, Told};
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// Publications that a history has.
const HISTORY: u64 = 4;

const VALUE: &str = "quorate/config/app/live/n/value";
const ENTRY: &str = "quorate/config/app/history/n/";
/// Why a follower of something that was removed shows what was there before.
const REMOVED: &str = "nothing is published any more";
const TRIED: &str = "quorate/config/app/live/g/value";
const RULE: &str = "quorate/config/app/live/g/gray/canary";
const PAIR: &str = "quorate/config/pair/live/";

/// Clients that publish a number and a pair of equal numbers, try numbers out on some, and follow all of
/// it.
#[derive(Debug)]
pub struct Config {
    /// Numbers, and the revision and version that each was told to have.
    published: Effects<(i64, u64)>,
    /// What each number was to replace, if its publisher said so: a revision, 0 for nothing.
    expected: RefCell<BTreeMap<i64, i64>>,
    /// Pairs, and the revision that each was told to have.
    pairs: Effects<i64>,
    /// Numbers that are tried out, and the revision that each was told to have.
    tried: Effects<i64>,
    /// Removals of the number: what each was to remove, if its client said so, and at which revision it was told
    /// to have taken place.
    removed: RefCell<Vec<Removal>>,
    /// When promotions were told to have taken place.
    promoted: RefCell<BTreeSet<i64>>,
    /// Each client's handle, which remembers.
    handles: RefCell<BTreeMap<usize, Setting<i64>>>,
    /// What each client was shown.
    seen: RefCell<BTreeMap<(usize, Shown), Seen>>,
    broken: RefCell<Option<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    Number,
    Pair,
}

#[derive(Debug, Clone, Copy)]
struct Removal {
    expected: Option<i64>,
    told: Told<Option<i64>>,
}

/// Revisions with numbers.
type Seen = Vec<(i64, i64)>;

/// Two numbers that are always the same.
#[derive(Debug, Serialize, Deserialize)]
struct Pair {
    a: i64,
    b: i64,
}

/// What is written of a publication.
#[derive(Debug, Deserialize)]
struct Written {
    #[serde(default)]
    version: u64,
    value: i64,
}

impl Written {
    fn of(kv: &KeyValue) -> std::result::Result<Self, String> {
        serde_json::from_slice(&kv.value).map_err(|error| error.to_string())
    }
}

impl Config {
    /// Has a number published over what is there, which the publisher names in most cases. `publish` gives the
    /// revision and the version.
    ///
    /// # Errors
    /// What the client was told, but for a conflict.
    pub async fn publish<F>(
        &self,
        player: &Player,
        publish: impl FnOnce(i64, Expect) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<(i64, u64)>>,
    {
        let expect = self.expectation(player).await?;
        player.pause(200).await;
        let attempt = |number| {
            let mut known = self.expected.borrow_mut();
            known.extend(revision_of(expect).map(|expected| (number, expected)));
            publish(number, expect)
        };
        match self.published.attempt(player, attempt).await {
            Err(Error::Conflict) if expect != Expect::Any => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Has a pair published. `publish` gives the revision.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn publish_pair<F>(
        &self,
        player: &Player,
        publish: impl FnOnce(i64) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<i64>>,
    {
        self.pairs.attempt(player, publish).await.map(drop)
    }

    /// Removes the number, in most cases the one that was there a while ago.
    async fn remove(&self, player: &Player, session: &Session) -> Result<()> {
        let config = self.handle(player);
        let expect = self.expectation(player).await?;
        player.pause(200).await;
        let index = self.removed.borrow().len();
        self.removed.borrow_mut().push(Removal {
            expected: revision_of(expect),
            told: Told::Open,
        });
        player.note(format!("removal {index}: {expect:?}"));
        let outcome = config.remove(session, expect).await;
        let outcome = outcome.map(|at| at.map(|at| at.0));
        let told = Told::of(&outcome);
        player.note(format!("removal {index}: {told:?}"));
        self.removed.borrow_mut()[index].told = told;
        match outcome {
            Err(Error::Conflict) if expect != Expect::Any => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// What a client expects to be there, which it says in most cases.
    async fn expectation(&self, player: &Player) -> Result<Expect> {
        if player.one_in(3) {
            return Ok(Expect::Any);
        }
        let now = self.handle(player).get().await?;
        Ok(now.map_or(Expect::Absent, |entry| Expect::Revision(entry.revision)))
    }

    fn handle(&self, player: &Player) -> Setting<i64> {
        let mut handles = self.handles.borrow_mut();
        let fresh = || player.client().config("app/n").keep_history(HISTORY);
        handles.entry(player.index()).or_insert_with(fresh).clone()
    }

    /// Tries a number out, and ends that one way or the other.
    async fn try_out(&self, player: &Player, session: &Session) -> Result<()> {
        let config = player.client().config::<i64>("app/g");
        let (config, canary) = (&config, &Rule::new("canary").percent(50.0));
        let gray = |number| async move {
            let at = config.gray(session, canary, &number, Expect::Any).await?;
            Ok(at.0)
        };
        self.tried.attempt(player, gray).await?;
        player.pause(300).await;
        if player.one_in(2) {
            return config.withdraw(session, "canary").await.map(drop);
        }
        match config.promote(session, "canary", Expect::Any).await {
            Ok(done) => {
                self.promoted.borrow_mut().insert(done.revision.0);
                Ok(())
            }
            // Somebody else has ended it.
            Err(Error::Invalid(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn note<T>(&self, player: &Player, shown: Shown, view: &View<T>, number: i64) {
        let mut broken = self.broken.borrow_mut();
        if let Some(rejected) = &view.rejected
            && (shown != Shown::Number || rejected.reason != REMOVED)
        {
            let what = format!("{shown:?} torn or spoilt at {}", rejected.revision);
            broken.get_or_insert(format!("{what}: {}", rejected.reason));
        }
        let mut seen = self.seen.borrow_mut();
        let seen = seen.entry((player.index(), shown)).or_default();
        if view.revision.0 > 0 {
            seen.push((view.revision.0, number));
        }
    }

    fn note_number(&self, player: &Player, view: &View<i64>) {
        let number = view.value.as_deref().copied().unwrap_or(0);
        self.note(player, Shown::Number, view, number);
    }

    fn note_pair(&self, player: &Player, view: &View<Pair>) {
        let pair = view.value.as_deref();
        let (a, b) = pair.map_or((0, 0), |pair| (pair.a, pair.b));
        let revisions: BTreeSet<_> = view.parts.values().map(|part| part.revision).collect();
        if a != b || revisions.len() > 1 {
            let torn = format!("a torn pair was seen at {}: {a} and {b}", view.revision);
            self.broken.borrow_mut().get_or_insert(torn);
        }
        self.note(player, Shown::Pair, view, a);
    }

    /// Takes note of a removal that took place.
    fn check_removal(
        removals: &mut Vec<Removal>,
        at: i64,
        before: i64,
    ) -> std::result::Result<(), String> {
        let told = |removal: &Removal| matches!(removal.told, Told::Done(Some(told)) if told == at);
        let open = |removal: &Removal| {
            removal.told == Told::Open && removal.expected.is_none_or(|expected| expected == before)
        };
        let by = removals.iter().position(told);
        let by = by.or_else(|| removals.iter().position(open));
        let Some(by) = by.map(|by| removals.remove(by)) else {
            return Err(format!(
                "what was published at {before} was removed at {at} by nobody"
            ));
        };
        match by.expected.is_none_or(|expected| expected == before) {
            true => Ok(()),
            false => Err(format!("{by:?} removed what was published at {before}")),
        }
    }

    fn check_numbers(&self, history: &History) -> std::result::Result<Seen, String> {
        let expected = self.expected.borrow();
        let mut removals = self.removed.borrow().clone();
        let (mut before, mut entries) = (0, BTreeSet::new());
        let mut happened = Vec::new();
        for commit in &history.commits {
            if of_prefix(commit, VALUE).any(|change| change.r#type() == EventType::Delete) {
                Self::check_removal(&mut removals, commit.revision.0, before)?;
                before = 0;
            }
            let Some(kv) = put(commit, VALUE) else {
                continue;
            };
            let (at, written) = (commit.revision.0, Written::of(kv)?);
            let wanted = expected.get(&written.value);
            if wanted.is_some_and(|wanted| *wanted != before) {
                return Err(format!(
                    "{} at {at} replaced what was published at {before}, and expected {wanted:?}",
                    written.value
                ));
            }
            before = at;
            let entry = format!("{ENTRY}{:016x}", written.version);
            if put(commit, &entry).map(|entry| &entry.value) != Some(&kv.value) {
                return Err(format!("{at}: the history does not have it"));
            }
            for change in of_prefix(commit, ENTRY) {
                match change.r#type() {
                    EventType::Put => entries.insert(key_of(change)),
                    EventType::Delete => entries.remove(&key_of(change)),
                };
            }
            let first = written.version.saturating_sub(HISTORY - 1).max(1);
            let whole = (first..=written.version).map(|version| format!("{ENTRY}{version:016x}"));
            if !entries.iter().cloned().eq(whole) {
                return Err(format!("{at}: the history is {entries:?}"));
            }
            happened.push((written.value, (at, written.version)));
        }
        if let Some(removal) = removals
            .iter()
            .find(|one| matches!(one.told, Told::Done(Some(_))))
        {
            return Err(format!("{removal:?} never took place"));
        }
        self.published.check(happened.iter().copied())?;
        Ok(happened.iter().map(|(n, (at, _))| (*at, *n)).collect())
    }

    fn check_pairs(&self, history: &History) -> std::result::Result<Seen, String> {
        let mut happened = Vec::new();
        for commit in &history.commits {
            let of_pair = of_prefix(commit, PAIR).filter_map(|change| change.kv.as_ref());
            let numbers: std::result::Result<Vec<_>, _> = of_pair.map(Written::of).collect();
            match &numbers?[..] {
                [] => {}
                [a, b] if a.value == b.value => happened.push((commit.revision.0, a.value)),
                _ => return Err(format!("a torn pair was written at {}", commit.revision)),
            }
        }
        self.pairs.check(happened.iter().map(|(at, n)| (*n, *at)))?;
        Ok(happened)
    }

    fn check_tried(&self, history: &History) -> std::result::Result<(), String> {
        let mut promoted = self.promoted.borrow().clone();
        let mut happened = Vec::new();
        let mut rule = None;
        for commit in &history.commits {
            let at = commit.revision.0;
            let before = rule;
            for change in of_prefix(commit, RULE) {
                let kv = change.kv.as_ref().ok_or("a change without a key")?;
                rule = match change.r#type() {
                    EventType::Put => Some(Written::of(kv)?.value),
                    EventType::Delete => None,
                };
                happened.extend(rule.map(|number| (number, at)));
            }
            let Some(kv) = put(commit, TRIED) else {
                continue;
            };
            let value = Written::of(kv)?.value;
            if before != Some(value) || rule.is_some() {
                return Err(format!("{value} was promoted at {at} from {before:?}"));
            }
            promoted.remove(&at);
        }
        match promoted.first() {
            Some(at) => Err(format!("a promotion at {at} never took place")),
            None => self.tried.check(happened),
        }
    }
}

/// The revision that must be there, 0 for nothing.
fn revision_of(expect: Expect) -> Option<i64> {
    match expect {
        Expect::Revision(revision) => Some(revision.0),
        Expect::Absent => Some(0),
        Expect::Any => None,
    }
}

/// Whether a key is there after all.
fn is_there(history: &History, key: &str) -> bool {
    let changes = history
        .changes()
        .filter(|(_, change)| key_of(change) == key);
    changes
        .last()
        .is_some_and(|(_, change)| change.r#type() == EventType::Put)
}

/// What a commit wrote to a key.
fn put<'a>(commit: &'a Commit, key: &'a str) -> Option<&'a KeyValue> {
    let mut puts = of_prefix(commit, key).filter(|change| change.r#type() == EventType::Put);
    puts.find_map(|change| change.kv.as_ref())
}

fn of_prefix<'a>(commit: &'a Commit, prefix: &'a str) -> impl Iterator<Item = &'a Event> {
    let changes = commit.changes.iter();
    changes.filter(move |change| key_of(change).starts_with(prefix))
}

async fn next<T: Send + Sync + 'static>(following: &mut Following<T>) -> std::sync::Arc<View<T>> {
    let view = following.changed().await;
    view.expect("nothing is refused for good")
}

impl Scenario for Config {
    const NAME: &'static str = "config";

    fn new() -> Self {
        Self {
            published: Effects::default(),
            expected: RefCell::default(),
            pairs: Effects::default(),
            tried: Effects::default(),
            removed: RefCell::default(),
            promoted: RefCell::default(),
            handles: RefCell::default(),
            seen: RefCell::default(),
            broken: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let config = self.handle(player);
        let publish = |number, expect| async move {
            let done = config.publish(session, &number, expect).await?;
            Ok((done.revision.0, done.version))
        };
        self.publish(player, publish).await?;
        let group = player.client().config_group::<Pair>("pair");
        let publish = |number| async move {
            let both = group.publish().set("a", &number, Expect::Any);
            let both = both.set("b", &number, Expect::Any);
            Ok(both.commit(session).await?.0)
        };
        self.publish_pair(player, publish).await?;
        match player.below(4) {
            0 => self.try_out(player, session).await,
            1 => {
                let follow = self.handle(player).follow().acknowledge(session);
                let following = follow.await?;
                player.pause(1_000).await;
                drop(following);
                Ok(())
            }
            2 => self.remove(player, session).await,
            _ => Ok(()),
        }
    }

    async fn attend(&self, player: &Player) {
        let numbers = self.handle(player).follow().await;
        let mut numbers = numbers.expect("nothing is refused for good");
        let pairs = player.client().config_group::<Pair>("pair").follow().await;
        let mut pairs = pairs.expect("nothing is refused for good");
        self.note_number(player, &numbers.borrow());
        self.note_pair(player, &pairs.borrow());
        loop {
            tokio::select! {
                biased;
                view = next(&mut numbers) => self.note_number(player, &view),
                view = next(&mut pairs) => self.note_pair(player, &view),
            }
        }
    }

    fn may_remain(&self, key: &str) -> bool {
        key.starts_with("quorate/config/") && !key.contains("/ack/")
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(broken) = &*self.broken.borrow() {
            return Err(broken.clone());
        }
        let numbers = self.check_numbers(history)?;
        let pairs = self.check_pairs(history)?;
        self.check_tried(history)?;
        for ((player, shown), seen) in &*self.seen.borrow() {
            let happened = match shown {
                Shown::Number => &numbers,
                Shown::Pair => &pairs,
            };
            let was = |view: &(i64, i64)| happened.binary_search(view).is_ok();
            let newer = seen.is_sorted_by_key(|(revision, _)| revision);
            let last = happened.last();
            // One that was removed may not have been seen.
            let is_there = *shown == Shown::Pair || is_there(history, VALUE);
            let at_last = !is_there || seen.last() == last;
            if !newer || !seen.iter().all(was) || !at_last {
                return Err(format!(
                    "player {player} saw {shown:?}s {seen:?}; at last it is {last:?}"
                ));
            }
        }
        Ok(())
    }
}
