//! One setting: reading, publishing, going back, gray releases, and who runs what.

use std::fmt;
use std::marker::PhantomData;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::acknowledge::{self, Acknowledgement};
use super::following::Follow;
use super::name::{ConfigName, Live};
use super::publish::{Besides, Draft, Expect, Published, Publisher};
use super::record::{self, Entry, Record};
use super::rule::{GrayRelease, Rule, RuleRecord};
use super::tracker::Scope;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::register;
use crate::session::{Effect, Effected, Session};
use crate::store::ops::{self, Compare};
use crate::value::from_json;
use crate::wait::Backoff;

impl Client {
    /// The setting of this name, `"namespace/key"`: `client.config::<Limits>("shop/limits")`.
    #[must_use]
    pub fn config<T>(&self, name: impl Into<ConfigName>) -> Config<T> {
        let name = name.into();
        Config {
            publisher: Publisher::new(self.clone(), &name.namespace),
            key: name.key,
            value: PhantomData,
        }
    }
}

/// A setting that processes read and follow, and that is published as a whole. Cheap to clone.
///
/// A handle remembers the publication that it, a clone or one of its followers has seen last, so that
/// publishing over it takes one round trip.
///
/// ```no_run
/// use quorate_recipes::config::Expect;
///
/// # async fn f(client: quorate_recipes::Client) -> quorate_recipes::Result<()> {
/// let session = client.session().await?;
/// let limit = client.config::<u32>("shop/limit");
/// let first = limit.publish(&session, &100, Expect::Absent).await?;
/// limit.publish(&session, &200, Expect::Revision(first.revision)).await?;
///
/// let mut following = limit.follow().await?;
/// while following.borrow().value.as_deref() != Some(&300) {
///     following.changed().await?;
/// }
/// # Ok(()) }
/// ```
pub struct Config<T> {
    publisher: Publisher,
    key: String,
    value: PhantomData<fn() -> T>,
}

