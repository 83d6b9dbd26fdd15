//! What a history says about the instances of a service: which were there at each revision, whether each write
//! was its owner's to make, and how each of them went.

use std::collections::BTreeMap;

use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use quorate_recipes::clock::Instant;
use quorate_recipes::keys::{LeaseId, session_key};
use quorate_recipes::registry::Status;
use quorate_recipes::store::Commit;
use serde_json::Value;

use super::{Outcome, Owned, Said, address};
use crate::history::{History, key_of, state_at};

/// All instances' keys.
pub const INSTANCES: &str = "quorate/service/s/";

/// An instance as its key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) id: String,
    pub(super) said: Said,
    pub(super) status: Status,
    pub(super) address: String,
    pub(super) created: i64,
    pub(super) modified: i64,
    pub(super) lease: i64,
    /// It is the last value before it leaves.
    pub(super) leaves: bool,
}

impl Known {
    /// Reads a key.
    pub(super) fn of(kv: &KeyValue) -> Option<Self> {
        let value: Value = serde_json::from_slice(&kv.value).ok()?;
        let metadata = &value["Metadata"];
        let key = std::str::from_utf8(&kv.key).ok()?;
        Some(Self {
            id: key.strip_prefix(INSTANCES)?.to_owned(),
            said: serde_json::from_value(metadata["meta"].clone()).ok()?,
            status: serde_json::from_value(metadata["status"].clone()).ok()?,
            address: value["Addr"].as_str()?.to_owned(),
            created: kv.create_revision,
            modified: kv.mod_revision,
            lease: kv.lease,
            leaves: metadata["left"].as_bool().unwrap_or(false),
        })
    }
}

/// An instance that went.
#[derive(Debug, Clone)]
pub(super) struct Gone {
    pub(super) at: Instant,
    pub(super) revision: i64,
    pub(super) was: Known,
    /// It said so before.
    pub(super) clean: bool,
}

/// The instances of the service, as they went through a history.
#[derive(Debug, Default)]
pub struct Instances {
    /// Those that were there after each revision that changed them, and when that was.
    pub(super) states: BTreeMap<i64, (Option<Instant>, BTreeMap<String, Known>)>,
    /// All that went, in order.
    pub(super) gone: Vec<Gone>,
    pub(super) resyncs: Vec<Instant>,
    /// The newest value of each registration, and whether it was its last.
    newest: BTreeMap<u64, (u64, bool)>,
    /// Every value that was written, by revision.
    written: BTreeMap<i64, Said>,
    /// Who had each id since when.
    had: BTreeMap<String, Vec<(Instant, Option<u64>)>>,
}

impl Instances {
    /// Goes through a history.
    ///
    /// # Errors
    /// What is broken in it, by what the owners know.
    pub(super) fn of(history: &History, owned: &BTreeMap<u64, Owned>) -> Result<Self, String> {
        let mut instances = Self {
            states: BTreeMap::from([(0, (None, BTreeMap::new()))]),
            resyncs: history.losses.resyncs.clone(),
            ..Self::default()
        };
        for (commit, change) in history.changes() {
            if key_of(change).starts_with(INSTANCES) {
                let taken = instances.take(commit, change, owned);
                taken.map_err(|broken| format!("at revision {}: {broken}", commit.revision))?;
            }
        }
        for (number, owned) in owned {
            let judged = instances.owner(*number, owned);
            judged.map_err(|broken| format!("registration {number} of {}: {broken}", owned.id))?;
        }
        Ok(instances)
    }

    /// Those that are there now.
    pub(super) fn state(&self, revision: i64) -> &BTreeMap<String, Known> {
        let (_, state) = state_at(&self.states, revision).expect("there is one at 0");
        state
    }

