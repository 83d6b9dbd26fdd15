//! The reader against the writer, against other layouts, and against damage of any kind: it says what
//! is wrong, or gives items, and always ends.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::page::{HEADER_BYTES, META_BYTES, fnv_1a};
use super::reader::{self, Bucket as Expected};
use super::*;

fn file_of(buckets: &[Expected]) -> Vec<u8> {
    let (mut writer, mut body) = (Writer::new(), Vec::new());
    for (name, items) in buckets {
        writer.bucket(name).unwrap();
        for (key, value) in items {
            writer.put(key, Value::Bytes(value)).unwrap();
            body.append(writer.written());
        }
    }
    let layout = writer.finish().unwrap();
    body.append(writer.written());
    [layout.head(), body].concat()
}

/// Buckets with and without a tree, one of them three levels deep, and a value of many pages.
fn sample(count: u32) -> Vec<Expected> {
    let items = |count: u32, length: usize| {
        let items =
            (0..count).map(|i| (i.to_be_bytes().to_vec(), vec![i.to_be_bytes()[3]; length]));
        items.collect::<Vec<_>>()
    };
    let long_keys = (0..count).map(|i| ([&i.to_be_bytes()[..], &[7; 900]].concat(), vec![1]));
    vec![
        (b"empty".to_vec(), items(0, 0)),
        (b"inline".to_vec(), items(5, 20)),
        (b"large".to_vec(), vec![(vec![1], vec![9; 300_000])]),
        (b"long".to_vec(), long_keys.collect()),
        (b"many".to_vec(), items(count, 300)),
    ]
}

fn open(file: &[u8]) -> Result<Database<Bytes>, ReadError> {
    Database::open(Bytes::copy_from_slice(file), file.len() as u64)
}

/// Everything in a file, two levels deep, or the first error.
fn read(file: &[u8]) -> Result<Vec<Expected>, ReadError> {
    let database = open(file)?;
    let mut buckets = Vec::new();
    for item in database.items(&database.root()) {
        let Item::Bucket { name, bucket } = item? else {
            continue;
        };
        let mut items = Vec::new();
        for item in database.items(&bucket) {
            match item? {
                Item::Pair { key, value } => items.push((key.to_vec(), value.to_vec())),
                Item::Bucket { name, .. } => items.push((name.to_vec(), Vec::new())),
            }
        }
        buckets.push((name.to_vec(), items));
    }
    Ok(buckets)
}

/// The same file with pages `times` as large, for files without pages that go on.
fn with_larger_pages(file: &[u8], times: usize) -> Vec<u8> {
    let mut larger = Vec::new();
    for page in file.chunks(PAGE_BYTES) {
        larger.extend_from_slice(page);
        larger.resize(larger.len() + (times - 1) * PAGE_BYTES, 0);
    }
    let page_bytes = times * PAGE_BYTES;
    for id in [0, 1] {
        let meta = &mut larger[id * page_bytes + HEADER_BYTES..][..META_BYTES];
        meta[8..12].copy_from_slice(&u32::try_from(page_bytes).unwrap().to_le_bytes());
        let checksum = fnv_1a(&meta[..META_BYTES - 8]).to_le_bytes();
        meta[META_BYTES - 8..].copy_from_slice(&checksum);
    }
    larger
}

#[test]
fn what_is_written_reads_back() {
    for count in [0, 1, 3, 200, 3_000] {
        let buckets = sample(count);
        let file = file_of(&buckets);
        assert_eq!(reader::read(&file), buckets, "the tests' own reader");
        assert!(read(&file).unwrap() == buckets, "{count}");
        // What follows is not part of it.
        let longer = [file.as_slice(), &[0xff; 5_000]].concat();
        let database = open(&longer).unwrap();
        assert_eq!(database.bytes(), file.len() as u64);
        let inline = database.bucket(&database.root(), b"inline").unwrap();
        assert_eq!(database.items(&inline.unwrap()).count(), 5);
        assert!(database.bucket(&database.root(), b"i").unwrap().is_none());
    }
}

