//! Publishing: what is expected to be there is compared, and what is written is written once although
//! answers get lost, the key and its history in one transaction. Under single settings and groups.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_proto::etcdserverpb::{RequestOp, TxnRequest};
use serde_json::Value as Json;

use super::name::Layout;
use super::record::{self, Record};
use crate::client::Client;
use crate::clock;
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::session::{Effect, Effected, Session};
use crate::store::ops::{self, Compare};
use crate::value::{V1, from_json};
use crate::wait::Backoff;

/// Publications of a key that its history has, unless its publishers say otherwise.
const HISTORY: u64 = 20;

/// What must be there for a publication to take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// What was published at this revision.
    Revision(Revision),
    /// Nothing: it is the first publication.
    Absent,
    /// Whatever there is.
    Any,
}

impl Expect {
    pub(super) fn admits(self, now: Revision) -> bool {
        match self {
            Self::Revision(revision) => revision == now,
            Self::Absent => now == Revision(0),
            Self::Any => true,
        }
    }
}

/// What was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// The revision, which the next publication may expect.
    pub revision: Revision,
    /// Its number among the publications of the key.
    pub version: u64,
}

/// What is there of a key before it is published.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    /// When it was published; 0: it is not.
    pub(super) revision: Revision,
    /// The last version that there was.
    pub(super) version: u64,
    /// The revision at which this was so.
    pub(super) seen: Revision,
}

impl Before {
    /// The version of the next publication. What somebody else has written may have any.
    fn next(self) -> u64 {
        self.version.saturating_add(1)
    }
}

/// One key of a publication.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) key: String,
    /// `None`: what is published is removed, with its gray releases.
    pub(super) value: Option<Json>,
    pub(super) expect: Expect,
    pub(super) note: String,
    pub(super) rolled_back_to: Option<u64>,
}

/// What is done in the same transaction as a publication.
#[derive(Debug, Clone, Default)]
pub(super) struct Besides {
    pub(super) when: Vec<Compare>,
    pub(super) then: Vec<RequestOp>,
}

/// The publication that was seen last of each key; revision 0 for none. Shared by a handle's clones and
/// followers.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<Mutex<BTreeMap<String, Published>>>);

impl Memory {
    pub(super) fn note(&self, key: &str, seen: Published) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = |known: &Published| known.revision < seen.revision;
        if known.get(key).is_none_or(newer) {
            known.insert(key.to_owned(), seen);
        }
    }

    fn at(&self, key: &str, revision: Revision) -> Option<Before> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(key).filter(|known| known.revision == revision)?;
        Some(Before {
            revision,
            version: known.version,
            seen: revision,
        })
    }

    /// What is there before each draft, if that is known from what the drafts expect.
    fn of(&self, drafts: &[Draft]) -> Option<Vec<Before>> {
        let seen = drafts.iter().map(|draft| match draft.expect {
            Expect::Revision(revision) => self.at(&draft.key, revision),
            Expect::Absent | Expect::Any => None,
        });
        seen.collect()
    }
}

/// Publishes keys of one namespace. Clones share what they have seen.
#[derive(Debug, Clone)]
pub(super) struct Publisher {
    pub(super) client: Client,
    pub(super) layout: Layout,
    pub(super) memory: Memory,
    history: u64,
    pub(super) note: String,
}