    fn take(
        &mut self,
        commit: &Commit,
        change: &Event,
        owned: &BTreeMap<u64, Owned>,
    ) -> Result<(), String> {
        let before = change.prev_kv.as_ref();
        let before = before.map(|kv| Known::of(kv).ok_or("an instance that cannot be read"));
        let before = before.transpose()?;
        let mut state = self.state(commit.revision.0).clone();
        if change.r#type() == EventType::Put {
            let kv = change.kv.as_ref().ok_or("a change without a key")?;
            let now = Known::of(kv).ok_or("an instance that cannot be read")?;
            self.put(commit, before.as_ref(), &now, owned)?;
            self.note(commit, &now.id, Some(now.said.0));
            let was = match now.leaves {
                true => state.remove(&now.id),
                false => state.insert(now.id.clone(), now.clone()),
            };
            let went = was.filter(|was| now.leaves || was.created != now.created);
            self.goes(commit, went, now.leaves);
        } else if let Some(before) = before {
            let session = session_key(LeaseId(before.lease)).to_string();
            let mut keys = commit.changes.iter().map(key_of);
            // The living ones are deleted by anybody.
            if !before.leaves
                && !before.id.starts_with("living-")
                && !keys.any(|key| key == session)
            {
                return Err(format!("{before:?} went without a word"));
            }
            self.note(commit, &before.id, None);
            let was = state.remove(&before.id);
            self.goes(commit, was, false);
        }
        let at = Some(commit.at);
        self.states.insert(commit.revision.0, (at, state));
        Ok(())
    }

    fn note(&mut self, commit: &Commit, id: &str, number: Option<u64>) {
        let had = self.had.entry(id.to_owned()).or_default();
        had.push((commit.at, number));
    }

    fn goes(&mut self, commit: &Commit, was: Option<Known>, clean: bool) {
        self.gone.extend(was.map(|was| Gone {
            at: commit.at,
            revision: commit.revision.0,
            was,
            clean,
        }));
    }

    /// A write of an instance: it must be the owner's to make.
    fn put(
        &mut self,
        commit: &Commit,
        before: Option<&Known>,
        now: &Known,
        owned: &BTreeMap<u64, Owned>,
    ) -> Result<(), String> {
        let (number, value) = now.said;
        let Some(owner) = owned.get(&number).filter(|owned| owned.id == now.id) else {
            return Err(format!("{now:?}, which nobody registered"));
        };
        let index = usize::try_from(value).unwrap_or(usize::MAX);
        if owner.wanted.get(index) != Some(&now.status) || now.address != address(number, value) {
            return Err(format!("{now:?} is not what its owner said"));
        }
        if owner.over.is_some_and(|over| over < commit.at) {
            return Err(format!("{now:?} is there again after it was over"));
        }
        if now.leaves && owner.leaving.is_none_or(|leaving| leaving > commit.at) {
            return Err(format!("{now:?} leaves unasked"));
        }
        let known = self.newest.get(&number).copied();
        if known.is_some_and(|(newest, _)| value < newest) {
            return Err(format!("{now:?} was rolled back, from {known:?}"));
        }
        if known.is_some_and(|(_, left)| left) && !now.leaves {
            return Err(format!("{now:?} is there again after it has left"));
        }
        // One that takes an id over may have lost it to another before it was told that it has it.
        let other = before.filter(|before| before.said.0 != number);
        if let Some(other) = other
            && (!owner.replaces || owner.entered.is_some_and(|at| at < commit.at))
        {
            return Err(format!("{now:?} was written over {other:?}"));
        }
        self.newest.insert(number, (value, now.leaves));
        self.written.insert(commit.revision.0, now.said);
        Ok(())
    }

    /// What an owner was told must be so.
    fn owner(&self, number: u64, owned: &Owned) -> Result<(), String> {
        if owned.outcome == Outcome::There && !self.newest.contains_key(&number) {
            return Err("it was said to be there, and never was".to_owned());
        }
        for (at, value) in &owned.told {
            let written = self.written.get(at);
            if !written.is_some_and(|(by, written)| *by == number && written >= value) {
                return Err(format!(
                    "value {value} was told at {at}, which has {written:?}"
                ));
            }
        }
        let Some(over) = owned.over else {
            return Ok(());
        };
        let nobody = Vec::new();
        let had = self.had.get(&owned.id).unwrap_or(&nobody);
        let then = had.iter().rev().find(|(at, _)| *at <= over);
        if then.is_some_and(|(_, who)| *who == Some(number)) {
            return Err("it was there when it was told to be over".to_owned());
        }
        if owned.outcome == Outcome::Taken && !self.had_by_another(number, owned, over) {
            return Err("it was told that another has the id, and nobody had".to_owned());
        }
        Ok(())
    }

    /// Whether another had the id at some moment since a registration began.
    fn had_by_another(&self, number: u64, owned: &Owned, over: Instant) -> bool {
        let nobody = Vec::new();
        let had = self.had.get(&owned.id).unwrap_or(&nobody);
        let before = had.iter().rev().find(|(at, _)| *at < owned.begun);
        let since = had
            .iter()
            .filter(|(at, _)| *at >= owned.begun && *at <= over);
        let mut whose = before.into_iter().chain(since).filter_map(|(_, who)| *who);
        whose.any(|who| who != number)
    }
}
