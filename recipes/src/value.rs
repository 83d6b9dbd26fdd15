//! Values on their way into the store: raw bytes, text, or anything serde can write as JSON.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::keys::Key;

/// A value to write: bytes, or the reason why they could not be made, which surfaces when the
/// write is committed.
#[derive(Debug, Clone)]
pub struct Value(std::result::Result<Bytes, String>);

impl Value {
    /// The bytes for `key`.
    ///
    /// # Errors
    /// [`Error::Codec`] when serialisation had failed.
    pub fn into_bytes(self, key: &Key) -> Result<Bytes> {
        self.0.map_err(|reason| Error::Codec {
            key: key.clone(),
            reason,
        })
    }
}

/// Wraps a serialisable value to be written as JSON: `txn.put("k", Json(&order))`.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: Serialize> From<Json<T>> for Value {
    fn from(json: Json<T>) -> Self {
        Self(
            serde_json::to_vec(&json.0)
                .map(Bytes::from)
                .map_err(|e| e.to_string()),
        )
    }
}
impl From<Bytes> for Value {
    fn from(value: Bytes) -> Self {
        Self(Ok(value))
    }
}
impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self(Ok(value.into()))
    }
}
impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self(Ok(Bytes::copy_from_slice(value)))
    }
}
impl From<&str> for Value {
    fn from(value: &str) -> Self {
        value.as_bytes().into()
    }
}
impl From<String> for Value {
    fn from(value: String) -> Self {
        value.into_bytes().into()
    }
}

/// Reads the JSON value of `key`.
///
/// # Errors
/// [`Error::Codec`] when it is not JSON of this type.
pub fn from_json<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|e| Error::Codec {
        key: key.into(),
        reason: e.to_string(),
    })
}
