//! All settings of a namespace as one: published in one transaction, and read as one struct whose fields
//! are the keys.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::acknowledge::{self, Acknowledgement};
use super::following::Follow;
use super::name::Live;
use super::publish::{Before, Besides, Draft, Expect, Published, Publisher};
use super::record::{self, Record};
use super::tracker::Scope;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::session::Session;
use crate::store::StoreError;
use crate::store::ops::{self, Compare};
use crate::value::from_json;
use crate::wait;

impl Client {
    /// All settings of a namespace as one: `client.config_group::<Shop>("shop")`, where the fields of `Shop`
    /// are the keys.
    #[must_use]
    pub fn config_group<G>(&self, namespace: &str) -> ConfigGroup<G> {
        ConfigGroup {
            publisher: Publisher::new(self.clone(), namespace),
            value: PhantomData,
        }
    }
}

/// The settings of a namespace that belong together. Cheap to clone. A struct of them has one field a key;
/// a field that may be missing is an `Option`, or has a serde default.
pub struct ConfigGroup<G> {
    pub(super) publisher: Publisher,
    value: PhantomData<fn() -> G>,
}

impl<G> ConfigGroup<G> {
    /// As [`Config::keep_history`](super::Config::keep_history), for each key.
    #[must_use]
    pub fn keep_history(mut self, most: u64) -> Self {
        self.publisher.keep_history(most);
        self
    }

    /// A publication of several keys, to be filled and committed.
    pub fn publish(&self) -> GroupPublication {
        GroupPublication {
            publisher: self.publisher.clone(),
            drafts: Vec::new(),
            error: None,
        }
    }

    /// Publishes again what was there at a revision, in one transaction: of each key that is different now, or has
    /// been deleted since, the version of then, with the reason as its note. Keys that came later stay. Returns
    /// the revision.
    ///
    /// # Errors
    /// [`Error::Invalid`] when nothing is different, when a key's history does not go back so far, when a key was
    /// deleted and the store has forgotten whether it was there at that revision, and when more keys are different
    /// than one publication takes; [`Error::Conflict`] when somebody publishes or changes a gray release in the
    /// namespace meanwhile; as [`Config::publish`](super::Config::publish).
    ///
    /// # Cancel safety
    /// As [`Config::publish`](super::Config::publish).
    pub async fn rollback(
        &self,
        session: &Session,
        to: Revision,
        reason: &str,
    ) -> Result<Revision> {
        session.belongs_to(&self.publisher.client)?;
        let (now, back) = self.differences(session, to).await?;
        if back.is_empty() {
            return Err(Error::Invalid(format!(
                "nothing is different from revision {to}"
            )));
        }
        let (mut drafts, mut before) = (Vec::new(), Vec::new());
        for (key, seen, then) in back {
            before.push(seen);
            drafts.push(Draft {
                note: reason.to_owned(),
                rolled_back_to: Some(then.version),
                ..self.publisher.draft(&key, then.value, Expect::Any)
            });
        }
        // One condition for all that stays as it is.
        let besides = Besides {
            when: vec![Compare::unwritten_since(self.publisher.layout.live(), now)],
            ..Besides::default()
        };
        let done = self
            .publisher
            .attempt(session, &drafts, &before, besides)
            .await?;
        done.map(|done| revision_of(&done)).ok_or(Error::Conflict)
    }

    /// The keys that are different from a revision: as they are now, with the revision of that, and as they were.
    async fn differences(
        &self,
        session: &Session,
        to: Revision,
    ) -> Result<(Revision, Vec<(String, Before, Record)>)> {
        let layout = &self.publisher.layout;
        let (now, kvs) = self.listed(session, layout.published()).await?;
        let mut versions = self.versions(&kvs, to)?;
        let mut back = Vec::new();
        for kv in &kvs {
            let Some(Live::Value(key)) = layout.live_part(&kv.key) else {
                continue;
            };
            let revision = Revision(kv.mod_revision);
            let known = versions.remove(&key).unwrap_or_default();
            if revision <= to {
                continue;
            }
            let seen = Before {
                revision,
                version: known.last,
                seen: now,
            };
            if known.came_later() {
                continue;
            }
            if kv.create_revision > to.0 {
                // It came later, or was deleted in between.
                let then = self.there_at(session, &key, to, now).await?;
                back.extend(then.map(|then| (key, seen, then)));
            } else if let Some(then) = known.then {
                back.push((key, seen, then));
            } else {
                return Err(Error::Invalid(format!(
                    "the history of {key} does not go back to revision {to}"
                )));
            }
        }
        // What only the history knows has been deleted, before that revision or since.
        for (key, known) in versions {
            if known.came_later() {
                continue;
            }
            let seen = Before {
                revision: Revision(0),
                version: known.last,
                seen: now,
            };
            let then = self.there_at(session, &key, to, now).await?;
            back.extend(then.map(|then| (key, seen, then)));
        }
        Ok((now, back))
    }

    /// What there is in a range, page by page as it was at one revision.
    pub(super) async fn listed(
        &self,
        session: &Session,
        range: KeyRange,
    ) -> Result<(Revision, Vec<KeyValue>)> {
        tokio::select! {
            biased;
            reason = session.lost() => Err(Error::SessionLost(reason)),
            listed = wait::list(&self.publisher.client, range) => listed,
        }
    }