impl<T> Config<T> {
    /// A handle that notes this with what it publishes, for people who look at the history.
    #[must_use]
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        self.publisher.note = note.into();
        self
    }

    /// A handle whose publications leave so many in the history, at least 1: the oldest go in the same
    /// transaction. All who publish should agree. Default: 20.
    #[must_use]
    pub fn keep_history(mut self, most: u64) -> Self {
        self.publisher.keep_history(most);
        self
    }

    /// The setting's name.
    #[must_use]
    pub fn name(&self) -> ConfigName {
        ConfigName::new(self.publisher.layout.namespace.as_str(), self.key.as_str())
    }

    /// The key that the publication is at.
    #[must_use]
    pub fn key(&self) -> Key {
        self.publisher.layout.value(&self.key)
    }

    fn client(&self) -> &Client {
        &self.publisher.client
    }

    fn draft(&self, value: serde_json::Value, expect: Expect) -> Draft {
        self.publisher.draft(&self.key, value, expect)
    }

    fn rule_key(&self, rule: &str) -> Key {
        self.publisher.layout.rule(&self.key, rule)
    }

    /// All keys of a range of the setting's.
    async fn list(&self, range: KeyRange) -> Result<Vec<KeyValue>> {
        self.publisher.layout.check(&self.key)?;
        Ok(self.client().list(range).await?.1)
    }

    /// Publishes the value of an earlier publication again, with a higher version and the reason as its note.
    /// Returns what was published.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the history does not have the version (any more); as [`Config::publish`].
    ///
    /// # Cancel safety
    /// As [`Config::publish`].
    pub async fn rollback(
        &self,
        session: &Session,
        version: u64,
        reason: &str,
        expect: Expect,
    ) -> Result<Published> {
        let entry = self.publisher.layout.entry(&self.key, version);
        let draft = self.draft(serde_json::Value::Null, expect);
        self.publisher
            .check(session, std::slice::from_ref(&draft))?;
        let Some(kv) = register::read(self.client(), &entry, Some(session)).await? else {
            let name = self.name();
            return Err(Error::Invalid(format!(
                "version {version} of {name} is not in its history"
            )));
        };
        let record: Record = from_json(&kv.key, &kv.value)?;
        let draft = Draft {
            value: Some(record.value),
            note: reason.to_owned(),
            rolled_back_to: Some(version),
            ..draft
        };
        let done = self.publisher.publish(session, &[draft]).await?;
        Ok(one(&done))
    }

    /// Publishes the value of a gray release for everybody and ends the release, in one transaction.
    /// `expect` is what is published now, over which the release was tried.
    ///
    /// # Errors
    /// [`Error::Invalid`] without a rule of this name; as [`Config::publish`].
    ///
    /// # Cancel safety
    /// As [`Config::publish`].
    pub async fn promote(
        &self,
        session: &Session,
        rule: &str,
        expect: Expect,
    ) -> Result<Published> {
        let mut draft = self.draft(serde_json::Value::Null, expect);
        let publisher = &self.publisher;
        publisher.check(session, std::slice::from_ref(&draft))?;
        let key = self.rule_key(rule);
        let mut pause = Backoff::contended(self.client());
        loop {
            let read = TxnRequest {
                success: vec![ops::read(ops::get(&key))],
                ..Default::default()
            };
            let (answer, _) = session.actor().repeat(read).await?;
            let Some(kv) = ops::kvs(&answer.responses, 0).first() else {
                let name = self.name();
                return Err(Error::Invalid(format!("{name} has no rule {rule:?}")));
            };
            let record: RuleRecord = from_json(&kv.key, &kv.value)?;
            draft.value = Some(record.value);
            let drafts = std::slice::from_ref(&draft);
            let before = publisher.look(session, drafts).await?;
            let besides = Besides {
                when: vec![Compare::mod_revision(&key, Revision(kv.mod_revision))],
                then: vec![ops::delete(KeyRange::one(&key))],
            };
            let done = publisher.attempt(session, drafts, &before, besides).await?;
            if let Some(done) = done {
                return Ok(one(&done));
            }
            pause.pause().await;
        }
    }

    /// Ends a gray release: the instances that it selects go back to what is published, or to what another
    /// rule says. Returns whether there was one.
    ///
    /// # Errors
    /// As [`Lane::apply`](crate::kit::Lane::apply).
    ///
    /// # Cancel safety
    /// As [`Config::publish`].
    pub async fn withdraw(&self, session: &Session, rule: &str) -> Result<bool> {
        session.belongs_to(self.client())?;
        self.publisher.layout.check(&self.key)?;
        let key = self.rule_key(rule);
        let effect = Effect {
            when: vec![Compare::present(&key)],
            then: vec![ops::delete(KeyRange::one(&key))],
            otherwise: Vec::new(),
        };
        let effected = session.actor().apply(effect).await?;
        Ok(matches!(effected, Effected::Applied { .. }))
    }

    /// Removes what is published, and ends its gray releases, in one transaction. Followers keep the last good
    /// value, [rejecting](super::View::rejected) that there is none; who starts to follow finds none. The history
    /// stays: a later publication goes on with its versions, and [`Config::rollback`] brings a value back. Returns
    /// the revision; `None` when nothing was published.
    ///
    /// # Errors
    /// [`Error::Conflict`] when something else was there than expected, and nothing was removed; as
    /// [`Config::publish`].
    ///
    /// # Cancel safety
    /// As [`Config::publish`].
    pub async fn remove(&self, session: &Session, expect: Expect) -> Result<Option<Revision>> {
        let publisher = &self.publisher;
        let draft = publisher.removal(&self.key, expect);
        let drafts = std::slice::from_ref(&draft);
        publisher.check(session, drafts)?;
        let mut pause = Backoff::contended(self.client());
        loop {
            let before = publisher.look(session, drafts).await?;
            let nothing = Revision(0);
            let nothing_is_there = before.iter().all(|before| before.revision == nothing);
            if nothing_is_there && expect.admits(nothing) {
                return Ok(None);
            }
            let besides = Besides::default();
            let done = publisher.attempt(session, drafts, &before, besides).await?;
            if let Some(done) = done {
                return Ok(Some(one(&done).revision));
            }
            pause.pause().await;
        }
    }

    /// What the instances that acknowledge say that they run, in the order of their ids.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is none; the store's.
    pub async fn acknowledgements(&self) -> Result<Vec<Acknowledgement>> {
        self.publisher.layout.check(&self.key)?;
        acknowledge::list(&self.publisher, &self.key).await
    }
}

