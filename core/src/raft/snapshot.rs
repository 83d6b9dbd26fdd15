//! What a snapshot is to openraft: a pinned read view on its way out, or a staged store that came
//! in. Used by the state machine, and by the network and its handler, which carry the frames.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::apply::applied_in;
use crate::raft::codec;
use crate::raft::types::{LogId, SnapshotMeta};
use crate::storage::codec::{MetaKey, meta_key};
use crate::storage::kv::{KvError, View, WriteBatch};
use crate::storage::snapshot::{Receiver, Sender, SnapshotError, Staged, Stores};
use crate::storage::wal::EntryId;

/// The data of a snapshot.
#[derive(Debug)]
pub enum SnapshotData {
    /// A view of this member's state, and the name it has while it is sent: to be sent.
    Pinned(Arc<dyn View>, Uuid),
    /// A store that was received: to be installed.
    Staged(Staged),
}

/// A snapshot that is coming in.
#[derive(Debug)]
pub struct Incoming {
    receiver: Receiver,
    meta: SnapshotMeta,
}

impl SnapshotData {
    /// The name of the view it is of: the same frames come of the same view. `None` if it was
    /// received.
    #[must_use]
    pub fn name(&self) -> Option<Uuid> {
        match self {
            Self::Pinned(_, name) => Some(*name),
            Self::Staged(_) => None,
        }
    }

    /// The frames to send.
    ///
    /// # Panics
    ///
    /// If it was received: openraft sends only what the state machine gave it.
    #[must_use]
    pub fn into_sender(self) -> Sender {
        match self {
            Self::Pinned(view, _) => Sender::new(view),
            Self::Staged(staged) => Sender::new(staged.view()),
        }
    }
}

impl Incoming {
    /// Begins to receive the snapshot described by `meta`. Blocks: it makes a store.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Busy`] while another one is coming in.
    pub fn new(stores: &Stores, meta: SnapshotMeta) -> Result<Self, SnapshotError> {
        let receiver = stores.stage()?;
        Ok(Self { receiver, meta })
    }

    /// What it is announced to be.
    #[must_use]
    pub const fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Takes the next frame. Blocks.
    ///
    /// # Errors
    ///
    /// It is damaged or not the next one, or the store failed; drop this then.
    pub fn receive(&mut self, frame: &[u8]) -> Result<(), SnapshotError> {
        self.receiver.receive(frame)
    }

    /// The whole snapshot, synced, with the record that it was installed. Blocks.
    ///
    /// # Errors
    ///
    /// It is not complete, or its contents are not what `meta` says.
    pub fn finish(self) -> Result<(SnapshotMeta, SnapshotData), SnapshotError> {
        let marks = install_mark(self.meta.last_log_id.as_ref());
        let staged = self.receiver.finish(marks)?;
        check(&*staged.view(), &self.meta)?;
        Ok((self.meta, SnapshotData::Staged(staged)))
    }
}

/// Copies a view into a store of its own, as if it had been received. Blocks.
pub(super) fn copy(
    stores: &Stores,
    meta: &SnapshotMeta,
    view: Arc<dyn View>,
) -> Result<Staged, SnapshotError> {
    let mut receiver = stores.stage()?;
    let mut sender = Sender::new(view);
    while let Some(frame) = sender.next_frame()? {
        receiver.receive(&frame)?;
    }
    let staged = receiver.finish(install_mark(meta.last_log_id.as_ref()))?;
    check(&*staged.view(), meta)?;
    Ok(staged)
}

/// Compares what a store says of itself with what was announced.
fn check(view: &dyn View, meta: &SnapshotMeta) -> Result<(), SnapshotError> {
    let found = meta_of(view)?;
    if found.as_ref() == Some(meta) {
        return Ok(());
    }
    let announced = meta.last_log_id.map(|id| codec::entry_id(&id));
    let found = found.and_then(|meta| meta.last_log_id);
    let found = found.map(|id| codec::entry_id(&id));
    Err(SnapshotError::Damaged(format!(
        "announced at {announced:?}, it holds the state at {found:?}, or another membership"
    )))
}

/// What the state in `view` is a snapshot of; `None` if nothing was ever applied to it.
pub(super) fn meta_of(view: &dyn View) -> Result<Option<SnapshotMeta>, KvError> {
    let (applied, membership) = applied_in(view)?;
    let Some(applied) = applied else {
        return Ok(None);
    };
    let membership = codec::decode_membership(&membership.unwrap_or_default());
    let last_membership = membership.map_err(|error| KvError::Corrupt {
        what: error.to_string(),
    })?;
    Ok(Some(SnapshotMeta {
        last_log_id: Some(codec::log_id(applied)),
        last_membership,
    }))
}

/// The record that a store was installed from a snapshot that ends at `last`: term and index, 8
/// bytes each, big-endian.
pub(super) fn install_mark(last: Option<&LogId>) -> WriteBatch {
    let mut marks = WriteBatch::new();
    if let Some(last) = last.map(codec::entry_id) {
        let record = [last.term.to_be_bytes(), last.index.to_be_bytes()].concat();
        marks.put(meta_key(MetaKey::Installed), Bytes::from(record));
    }
    marks
}

/// The entry of the snapshot that the store in `view` was installed from, if it was.
///
/// # Errors
///
/// The store cannot be read, or the record is damaged.
pub fn installed_in(view: &dyn View) -> Result<Option<EntryId>, KvError> {
    let Some(record) = view.get(&meta_key(MetaKey::Installed))? else {
        return Ok(None);
    };
    match record.split_at_checked(8) {
        Some((term, index)) if index.len() == 8 => {
            let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
            Ok(Some(EntryId::new(number(term), number(index))))
        }
        _ => Err(KvError::Corrupt {
            what: format!("record of the installed snapshot, {} bytes", record.len()),
        }),
    }
}
