//! What is stored of computations that failed, and of how many have begun. Without I/O.

use std::fmt;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::client::Identity;
use crate::error::Result;
use crate::keys::Key;
use crate::value::{Json, V1, Value, from_json};

/// Most bytes that are kept of what an error says.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// A computation that failed, as its caller told the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failure {
    /// What its error says: the first 4 KiB.
    pub text: String,
    /// Which computation it was since the last published result: 1 is the first. `None` when they are
    /// not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Host, process and label of the session that computed.
    pub who: Identity,
    /// What the handle that computed says it is doing; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub info: String,
    /// When it failed, in milliseconds since the Unix epoch by the wall clock of who computed.
    pub failed_ms: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.text, self.who)?;
        if let Some(attempt) = self.attempt {
            write!(f, ", attempt {attempt}")?;
        }
        f.write_str(")")
    }
}

/// As much of a text as is kept.
pub(super) fn kept(mut text: String) -> String {
    let mut end = TEXT_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// How many computations have begun since the last published result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) begun: u32,
    /// The name of the last one.
    pub(super) attempt: String,
    /// The last one that failed and could say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<Box<Failure>>,
}

/// A record with its version.
#[derive(Serialize, Deserialize)]
struct Versioned<R> {
    v: V1,
    #[serde(flatten)]
    record: R,
}

pub(super) fn write<R: Serialize>(key: &Key, record: &R) -> Result<Bytes> {
    Value::from(Json(Versioned { v: V1, record })).into_bytes(key)
}

pub(super) fn read<R: DeserializeOwned>(kv: &KeyValue) -> Result<R> {
    let read: Versioned<R> = from_json(&kv.key, &kv.value)?;
    Ok(read.record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(kept("short".to_owned()), "short");
        let cut = kept("€".repeat(TEXT_BYTES_MAX));
        assert_eq!(cut.len(), TEXT_BYTES_MAX / 3 * 3);
        assert!(cut.chars().all(|each| each == '€'));
    }

    #[test]
    fn records_are_read_as_written_and_later_ones_refused() {
        let key = Key::from("k");
        let tally = Tally {
            begun: 3,
            attempt: "a".to_owned(),
            last: None,
        };
        let kv = |value: Bytes| KeyValue {
            key: "k".into(),
            value,
            ..Default::default()
        };
        let written = write(&key, &tally).unwrap();
        assert_eq!(written, r#"{"v":1,"begun":3,"attempt":"a"}"#);
        assert_eq!(read::<Tally>(&kv(written)).unwrap(), tally);
        for other in [r#"{"v":2,"cells":[]}"#, "{", ""] {
            let refused = read::<Tally>(&kv(other.into()));
            assert!(matches!(refused, Err(Error::Codec { .. })), "{other}");
        }
    }
}
