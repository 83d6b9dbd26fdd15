//! Encodings of the state machine's keys and records in the key-value store.
//!
//! One ordered store holds all tables, told apart by the first byte of a key:
//!
//! | byte | table | rest of the key | value |
//! | --- | --- | --- | --- |
//! | 1 | `keys` | user key | [`Pair`]: the current state of the key |
//! | 2 | `versions` | user key escaped, terminator, revision inverted | [`PastPair`]: a replaced or deleted state |
//! | 3 | `events` | revision of the first | [`EventRecord`]s of one log entry |
//! | 4 | `leases` | lease id | the lease owner's |
//! | 5 | `lease_keys` | lease id, user key | empty: the key is attached to the lease |
//! | 6 | `auth` | the auth store's | the auth store's |
//! | 7 | `meta` | name | see [`MetaKey`] |
//! | 8 | `members` | member id | the cluster's |
//! | 9 | `alarms` | member id, alarm | the cluster's |
//!
//! The value of a pair is stored once: in `keys` while it is current, in `versions` afterwards,
//! together with the revision that ended it (so a deletion needs no record there). An event names
//! its key and revision and is completed from those two tables.
//!
//! Numbers in keys are big-endian and fixed in size, so that bytes order as the numbers do; in
//! records they are varints. Every record begins with its format.

mod event;
mod key;
mod record;
mod revision;

#[cfg(test)]
mod tests;

pub use event::{EventRecord, StoredEvent, decode_events, encode_events};
pub use key::{
    MetaKey, Table, alarm_key, auth_key, event_key, event_revision, key_bounds, key_key, lease_key,
    lease_key_bounds, lease_key_key, lease_of, member_key, meta_key, table_bounds, user_key_of_key,
    user_key_of_lease_key, version_bounds, version_key, version_of, versions_until,
};
pub use record::{Pair, PastPair, decode_number, encode_number};
pub use revision::Revision;

/// First byte of every pair and past pair, and of the events of old, each a record of its own.
pub const FORMAT: u8 = 1;
