//! Which instances a gray release selects: a rule over labels and a share of the instances, judged by
//! each instance for itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::record::decode;
use crate::client::Identity;
use crate::clock;
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::value::{V1, from_json};

/// How finely a percent is judged: hundredths.
const NUMBERS: u64 = 10_000;

/// Which instances a gray release selects, and what comes first where several do.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub(super) name: String,
    pub(super) priority: i32,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) percent: f64,
}

impl Rule {
    /// A rule of this name that selects every instance. Rules of the same name select the same instances
    /// for all keys of a namespace.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            priority: 0,
            labels: BTreeMap::new(),
            percent: 100.0,
        }
    }

    /// Of several rules that select an instance the one of the highest priority holds, then the one whose
    /// name sorts first. Default: 0.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Selects only instances that have this label; of several labels, those that have all.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Selects about this share of the instances that have the labels: 0.0 to 100.0, by a hash of the
    /// instance's id. Who is selected stays so when the share grows. Default: 100.
    #[must_use]
    pub fn percent(mut self, percent: f64) -> Self {
        self.percent = percent;
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.name.is_empty() || !(0.0..=100.0).contains(&self.percent) {
            let (name, percent) = (&self.name, self.percent);
            return Err(Error::Invalid(format!("a rule {name:?} of {percent} %")));
        }
        Ok(())
    }

    pub(super) fn selects(&self, namespace: &str, instance: &Instance) -> bool {
        let has = |(name, value)| instance.labels.get(name) == Some(value);
        self.labels.iter().all(has) && {
            let number = number(namespace, &self.name, &instance.id);
            // Both are at most 10 000, which a float holds exactly.
            f64::from(number) < (self.percent * 100.0).round()
        }
    }
}

/// The number of an instance among [`NUMBERS`], for a rule.
fn number(namespace: &str, rule: &str, instance: &str) -> u32 {
    let mut hash = Sha256::new();
    for part in [namespace, rule, instance] {
        hash.update(part);
        hash.update([0]);
    }
    let digest = hash.finalize();
    let (first, _) = digest.split_at(8);
    let first = first.iter().fold(0, |n: u64, b| (n << 8) | u64::from(*b));
    u32::try_from(first % NUMBERS).expect("it is less than 10 000")
}

/// Who follows a setting.
#[derive(Debug, Clone, Default)]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) labels: BTreeMap<String, String>,
}

/// A rule as it is in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RuleRecord {
    pub(super) v: V1,
    #[serde(default)]
    pub(super) priority: i32,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    pub(super) percent: f64,
    pub(super) value: Json,
    pub(super) by: Identity,
    pub(super) at_ms: u64,
}

impl RuleRecord {
    pub(super) fn new(rule: &Rule, value: Json, by: &Identity) -> Self {
        Self {
            v: V1,
            priority: rule.priority,
            labels: rule.labels.clone(),
            percent: rule.percent,
            value,
            by: by.clone(),
            at_ms: clock::wall_millis(),
        }
    }

    pub(super) fn rule(&self, name: &str) -> Rule {
        Rule {
            name: name.to_owned(),
            priority: self.priority,
            labels: self.labels.clone(),
            percent: self.percent,
        }
    }
}

/// A gray release that is on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GrayRelease<T> {
    /// Whom it selects.
    pub rule: Rule,
    /// The value for those; or why it is no `T`.
    pub value: Result<Arc<T>>,
    /// The revision at which it was begun, or changed.
    pub revision: Revision,
    /// Who did that.
    pub by: Identity,
    /// When, in milliseconds since 1970 by their clock. For people only.
    pub at_ms: u64,
}

impl<T: DeserializeOwned> GrayRelease<T> {
    pub(super) fn read(name: &str, kv: &KeyValue) -> Result<Self> {
        let record: RuleRecord = from_json(&kv.key, &kv.value)?;
        Ok(Self {
            rule: record.rule(name),
            value: decode(&kv.key.clone().into(), record.value).map(Arc::new),
            revision: Revision(kv.mod_revision),
            by: record.by,
            at_ms: record.at_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(n: u32) -> Instance {
        Instance {
            id: format!("shop-{n}"),
            labels: BTreeMap::from([("zone".to_owned(), format!("{}", n % 2))]),
        }
    }

    fn selected(rule: &Rule) -> Vec<u32> {
        let all = 0..2_000;
        all.filter(|n| rule.selects("shop", &instance(*n)))
            .collect()
    }

    #[test]
    fn shares_are_about_right_and_grow_without_a_change_of_mind() {
        let rule = Rule::new("canary");
        let mut before = Vec::new();
        for percent in [0.0, 0.5, 5.0, 10.0, 50.0, 99.0, 100.0] {
            let now = selected(&rule.clone().percent(percent));
            let part = f64::from(u32::try_from(now.len()).unwrap()) / 20.0;
            assert!((part - percent).abs() <= 3.0, "{part} of {percent} %");
            assert!(before.iter().all(|n| now.contains(n)), "{percent} %");
            before = now;
        }
        assert_eq!(before.len(), 2_000);
        assert_eq!(selected(&rule.clone().percent(0.0)), [0; 0]);
        let other = selected(&Rule::new("other").percent(50.0));
        assert_ne!(other, selected(&rule.clone().percent(50.0)));
        // Numbers that must never change: others, and programs in other languages, have the same.
        let numbers = ["shop-1", "shop-2", ""].map(|id| number("shop", "canary", id));
        assert_eq!(numbers, NUMBERS_OF_SHOP);
    }

    const NUMBERS_OF_SHOP: [u32; 3] = [4_746, 8_639, 5_300];

    #[test]
    fn labels_must_all_be_there() {
        let rule = Rule::new("r").label("zone", "1");
        assert_eq!(selected(&rule).len(), 1_000);
        assert_eq!(selected(&rule.clone().label("disk", "ssd")), [0; 0]);
        let half = selected(&rule.percent(50.0));
        assert!(half.iter().all(|n| n % 2 == 1) && (400..600).contains(&half.len()));
        for percent in [-1.0, 100.1, f64::NAN] {
            assert!(Rule::new("r").percent(percent).check().is_err());
        }
        assert!(Rule::new("").check().is_err());
    }
}
