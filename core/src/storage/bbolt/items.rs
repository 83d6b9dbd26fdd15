//! [`Items`]: one pass through a bucket's tree, from its smallest key to its largest. Used by
//! [`Database`].

use std::fmt::Display;

use bytes::Bytes;

use super::database::{Bucket, Database, ReadError, Root, u16_at, u32_at, u64_at};
use super::page::{BRANCH, BUCKET, ELEMENT_BYTES, HEADER_BYTES, LEAF};
use super::read_at::ReadAt;

/// Levels of a tree at most. Branches have two children at least, so no disk holds a deeper one.
const DEPTH_MAX: usize = 40;
/// Pages up to this size are read at once; of larger ones each item by itself.
const PAGE_READ_BYTES_MAX: u64 = 256 * 1024;
/// Key and value of one item at most, in bytes: more than any server takes in a request.
const ITEM_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Page and sequence of a bucket, before the page inside its value.
const BUCKET_BYTES: usize = 16;

/// An item of a bucket.
#[derive(Debug, Clone)]
pub enum Item {
    /// A key with its value.
    Pair {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// A bucket inside the bucket.
    Bucket {
        /// Its name, which is its key.
        name: Bytes,
        /// Itself.
        bucket: Bucket,
    },
}

/// The items of a bucket, in order. Ends after an error.
#[derive(Debug)]
pub struct Items<'a, S> {
    database: &'a Database<S>,
    /// Where to begin, until begun.
    root: Option<Root>,
    /// The pages from the root down to the one being read.
    path: Vec<Level>,
    seen: Seen,
    last_key: Option<Bytes>,
    has_failed: bool,
}

#[derive(Debug)]
struct Level {
    page: Page,
    next: usize,
    /// What its parent says is its smallest key, or less.
    least: Option<Bytes>,
}

/// A page of a tree, with its elements in memory.
#[derive(Debug)]
struct Page {
    id: u64,
    /// Of its first byte in the file.
    offset: u64,
    is_branch: bool,
    count: usize,
    bytes: u64,
    /// All of it, or as much as its elements take.
    held: Bytes,
}

/// Which pages one pass has gone through: one bit a page.
#[derive(Debug, Default)]
struct Seen(Vec<u64>);

impl Seen {
    /// Whether it is new.
    fn insert(&mut self, page: u64, pages: u64) -> bool {
        if self.0.is_empty() {
            let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
            self.0.resize(words, 0);
        }
        let word = usize::try_from(page / 64).unwrap_or(usize::MAX);
        let bit = 1 << (page % 64);
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }
}

impl Page {
    fn damaged(&self, at: u64, what: impl Display) -> ReadError {
        ReadError::Damaged {
            page: self.id,
            offset: self.offset.saturating_add(at),
            what: what.to_string(),
        }
    }

    /// Checks a header and the elements after it.
    fn of(id: u64, offset: u64, bytes: u64, held: Bytes) -> Result<Self, ReadError> {
        let mut page = Self {
            id,
            offset,
            is_branch: false,
            count: usize::from(u16_at(&held, 10)),
            bytes,
            held,
        };
        match u16_at(&page.held, 8) {
            BRANCH => page.is_branch = true,
            LEAF => {}
            other => {
                return Err(page.damaged(0, format!("kind {other:#06x}, neither branch nor leaf")));
            }
        }
        if page.is_branch && page.count == 0 {
            return Err(page.damaged(0, "a branch without children"));
        }
        if elements_end(page.count) > bytes {
            return Err(page.damaged(0, format!("{} elements in {bytes} bytes", page.count)));
        }
        Ok(page)
    }

