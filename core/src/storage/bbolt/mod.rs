//! Writes files of bbolt, the database under etcd: bulk-loaded, in one go, without seeking. Used by
//! `backup`, which knows what etcd keeps in them; this module knows nothing of etcd.
//!
//! A bbolt file is a row of pages. The first two name the root of everything, so they can only be
//! written by someone who knows the whole layout. [`Writer`] therefore runs twice over the same
//! items: the first time for the [`Layout`] alone, for which the lengths of values suffice
//! ([`Value::Length`]), the second time for the bytes. Pages are handed out as soon as they are full;
//! what is kept is one page for each level of the tree.
//!
//! Pages are full (a bulk load knows no later inserts), and there is no list of free pages: bbolt
//! finds out by itself that there are none, as it does for etcd, which never stores that list.

mod page;
mod tree;
mod writer;

#[cfg(test)]
pub(crate) mod reader;
#[cfg(test)]
mod tests;

pub use page::PAGE_BYTES;
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
