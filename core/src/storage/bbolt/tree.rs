//! One bucket's tree, loaded from its smallest key to its largest. Used by the writer.

use super::page::{ELEMENT_BYTES, Page};
use super::{Error, KEY_BYTES_MAX, VALUE_BYTES_MAX, Value};

/// Children that a branch has at least, as bbolt has it.
const CHILDREN_MIN: usize = 2;
/// Largest bucket that is kept inside its parent, in bytes: a quarter of a page, as bbolt has it.
const INLINE_BYTES_MAX: usize = super::PAGE_BYTES / 4;

/// Where pages go: numbered in the order in which they are written.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) next: u64,
}

impl Output {
    fn write(&mut self, page: &Page) -> u64 {
        let id = self.next;
        page.write(id, &mut self.bytes);
        self.next += page.pages();
        id
    }
}

/// A tree that grows at its right edge: the leaf being filled, and above it one branch a level.
#[derive(Debug, Default)]
pub(super) struct Tree {
    leaf: Page,
    branches: Vec<Page>,
    last_key: Vec<u8>,
}

/// Where a finished tree is.
#[derive(Debug)]
pub(super) enum Root {
    /// It is so small that its bucket holds it: this is its only page.
    Inline(Page),
    Page(u64),
}

impl Tree {
    pub(super) fn put(
        &mut self,
        key: &[u8],
        value: Value<'_>,
        is_bucket: bool,
        out: &mut Output,
    ) -> Result<(), Error> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(Error::Size {
                key_bytes: key.len(),
                value_bytes: value.len(),
            });
        }
        if key <= self.last_key.as_slice() {
            return Err(Error::Order(key.to_vec()));
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        if !self.leaf.is_empty() && !self.leaf.has_room_for(key.len() + value.len()) {
            self.end_leaf(out);
        }
        self.leaf.push_item(key, value, is_bucket);
        Ok(())
    }

    fn end_leaf(&mut self, out: &mut Output) {
        let leaf = std::mem::take(&mut self.leaf);
        let id = out.write(&leaf);
        self.add_child(0, leaf.first_key(), id, out);
    }

    /// Adds a page to the branch of a level. A full branch is written without its last child, which
    /// goes to the next one together with the new child: so none ends up with only one.
    fn add_child(&mut self, level: usize, first_key: &[u8], page: u64, out: &mut Output) {
        if self.branches.len() == level {
            self.branches.push(Page::default());
        }
        let branch = &mut self.branches[level];
        if branch.len() > CHILDREN_MIN && !branch.has_room_for(first_key.len()) {
            let (key, child) = branch.pop_child().expect("a branch has children");
            let full = std::mem::take(branch);
            branch.push_child(&key, child);
            branch.push_child(first_key, page);
            let id = out.write(&full);
            self.add_child(level + 1, full.first_key(), id, out);
        } else {
            branch.push_child(first_key, page);
        }
    }

    /// Writes what is left.
    pub(super) fn finish(mut self, may_be_inline: bool, out: &mut Output) -> Root {
        if self.branches.is_empty() && may_be_inline && self.leaf.used_bytes() <= INLINE_BYTES_MAX {
            return Root::Inline(self.leaf);
        }
        if !self.leaf.is_empty() || self.branches.is_empty() {
            self.end_leaf(out);
        }
        let mut level = 0;
        loop {
            let is_top = level + 1 == self.branches.len();
            let branch = std::mem::take(&mut self.branches[level]);
            if let Some(root) = branch.only_child().filter(|_| is_top) {
                return Root::Page(root);
            }
            let id = out.write(&branch);
            self.add_child(level + 1, branch.first_key(), id, out);
            level += 1;
        }
    }
}

const _: () = assert!(
    ELEMENT_BYTES * 256 >= super::PAGE_BYTES,
    "a page has at most 256 elements"
);