    /// What the history has of each key.
    fn versions(&self, kvs: &[KeyValue], to: Revision) -> Result<BTreeMap<String, Versions>> {
        let mut versions: BTreeMap<String, Versions> = BTreeMap::new();
        for kv in kvs {
            let Some((key, version)) = self.publisher.layout.version(&kv.key) else {
                continue;
            };
            let known = versions.entry(key).or_default();
            known.first.get_or_insert(version);
            known.last = version;
            if kv.mod_revision <= to.0 {
                known.then = Some(from_json(&kv.key, &kv.value)?);
            }
        }
        Ok(versions)
    }

    /// What a key had at a revision, as the store itself knows.
    async fn there_at(
        &self,
        session: &Session,
        key: &str,
        to: Revision,
        now: Revision,
    ) -> Result<Option<Record>> {
        if to < Revision(1) || to >= now {
            return Ok(None);
        }
        let mut then = ops::get(self.publisher.layout.value(key));
        then.revision = to.0;
        let request = TxnRequest {
            success: vec![ops::read(then)],
            ..TxnRequest::default()
        };
        let (found, _) = match session.actor().repeat(request).await {
            Err(Error::Store(StoreError::Compacted { .. })) => {
                return Err(Error::Invalid(format!(
                    "whether {key} was there at revision {to} is not known any more"
                )));
            }
            found => found?,
        };
        let kv = ops::kvs(&found.responses, 0).first();
        kv.map(|kv| from_json(&kv.key, &kv.value)).transpose()
    }

    /// What the instances that follow the group and acknowledge say that they run, in the order of their ids.
    ///
    /// # Errors
    /// The store's.
    pub async fn acknowledgements(&self) -> Result<Vec<Acknowledgement>> {
        acknowledge::list(&self.publisher, "").await
    }
}

impl<G> ConfigGroup<G>
where
    G: DeserializeOwned + Send + Sync + 'static,
{
    /// Follows the group; awaiting starts it. Needs no session. Each view is what was published at one
    /// revision.
    pub fn follow(&self) -> Follow<G> {
        Follow::new(self.publisher.clone(), Scope::Namespace)
    }
}

impl<G> Clone for ConfigGroup<G> {
    fn clone(&self) -> Self {
        Self {
            publisher: self.publisher.clone(),
            value: PhantomData,
        }
    }
}

impl<G> fmt::Debug for ConfigGroup<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigGroup")
            .field("namespace", &self.publisher.layout.namespace)
            .finish_non_exhaustive()
    }
}

/// What the history has of a key.
#[derive(Default)]
struct Versions {
    first: Option<u64>,
    last: u64,
    /// The last one at the revision to go back to.
    then: Option<Record>,
}

impl Versions {
    /// Whether all publications that there ever were are later.
    fn came_later(&self) -> bool {
        self.then.is_none() && self.first == Some(1)
    }
}

/// Several keys of a namespace, published in one transaction or not at all.
#[must_use = "nothing is sent before commit"]
pub struct GroupPublication {
    publisher: Publisher,
    drafts: Vec<Draft>,
    error: Option<Error>,
}

impl GroupPublication {
    /// One key more, with what must be there.
    pub fn set<T: Serialize>(mut self, key: &str, value: &T, expect: Expect) -> Self {
        let at: Key = self.publisher.layout.value(key);
        match record::encode(&at, value) {
            Ok(value) => self.drafts.push(self.publisher.draft(key, value, expect)),
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
        self
    }

    /// One key less, as by [`Config::remove`](super::Config::remove): it is left out of what is published from
    /// then on, so the field that it is must be one that may be missing.
    pub fn remove(mut self, key: &str, expect: Expect) -> Self {
        self.drafts.push(self.publisher.removal(key, expect));
        self
    }

    /// Notes this with each key that is published, for people who look at the history.
    pub fn note(mut self, note: &str) -> Self {
        self.publisher.note = note.to_owned();
        for draft in &mut self.drafts {
            draft.note = note.to_owned();
        }
        self
    }

    /// Publishes all keys, exactly once although answers get lost. Returns the revision of all of them.
    ///
    /// # Errors
    /// [`Error::Conflict`] when of any key something else was there than expected, and nothing was written;
    /// [`Error::Invalid`] for no key, for one that is given twice, and for more keys than one transaction
    /// takes, 42 with a store's limit of 128; as [`Config::publish`](super::Config::publish).
    ///
    /// # Cancel safety
    /// As [`Config::publish`](super::Config::publish).
    pub async fn commit(self, session: &Session) -> Result<Revision> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let done = self.publisher.publish(session, &self.drafts).await?;
        Ok(revision_of(&done))
    }
}

/// The one revision at which all keys of a publication were written.
pub(super) fn revision_of(done: &[Published]) -> Revision {
    done.first()
        .map_or(Revision(0), |published| published.revision)
}

impl fmt::Debug for GroupPublication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.drafts.iter().map(|draft| &draft.key).collect();
        f.debug_struct("GroupPublication")
            .field("namespace", &self.publisher.layout.namespace)
            .field("keys", &keys)
            .finish_non_exhaustive()
    }
}
