//! Gray releases of several keys of a group: begun, promoted and withdrawn together, each in one transaction.

use std::collections::BTreeMap;
use std::fmt;

use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;
use serde_json::Value as Json;

use super::group::{ConfigGroup, revision_of};
use super::name::Live;
use super::publish::{Besides, Expect, Publisher};
use super::record;
use super::rule::{Rule, RuleRecord};
use crate::error::{Error, Result};
use crate::keys::{KeyRange, Revision};
use crate::session::{Effect, Effected, Session};
use crate::store::ops::{self, Compare};
use crate::value::from_json;
use crate::wait::Backoff;

impl<G> ConfigGroup<G> {
    /// A gray release of several keys, to be filled and begun: followers of the group that the rule selects come to
    /// all of its values at once.
    pub fn gray(&self, rule: &Rule) -> GroupRelease {
        GroupRelease {
            publisher: self.publisher.clone(),
            rule: rule.clone(),
            values: BTreeMap::new(),
            error: None,
        }
    }

    /// Publishes for everybody what a gray release has, of all keys that have one of this name, and ends it, in one
    /// transaction. Returns the revision.
    ///
    /// # Errors
    /// [`Error::Invalid`] when no key has a rule of this name, and for more keys than one transaction takes, 31 with a
    /// store's limit of 128; as [`Config::publish`](super::Config::publish).
    ///
    /// # Cancel safety
    /// As [`Config::publish`](super::Config::publish).
    pub async fn promote(&self, session: &Session, rule: &str) -> Result<Revision> {
        session.belongs_to(&self.publisher.client)?;
        let mut pause = Backoff::contended(&self.publisher.client);
        loop {
            let (mut besides, released) = self.released(session, rule).await?;
            let mut drafts = Vec::with_capacity(released.len());
            for (key, kv) in released {
                let record: RuleRecord = from_json(&kv.key, &kv.value)?;
                drafts.push(self.publisher.draft(&key, record.value, Expect::Any));
                besides.then.push(ops::delete(KeyRange::one(
                    self.publisher.layout.rule(&key, rule),
                )));
            }
            if drafts.is_empty() {
                let namespace = &self.publisher.layout.namespace;
                let none = format!("no key of {namespace} has a rule {rule:?}");
                return Err(Error::Invalid(none));
            }
            let before = self.publisher.look(session, &drafts).await?;
            let done = self.publisher.attempt(session, &drafts, &before, besides);
            if let Some(done) = done.await? {
                return Ok(revision_of(&done));
            }
            pause.pause().await;
        }
    }

    /// Ends a gray release of all keys that have one of this name, in one transaction. Returns whether there was one.
    ///
    /// # Errors
    /// As [`Config::withdraw`](super::Config::withdraw).
    ///
    /// # Cancel safety
    /// As [`Config::publish`](super::Config::publish).
    pub async fn withdraw(&self, session: &Session, rule: &str) -> Result<bool> {
        session.belongs_to(&self.publisher.client)?;
        let mut pause = Backoff::contended(&self.publisher.client);
        loop {
            let (besides, released) = self.released(session, rule).await?;
            if released.is_empty() {
                return Ok(false);
            }
            let rules = released.iter();
            let rules = rules.map(|(key, _)| self.publisher.layout.rule(key, rule));
            let effect = Effect {
                when: besides.when,
                then: rules.map(|key| ops::delete(KeyRange::one(key))).collect(),
                otherwise: Vec::new(),
            };
            if let Effected::Applied { .. } = session.actor().apply(effect).await? {
                return Ok(true);
            }
            pause.pause().await;
        }
    }

    /// The keys that have a rule of this name, with it, and the conditions under which that is still all of it.
    async fn released(
        &self,
        session: &Session,
        rule: &str,
    ) -> Result<(Besides, Vec<(String, KeyValue)>)> {
        let layout = &self.publisher.layout;
        let (now, kvs) = self.listed(session, layout.live()).await?;
        let mut besides = Besides::default();
        // Nothing was written; and nothing was deleted, which that does not say.
        besides
            .when
            .push(Compare::unwritten_since(layout.live(), now));
        let mut released = Vec::new();
        for kv in kvs {
            if let Some(Live::Rule(key, name)) = layout.live_part(&kv.key)
                && name == rule
            {
                let at = Revision(kv.mod_revision);
                besides.when.push(Compare::mod_revision(kv.key.clone(), at));
                released.push((key, kv));
            }
        }
        Ok((besides, released))
    }
}

/// A gray release of several keys of a namespace, begun in one transaction or not at all.
#[must_use = "nothing is sent before commit"]
pub struct GroupRelease {
    publisher: Publisher,
    rule: Rule,
    values: BTreeMap<String, Json>,
    error: Option<Error>,
}

impl GroupRelease {
    /// One key more.
    pub fn set<T: Serialize>(mut self, key: &str, value: &T) -> Self {
        let at = self.publisher.layout.rule(key, self.rule.name());
        let set = record::encode(&at, value).and_then(|value| {
            match self.values.insert(key.to_owned(), value) {
                None => Ok(()),
                Some(_) => Err(Error::Invalid(format!("{key} is released twice"))),
            }
        });
        if let Err(error) = set {
            self.error.get_or_insert(error);
        }
        self
    }

    /// Begins the release, or changes the one of this name, of these keys. Returns the revision.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no key, for one that is given twice, and for a rule without a name or of a percent that is none; as
    /// [`Config::publish`](super::Config::publish).
    ///
    /// # Cancel safety
    /// As [`Config::publish`](super::Config::publish).
    pub async fn commit(self, session: &Session) -> Result<Revision> {
        if let Some(error) = self.error {
            return Err(error);
        }
        session.belongs_to(&self.publisher.client)?;
        self.rule.check()?;
        if self.values.is_empty() {
            return Err(Error::Invalid("a gray release of nothing".to_owned()));
        }
        let layout = &self.publisher.layout;
        let mut effect = Effect::default();
        for (key, value) in self.values {
            layout.check(&key)?;
            let record = RuleRecord::new(&self.rule, value, session.who());
            let key = layout.rule(&key, self.rule.name());
            let value = record::write(&key, &record)?;
            effect.then.push(ops::put(key, value, None));
        }
        match session.actor().apply(effect).await? {
            Effected::Applied { revision, .. } => Ok(revision),
            Effected::Refused { .. } => Err(Error::Conflict),
        }
    }
}

impl fmt::Debug for GroupRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupRelease")
            .field("namespace", &self.publisher.layout.namespace)
            .field("rule", &self.rule)
            .field("keys", &self.values.keys())
            .finish_non_exhaustive()
    }
}
