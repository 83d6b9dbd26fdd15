//! What a follower shows, decided from the changes of the keys: which publication or gray release holds for
//! the instance, and whether it can be used. What cannot is rejected, and the last good value stays.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::name::{Layout, Live};
use super::publish::{Memory, Published};
use super::record::Record;
use super::rule::{Instance, RuleRecord};
use super::view::{Part, Rejection, Source, View};
use crate::clock::Instant;
use crate::error::Result;
use crate::follow::Digest;
use crate::keys::{KeyRange, Revision};
use crate::value::from_json;
use crate::watch::{Batch, Change};

/// Most bytes of a reason.
const REASON_BYTES_MAX: usize = 1_024;

/// What is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// One key; its value is the setting.
    Key(String),
    /// All keys of a namespace; they are the fields of the setting.
    Namespace,
}

impl Scope {
    pub(super) fn range(&self, layout: &Layout) -> KeyRange {
        match self {
            Self::Key(key) => layout.live_of(key),
            Self::Namespace => layout.live(),
        }
    }

    /// The key that acknowledgements lie under.
    pub(super) fn acknowledged_as(&self) -> &str {
        match self {
            Self::Key(key) => key,
            Self::Namespace => "",
        }
    }
}

/// A user's check of a value before it is applied.
pub(super) type Validate<T> = Arc<dyn Fn(&T) -> std::result::Result<(), String> + Send + Sync>;

/// A key's publication, or its gray release, as read.
struct Read<R> {
    revision: Revision,
    record: Result<R>,
}

impl<R: DeserializeOwned> Read<R> {
    fn of(kv: &KeyValue) -> Self {
        Self {
            revision: Revision(kv.mod_revision),
            record: from_json(&kv.key, &kv.value),
        }
    }
}

/// What there is of one key.
struct Keyed {
    value: Option<Read<Record>>,
    rules: BTreeMap<String, Read<RuleRecord>>,
}

/// What holds for the instance.
struct Chosen {
    parts: BTreeMap<String, Part>,
    value: std::result::Result<Json, String>,
}

/// The state behind the views of one follower.
pub(super) struct Tracker<T> {
    layout: Layout,
    scope: Scope,
    instance: Instance,
    validate: Option<Validate<T>>,
    memory: Memory,
    keys: BTreeMap<String, Keyed>,
    /// What was judged last, good or not.
    judged: Option<BTreeMap<String, Part>>,
    view: View<T>,
}

impl<T: DeserializeOwned> Tracker<T> {
    pub(super) fn new(
        layout: Layout,
        scope: Scope,
        instance: Instance,
        validate: Option<Validate<T>>,
        memory: Memory,
    ) -> Self {
        Self {
            layout,
            scope,
            instance,
            validate,
            memory,
            keys: BTreeMap::new(),
            judged: None,
            view: View {
                value: None,
                source: Source::Nothing,
                revision: Revision(0),
                parts: Arc::default(),
                rejected: None,
                stale_since: None,
                raw: Arc::new(Json::Null),
                answered: false,
            },
        }
    }

    /// Begins with what a snapshot has. Fails, and changes nothing, when that cannot be used.
    pub(super) fn begin_with(
        &mut self,
        raw: Json,
        parts: BTreeMap<String, Part>,
    ) -> std::result::Result<(), String> {
        let value = self.judge(&raw)?;
        self.apply(value, raw, parts, Source::Snapshot);
        Ok(())
    }

    fn apply(&mut self, value: T, raw: Json, parts: BTreeMap<String, Part>, source: Source) {
        self.view.value = Some(Arc::new(value));
        self.view.revision = newest(&parts);
        self.view.parts = Arc::new(parts);
        self.view.raw = Arc::new(raw);
        self.view.source = source;
        self.view.rejected = None;
    }

    /// The value, if it can be used. A panic of the user's code is a reason not to.
    fn judge(&self, raw: &Json) -> std::result::Result<T, String> {
        let judged = catch_unwind(AssertUnwindSafe(|| {
            let value: T = serde_json::from_value(raw.clone()).map_err(|e| e.to_string())?;
            if let Some(validate) = &self.validate {
                validate(&value)?;
            }
            Ok(value)
        }));
        judged.unwrap_or_else(|_| Err("its validation panicked".to_owned()))
    }

    fn put(&mut self, kv: &KeyValue) {
        match self.layout.live_part(&kv.key) {
            Some(Live::Value(key)) => {
                let read = Read::<Record>::of(kv);
                if let Ok(record) = &read.record {
                    let (revision, version) = (read.revision, record.version);
                    self.memory.note(&key, Published { revision, version });
                }
                self.keyed(key).value = Some(read);
            }
            Some(Live::Rule(key, name)) => {
                let read = Read::of(kv);
                if let Err(error) = &read.record {
                    tracing::warn!(%error, "an unreadable rule selects nobody");
                }
                self.keyed(key).rules.insert(name, read);
            }
            None => {
                let key = String::from_utf8_lossy(&kv.key);
                tracing::warn!(%key, "not a key of a setting");
            }
        }
    }