impl Publisher {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self {
            client,
            layout: Layout::of(namespace),
            memory: Memory::default(),
            history: HISTORY,
            note: String::new(),
        }
    }

    /// Keeps so many publications of a key, at least one.
    pub(super) fn keep_history(&mut self, most: u64) {
        self.history = most.max(1);
    }

    pub(super) fn draft(&self, key: &str, value: Json, expect: Expect) -> Draft {
        Draft {
            value: Some(value),
            note: self.note.clone(),
            ..self.removal(key, expect)
        }
    }

    /// The draft of nothing being published for a key any more.
    pub(super) fn removal(&self, key: &str, expect: Expect) -> Draft {
        Draft {
            key: key.to_owned(),
            value: None,
            expect,
            note: String::new(),
            rolled_back_to: None,
        }
    }

    /// Publishes all drafts in one transaction, or nothing. Their versions are those before and one.
    ///
    /// # Errors
    /// [`Error::Conflict`] when something else was there than expected; [`Error::Invalid`] without a
    /// draft, with two of one key, or with more than a transaction takes; as [`Lane::apply`](crate::kit::Lane::apply).
    pub(super) async fn publish(
        &self,
        session: &Session,
        drafts: &[Draft],
    ) -> Result<Vec<Published>> {
        self.check(session, drafts)?;
        let mut pause = Backoff::contended(&self.client);
        let mut remembered = self.memory.of(drafts);
        loop {
            let from_memory = remembered.is_some();
            let before = match remembered.take() {
                Some(before) => before,
                None => self.look(session, drafts).await?,
            };
            let besides = Besides::default();
            if let Some(done) = self.attempt(session, drafts, &before, besides).await? {
                return Ok(done);
            }
            if !from_memory {
                pause.pause().await;
            }
        }
    }

    pub(super) fn check(&self, session: &Session, drafts: &[Draft]) -> Result<()> {
        session.belongs_to(&self.client)?;
        let mut keys = BTreeSet::new();
        for draft in drafts {
            self.layout.check(&draft.key)?;
            if !keys.insert(&draft.key) {
                return Err(Error::Invalid(format!("{} is published twice", draft.key)));
            }
        }
        match drafts.is_empty() {
            true => Err(Error::Invalid("a publication of nothing".to_owned())),
            false => Ok(()),
        }
    }

    /// What is there before each draft. The version is the last of the history where there is no value, or
    /// one that cannot be read.
    pub(super) async fn look(&self, session: &Session, drafts: &[Draft]) -> Result<Vec<Before>> {
        let mut seen = Vec::with_capacity(drafts.len());
        // Reads of several transactions are fine: what is written compares what was read.
        let most = self.client.store().capabilities().max_txn_ops / 2;
        for part in drafts.chunks(most.max(1)) {
            let reads = part.iter().flat_map(|draft| {
                let value = ops::get(self.layout.value(&draft.key));
                let last = ops::last(self.layout.history(&draft.key));
                [ops::read(value), ops::read(last)]
            });
            let request = TxnRequest {
                success: reads.collect(),
                ..Default::default()
            };
            let (answer, _) = session.actor().repeat(request).await?;
            let revision = answer.header.as_ref().map_or(0, |header| header.revision);
            for index in 0..part.len() {
                let value = ops::kvs(&answer.responses, 2 * index).first();
                let last = ops::kvs(&answer.responses, 2 * index + 1).first();
                let record = value.and_then(|kv| from_json::<Record>(&kv.key, &kv.value).ok());
                let last = last.and_then(|kv| self.layout.version(&kv.key));
                seen.push(Before {
                    seen: Revision(revision),
                    revision: Revision(value.map_or(0, |kv| kv.mod_revision)),
                    version: (record.map_or(0, |record| record.version))
                        .max(last.map_or(0, |(_, version)| version)),
                });
            }
        }
        Ok(seen)
    }

    /// One attempt, exactly once. `None`: something was there that is not `before`, or a condition besides
    /// did not hold.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub(super) async fn attempt(
        &self,
        session: &Session,
        drafts: &[Draft],
        before: &[Before],
        besides: Besides,
    ) -> Result<Option<Vec<Published>>> {
        let mut effect = Effect {
            when: besides.when,
            then: besides.then,
            otherwise: Vec::new(),
        };
        for (draft, before) in drafts.iter().zip(before) {
            if !draft.expect.admits(before.revision) {
                return Err(Error::Conflict);
            }
            let (key, version) = (self.layout.value(&draft.key), before.next());
            effect
                .when
                .push(Compare::mod_revision(&key, before.revision));
            if before.revision == Revision(0) {
                // That nothing is there does not say that nothing was there in between.
                let history = self.layout.history(&draft.key);
                let unpublished = Compare::unwritten_since(history, before.seen);
                effect.when.push(unpublished);
            }
            let Some(value) = draft.value.clone() else {
                let published = self.layout.live_of(&draft.key);
                effect.then.push(ops::delete(published));
                continue;
            };
            let record = Record {
                v: V1,
                version,
                value,
                note: draft.note.clone(),
                by: session.who().clone(),
                at_ms: clock::wall_millis(),
                rolled_back_to: draft.rolled_back_to,
            };
            let value = record::write(&key, &record)?;
            let entry = self.layout.entry(&draft.key, version);
            effect.then.push(ops::put(key, value.clone(), None));
            effect.then.push(ops::put(entry, value, None));
            if let Some(oldest) = version.checked_sub(self.history - 1).filter(|n| *n > 1) {
                let old = self.layout.before(&draft.key, oldest);
                effect.then.push(ops::delete(old));
            }
        }
        match session.actor().apply(effect).await? {
            Effected::Applied { revision, .. } => {
                let done = drafts.iter().zip(before).map(|(draft, before)| {
                    let version = before.next();
                    let published = Published { revision, version };
                    if draft.value.is_some() {
                        self.memory.note(&draft.key, published);
                    }
                    published
                });
                Ok(Some(done.collect()))
            }
            Effected::Refused { .. } => Ok(None),
        }
    }
}
