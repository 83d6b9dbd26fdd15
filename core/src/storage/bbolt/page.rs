//! Pages: a header, elements of a fixed size, then the keys and values they point to. Used by the
//! tree and by the reader. All numbers are little-endian; an element says where its key begins, counted
//! from itself.

use super::Value;

/// Size of the pages written, in bytes. Larger items make a page as large as needed ("overflow").
pub const PAGE_BYTES: usize = 4096;
/// Id u64, kind u16, number of elements u16, pages it goes on for u32.
pub(super) const HEADER_BYTES: usize = 16;
/// A leaf's: flags u32, offset u32, key length u32, value length u32; a branch's: offset u32, key
/// length u32, page u64.
pub(super) const ELEMENT_BYTES: usize = 16;

pub(super) const BRANCH: u16 = 0x01;
pub(super) const LEAF: u16 = 0x02;
pub(super) const META: u16 = 0x04;
/// Flag of a leaf element whose value is a bucket.
pub(super) const BUCKET: u32 = 0x01;

pub(super) const MAGIC: u32 = 0xED0C_DAED;
pub(super) const VERSION: u32 = 2;
/// In place of the page of the list of free pages: there is none.
const NO_FREELIST: u64 = u64::MAX;

/// What an element of a page leads to.
#[derive(Debug, Clone, Copy)]
enum Target {
    Value { flags: u32, value_bytes: u32 },
    Page(u64),
}

#[derive(Debug, Clone, Copy)]
struct Element {
    key_bytes: u32,
    target: Target,
}

/// A leaf or branch page while it fills.
#[derive(Debug, Default)]
pub(super) struct Page {
    elements: Vec<Element>,
    /// Keys and values, in order.
    data: Vec<u8>,
}

/// A length that [`super::Error::Size`] has been checked for.
fn short(length: usize) -> u32 {
    u32::try_from(length).expect("lengths are checked before an item is added")
}

impl Page {
    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.elements.len()
    }

    /// Bytes in use, header included.
    pub(super) fn used_bytes(&self) -> usize {
        HEADER_BYTES + ELEMENT_BYTES * self.elements.len() + self.data.len()
    }

    /// Whether an item with so many bytes of key and value still fits.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.used_bytes() + ELEMENT_BYTES + bytes <= PAGE_BYTES
    }

    pub(super) fn first_key(&self) -> &[u8] {
        let first = self.elements.first().map_or(0, |first| first.key_bytes);
        &self.data[..first as usize]
    }

    pub(super) fn push_item(&mut self, key: &[u8], value: Value<'_>, is_bucket: bool) {
        self.data.extend_from_slice(key);
        match value {
            Value::Bytes(bytes) => self.data.extend_from_slice(bytes),
            Value::Length(length) => self.data.resize(self.data.len() + length, 0),
        }
        let target = Target::Value {
            flags: if is_bucket { BUCKET } else { 0 },
            value_bytes: short(value.len()),
        };
        self.elements.push(Element {
            key_bytes: short(key.len()),
            target,
        });
    }

    pub(super) fn push_child(&mut self, first_key: &[u8], page: u64) {
        self.data.extend_from_slice(first_key);
        self.elements.push(Element {
            key_bytes: short(first_key.len()),
            target: Target::Page(page),
        });
    }

    /// Takes the last child off a branch.
    pub(super) fn pop_child(&mut self) -> Option<(Vec<u8>, u64)> {
        let last = self.elements.pop()?;
        let key = self
            .data
            .split_off(self.data.len() - last.key_bytes as usize);
        match last.target {
            Target::Page(page) => Some((key, page)),
            Target::Value { .. } => None,
        }
    }

    /// The child of a branch that has only one.
    pub(super) fn only_child(&self) -> Option<u64> {
        match self.elements.as_slice() {
            [
                Element {
                    target: Target::Page(page),
                    ..
                },
            ] => Some(*page),
            _ => None,
        }
    }

    /// Pages it takes.
    pub(super) fn pages(&self) -> u64 {
        self.used_bytes().div_ceil(PAGE_BYTES) as u64
    }

    /// Writes it as page `id`, filled up to whole pages.
    pub(super) fn write(&self, id: u64, out: &mut Vec<u8>) {
        let end = out.len() + self.used_bytes().next_multiple_of(PAGE_BYTES);
        let overflow = u32::try_from(self.pages() - 1).expect("items are below 2 GiB");
        self.write_bare(id, overflow, out);
        out.resize(end, 0);
    }

    /// Writes it as it stands inside the value of a small bucket: without a number of its own and
    /// without filling.
    pub(super) fn write_inline(&self, out: &mut Vec<u8>) {
        self.write_bare(0, 0, out);
    }

    fn write_bare(&self, id: u64, overflow: u32, out: &mut Vec<u8>) {
        let is_branch = self
            .elements
            .first()
            .is_some_and(|first| matches!(first.target, Target::Page(_)));
        let count = u16::try_from(self.elements.len()).expect("a page has room for 256 at most");
        let kind = if is_branch { BRANCH } else { LEAF };
        write_header(id, kind, count, overflow, out);
        let mut data = ELEMENT_BYTES * self.elements.len();
        for (i, element) in self.elements.iter().enumerate() {
            let offset = short(data - ELEMENT_BYTES * i).to_le_bytes();
            let key_bytes = element.key_bytes.to_le_bytes();
            data += element.key_bytes as usize;
            match element.target {
                Target::Value { flags, value_bytes } => {
                    data += value_bytes as usize;
                    let words = [
                        flags.to_le_bytes(),
                        offset,
                        key_bytes,
                        value_bytes.to_le_bytes(),
                    ];
                    out.extend_from_slice(words.as_flattened());
                }
                Target::Page(page) => {
                    out.extend_from_slice([offset, key_bytes].as_flattened());
                    out.extend_from_slice(&page.to_le_bytes());
                }
            }
        }
        out.extend_from_slice(&self.data);
    }
}

fn write_header(id: u64, kind: u16, count: u16, overflow: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&overflow.to_le_bytes());
}

/// Writes meta page `id`: where the root is, and how many pages there are. The one with the greater
/// transaction number is in force.
pub(super) fn write_meta(id: u64, root: u64, pages: u64, transaction: u64, out: &mut Vec<u8>) {
    let end = out.len() + PAGE_BYTES;
    write_header(id, META, 0, 0, out);
    let begin = out.len();
    let page_bytes = short(PAGE_BYTES);
    for word in [MAGIC, VERSION, page_bytes, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    // The root bucket's page and sequence, then the rest.
    for number in [root, 0, NO_FREELIST, pages, transaction] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    let checksum = fnv_1a(&out[begin..]);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.resize(end, 0);
}

/// Bytes of a meta record, checksum included.
pub(super) const META_BYTES: usize = 4 * 4 + 6 * 8;

/// FNV-1a with 64 bits.
pub(super) fn fnv_1a(bytes: &[u8]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET_BASIS, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}
