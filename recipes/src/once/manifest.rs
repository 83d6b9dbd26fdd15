//! What says that a result is published, and which chunks it is made of. Without I/O.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace};
use crate::value::{V1, from_json};

/// The only way that results are written so far.
const CODEC: &str = "json";

/// The value of the manifest's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    v: V1,
    /// The name of the attempt whose chunks they are.
    pub(super) attempt: String,
    /// How many.
    pub(super) chunks: u32,
    /// Their bytes together.
    pub(super) bytes: u64,
    /// Of all bytes in order, in lower-case hexadecimal.
    sha256: String,
    codec: String,
    /// When it was published, by the publisher's wall clock. Earlier versions of this crate did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) published_ms: Option<u64>,
}

impl Manifest {
    pub(super) fn of(attempt: String, chunks: u32, value: &[u8]) -> Self {
        Self {
            v: V1,
            attempt,
            chunks,
            bytes: value.len() as u64,
            sha256: digest(value),
            codec: CODEC.to_owned(),
            published_ms: Some(clock::wall_millis()),
        }
    }

    pub(super) fn read(kv: &KeyValue) -> Result<Self> {
        let manifest: Self = from_json(&kv.key, &kv.value)?;
        if manifest.codec != CODEC {
            let codec = format!("the codec {:?}", manifest.codec);
            return Err(damaged(kv.key.clone(), codec));
        }
        Ok(manifest)
    }

    /// Where the chunks lie below those of all attempts.
    pub(super) fn space(&self, chunks: &KeySpace) -> KeySpace {
        chunks.child(&self.attempt)
    }

    /// The value, if the chunks are what was published.
    pub(super) fn decode<T: DeserializeOwned>(&self, key: &Key, value: &[u8]) -> Result<T> {
        if value.len() as u64 != self.bytes {
            let (got, said) = (value.len(), self.bytes);
            return Err(damaged(
                key.clone(),
                format!("{got} bytes in the chunks, {said} published"),
            ));
        }
        if digest(value) != self.sha256 {
            return Err(damaged(
                key.clone(),
                "the chunks have another SHA-256".to_owned(),
            ));
        }
        from_json(key.as_bytes(), value)
    }
}

/// What is wrong with a key of a result.
pub(super) fn damaged(key: impl Into<Key>, reason: String) -> Error {
    let key = key.into();
    Error::Codec { key, reason }
}

/// The name of a chunk below its attempt.
pub(super) fn chunk_name(index: u32) -> String {
    format!("{index:08x}")
}

/// The pieces of a result, each of `size` bytes at most.
pub(super) fn split(value: &Bytes, size: usize) -> Vec<Bytes> {
    let starts = (0..value.len()).step_by(size.max(1));
    starts
        .map(|start| value.slice(start..value.len().min(start + size.max(1))))
        .collect()
}

/// What of a range lies outside of the parts that are spared.
pub(super) fn outside(all: KeyRange, mut spared: Vec<KeyRange>) -> Vec<KeyRange> {
    spared.sort_by(|one, other| one.start.cmp(&other.start));
    let mut start = all.start;
    let mut rest = Vec::new();
    for KeyRange { start: from, end } in spared {
        if start < from {
            rest.push(KeyRange { start, end: from });
        }
        start = end;
    }
    rest.push(KeyRange {
        start,
        end: all.end,
    });
    rest
}

/// The pieces put together, as far as they stay within the manifest's size.
#[derive(Debug, Default)]
pub(super) struct Joined(BytesMut);

impl Joined {
    /// Adds the next piece.
    pub(super) fn push(&mut self, manifest: &Manifest, kv: &KeyValue) -> Result<()> {
        if (self.0.len() + kv.value.len()) as u64 > manifest.bytes {
            let reason = format!("more than the {} bytes published", manifest.bytes);
            return Err(damaged(kv.key.clone(), reason));
        }
        self.0.extend_from_slice(&kv.value);
        Ok(())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn digest(value: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(value) {
        write!(text, "{byte:02x}").expect("a string takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_whole() {
        let value = Bytes::from_static(b"[1,2,3,4]");
        let pieces = split(&value, 4);
        assert_eq!(pieces, ["[1,2", ",3,4", "]"]);
        let manifest = Manifest::of("a".to_owned(), 3, &value);
        let mut joined = Joined::default();
        for value in pieces {
            let key = "k".into();
            let kv = KeyValue {
                key,
                value,
                ..Default::default()
            };
            joined.push(&manifest, &kv).unwrap();
        }
        let key = Key::from("k");
        let read: Vec<u32> = manifest.decode(&key, joined.as_bytes()).unwrap();
        assert_eq!(read, [1, 2, 3, 4]);
        assert!(split(&Bytes::new(), 4).is_empty());
    }

    #[test]
    fn what_is_spared_is_left_out() {
        let chunks = KeySpace::of("once", "r").child("chunk");
        let spared = ["b", "a"].map(|attempt| chunks.child(attempt).range());
        let rest = outside(chunks.range(), spared.into());
        let hit = |key: &str| {
            let key = chunks.key(key);
            let hits = rest.iter().filter(|range| range.contains(key.as_bytes()));
            hits.count()
        };
        let gone = ["0/0", "a", "aa/0", "b", "c/00000001"];
        assert_eq!(gone.map(hit), [1; 5]);
        assert_eq!(["a/0", "a/00000001", "b/0"].map(hit), [0; 3]);
    }

    #[test]
    fn what_was_published_before_ages_were_told_is_read() {
        let value = r#"{"v":1,"attempt":"a","chunks":1,"bytes":2,"sha256":"","codec":"json"}"#;
        let kv = KeyValue {
            key: "k".into(),
            value: value.into(),
            ..Default::default()
        };
        assert_eq!(Manifest::read(&kv).unwrap().published_ms, None);
    }

    #[test]
    fn what_is_not_what_was_published_is_no_value() {
        let key = Key::from("k");
        let manifest = Manifest::of("a".to_owned(), 1, b"\"right\"");
        for wrong in ["\"wrong\"", "\"righ\"", ""] {
            let read = manifest.decode::<String>(&key, wrong.as_bytes());
            assert!(matches!(read, Err(Error::Codec { .. })), "{wrong}");
        }
        let kv = KeyValue {
            key: "k".into(),
            value: vec![0; 8].into(),
            ..Default::default()
        };
        let more = Joined::default().push(&manifest, &kv);
        assert!(matches!(more, Err(Error::Codec { .. })));
    }

    #[test]
    fn a_digest_is_that_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(b"abc"), expected);
    }
}
