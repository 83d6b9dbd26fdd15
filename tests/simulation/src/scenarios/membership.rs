//! Membership: views are states of the store in order, and events tell what happened: who came, who
//! left, and who went without a word, never the one for the other.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;
use std::time::Duration;

use futures::{StreamExt, join};
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::keys::{LeaseId, session_key};
use quorate_recipes::membership::{Departure, Member, MemberEvent, MemberView};
use quorate_recipes::{Error, Group, Result, Session};

use crate::history::{History, key_of, state_at};
use crate::player::Player;
use crate::scenario::Scenario;

/// How long what an observer is told may have been on its way: its connection delays answers.
const LATE_MAX: Duration = Duration::from_secs(10);

/// All members' keys.
const SPACE: &str = "quorate/member/g/";

/// The last value of a member that leaves.
const FAREWELL: &[u8] = br#"{"v":1,"left":true}"#;

/// A member's key, as a checker knows it: by id, create and mod revision.
type Known = (String, i64, i64);

/// Clients that join, tell about themselves and leave, and each observes.
#[derive(Debug)]
pub struct Membership {
    /// Since when each member, by id, has been wanted to leave.
    left: Rc<RefCell<BTreeMap<String, Option<Instant>>>>,
    observed: RefCell<BTreeMap<usize, Observed>>,
    failed: RefCell<Option<String>>,
}

/// What one client was told.
#[derive(Debug, Default)]
struct Observed {
    views: Vec<(i64, Vec<Known>)>,
    /// The store's revision when the events began.
    begun: i64,
    events: Vec<(Instant, Told)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Told {
    Joined(Known),
    Updated(Known),
    Left(Known, Departure),
}

/// Notes when a member is given up.
struct Joined {
    left: Rc<RefCell<BTreeMap<String, Option<Instant>>>>,
    id: String,
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut left = self.left.borrow_mut();
        left.insert(self.id.clone(), Some(SystemClock.now()));
    }
}

impl Scenario for Membership {
    const NAME: &'static str = "membership";

    fn new() -> Self {
        Self {
            left: Rc::default(),
            observed: RefCell::default(),
            failed: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let group: Group<u64> = player.client().group("g");
        let membership = group.join(session, 0).await?;
        player.note(format!("is member {}", membership.id()));
        let id = membership.id().to_owned();
        self.left.borrow_mut().insert(id.clone(), None);
        // Dropped before the membership, which so is noted before it takes effect.
        let held = (
            Joined {
                left: Rc::clone(&self.left),
                id,
            },
            membership,
        );
        for said in 1..=player.below(4) {
            held.1.update(said).await?;
            player.pause(800).await;
        }
        player.pause(2000).await;
        let (joined, membership) = held;
        drop(joined);
        match player.one_in(3) {
            true => drop(membership),
            false => membership.leave().await?,
        }
        Ok(())
    }

    async fn attend(&self, player: &Player) {
        if let Err(error) = self.observe(player).await {
            *self.failed.borrow_mut() = Some(format!("an observer failed: {error}"));
        }
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(failed) = &*self.failed.borrow() {
            return Err(failed.clone());
        }
        let truth = Truth::of(history, &self.left.borrow())?;
        for (observer, observed) in &*self.observed.borrow() {
            let judged = truth.views(&observed.views);
            let judged = judged.and_then(|()| truth.events(&observed.events));
            let judged = judged.and_then(|()| truth.all(observed));
            judged.map_err(|broken| format!("observer {observer}: {broken}"))?;
        }
        Ok(())
    }
}

impl Membership {
    async fn observe(&self, player: &Player) -> Result<()> {
        let group: Group<u64> = player.client().group("g");
        let mut members = group.members().await?;
        let mut events = members.events().await?;
        self.begins(player);
        let views = async {
            let mut view = members.view();
            loop {
                self.sees(player, &view);
                view = match members.changed().await {
                    Ok(view) => view,
                    Err(error) => return error,
                };
            }
        };
        let changes = async {
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => self.hears(player, &event),
                    Err(error) => return error,
                }
            }
            Error::Closed
        };
        let (error, _) = join!(views, changes);
        Err(error)
    }

    fn note(&self, player: &Player, change: impl FnOnce(&mut Observed)) {
        let mut observed = self.observed.borrow_mut();
        change(observed.entry(player.index()).or_default());
    }

    /// Notes that an observer is told of events from now on.
    pub fn begins(&self, player: &Player) {
        self.note(player, |observed| observed.begun = player.revision().0);
    }

    /// Notes a view that an observer has.
    pub fn sees(&self, player: &Player, view: &MemberView<u64>) {
        let known = view.members.iter().map(|member| known(member)).collect();
        let view = (view.revision.0, known);
        self.note(player, |observed| observed.views.push(view));
    }

    /// Notes an event that an observer is told of.
    pub fn hears(&self, player: &Player, event: &MemberEvent<u64>) {
        let told = match event {
            MemberEvent::Joined(member) => Told::Joined(known(member)),
            MemberEvent::Updated { now, .. } => Told::Updated(known(now)),
            MemberEvent::Left { member, departure } => Told::Left(known(member), *departure),
            _ => return,
        };
        player.note(format!("sees {told:?}"));
        let event = (SystemClock.now(), told);
        self.note(player, |observed| observed.events.push(event));
    }
}

