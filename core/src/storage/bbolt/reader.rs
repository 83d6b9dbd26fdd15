//! Reads bbolt files back, for tests alone: checks as it goes, panics at the first fault.

use std::collections::BTreeSet;

use super::page::{ELEMENT_BYTES, HEADER_BYTES, PAGE_BYTES, fnv_1a};

/// A bucket: its name and its items in order.
pub(crate) type Bucket = (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

struct File<'a> {
    bytes: &'a [u8],
    seen: BTreeSet<u64>,
}

struct Header {
    kind: u16,
    count: usize,
    overflow: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn header(page: &[u8]) -> Header {
    Header {
        kind: u16_at(page, 8),
        count: usize::from(u16_at(page, 10)),
        overflow: u32_at(page, 12) as u64,
    }
}

/// A leaf's elements: flags, key, value.
fn items(page: &[u8]) -> Vec<(usize, &[u8], &[u8])> {
    let element = |i| {
        let at = HEADER_BYTES + ELEMENT_BYTES * i;
        let word = |n: usize| u32_at(page, at + 4 * n);
        let key = at + word(1);
        let value = key + word(2);
        (word(0), &page[key..value], &page[value..value + word(3)])
    };
    (0..header(page).count).map(element).collect()
}

/// All buckets of a file. Every page must be in use exactly once, every tree in order.
pub(crate) fn read(bytes: &[u8]) -> Vec<Bucket> {
    let metas = [0, 1].map(|id| {
        let page = &bytes[id * PAGE_BYTES..][..PAGE_BYTES];
        assert_eq!((u64_at(page, 0), header(page).kind), (id as u64, 4));
        let meta = &page[HEADER_BYTES..];
        assert_eq!(u64_at(meta, 56), fnv_1a(&meta[..56]));
        assert_eq!([u32_at(meta, 0), u32_at(meta, 4)], [0xED0C_DAED, 2]);
        assert_eq!(u32_at(meta, 8), PAGE_BYTES);
        (u64_at(meta, 48), u64_at(meta, 16), u64_at(meta, 40))
    });
    let (_, root, pages) = metas[0].max(metas[1]);
    assert_eq!(bytes.len() as u64, pages * PAGE_BYTES as u64);
    let mut file = File {
        bytes,
        seen: BTreeSet::from([0, 1]),
    };
    let mut buckets = Vec::new();
    for (flags, name, value) in file.tree(root, None) {
        assert_eq!(flags, 1, "only buckets at the top");
        let found = match u64_at(value, 0) {
            0 => items(&value[16..]),
            page => file.tree(page, None),
        };
        let found = found.into_iter().map(|(flags, key, value)| {
            assert_eq!(flags, 0, "no bucket inside a bucket");
            (key.to_vec(), value.to_vec())
        });
        let found: Vec<_> = found.collect();
        assert!(found.is_sorted_by(|a, b| a.0 < b.0));
        buckets.push((name.to_vec(), found));
    }
    assert!(buckets.is_sorted_by(|a, b| a.0 < b.0));
    assert_eq!(file.seen.len() as u64, pages, "every page is in use");
    buckets
}

impl<'a> File<'a> {
    /// All items below a page, whose first key must be `first`.
    fn tree(&mut self, id: u64, first: Option<&[u8]>) -> Vec<(usize, &'a [u8], &'a [u8])> {
        let at = usize::try_from(id).unwrap() * PAGE_BYTES;
        let overflow = header(&self.bytes[at..]).overflow;
        let length = usize::try_from(overflow + 1).unwrap() * PAGE_BYTES;
        let page = &self.bytes[at..][..length];
        assert_eq!(u64_at(page, 0), id);
        for id in id..=id + overflow {
            assert!(self.seen.insert(id), "page {id} is in use twice");
        }
        let found = match header(page).kind {
            2 => items(page),
            1 => {
                let count = header(page).count;
                assert!(count >= 2, "a branch of {count}");
                let mut found = Vec::new();
                for i in 0..count {
                    let at = HEADER_BYTES + ELEMENT_BYTES * i;
                    let key = at + u32_at(page, at);
                    let key = &page[key..key + u32_at(page, at + 4)];
                    found.extend(self.tree(u64_at(page, at + 8), Some(key)));
                }
                found
            }
            kind => panic!("page {id} of kind {kind}"),
        };
        if let Some(first) = first {
            assert_eq!(found[0].1, first);
        }
        found
    }
}
