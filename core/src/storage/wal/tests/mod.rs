//! Tests of the log: what a caller sees, then what a disk does to it.

mod callers;
mod damage;
mod model;
mod power_cut;
mod recovery;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use bytes::Bytes;

use super::{
    Entry, EntryId, EntryKind, FlushCallback, Identity, Vote, Wal, WalError, WalOptions, WriterMode,
};
use crate::storage::fs::{Fs, MemFs};

const IDENTITY: Identity = Identity {
    cluster_id: 7,
    member_id: 3,
};

fn dir() -> &'static Path {
    Path::new("/data/wal")
}

/// Small segments and a small cache, so that few entries reach every path.
fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 32 << 10,
        cache_bytes: 4 << 10,
        ..WalOptions::new(IDENTITY, 0x5eed)
    }
}

fn open(fs: &MemFs) -> Result<Wal, WalError> {
    Wal::open(Arc::new(fs.clone()), dir(), options())
}

/// Opens without threads: what a call changes is durable when it returns.
fn open_inline(fs: &MemFs) -> Result<Wal, WalError> {
    let options = WalOptions {
        writer: WriterMode::Caller,
        ..options()
    };
    Wal::open(Arc::new(fs.clone()), dir(), options)
}

fn id(term: u64, index: u64) -> EntryId {
    EntryId::new(term, index)
}

/// An entry whose payload follows from its id.
fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let byte = u8::try_from((term * 31 + index) % 251).unwrap();
    Entry {
        id: id(term, index),
        kind: EntryKind::Normal,
        payload: Bytes::from(vec![byte; bytes]),
    }
}

fn entries(term: u64, indexes: std::ops::RangeInclusive<u64>, bytes: usize) -> Vec<Entry> {
    indexes.map(|index| entry(term, index, bytes)).collect()
}

fn ignore() -> FlushCallback {
    Box::new(|_| {})
}

/// Does something with a callback and waits for it.
fn durably<T>(
    change: impl FnOnce(FlushCallback) -> Result<T, WalError>,
) -> Result<T, std::io::Error> {
    let (done, flushed) = mpsc::channel();
    let value = change(Box::new(move |result| {
        done.send(result).unwrap();
    }))?;
    flushed.recv().unwrap()?;
    Ok(value)
}

fn append(wal: &Wal, entries: Vec<Entry>) {
    durably(|flushed| wal.append(entries, flushed)).unwrap();
}

fn all(wal: &Wal) -> Vec<Entry> {
    wal.read(0..u64::MAX, usize::MAX).unwrap()
}

fn segments(fs: &MemFs) -> Vec<PathBuf> {
    let names = fs.list(dir()).unwrap();
    let segments = names.iter().filter(|name| name.ends_with(".wal"));
    segments.map(|name| dir().join(name)).collect()
}

fn bytes_of(fs: &MemFs, path: &Path) -> Vec<u8> {
    let file = fs.open(path).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}