fn known(member: &Member<u64>) -> Known {
    (member.id.clone(), member.created.0, member.modified.0)
}

/// What the store says.
struct Truth {
    /// The members after each revision that changed them.
    states: BTreeMap<i64, BTreeMap<String, Known>>,
    /// Every key as it ever was.
    said: BTreeSet<Known>,
    /// How each member went.
    departures: BTreeMap<String, Departure>,
    /// All that was to be told, in order, with when and at which revision it was.
    changes: Vec<(Instant, i64, Told)>,
    resyncs: Vec<Instant>,
}

impl Truth {
    fn of(
        history: &History,
        left: &BTreeMap<String, Option<Instant>>,
    ) -> std::result::Result<Self, String> {
        let mut truth = Self {
            states: BTreeMap::from([(0, BTreeMap::new())]),
            said: BTreeSet::new(),
            departures: BTreeMap::new(),
            changes: Vec::new(),
            resyncs: history.losses.resyncs.clone(),
        };
        let mut now: BTreeMap<String, Known> = BTreeMap::new();
        for (commit, change) in history.changes() {
            let key = key_of(change);
            let Some(id) = key.strip_prefix(SPACE) else {
                continue;
            };
            let kv = change.kv.as_ref().expect("a change has a key");
            let put = change.r#type() == EventType::Put;
            if put && kv.value != FAREWELL {
                if truth.departures.contains_key(id) {
                    return Err(format!("{id} is there again at {}", commit.revision));
                }
                let known = (id.to_owned(), kv.create_revision, kv.mod_revision);
                truth.said.insert(known.clone());
                let told = match now.insert(id.to_owned(), known.clone()) {
                    None => Told::Joined(known),
                    Some(_) => Told::Updated(known),
                };
                truth.changes.push((commit.at, commit.revision.0, told));
            } else if let Some(known) = now.remove(id) {
                let departure = match put {
                    true => Departure::Clean,
                    false => Departure::Expired,
                };
                truth.departures.insert(id.to_owned(), departure);
                let told = Told::Left(known, departure);
                truth.changes.push((commit.at, commit.revision.0, told));
                let lease = LeaseId(change.prev_kv.as_ref().map_or(0, |kv| kv.lease));
                let session = session_key(lease).to_string();
                if !put
                    && !commit
                        .changes
                        .iter()
                        .any(|change| key_of(change) == session)
                {
                    return Err(format!("{id} left at {} without a word", commit.revision));
                }
                // Nobody is said to leave who did not want to.
                let wanted = left.get(id);
                let early = wanted.is_some_and(|at| at.is_none_or(|at| at > commit.at));
                if put && early {
                    return Err(format!("{id} leaves at {} unasked", commit.revision));
                }
            }
            truth.states.insert(commit.revision.0, now.clone());
        }
        Ok(truth)
    }

