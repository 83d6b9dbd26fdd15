//! Records of the tables `keys` and `versions`, and numbers in `meta`.

use bytes::{BufMut, Bytes};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use super::{FORMAT, Revision};
use crate::storage::kv::KvError;

/// The current state of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Main revision of the put that created the key.
    pub create_revision: i64,
    /// Revision of the last put.
    pub mod_revision: Revision,
    /// Puts since creation.
    pub version: i64,
    /// Lease the key is attached to, 0 for none.
    pub lease: i64,
    /// The value.
    pub value: Bytes,
}

/// A state that a key had until it was replaced or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastPair {
    /// The state.
    pub pair: Pair,
    /// Revision that ended it: visible at main revision `r` if
    /// `pair.mod_revision.main <= r < end.main`.
    pub end: Revision,
}

/// A record: format, numbers, and what follows them. Its memory is as large as it is: room left over
/// would be kept, and counted in a second allocation.
fn record(numbers: &[i64], rest: &[u8]) -> Bytes {
    let numbers = numbers.iter().map(|number| number.cast_unsigned());
    let length: usize = numbers.clone().map(encoded_len_varint).sum();
    let mut record = Vec::with_capacity(1 + length + rest.len());
    record.put_u8(FORMAT);
    for number in numbers {
        encode_varint(number, &mut record);
    }
    record.put_slice(rest);
    record.into()
}

/// Reads format and `N` numbers; the rest shares the record's memory.
pub(super) fn read<const N: usize>(
    mut record: Bytes,
    what: &str,
) -> Result<([i64; N], Bytes), KvError> {
    let bad = |cause: &str| KvError::corrupt(format!("{what}: {cause}"));
    match record.first() {
        Some(&FORMAT) => drop(record.split_to(1)),
        Some(other) => return Err(bad(&format!("unknown format {other}"))),
        None => return Err(bad("empty")),
    }
    let mut numbers = [0; N];
    for number in &mut numbers {
        let read = decode_varint(&mut record).map_err(|_| bad("too short"))?;
        *number = read.cast_signed();
    }
    Ok((numbers, record))
}

impl Pair {
    /// The record in `keys`.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let Revision { main, sub } = self.mod_revision;
        let numbers = [self.create_revision, main, sub, self.version, self.lease];
        record(&numbers, &self.value)
    }

    /// Reads a record of `keys`; the value shares its memory.
    ///
    /// # Errors
    ///
    /// [`KvError::Corrupt`].
    pub fn decode(record: Bytes) -> Result<Pair, KvError> {
        let (numbers, value) = read(record, "pair in keys")?;
        let [create_revision, main, sub, version, lease] = numbers;
        let mod_revision = Revision::new(main, sub);
        Ok(Pair {
            create_revision,
            mod_revision,
            version,
            lease,
            value,
        })
    }
}

impl PastPair {
    /// The record in `versions`; the revision it began at is in the key.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let PastPair { pair, end } = self;
        let numbers = [
            pair.create_revision,
            pair.version,
            pair.lease,
            end.main,
            end.sub,
        ];
        record(&numbers, &pair.value)
    }

    /// Reads a record of `versions` whose key says `began`; the value shares its memory.
    ///
    /// # Errors
    ///
    /// [`KvError::Corrupt`].
    pub fn decode(record: Bytes, began: Revision) -> Result<PastPair, KvError> {
        let (numbers, value) = read(record, "pair in versions")?;
        let [create_revision, version, lease, end_main, end_sub] = numbers;
        let pair = Pair {
            create_revision,
            mod_revision: began,
            version,
            lease,
            value,
        };
        Ok(PastPair {
            pair,
            end: Revision::new(end_main, end_sub),
        })
    }

    /// Whether it is what the key had at main revision `main`.
    #[must_use]
    pub fn visible_at(&self, main: i64) -> bool {
        self.pair.mod_revision.main <= main && main < self.end.main
    }
}

/// A number in `meta`: eight bytes, big-endian.
#[must_use]
pub fn encode_number(number: i64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// Reads a number in `meta`.
///
/// # Errors
///
/// [`KvError::Corrupt`] if it is not eight bytes.
pub fn decode_number(record: &[u8]) -> Result<i64, KvError> {
    let bytes = record.try_into();
    let bytes = bytes.map_err(|_| KvError::corrupt(format!("number of {} bytes", record.len())))?;
    Ok(i64::from_be_bytes(bytes))
}