    fn keyed(&mut self, key: String) -> &mut Keyed {
        self.keys.entry(key).or_insert_with(|| Keyed {
            value: None,
            rules: BTreeMap::new(),
        })
    }

    fn delete(&mut self, key: &[u8]) {
        match self.layout.live_part(key) {
            Some(Live::Value(key)) => self.keyed(key).value = None,
            Some(Live::Rule(key, name)) => {
                self.keyed(key).rules.remove(&name);
            }
            None => {}
        }
        self.keys
            .retain(|_, keyed| keyed.value.is_some() || !keyed.rules.is_empty());
    }

    /// What holds for the instance now; `None` when nothing does.
    fn choose(&self) -> Option<Chosen> {
        let mut parts = BTreeMap::new();
        let mut fields = serde_json::Map::new();
        let mut unreadable = None;
        for (key, keyed) in &self.keys {
            let Some((part, value)) = self.choose_of(keyed) else {
                continue;
            };
            parts.insert(key.clone(), part);
            match value {
                Ok(value) => drop(fields.insert(key.clone(), value.clone())),
                Err(error) => drop(unreadable.get_or_insert(error.to_string())),
            }
        }
        if parts.is_empty() {
            return None;
        }
        let value = match (unreadable, &self.scope) {
            (Some(reason), _) => Err(reason),
            (None, Scope::Namespace) => Ok(Json::Object(fields)),
            (None, Scope::Key(key)) => Ok(fields.remove(key).unwrap_or_default()),
        };
        Some(Chosen { parts, value })
    }

    fn choose_of<'a>(&self, keyed: &'a Keyed) -> Option<(Part, Result<&'a Json>)> {
        let readable = keyed.rules.iter().filter_map(|(name, read)| {
            let record = read.record.as_ref().ok()?;
            Some((name, read.revision, record))
        });
        let selecting = readable.filter(|(name, _, record)| {
            let rule = record.rule(name);
            rule.selects(&self.layout.namespace, &self.instance)
        });
        // Of equal ones the first by name.
        let first = selecting.min_by_key(|(name, _, record)| (-i64::from(record.priority), *name));
        if let Some((name, revision, record)) = first {
            let part = Part {
                revision,
                version: None,
                rule: Some(name.clone()),
            };
            return Some((part, Ok(&record.value)));
        }
        let read = keyed.value.as_ref()?;
        let part = Part {
            revision: read.revision,
            version: read.record.as_ref().ok().map(|record| record.version),
            rule: None,
        };
        let value = read.record.as_ref().map(|record| &record.value);
        Some((part, value.map_err(Clone::clone)))
    }

    /// Applies what holds now, or says why not.
    fn update(&mut self, at: Revision) {
        let Some(chosen) = self.choose() else {
            self.judged = None;
            if self.view.value.is_some() {
                self.reject(at, "nothing is published any more");
            }
            return;
        };
        if self.judged.as_ref() == Some(&chosen.parts) {
            return;
        }
        self.judged = Some(chosen.parts.clone());
        if self.view.source == Source::Store && *self.view.parts == chosen.parts {
            self.view.rejected = None;
            return;
        }
        let judged = chosen.value.and_then(|raw| Ok((self.judge(&raw)?, raw)));
        match judged {
            Ok((value, raw)) => self.apply(value, raw, chosen.parts, Source::Store),
            Err(reason) => self.reject(newest(&chosen.parts), &reason),
        }
    }

    fn reject(&mut self, revision: Revision, reason: &str) {
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let namespace = &self.layout.namespace;
        tracing::warn!(namespace, %revision, "a setting cannot be used; the last good one stays");
        // It may tell what the value is.
        tracing::debug!(reason, "why it cannot be used");
        self.view.rejected = Some(Rejection {
            revision,
            reason: reason[..end].to_owned(),
        });
    }
}

fn newest(parts: &BTreeMap<String, Part>) -> Revision {
    let newest = parts.values().map(|part| part.revision).max();
    newest.unwrap_or_default()
}

impl<T> Digest for Tracker<T>
where
    T: DeserializeOwned + Send + Sync + 'static,
{
    type View = View<T>;

    fn take(&mut self, batch: Batch, _now: Instant) {
        self.view.answered = true;
        for change in &batch.changes {
            match change {
                Change::Put { kv, .. } => self.put(kv),
                Change::Delete { key, .. } => self.delete(key.as_bytes()),
            }
        }
        self.update(batch.revision);
    }

    fn tick(&mut self, _now: Instant) -> bool {
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn view(&self, stale_since: Option<Instant>) -> View<T> {
        View {
            stale_since,
            ..self.view.clone()
        }
    }
}
