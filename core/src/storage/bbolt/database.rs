//! [`Database`]: a bbolt file that is read. Opening finds the meta page in force, as bbolt does: the
//! one of the two with the greater transaction number that holds together.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::items::{Item, Items};
use super::page::{HEADER_BYTES, MAGIC, META, META_BYTES, VERSION, fnv_1a};
use super::read_at::ReadAt;

/// Smallest page that is looked for, in bytes.
const PAGE_BYTES_MIN: u64 = 1024;
/// Largest page that is looked for, in bytes; machines have 4 KiB to 64 KiB.
const PAGE_BYTES_MAX: u64 = 1024 * 1024;
/// The first page after the two meta pages.
const FIRST_PAGE: u64 = 2;

/// Why a file cannot be read. The offsets are bytes from the beginning of the file.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The file system refused, or the file became shorter.
    #[error("cannot read at byte {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// What it said.
        source: Arc<io::Error>,
    },
    /// Neither meta page is one.
    #[error("not a bbolt database, or both of its meta pages are damaged: {0}")]
    NoMeta(String),
    /// Something in the file contradicts itself.
    #[error("damaged database: page {page}, at byte {offset}: {what}")]
    Damaged {
        /// The page.
        page: u64,
        /// Where it begins, or where in it.
        offset: u64,
        /// What does not fit.
        what: String,
    },
}

/// A bbolt file, as of its last transaction.
#[derive(Debug)]
pub struct Database<S> {
    source: S,
    page_bytes: u64,
    root: u64,
    pages: u64,
}

/// A bucket: where its items are.
#[derive(Debug, Clone)]
pub struct Bucket {
    pub(super) root: Root,
}

#[derive(Debug, Clone)]
pub(super) enum Root {
    Page(u64),
    /// Inside the page of the bucket it is in, at an offset of the file.
    Inline {
        page: u64,
        offset: u64,
        bytes: Bytes,
    },
}

/// What a meta page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meta {
    page_bytes: u64,
    root: u64,
    pages: u64,
    transaction: u64,
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let (word, _) = bytes[at..].split_first_chunk().expect("bounds are checked");
    u32::from_le_bytes(*word)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let (word, _) = bytes[at..].split_first_chunk().expect("bounds are checked");
    u64::from_le_bytes(*word)
}

impl<S: ReadAt> Database<S> {
    /// Opens the database in the first `length` bytes of `source`.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: it is none, it is damaged, or it is shorter than it says.
    pub fn open(source: S, length: u64) -> Result<Self, ReadError> {
        let meta = newest_meta(&source, length)?;
        let Meta {
            page_bytes,
            root,
            pages,
            ..
        } = meta;
        let damaged = |what: String| ReadError::Damaged {
            page: meta.transaction % 2,
            offset: (meta.transaction % 2) * page_bytes,
            what,
        };
        let whole = pages.checked_mul(page_bytes);
        if whole.is_none_or(|whole| whole > length) {
            return Err(damaged(format!(
                "it says there are {pages} pages of {page_bytes} bytes, but the file has {length} \
                 bytes: it was cut"
            )));
        }
        if !(FIRST_PAGE..pages).contains(&root) {
            return Err(damaged(format!("page {root} of {pages} as the root")));
        }
        Ok(Self {
            source,
            page_bytes,
            root,
            pages,
        })
    }

    /// Bytes that it takes up, which may be fewer than the file has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages * self.page_bytes
    }

    /// The bucket that holds all others.
    #[must_use]
    pub fn root(&self) -> Bucket {
        Bucket {
            root: Root::Page(self.root),
        }
    }

    /// The items of a bucket, in order of their keys. Buckets inside it are not gone through.
    pub fn items(&self, bucket: &Bucket) -> Items<'_, S> {
        Items::new(self, bucket)
    }

    /// The bucket of this name directly in `parent`.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn bucket(&self, parent: &Bucket, name: &[u8]) -> Result<Option<Bucket>, ReadError> {
        for item in self.items(parent) {
            match item? {
                Item::Bucket {
                    name: found,
                    bucket,
                } if found == name => return Ok(Some(bucket)),
                Item::Bucket { .. } | Item::Pair { .. } => {}
            }
        }
        Ok(None)
    }

    pub(super) fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    pub(super) fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, ReadError> {
        read(&self.source, offset, length)
    }

    /// Whether a page can be part of a tree.
    pub(super) fn has(&self, page: u64) -> bool {
        (FIRST_PAGE..self.pages).contains(&page)
    }
}

fn read(source: &impl ReadAt, offset: u64, length: usize) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![0; length];
    match source.read_exact_at(offset, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(source) => Err(ReadError::Io {
            offset,
            source: Arc::new(source),
        }),
    }
}

/// The meta page in force. The first one names the size of pages and with it the place of the second;
/// if it is damaged, the second is looked for where it may be.
fn newest_meta(source: &impl ReadAt, length: u64) -> Result<Meta, ReadError> {
    let first = meta_at(source, 0, length)?;
    let sizes = std::iter::successors(Some(PAGE_BYTES_MIN), |bytes| Some(bytes * 2));
    let sizes = sizes.take_while(|bytes| *bytes <= PAGE_BYTES_MAX);
    let mut newest = first.clone().ok();
    for page_bytes in sizes {
        if first
            .as_ref()
            .is_ok_and(|first| first.page_bytes != page_bytes)
        {
            continue;
        }
        match meta_at(source, page_bytes, length)? {
            Ok(second) if second.page_bytes == page_bytes => {
                if newest.is_none_or(|first| first.transaction < second.transaction) {
                    newest = Some(second);
                }
                break;
            }
            Ok(_) | Err(_) => {}
        }
    }
    newest.ok_or_else(|| ReadError::NoMeta(first.err().unwrap_or_default()))
}

/// What the meta page at `offset` says, or what is wrong with it.
fn meta_at(
    source: &impl ReadAt,
    offset: u64,
    length: u64,
) -> Result<Result<Meta, String>, ReadError> {
    if offset + (HEADER_BYTES + META_BYTES) as u64 > length {
        return Ok(Err(format!("it has {length} bytes")));
    }
    let page = read(source, offset, HEADER_BYTES + META_BYTES)?;
    let meta = &page[HEADER_BYTES..];
    let magic = u32_at(meta, 0);
    if magic != MAGIC {
        return Ok(Err(format!("it begins with {magic:08x}, not {MAGIC:08x}")));
    }
    let version = u32_at(meta, 4);
    if version != VERSION {
        return Ok(Err(format!("version {version}, not {VERSION}")));
    }
    let covered = META_BYTES - 8;
    if u64_at(meta, covered) != fnv_1a(&meta[..covered]) {
        return Ok(Err("a meta page with a wrong checksum".to_owned()));
    }
    let page_bytes = u64::from(u32_at(meta, 8));
    let is_possible = page_bytes.is_power_of_two()
        && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes)
        && u16_at(&page, 8) == META;
    if !is_possible {
        return Ok(Err(format!("a meta page with pages of {page_bytes} bytes")));
    }
    Ok(Ok(Meta {
        page_bytes,
        root: u64_at(meta, 16),
        pages: u64_at(meta, 40),
        transaction: u64_at(meta, 48),
    }))
}