#[test]
fn pages_may_have_other_sizes() {
    let buckets: Vec<_> = sample(500)
        .into_iter()
        .filter(|b| b.0 != b"large")
        .collect();
    let file = file_of(&buckets);
    for times in [2, 4, 16] {
        let larger = with_larger_pages(&file, times);
        assert!(read(&larger).unwrap() == buckets, "{times}");
        // Without its first meta page the second one has to be found.
        let mut headless = larger.clone();
        headless[HEADER_BYTES] ^= 1;
        assert!(read(&headless).unwrap() == buckets, "{times}");
    }
    assert!(read(&with_larger_pages(&file, 512)).is_err());
}

#[test]
fn the_newer_meta_page_that_holds_together_is_in_force() {
    let file = file_of(&sample(20));
    let older = file_of(&sample(3));
    let both = |first: &[u8], second: &[u8], body: &[u8]| {
        let pages = [&first[..PAGE_BYTES], &second[PAGE_BYTES..2 * PAGE_BYTES]];
        [pages.concat(), body[2 * PAGE_BYTES..].to_vec()].concat()
    };
    // Page 0 has the greater transaction.
    let mixed = both(&file, &older, &file);
    assert!(read(&mixed).unwrap() == sample(20));
    let mut damaged = mixed;
    damaged[HEADER_BYTES + 50] ^= 1;
    assert_ne!(open(&damaged).unwrap().bytes(), file.len() as u64);
    damaged[PAGE_BYTES + HEADER_BYTES + 50] ^= 1;
    let error = open(&damaged).unwrap_err();
    assert!(matches!(error, ReadError::NoMeta(_)), "{error}");
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn foreign_and_cut_files_are_refused() {
    for foreign in [
        &b""[..],
        b"x",
        &[0; 100],
        &[0xff; 20_000],
        b"SQLite format 3\0",
    ] {
        let error = open(foreign).unwrap_err();
        assert!(matches!(error, ReadError::NoMeta(_)), "{error}");
    }
    let file = file_of(&sample(100));
    for length in (0..file.len()).step_by(977).chain([file.len() - 1]) {
        assert!(open(&file[..length]).is_err(), "{length}");
    }
    let error = open(&file[..file.len() - 1]).unwrap_err().to_string();
    assert!(error.contains("it was cut"), "{error}");
    let shrinking = Database::open(Bytes::copy_from_slice(&file[..9_000]), file.len() as u64);
    let shrinking = shrinking.unwrap();
    let error = shrinking
        .items(&shrinking.root())
        .next()
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, ReadError::Io { .. }), "{error}");
}

/// Sets a page's field by its place in the page.
fn set(file: &mut [u8], page: usize, at: usize, bytes: &[u8]) {
    file[page * PAGE_BYTES + at..][..bytes.len()].copy_from_slice(bytes);
}

/// The page of the root of the tree that is branches all the way, and one of its children.
fn a_branch_and_its_child(file: &[u8]) -> (usize, u64) {
    let kind = |page: usize| file[page * PAGE_BYTES + 8];
    let branch = (2..file.len() / PAGE_BYTES).find(|page| {
        let own = file[page * PAGE_BYTES..][..8] == (*page as u64).to_le_bytes();
        own && kind(*page) == 1
    });
    let branch = branch.unwrap();
    let child = &file[branch * PAGE_BYTES + HEADER_BYTES + 8..][..8];
    (branch, u64::from_le_bytes(child.try_into().unwrap()))
}

#[test]
fn pages_that_lead_in_circles_or_astray_are_told_with_their_place() {
    let file = file_of(&sample(300));
    let (branch, child) = a_branch_and_its_child(&file);
    let pages = (file.len() / PAGE_BYTES) as u64;
    let child = usize::try_from(child).unwrap();
    for (page, at, bytes, said) in [
        (
            branch,
            16 + 8,
            (branch as u64).to_le_bytes().to_vec(),
            "used twice",
        ),
        (
            branch,
            16 + 8,
            pages.to_le_bytes().to_vec(),
            "points to page",
        ),
        (
            branch,
            16 + 8,
            0_u64.to_le_bytes().to_vec(),
            "points to page 0",
        ),
        (
            branch,
            16 + 8,
            u64::MAX.to_le_bytes().to_vec(),
            "points to page",
        ),
        (
            branch,
            16 + 16 + 8,
            (child as u64).to_le_bytes().to_vec(),
            "used twice",
        ),
        (branch, 10, vec![0, 0], "without children"),
        (child, 0, vec![0xee], "says it is page"),
        (child, 8, vec![4], "kind 0x0004"),
        (child, 10, vec![0xff, 0xff], "65535 elements"),
        (child, 12, vec![0xff; 4], "past the end"),
        (child, 12, vec![1], "used twice"),
        (child, 16, vec![6], "flags 0x6"),
        (child, 16 + 4, vec![0xff; 4], "outside"),
        (child, 16 + 8, vec![0xff; 4], "outside"),
        (child, 16 + 12, vec![0xff; 4], "outside"),
    ] {
        let mut damaged = file.clone();
        set(&mut damaged, page, at, &bytes);
        let error = read(&damaged).unwrap_err();
        assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(said), "{said}: {text}");
        assert!(
            text.contains("page ") && text.contains("at byte "),
            "{text}"
        );
    }
}

