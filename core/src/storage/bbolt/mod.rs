//! Files of bbolt, the database under etcd: written in one go without seeking, and read, whoever wrote
//! them. Used by `backup`, which knows what etcd keeps in them; this module knows nothing of etcd.
//!
//! # Writing
//!
//! A bbolt file is a row of pages. The first two name the root of everything, so they can only be
//! written by someone who knows the whole layout. [`Writer`] therefore runs twice over the same
//! items: the first time for the [`Layout`] alone, for which the lengths of values suffice
//! ([`Value::Length`]), the second time for the bytes. Pages are handed out as soon as they are full;
//! what is kept is one page for each level of the tree.
//!
//! Pages are full (a bulk load knows no later inserts), and there is no list of free pages: bbolt
//! finds out by itself that there are none, as it does for etcd, which never stores that list.
//!
//! # Reading
//!
//! [`Database`] reads a file page by page, in bounded memory and without mapping it, and believes
//! nothing it says: all bounds are checked, no page is gone through twice in one pass, keys must
//! ascend. bbolt has no checksums but those of its meta pages, so damage inside a value cannot be seen
//! here: a checksum of the whole file is for the caller.

mod database;
mod items;
mod page;
mod read_at;
mod tree;
mod writer;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
pub(crate) mod reader;
#[cfg(test)]
mod tests;

pub use database::{Bucket, Database, ReadError};
pub use items::{Item, Items};
pub use page::PAGE_BYTES;
pub use read_at::ReadAt;
pub use writer::{Layout, Writer};

/// Longest key, in bytes (bbolt's limit).
pub const KEY_BYTES_MAX: usize = 32_768;
/// Longest value, in bytes (bbolt's limit).
pub const VALUE_BYTES_MAX: usize = (1 << 31) - 2;

/// The value of an item.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// The value itself.
    Bytes(&'a [u8]),
    /// As many bytes that do not matter: enough to find out the layout.
    Length(usize),
}

impl Value<'_> {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Value::Bytes(bytes) => bytes.len(),
            Value::Length(length) => *length,
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why an item cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its key, or the name of a bucket, does not follow the one before.
    #[error("bbolt: a key that does not follow the one before it: {0:02x?}")]
    Order(Vec<u8>),
    /// Its key is empty or too long, or its value is too long.
    #[error("bbolt: a key of {key_bytes} bytes with a value of {value_bytes} bytes")]
    Size {
        /// Length of the key.
        key_bytes: usize,
        /// Length of the value.
        value_bytes: usize,
    },
    /// An item outside any bucket.
    #[error("bbolt: an item outside any bucket")]
    NoBucket,
}
