//! How the lines of a batch are written: as they are, or compressed where that makes them clearly smaller. Lines of
//! logs are much alike, and every byte of a batch is written, sent and kept by each member.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Fewer bytes are written as they are.
const BYTES_LEAST: usize = 1_024;

/// More bytes are written as they are, and nothing that is said to be more is unpacked.
const BYTES_MOST: usize = 16 << 20;

/// A block of LZ4 has no more bytes of text for each of its own.
const TIMES_MOST: usize = 255;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packed {
    /// The JSON array of the lines, as a block of LZ4 in Base64.
    lz4: String,
    /// How long the array is.
    bytes: usize,
}

pub(super) fn serialize<S: Serializer>(lines: &[String], to: S) -> Result<S::Ok, S::Error> {
    match pack(lines) {
        Some(packed) => packed.serialize(to),
        None => lines.serialize(to),
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    from.deserialize_any(Lines)
}

struct Lines;

impl<'de> Visitor<'de> for Lines {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lines, as they are or compressed")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, lines: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(lines))
    }

    fn visit_map<A: MapAccess<'de>>(self, packed: A) -> Result<Self::Value, A::Error> {
        let packed = Packed::deserialize(MapAccessDeserializer::new(packed))?;
        unpack(&packed).map_err(A::Error::custom)
    }
}

/// `None`: they are better written as they are.
fn pack(lines: &[String]) -> Option<Packed> {
    let length: usize = lines.iter().map(String::len).sum();
    if !(BYTES_LEAST..=BYTES_MOST).contains(&length) {
        return None;
    }
    let array = serde_json::to_vec(lines).expect("strings are JSON");
    let bytes = array.len();
    let lz4 = BASE64.encode(lz4_flex::block::compress(&array));
    let smaller = bytes <= BYTES_MOST && lz4.len() < bytes / 4 * 3;
    smaller.then_some(Packed { lz4, bytes })
}

fn unpack(packed: &Packed) -> Result<Vec<String>, String> {
    let bytes = packed.bytes;
    let block = BASE64.decode(&packed.lz4);
    let block = block.map_err(|error| error.to_string())?;
    // Room is made for no more than there can be.
    let most = block.len().saturating_mul(TIMES_MOST).min(BYTES_MOST);
    if bytes > most {
        return Err(format!("lines of {bytes} bytes, more than {most}"));
    }
    let array = lz4_flex::block::decompress(&block, bytes).map_err(|error| error.to_string())?;
    if array.len() != bytes {
        return Err(format!("lines of {} bytes, not of {bytes}", array.len()));
    }
    serde_json::from_slice(&array).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Batch;
    use super::*;

    fn batch(lines: Vec<String>) -> Batch {
        Batch {
            source: "host".to_owned(),
            run: "run".to_owned(),
            first: 7,
            lines,
        }
    }

    fn written(lines: Vec<String>) -> String {
        let batch = batch(lines);
        let written = serde_json::to_string(&batch).unwrap();
        assert_eq!(serde_json::from_str::<Batch>(&written).unwrap(), batch);
        written
    }

    #[test]
    fn lines_come_back_as_they_were() {
        let line = |n: u32| {
            let status = 200 + n % 5;
            format!(
                "2026-05-04T10:00:{:02}Z INFO request id={n} path=/api/orders/{} status={status} \"ü\"",
                n % 60,
                n * 7
            )
        };
        let many: Vec<String> = (0..600).map(line).collect();
        let plain: usize = many.iter().map(String::len).sum();
        let packed = written(many);
        assert!(packed.len() < plain / 3, "{} of {plain}", packed.len());
        // Few stay readable, and so does what cannot be made smaller.
        let few = written(vec!["a".to_owned(), String::new(), "\u{0}\"\n".to_owned()]);
        assert!(few.contains(r#""lines":["a","#), "{few}");
        let mut state = 1_u64;
        let mut noise = || {
            state = crate::hash::mix(state);
            format!("{state:016x}")
        };
        let noise: Vec<String> = (0..100).map(|_| noise()).collect();
        assert!(written(noise.clone()).contains(&noise[0]));
        let of_length = |length: usize| written(vec!["x".repeat(length)]).contains("lz4");
        assert!(!of_length(BYTES_LEAST - 1) && of_length(BYTES_LEAST));
        written(Vec::new());
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let read = |lines: serde_json::Value| {
            let value = json!({"source": "a", "run": "b", "first": 0, "lines": lines});
            serde_json::from_value::<Batch>(value).map_err(|error| error.to_string())
        };
        let array = serde_json::to_vec(&vec!["x".repeat(40); 40]).unwrap();
        let good = lz4_flex::block::compress(&array);
        let of = |block: &[u8], bytes: usize| json!({"lz4": BASE64.encode(block), "bytes": bytes});
        assert_eq!(read(of(&good, array.len())).unwrap().lines.len(), 40);
        let refused = |lines, why: &str| {
            let error = read(lines).unwrap_err();
            assert!(error.contains(why), "{error:?} without {why:?}");
        };
        refused(of(&good[..good.len() / 2], array.len()), "");
        refused(of(&good, array.len() + 1), "not of");
        refused(of(&good, array.len() - 1), "");
        refused(of(&good, usize::MAX), "more than");
        refused(of(b"few", 766), "more than 765");
        refused(
            of(&lz4_flex::block::compress(b"{}"), 2),
            "invalid type: map",
        );
        refused(json!({"lz4": "not Base64!", "bytes": 3}), "Invalid symbol");
        refused(json!({"lz4": 5, "bytes": 3}), "expected a string");
        refused(json!({"bytes": 3}), "missing field `lz4`");
        refused(
            json!({"lz4": "", "bytes": 0, "more": 1}),
            "unknown field `more`",
        );
        refused(json!(["a", 1]), "expected a string");
        refused(json!("a"), "lines, as they are or compressed");
    }
}
