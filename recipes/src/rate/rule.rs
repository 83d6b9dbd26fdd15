//! The rule that all users of a rate limiter agree on.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::{Error, Result};
use crate::keys::Key;
use crate::value::{Json, V1, Value, from_json};

/// The longest window, some 250 years: stores grant leases that are a little longer.
const PER_MAX: Duration = Duration::from_secs(8_000_000_000);

/// At most `limit` permits in any window of `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// Most permits in one window.
    pub limit: u32,
    /// The window's length: whole seconds, at least one.
    pub per: Duration,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} permits in {} s", self.limit, self.per.as_secs())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    v: V1,
    limit: u32,
    per_seconds: u64,
    /// Of the call that wrote it.
    nonce: String,
}

impl Rule {
    /// `per` is rounded up to whole seconds, and is at most [`PER_MAX`].
    pub(super) fn new(limit: u32, per: Duration) -> Self {
        Self {
            limit,
            per: clock::whole_seconds(per).clamp(Duration::from_secs(1), PER_MAX),
        }
    }

    pub(super) fn check(self) -> Result<()> {
        if self.limit == 0 {
            return Err(Error::Invalid(format!("a rule of {self}")));
        }
        Ok(())
    }

    /// How long permits may be used after they were asked for, with a store that answers in time: while
    /// their lease has a whole window left. The lease is longer than the window by so much.
    pub(super) fn usable(self) -> Duration {
        let tenth = self.per.as_secs().div_ceil(10);
        Duration::from_secs(tenth.max(1))
    }

    pub(super) fn read(kv: &KeyValue) -> Result<Self> {
        let record: Record = from_json(&kv.key, &kv.value)?;
        Ok(Self::new(
            record.limit,
            Duration::from_secs(record.per_seconds),
        ))
    }

    pub(super) fn write(self, key: &Key, nonce: String) -> Result<Bytes> {
        let record = Record {
            v: V1,
            limit: self.limit,
            per_seconds: self.per.as_secs(),
            nonce,
        };
        Value::from(Json(record)).into_bytes(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_rounded_up_to_seconds() {
        let per = |millis| Rule::new(1, Duration::from_millis(millis)).per.as_secs();
        assert_eq!([per(0), per(1), per(1000), per(1001)], [1, 1, 1, 2]);
        let usable = |seconds| {
            Rule::new(1, Duration::from_secs(seconds))
                .usable()
                .as_secs()
        };
        assert_eq!(
            [usable(1), usable(10), usable(11), usable(3600)],
            [1, 1, 2, 360]
        );
    }

    #[test]
    fn a_rule_reads_what_it_wrote() {
        let key = Key::from("k");
        let rule = Rule::new(7, Duration::from_secs(90));
        let kv = KeyValue {
            key: "k".into(),
            value: rule.write(&key, "n".to_owned()).unwrap(),
            ..Default::default()
        };
        assert_eq!(Rule::read(&kv).unwrap(), rule);
        assert_eq!(rule.to_string(), "7 permits in 90 s");
        assert!(rule.check().is_ok());
        assert!(Rule::new(0, Duration::ZERO).check().is_err());
    }
}
