//! The model test against both engines, and tables of etcd's exact answers.

mod model;
mod semantics;

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::KeyRange;

use super::*;
use crate::storage::codec;
use crate::storage::kv::{Kv, View};

/// Runs transactions through one overlay and commits it.
fn write<T>(kv: &dyn Kv, body: impl FnOnce(&mut Overlay) -> T) -> T {
    let mut overlay = Overlay::new(kv.view());
    let out = body(&mut overlay);
    kv.commit(overlay.into_batch()).unwrap();
    out
}

/// Puts one key in a transaction of its own.
fn put(kv: &dyn Kv, key: &str, value: &str, lease: i64) -> Committed {
    write(kv, |overlay| {
        let mut txn = overlay.begin().unwrap();
        txn.put(key.to_owned().into(), value.to_owned().into(), lease)
            .unwrap();
        txn.commit()
    })
}

/// Deletes one key in a transaction of its own.
fn delete(kv: &dyn Kv, key: &str) -> Committed {
    write(kv, |overlay| {
        let mut txn = overlay.begin().unwrap();
        txn.delete_range(&KeyRange::single(key.to_owned())).unwrap();
        txn.commit()
    })
}

/// Makes `revision` the compact revision and removes what only older reads see.
fn compact(kv: &dyn Kv, revision: i64) {
    write(kv, |overlay| compaction::schedule(overlay, revision));
    while remove_some(kv, usize::MAX) {}
}

/// One step of removal, starting as after a restart; whether there is more to do.
fn remove_some(kv: &dyn Kv, items_max: usize) -> bool {
    let view = kv.view();
    let Some(cursor) = compaction::pending(view.as_ref()).unwrap() else {
        return false;
    };
    let step = compaction::step(view.as_ref(), cursor, items_max).unwrap();
    kv.commit(step.batch).unwrap();
    step.next.is_some()
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn view(kv: &dyn Kv) -> Arc<dyn View> {
    kv.view()
}
