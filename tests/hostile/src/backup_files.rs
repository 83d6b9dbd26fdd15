//! Backup files, which come from anywhere: whatever is in one, it is refused or restored, in bounded
//! time, and what is restored holds together: it can be backed up again.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use prost::Message;
use quorate_core::backup::{Backup, SORT_BYTES, Source, SourceError, restore};
use quorate_core::storage::bbolt::{Database, Item, PAGE_BYTES, Value, Writer};
use quorate_core::storage::kv::{Kv, MemKv};
use quorate_proto::mvccpb::KeyValue;

use crate::Input;

/// Changes of a real file, and pages of a made-up one, at most.
const STEPS_MAX: usize = 8;
/// Where the meta record begins in its page, and how long it is.
const META: usize = 16;
const META_BYTES: usize = 64;

/// One run.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => check(&Bytes::copy_from_slice(input.rest())),
        1 => made_up(&mut input),
        _ => damaged(&mut input),
    }
}

/// Restores a file without a checksum.
fn restored(file: &Bytes) -> Result<Arc<dyn Kv>, SourceError> {
    let source = Source::check(Path::new("file"), file.clone(), file.len() as u64, true)?;
    let kv: Arc<dyn Kv> = Arc::new(MemKv::new());
    restore(&source, &kv, None)?;
    Ok(kv)
}

fn check(file: &Bytes) {
    walk(file);
    if let Ok(kv) = restored(file) {
        let backup = Backup {
            view: kv.view(),
            members: Vec::new(),
            removed: Vec::new(),
            sort_bytes: SORT_BYTES,
            is_abandoned: Box::new(|| false),
        };
        let planned = backup.plan();
        assert!(planned.is_ok(), "what was restored is unsound: {planned:?}");
    }
}

/// Goes through all buckets of a file; each can hold no more than the file does.
fn walk(file: &Bytes) {
    let Ok(database) = Database::open(file.clone(), file.len() as u64) else {
        return;
    };
    for item in database.items(&database.root()) {
        let Ok(Item::Bucket { bucket, .. }) = item else {
            continue;
        };
        let pairs = database.items(&bucket).filter_map(|item| match item {
            Ok(Item::Pair { key, value }) => Some(key.len() + value.len()),
            _ => None,
        });
        // Elements may share the bytes of their page, but keys ascend.
        let most = pairs.max().unwrap_or_default();
        assert!(most <= file.len(), "an item of {most} bytes");
    }
}

/// FNV-1a, the checksum of a meta page.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Sets the checksums of both meta pages right.
fn seal(file: &mut [u8]) {
    for page in [0, PAGE_BYTES] {
        if let Some(meta) = file.get_mut(page + META..page + META + META_BYTES) {
            let sum = checksum(&meta[..META_BYTES - 8]).to_le_bytes();
            meta[META_BYTES - 8..].copy_from_slice(&sum);
        }
    }
}

/// Pages of any content under meta pages that are right.
fn made_up(input: &mut Input<'_>) {
    let mut file = real()[..2 * PAGE_BYTES].to_vec();
    let pages = usize::from(input.byte()) % STEPS_MAX + 1;
    for id in 2..2 + pages {
        let mut page = vec![0; PAGE_BYTES];
        page[..8].copy_from_slice(&(id as u64).to_le_bytes());
        // Kind, elements, pages it goes on for.
        page[8] = input.byte() % 4;
        page[10] = input.byte() % 8;
        page[12] = input.byte() % 3;
        for element in 0..8 {
            let at = 16 + 16 * element;
            let words = [
                input.byte() % 2,
                input.byte(),
                input.byte() % 16,
                input.byte(),
            ];
            for (n, word) in words.into_iter().enumerate() {
                page[at + 4 * n] = word;
            }
        }
        let body = input.piece();
        page[144..144 + body.len().min(PAGE_BYTES - 144)]
            .copy_from_slice(&body[..body.len().min(PAGE_BYTES - 144)]);
        file.extend_from_slice(&page);
    }
    let (root, pages) = (2 + u64::from(input.byte()) % 4, 2 + pages as u64);
    for page in [0, PAGE_BYTES] {
        let meta = page + META;
        file[meta + 16..meta + 24].copy_from_slice(&root.to_le_bytes());
        file[meta + 40..meta + 48].copy_from_slice(&pages.to_le_bytes());
    }
    seal(&mut file);
    check(&file.into());
}