    /// Key, value and flags of an element of a leaf.
    fn item<S: ReadAt>(
        &self,
        database: &Database<S>,
        i: usize,
    ) -> Result<(Bytes, Bytes, u32), ReadError> {
        let at = HEADER_BYTES + ELEMENT_BYTES * i;
        let word = |n: usize| u64::from(u32_at(&self.held, at + 4 * n));
        let (key_bytes, value_bytes) = (word(2), word(3));
        let key = self.part(database, i, word(1), key_bytes)?;
        let value = self.part(database, i, word(1) + key_bytes, value_bytes)?;
        Ok((key, value, u32_at(&self.held, at)))
    }

    /// Key and page of an element of a branch.
    fn child<S: ReadAt>(
        &self,
        database: &Database<S>,
        i: usize,
    ) -> Result<(Bytes, u64), ReadError> {
        let at = HEADER_BYTES + ELEMENT_BYTES * i;
        let word = |n: usize| u64::from(u32_at(&self.held, at + 4 * n));
        let key = self.part(database, i, word(0), word(1))?;
        Ok((key, u64_at(&self.held, at + 8)))
    }

    /// Bytes of this page, counted from its element `i`.
    fn part<S: ReadAt>(
        &self,
        database: &Database<S>,
        i: usize,
        from: u64,
        length: u64,
    ) -> Result<Bytes, ReadError> {
        let at = (HEADER_BYTES + ELEMENT_BYTES * i) as u64;
        let start = at + from;
        let fits = start >= elements_end(self.count) && start + length <= self.bytes;
        // What is empty may be said to be anywhere.
        if !fits && length > 0 {
            return Err(self.damaged(
                at,
                format!("element {i} points to {length} bytes at {start}, outside"),
            ));
        }
        if length > ITEM_BYTES_MAX {
            return Err(self.damaged(at, format!("element {i} has {length} bytes")));
        }
        let length = usize::try_from(length).expect("it was compared with a limit");
        let held = usize::try_from(start)
            .ok()
            .and_then(|start| Some(start..start.checked_add(length)?))
            .filter(|range| range.end <= self.held.len());
        match held {
            _ if length == 0 => Ok(Bytes::new()),
            Some(range) => Ok(self.held.slice(range)),
            None => database.read(self.offset + start, length).map(Bytes::from),
        }
    }
}

/// Where the elements of a page end, in bytes from its beginning.
fn elements_end(count: usize) -> u64 {
    (HEADER_BYTES + ELEMENT_BYTES * count) as u64
}

impl<'a, S: ReadAt> Items<'a, S> {
    pub(super) fn new(database: &'a Database<S>, bucket: &Bucket) -> Self {
        Self {
            database,
            root: Some(bucket.root.clone()),
            path: Vec::new(),
            seen: Seen::default(),
            last_key: None,
            has_failed: false,
        }
    }

    fn read(&mut self) -> Result<Option<Item>, ReadError> {
        if let Some(root) = self.root.take() {
            let page = match root {
                Root::Page(id) => self.page(id, None)?,
                Root::Inline {
                    page,
                    offset,
                    bytes,
                } => Page::of(page, offset, bytes.len() as u64, bytes)?,
            };
            self.enter(page, None)?;
        }
        while let Some(level) = self.path.last_mut() {
            let i = level.next;
            if i == level.page.count {
                self.path.pop();
                continue;
            }
            level.next += 1;
            if level.page.is_branch {
                let (key, child) = level.page.child(self.database, i)?;
                level.check_least(i, &key)?;
                let parent = (level.page.id, level.page.offset);
                let page = self.page(child, Some(parent))?;
                self.enter(page, Some(key))?;
            } else {
                return self.item(i).map(Some);
            }
        }
        Ok(None)
    }

