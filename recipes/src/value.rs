//! Values on their way into the store: raw bytes, text, or anything serde can write as JSON.

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// The version of a record, written as 1. A record of another version is not read: what it means is not
/// known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct V1;

impl Serialize for V1 {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_u32(1)
    }
}

impl<'de> Deserialize<'de> for V1 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            1 => Ok(Self),
            other => Err(D::Error::custom(format!(
                "version {other} of the record; version 1 is known"
            ))),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Inner {
        v: V1,
        count: u32,
    }

    #[derive(Serialize, Deserialize)]
    struct Outer {
        name: String,
        #[serde(flatten)]
        inner: Inner,
    }

    #[test]
    fn records_of_another_version_are_not_read() {
        let written = Value::from(Json(Outer {
            name: "x".to_owned(),
            inner: Inner { v: V1, count: 3 },
        }));
        let written = written.into_bytes(&"k".into()).unwrap();
        assert_eq!(written, r#"{"name":"x","v":1,"count":3}"#);
        assert_eq!(from_json::<Outer>(b"k", &written).unwrap().inner.count, 3);
        for other in ["2", "\"1\"", "null"] {
            let other = format!(r#"{{"name":"x","v":{other},"count":3}}"#);
            let read = from_json::<Outer>(b"k", other.as_bytes());
            assert!(matches!(read, Err(Error::Codec { .. })), "{other}");
        }
        assert!(from_json::<Outer>(b"k", br#"{"name":"x","count":3}"#).is_err());
    }
}