/// A real file, changed here and there.
fn damaged(input: &mut Input<'_>) {
    let mut file = real().to_vec();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let page = usize::from(input.byte()) % (file.len() / PAGE_BYTES) * PAGE_BYTES;
        let number = usize::try_from(input.extreme() % (1 << 32)).unwrap_or(0);
        // Headers and elements are at the beginnings of pages.
        let reach = if number % 2 == 0 { 256 } else { PAGE_BYTES };
        let at = page + number / 2 % reach;
        match input.byte() % 4 {
            0 => file[at] ^= 1 << (input.byte() % 8),
            1 => file[at] = input.byte(),
            2 => {
                let other = usize::from(input.byte()) % (file.len() / PAGE_BYTES) * PAGE_BYTES;
                file.copy_within(other..other + PAGE_BYTES, page);
            }
            _ => {
                let piece = input.piece();
                let end = (at + piece.len()).min(file.len());
                file[at..end].copy_from_slice(&piece[..end - at]);
            }
        }
    }
    if input.byte().is_multiple_of(2) {
        seal(&mut file);
    }
    check(&file.into());
}

fn revision(main: i64, sub: i64) -> Vec<u8> {
    [&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()].concat()
}

/// A file with a history of some hundred revisions, compacted, with leases.
fn real() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let (mut writer, mut body) = (Writer::new(), Vec::new());
        let mut put = |writer: &mut Writer, key: &[u8], value: &[u8]| {
            let done = writer.put(key, Value::Bytes(value));
            done.expect("keys in order");
            body.append(writer.written());
        };
        let bucket = |writer: &mut Writer, name: &str| {
            writer.bucket(name.as_bytes()).expect("names in order");
        };
        bucket(&mut writer, "alarm");
        bucket(&mut writer, "key");
        let mut versions = [0; 7];
        let mut created = [0; 7];
        for main in 2..200_i64 {
            let which = usize::try_from(main * 5 % 7).expect("below 7");
            let key = format!("key {which}");
            if main % 9 == 0 && versions[which] > 0 {
                versions[which] = 0;
                let mut stored = revision(main, 0);
                stored.push(b't');
                let pair = KeyValue {
                    key: key.into(),
                    ..KeyValue::default()
                };
                put(&mut writer, &stored, &pair.encode_to_vec());
                continue;
            }
            versions[which] += 1;
            if versions[which] == 1 {
                created[which] = main;
            }
            let pair = KeyValue {
                key: key.into(),
                create_revision: created[which],
                mod_revision: main,
                version: versions[which],
                value: vec![b'v'; 60].into(),
                lease: main % 3,
            };
            put(&mut writer, &revision(main, 0), &pair.encode_to_vec());
        }
        bucket(&mut writer, "lease");
        for id in 1..3_i64 {
            // Fields 1 and 2: the id, and a time to live of 60 seconds.
            let lease = [8, u8::try_from(id).expect("small"), 16, 60];
            put(&mut writer, &id.to_be_bytes(), &lease);
        }
        bucket(&mut writer, "meta");
        put(&mut writer, b"finishedCompactRev", &revision(40, 0));
        let layout = writer.finish().expect("one bucket after the other");
        body.append(writer.written());
        [layout.head(), body].concat()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_file_is_restored() {
        let file = Bytes::from_static(real());
        assert!(restored(&file).is_ok());
        let mut other = file.to_vec();
        seal(&mut other);
        assert_eq!(other, file);
    }
}