    /// The item `i` of the leaf that is being read.
    fn item(&mut self, i: usize) -> Result<Item, ReadError> {
        let level = self.path.last().expect("a leaf is being read");
        let page = &level.page;
        let (key, value, flags) = page.item(self.database, i)?;
        level.check_least(i, &key)?;
        if self.last_key.as_ref().is_some_and(|last| *last >= key) {
            return Err(page.damaged(0, format!("the key of element {i} is not the next one")));
        }
        self.last_key = Some(key.clone());
        match flags {
            0 => Ok(Item::Pair { key, value }),
            BUCKET => {
                let bucket = bucket_of(page, i, &value)?;
                Ok(Item::Bucket { name: key, bucket })
            }
            _ => Err(page.damaged(0, format!("element {i} has flags {flags:#x}"))),
        }
    }

    fn enter(&mut self, page: Page, least: Option<Bytes>) -> Result<(), ReadError> {
        if self.path.len() == DEPTH_MAX {
            return Err(page.damaged(0, format!("more than {DEPTH_MAX} levels deep")));
        }
        self.path.push(Level {
            page,
            next: 0,
            least,
        });
        Ok(())
    }

    /// Reads page `id`, which the page `parent` (id and offset) points to.
    fn page(&mut self, id: u64, parent: Option<(u64, u64)>) -> Result<Page, ReadError> {
        let database = self.database;
        let (by, at) = parent.unwrap_or_default();
        let pointer = |what: String| ReadError::Damaged {
            page: by,
            offset: at,
            what,
        };
        if !database.has(id) {
            let pages = database.pages();
            return Err(pointer(format!("points to page {id} of {pages}")));
        }
        let offset = id * database.page_bytes();
        let page_bytes = usize::try_from(database.page_bytes()).expect("pages are at most 1 MiB");
        let first = Bytes::from(database.read(offset, page_bytes)?);
        let damaged = |what: String| ReadError::Damaged {
            page: id,
            offset,
            what,
        };
        let own = u64_at(&first, 0);
        if own != id {
            return Err(damaged(format!("says it is page {own}")));
        }
        let more = u64::from(u32_at(&first, 12));
        if !database.has(id + more) {
            return Err(damaged(format!("goes on for {more} pages, past the end")));
        }
        for id in id..=id + more {
            if !self.seen.insert(id, database.pages()) {
                return Err(damaged(format!("page {id} is used twice")));
            }
        }
        let bytes = (more + 1) * database.page_bytes();
        let wanted = if bytes <= PAGE_READ_BYTES_MAX {
            bytes
        } else {
            elements_end(usize::from(u16_at(&first, 10))).min(bytes)
        };
        let held = match usize::try_from(wanted) {
            Ok(wanted) if wanted > first.len() => Bytes::from(database.read(offset, wanted)?),
            _ => first,
        };
        Page::of(id, offset, bytes, held)
    }
}

impl Level {
    /// Whether the first key is one that the parent leads to.
    fn check_least(&self, i: usize, key: &Bytes) -> Result<(), ReadError> {
        if i == 0 && self.least.as_ref().is_some_and(|least| key < least) {
            let what = "its first key is below the one it is found by";
            return Err(self.page.damaged(0, what));
        }
        Ok(())
    }
}

/// The bucket that an item's value stands for: its page, or page 0 and then its only page.
fn bucket_of(page: &Page, i: usize, value: &Bytes) -> Result<Bucket, ReadError> {
    let damaged =
        |bytes: usize| page.damaged(0, format!("the bucket of element {i}: {bytes} bytes"));
    if value.len() < BUCKET_BYTES {
        return Err(damaged(value.len()));
    }
    let root = match u64_at(value, 0) {
        0 => {
            let bytes = value.slice(BUCKET_BYTES..);
            if bytes.len() < HEADER_BYTES || u16_at(&bytes, 8) == BRANCH {
                return Err(damaged(value.len()));
            }
            Root::Inline {
                page: page.id,
                offset: page.offset,
                bytes,
            }
        }
        id => Root::Page(id),
    };
    Ok(Bucket { root })
}

impl<S: ReadAt> Iterator for Items<'_, S> {
    type Item = Result<Item, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let read = self.read();
        self.has_failed = read.is_err();
        read.transpose()
    }
}
