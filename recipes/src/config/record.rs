//! How publications are written: JSON with the setting's own value inside.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::client::Identity;
use crate::error::{Error, Result};
use crate::keys::{Key, Revision};
use crate::value::{self, V1, from_json};

/// One publication, as it is in the store: under its key, and in the history.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) v: V1,
    pub(crate) version: u64,
    pub(crate) value: Json,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
    pub(crate) by: Identity,
    pub(crate) at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rolled_back_to: Option<u64>,
}

/// One publication of a setting.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Entry<T> {
    /// Its number among the publications of the key: 1 and up.
    pub version: u64,
    /// The revision at which it was published.
    pub revision: Revision,
    /// The value; or why it is no `T`.
    pub value: Result<Arc<T>>,
    /// What the publisher noted.
    pub note: String,
    /// Who published it.
    pub by: Identity,
    /// When, in milliseconds since 1970 by the publisher's clock. For people only.
    pub at_ms: u64,
    /// The version whose value it is, if it was a rollback.
    pub rolled_back_to: Option<u64>,
}

impl<T: DeserializeOwned> Entry<T> {
    /// Reads a publication.
    ///
    /// # Errors
    /// [`Error::Codec`] when it is none.
    pub(super) fn read(kv: &KeyValue) -> Result<Self> {
        let record: Record = from_json(&kv.key, &kv.value)?;
        Ok(Self {
            version: record.version,
            revision: Revision(kv.mod_revision),
            value: decode(&kv.key.clone().into(), record.value).map(Arc::new),
            note: record.note,
            by: record.by,
            at_ms: record.at_ms,
            rolled_back_to: record.rolled_back_to,
        })
    }
}

/// A setting's value, ready to be written.
pub(super) fn encode<T: Serialize>(key: &Key, value: &T) -> Result<Json> {
    serde_json::to_value(value).map_err(|error| codec(key, &error))
}

pub(super) fn decode<T: DeserializeOwned>(key: &Key, value: Json) -> Result<T> {
    serde_json::from_value(value).map_err(|error| codec(key, &error))
}

/// The bytes of a record.
pub(super) fn write<R: Serialize>(key: &Key, record: &R) -> Result<Bytes> {
    value::Value::from(value::Json(record)).into_bytes(key)
}

fn codec(key: &Key, error: &serde_json::Error) -> Error {
    Error::Codec {
        key: key.clone(),
        reason: error.to_string(),
    }
}
