//! What is written reads back, whatever it is; and the layout is known from the lengths alone.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::reader::{self, Bucket};
use super::*;

/// Writes buckets; `detail` makes of each value what is given to the writer.
fn write(buckets: &[Bucket], detail: fn(&[u8]) -> Value<'_>) -> (Layout, Vec<u8>) {
    let mut writer = Writer::new();
    let mut body = Vec::new();
    for (name, items) in buckets {
        writer.bucket(name).unwrap();
        for (key, value) in items {
            writer.put(key, detail(value)).unwrap();
            body.append(writer.written());
        }
    }
    let layout = writer.finish().unwrap();
    body.append(writer.written());
    (layout, body)
}

fn check(buckets: &[Bucket]) {
    let (planned, _) = write(buckets, |value| Value::Length(value.len()));
    let (layout, body) = write(buckets, |value| Value::Bytes(value));
    assert_eq!(planned, layout);
    let file = [layout.head(), body].concat();
    assert_eq!(file.len() as u64, layout.file_bytes());
    assert_eq!(reader::read(&file), buckets);
}

fn random_bytes(random: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(bytes.as_mut_slice());
    bytes
}

fn random_bucket(random: &mut StdRng, name: &str) -> Bucket {
    let count = [0, 1, 2, 10, 100, 1_000][random.random_range(0..6)];
    let key_bytes_max = [8, 40, 2_000][random.random_range(0..3)];
    let value_bytes_max = [0, 10, 300, 5_000][random.random_range(0..4)];
    let mut keys: Vec<_> = (0..count)
        .map(|_| {
            let length = random.random_range(1..=key_bytes_max);
            random_bytes(random, length)
        })
        .collect();
    keys.sort();
    keys.dedup();
    let items = keys.into_iter().map(|key| {
        let length = random.random_range(0..=value_bytes_max);
        (key, random_bytes(random, length))
    });
    (name.as_bytes().to_vec(), items.collect())
}

#[test]
fn random_buckets_read_back() {
    for seed in 0..20 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(0..12);
        let buckets: Vec<_> = (0..count)
            .map(|i| random_bucket(&mut random, &format!("bucket {i:02}")))
            .collect();
        check(&buckets);
    }
}

#[test]
fn the_largest_items_and_the_edges_of_a_page_read_back() {
    let named = |items| vec![(b"b".to_vec(), items)];
    check(&[]);
    check(&named(vec![]));
    check(&named(vec![(vec![7; KEY_BYTES_MAX], vec![1; 5_000_000])]));
    for length in PAGE_BYTES - 60..PAGE_BYTES + 20 {
        check(&named(vec![
            (vec![1], vec![2]),
            (vec![2], vec![3; length]),
            (vec![3], vec![]),
        ]));
    }
    for count in [50_u32, 60, 61, 62, 120, 123, 124, 125, 246, 247, 15_200] {
        let items = (0..count).map(|i| (i.to_be_bytes().to_vec(), vec![0; 1_600]));
        check(&named(items.collect()));
    }
    let long_keys = (0..200_u8).map(|i| (vec![i; KEY_BYTES_MAX], vec![i]));
    check(&named(long_keys.skip(1).collect()));
}

#[test]
fn what_does_not_fit_or_follow_is_refused() {
    let mut writer = Writer::new();
    let value = Value::Bytes(b"v");
    assert_eq!(writer.put(b"a", value), Err(Error::NoBucket));
    writer.bucket(b"one").unwrap();
    writer.put(b"b", value).unwrap();
    for key in [b"b", b"a"] {
        assert_eq!(writer.put(key, value), Err(Error::Order(key.to_vec())));
    }
    for (key, length) in [
        (vec![], 1),
        (vec![9; KEY_BYTES_MAX + 1], 1),
        (vec![9], VALUE_BYTES_MAX + 1),
    ] {
        let refused = writer.put(&key, Value::Length(length));
        assert!(matches!(refused, Err(Error::Size { .. })), "{refused:?}");
    }
    writer.bucket(b"one").unwrap();
    assert_eq!(writer.finish(), Err(Error::Order(b"one".to_vec())));
}