impl<T: Serialize> Config<T> {
    /// Publishes a value. Exactly once, although answers get lost: see [`Error::OutcomeUnknown`] for the one
    /// exception.
    ///
    /// # Errors
    /// [`Error::Conflict`] when something else was there than expected, and nothing was written;
    /// [`Error::Codec`]; [`Error::Invalid`] for a name that is none or a session of another store; as
    /// [`Lane::apply`](crate::kit::Lane::apply).
    ///
    /// # Cancel safety
    /// When the future is dropped the outcome is unknown: what is on its way ends by itself, once or not at
    /// all.
    pub async fn publish(&self, session: &Session, value: &T, expect: Expect) -> Result<Published> {
        let value = record::encode(&self.key(), value)?;
        let draft = self.draft(value, expect);
        let done = self.publisher.publish(session, &[draft]).await?;
        Ok(one(&done))
    }

    /// Begins a gray release, or changes the one of this name: the instances that the rule selects use this
    /// value instead of the one that is published. `expect` is about the rule. Returns the revision.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a rule without a name or of a percent that is none; as [`Config::publish`].
    ///
    /// # Cancel safety
    /// As [`Config::publish`].
    pub async fn gray(
        &self,
        session: &Session,
        rule: &Rule,
        value: &T,
        expect: Expect,
    ) -> Result<Revision> {
        session.belongs_to(self.client())?;
        self.publisher.layout.check(&self.key)?;
        rule.check()?;
        let key = self.rule_key(&rule.name);
        let record = RuleRecord::new(rule, record::encode(&key, value)?, session.who());
        let expected = match expect {
            Expect::Revision(revision) => Some(Compare::mod_revision(&key, revision)),
            Expect::Absent => Some(Compare::absent(&key)),
            Expect::Any => None,
        };
        let value = record::write(&key, &record)?;
        let effect = Effect {
            when: expected.into_iter().collect(),
            then: vec![ops::put(key, value, None)],
            otherwise: Vec::new(),
        };
        match session.actor().apply(effect).await? {
            Effected::Applied { revision, .. } => Ok(revision),
            Effected::Refused { .. } => Err(Error::Conflict),
        }
    }
}

impl<T: DeserializeOwned> Config<T> {
    /// What is published now, by a linearizable read; gray releases apart.
    ///
    /// # Errors
    /// [`Error::Codec`] when what is there is no publication; [`Error::Invalid`] for a name that is none; the
    /// store's.
    pub async fn get(&self) -> Result<Option<Entry<T>>> {
        self.publisher.layout.check(&self.key)?;
        let Some(kv) = self.client().get(self.key()).await? else {
            return Ok(None);
        };
        let entry = Entry::read(&kv)?;
        let (revision, version) = (entry.revision, entry.version);
        let seen = Published { revision, version };
        self.publisher.memory.note(&self.key, seen);
        Ok(Some(entry))
    }

    /// The last publications, newest first.
    ///
    /// # Errors
    /// As [`Config::get`].
    pub async fn history(&self) -> Result<Vec<Entry<T>>> {
        let kvs = self.list(self.publisher.layout.history(&self.key)).await?;
        kvs.iter().rev().map(Entry::read).collect()
    }

    /// The gray releases that are on, in the order of their names.
    ///
    /// # Errors
    /// As [`Config::get`].
    pub async fn gray_releases(&self) -> Result<Vec<GrayRelease<T>>> {
        let layout = &self.publisher.layout;
        let kvs = self.list(layout.rules(&self.key)).await?;
        let named = kvs.iter().filter_map(|kv| match layout.live_part(&kv.key) {
            Some(Live::Rule(_, name)) => Some(GrayRelease::read(&name, kv)),
            _ => None,
        });
        named.collect()
    }
}

impl<T> Config<T>
where
    T: DeserializeOwned + Send + Sync + 'static,
{
    /// Follows the setting; awaiting starts it. Needs no session.
    pub fn follow(&self) -> Follow<T> {
        Follow::new(self.publisher.clone(), Scope::Key(self.key.clone()))
    }
}

/// The outcome of a publication of one key.
fn one(done: &[Published]) -> Published {
    let [published] = done else {
        unreachable!("one draft, and {} publications", done.len());
    };
    *published
}

impl<T> Clone for Config<T> {
    fn clone(&self) -> Self {
        Self {
            publisher: self.publisher.clone(),
            key: self.key.clone(),
            value: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Config<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("key", &self.key())
            .finish_non_exhaustive()
    }
}