#[test]
fn a_tree_that_is_too_deep_ends() {
    // One branch after the other, each with one child: 60 levels, no page twice.
    let levels = 60_u64;
    let mut file = file_of(&[]);
    file.truncate(2 * PAGE_BYTES);
    let at = |page: u64| usize::try_from(page).unwrap();
    for page in 2..2 + levels {
        let mut bytes = vec![0; PAGE_BYTES];
        bytes[..8].copy_from_slice(&page.to_le_bytes());
        bytes[8..12].copy_from_slice(&[1, 0, 1, 0]);
        bytes[16 + 8..16 + 16].copy_from_slice(&(page + 1).to_le_bytes());
        file.extend_from_slice(&bytes);
    }
    let mut leaf = vec![0; PAGE_BYTES];
    leaf[..8].copy_from_slice(&(2 + levels).to_le_bytes());
    leaf[8] = 2;
    file.extend_from_slice(&leaf);
    for id in [0, 1] {
        let meta = &mut file[id * PAGE_BYTES + HEADER_BYTES..][..META_BYTES];
        meta[16..24].copy_from_slice(&2_u64.to_le_bytes());
        meta[40..48].copy_from_slice(&(3 + levels).to_le_bytes());
        let checksum = fnv_1a(&meta[..META_BYTES - 8]).to_le_bytes();
        meta[META_BYTES - 8..].copy_from_slice(&checksum);
    }
    let error = read(&file).unwrap_err().to_string();
    assert!(error.contains("levels deep"), "{error}");
    set(&mut file, at(20), 8, &[2, 0, 0]);
    assert_eq!(read(&file).unwrap(), []);
}

/// Thousands of files with a few bytes or bits changed, or a piece copied elsewhere: each is told
/// damaged or read to its end, and what is read is not more than could be there.
#[test]
fn damage_anywhere_is_told_or_read_past() {
    let (mut told, mut read_past) = (0, 0);
    let wholes = [3, 40, 150].map(|count| file_of(&sample(count)));
    for seed in 0..4_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut file = wholes[random.random_range(0..3)].clone();
        for _ in 0..random.random_range(1..4) {
            // Most of a file is values; headers and elements are at the beginnings of pages.
            let page = random.random_range(0..file.len() / PAGE_BYTES) * PAGE_BYTES;
            let reach = [64, 512, PAGE_BYTES][random.random_range(0..3)];
            let at = page + random.random_range(0..reach);
            match random.random_range(0..4) {
                0 => file[at] ^= 1 << random.random_range(0..8),
                1 => file[at] = random.random(),
                2 => {
                    let other = random.random_range(0..file.len() / PAGE_BYTES) * PAGE_BYTES;
                    file.copy_within(other..other + PAGE_BYTES, page);
                }
                _ => {
                    let end = (at + random.random_range(1..16)).min(file.len());
                    file[at..end].fill(0xff);
                }
            }
        }
        match read(&file) {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                told += 1;
            }
            Ok(buckets) => {
                let bytes = buckets.iter().flat_map(|bucket| &bucket.1);
                let bytes: usize = bytes.map(|(key, value)| key.len() + value.len()).sum();
                // Two buckets may share pages.
                assert!(bytes <= 5 * file.len(), "seed {seed}: {bytes} bytes");
                read_past += 1;
            }
        }
    }
    println!("{told} told, {read_past} read past");
    assert!(told > 500 && read_past > 500);
}
