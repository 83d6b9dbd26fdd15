//! The writer of a whole file: buckets one after the other, in order of their names.

use super::page::{PAGE_BYTES, write_meta};
use super::tree::{Output, Root, Tree};
use super::{Error, Value};

/// The meta pages come first.
const FIRST_PAGE: u64 = 2;
/// Transaction number of the meta page in force; the other one has the number before it.
const TRANSACTION: u64 = 2;

/// What has to be known before the first byte can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    root: u64,
    pages: u64,
}

impl Layout {
    /// Size of the file in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }

    /// How the file begins: its two meta pages, alike but for the transaction.
    #[must_use]
    pub fn head(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(2 * PAGE_BYTES);
        write_meta(0, self.root, self.pages, TRANSACTION, &mut head);
        write_meta(1, self.root, self.pages, TRANSACTION - 1, &mut head);
        head
    }
}

/// Writes a file from its third page on; [`Layout::head`] gives the first two. Equal names, keys
/// and lengths give an equal layout.
#[derive(Debug)]
pub struct Writer {
    out: Output,
    root: Tree,
    /// The bucket being filled, with its name.
    bucket: Option<(Vec<u8>, Tree)>,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// A writer that has written nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            out: Output {
                bytes: Vec::new(),
                next: FIRST_PAGE,
            },
            root: Tree::default(),
            bucket: None,
        }
    }

    /// Begins a bucket, which ends the one before. It may stay empty.
    ///
    /// # Errors
    /// [`Error::Order`] unless its name is greater than the one before; [`Error::Size`].
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), Error> {
        self.end_bucket()?;
        self.bucket = Some((name.to_vec(), Tree::default()));
        Ok(())
    }

    /// Adds an item to the bucket begun last.
    ///
    /// # Errors
    /// [`Error::Order`] unless its key is greater than the one before; [`Error::Size`];
    /// [`Error::NoBucket`].
    pub fn put(&mut self, key: &[u8], value: Value<'_>) -> Result<(), Error> {
        let (_, tree) = self.bucket.as_mut().ok_or(Error::NoBucket)?;
        tree.put(key, value, false, &mut self.out)
    }

    /// The pages written and not taken away yet; the caller empties it.
    pub fn written(&mut self) -> &mut Vec<u8> {
        &mut self.out.bytes
    }

    /// Writes what is left, to be taken from [`Writer::written`], and tells the layout.
    ///
    /// # Errors
    /// As [`Writer::bucket`], for the last one.
    pub fn finish(&mut self) -> Result<Layout, Error> {
        self.end_bucket()?;
        match std::mem::take(&mut self.root).finish(false, &mut self.out) {
            Root::Page(root) => Ok(Layout {
                root,
                pages: self.out.next,
            }),
            Root::Inline(_) => unreachable!("the root is not inside anything"),
        }
    }

    /// Adds the finished bucket to the root: the page of its tree and its sequence, which is 0; page 0
    /// means that its only page follows.
    fn end_bucket(&mut self) -> Result<(), Error> {
        let Some((name, tree)) = self.bucket.take() else {
            return Ok(());
        };
        let mut value = Vec::new();
        match tree.finish(true, &mut self.out) {
            Root::Page(page) => {
                value.extend_from_slice(&page.to_le_bytes());
                value.extend_from_slice(&0_u64.to_le_bytes());
            }
            Root::Inline(page) => {
                value.extend_from_slice(&[0; 16]);
                page.write_inline(&mut value);
            }
        }
        self.root
            .put(&name, Value::Bytes(&value), true, &mut self.out)
    }
}