    fn views(&self, views: &[(i64, Vec<Known>)]) -> std::result::Result<(), String> {
        let mut last = 0;
        for (revision, members) in views {
            if *revision < last {
                return Err(format!("view {revision} after {last}"));
            }
            last = *revision;
            let state = state_at(&self.states, *revision).expect("there is one at 0");
            let mut right: Vec<&Known> = state.values().collect();
            right.sort_by_key(|(_, created, _)| *created);
            if members.iter().ne(right.iter().copied()) {
                return Err(format!("view {revision} is {members:?}, not {right:?}"));
            }
        }
        match views.last() {
            Some((_, members)) if members.is_empty() => Ok(()),
            last => Err(format!("the last view is {last:?}")),
        }
    }

    /// Whether an observer may have missed what happened at a moment: the history was compacted between
    /// the last time before that it was told of anything and the next time after.
    fn may_be_missed(&self, happened: Instant, events: &[(Instant, Told)]) -> bool {
        let told = || events.iter().map(|(at, _)| *at);
        let before = told().filter(|at| *at < happened).max();
        let after = told().filter(|at| *at > happened).min();
        self.resyncs.iter().any(|resync| {
            before.is_none_or(|before| before - LATE_MAX <= *resync)
                && after.is_none_or(|after| *resync <= after)
        })
    }

    /// Whether what an observer is told at a moment may be a difference: the history was compacted since
    /// it was told of anything before.
    fn may_be_difference(&self, told: Instant, events: &[(Instant, Told)]) -> bool {
        let before = events.iter().map(|(at, _)| *at).filter(|at| *at < told);
        let before = before.max();
        let since = |resync: &Instant| before.is_none_or(|before| before - LATE_MAX <= *resync);
        self.resyncs
            .iter()
            .any(|resync| since(resync) && *resync <= told)
    }

    /// Who was not cut off is told of everything, each once.
    fn all(&self, observed: &Observed) -> std::result::Result<(), String> {
        let told: HashSet<&Told> = observed.events.iter().map(|(_, told)| told).collect();
        let due = self.changes.iter().filter(|(at, revision, _)| {
            *revision > observed.begun && !self.may_be_missed(*at, &observed.events)
        });
        for (_, revision, change) in due {
            if !told.contains(change) {
                return Err(format!("{change:?} at {revision} was not told"));
            }
        }
        Ok(())
    }

    fn events(&self, events: &[(Instant, Told)]) -> std::result::Result<(), String> {
        let mut there: BTreeMap<&str, &Known> = BTreeMap::new();
        for (at, event) in events {
            let (Told::Joined(known) | Told::Updated(known) | Told::Left(known, _)) = event;
            if !self.said.contains(known) {
                return Err(format!("{event:?}, which never was"));
            }
            let id = known.0.as_str();
            let before = there.remove(id);
            let fits = match (event, before) {
                (Told::Joined(_), None) => true,
                (Told::Updated(now), Some(before)) => now.2 > before.2 && now.1 == before.1,
                (Told::Left(as_seen, _), Some(before)) => as_seen == before,
                _ => false,
            };
            if !fits {
                return Err(format!("{event:?} after {before:?}"));
            }
            if let Told::Left(_, told) = event {
                let right = self.departures.get(id);
                let unseen = *told == Departure::Unseen && self.may_be_difference(*at, events);
                if right.is_none() || !unseen && right != Some(told) {
                    return Err(format!("{event:?}, and it went {right:?}"));
                }
            } else {
                there.insert(id, known);
            }
        }
        match there.is_empty() {
            true => Ok(()),
            false => Err(format!("still there by the events: {there:?}")),
        }
    }
}
