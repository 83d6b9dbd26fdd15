//! The replicated state machine: opens on a store, applies batches of the log, and is swapped onto
//! another store by a snapshot. Owned by `raft`'s storage thread.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_proto::log;
use uuid::Uuid;

use super::alarm::Alarms;
use super::executor::Executor;
use super::lease::{self, Leases};
use super::members::Members;
use super::pairs::RecentPairs;
use super::reader::Current;
use super::restored;
use super::{Applied, Committed, Options, Outcome, Payload, ProposalId, Reader};
use crate::lease::{Lease, Lessor};
use crate::mvcc::{Error, Overlay, meta};
use crate::storage::codec::{self, MetaKey};
use crate::storage::kv::{Kv, KvError, View};
use crate::storage::wal::EntryId;
use crate::watch::Publication;

/// The state machine.
#[derive(Debug)]
pub struct State {
    kv: Arc<dyn Kv>,
    applied: Option<EntryId>,
    membership: Option<Bytes>,
    alarms: Alarms,
    members: Members,
    is_restore_unfinished: bool,
    lessor: Lessor,
    reader: Reader,
    recent: RecentPairs,
}

/// The applied id and the membership stored in `view`; `None` each if there is none yet.
///
/// # Errors
///
/// A storage failure or a damaged record.
pub fn applied_in(view: &dyn View) -> Result<(Option<EntryId>, Option<Bytes>), KvError> {
    let applied = view
        .get(&codec::meta_key(MetaKey::Applied))?
        .map(|record| decode_id(&record))
        .transpose()?;
    let membership = view.get(&codec::meta_key(MetaKey::Membership))?;
    Ok((applied, membership))
}

/// The stored key and record of the last applied entry.
#[must_use]
pub fn applied_record(applied: EntryId) -> (Bytes, Bytes) {
    (codec::meta_key(MetaKey::Applied), encode_id(applied))
}

/// An entry id: term and index, big-endian.
fn encode_id(id: EntryId) -> Bytes {
    let mut record = BytesMut::with_capacity(16);
    record.put_u64(id.term);
    record.put_u64(id.index);
    record.freeze()
}

fn decode_id(record: &[u8]) -> Result<EntryId, KvError> {
    let halves = record.split_first_chunk::<8>();
    halves
        .and_then(|(term, index)| {
            let index = <[u8; 8]>::try_from(index).ok()?;
            let (term, index) = (u64::from_be_bytes(*term), u64::from_be_bytes(index));
            Some(EntryId { term, index })
        })
        .ok_or_else(|| KvError::Corrupt {
            what: format!("applied id of {} bytes", record.len()),
        })
}

/// Everything kept in memory, as a store has it.
struct Loaded {
    applied: Option<EntryId>,
    membership: Option<Bytes>,
    alarms: Alarms,
    members: Members,
    leases: Vec<Lease>,
    current: Current,
}

impl Loaded {
    fn from(kv: Arc<dyn Kv>) -> Result<Self, KvError> {
        let view = kv.view();
        let (applied, membership) = applied_in(&*view)?;
        let alarms = Alarms::load(&*view)?;
        let members = Members::load(&*view)?;
        let current = Current {
            kv,
            revision: meta::current_revision(&*view)?,
            compact_revision: meta::compact_revision(&*view)?,
            alarms: alarms.iter().collect(),
            members: members.iter().cloned().collect(),
            membership: membership.clone(),
            is_restore_unfinished: restored::is_restore_unfinished(&*view)?,
        };
        Ok(Self {
            applied,
            membership,
            alarms,
            members,
            leases: lease::leases_in(&*view)?,
            current,
        })
    }
}

impl State {
    /// Opens on a store, at whatever prefix of the log it holds.
    ///
    /// # Errors
    ///
    /// A storage failure or a damaged record.
    pub fn open(kv: Arc<dyn Kv>, options: &Options) -> Result<Self, KvError> {
        let loaded = Loaded::from(Arc::clone(&kv))?;
        let lessor = Lessor::new(loaded.leases);
        Ok(Self {
            kv,
            applied: loaded.applied,
            membership: loaded.membership,
            alarms: loaded.alarms,
            members: loaded.members,
            is_restore_unfinished: loaded.current.is_restore_unfinished,
            reader: Reader::new(loaded.current, lessor.clone(), options.quota_backend_bytes),
            lessor,
            recent: RecentPairs::new(),
        })
    }

    /// The last applied entry and the membership as of it.
    #[must_use]
    pub fn applied(&self) -> (Option<EntryId>, Option<Bytes>) {
        (self.applied, self.membership.clone())
    }

    /// The store in use.
    #[must_use]
    pub fn kv(&self) -> Arc<dyn Kv> {
        Arc::clone(&self.kv)
    }

    /// A reader of this state.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Applies entries in order, as one atomic batch of the store with the applied id in it.
    /// Outcomes are given for the proposals of `own` alone. Blocking disk work.
    ///
    /// # Errors
    ///
    /// A storage failure, or an entry that does not decode: nothing of the batch is applied, or
    /// the store is poisoned; the member has to stop.
    ///
    /// # Panics
    ///
    /// If there is no entry, or if the first does not follow the applied one, so that the log has
    /// a hole.
    pub fn apply(&mut self, entries: Vec<Committed>, own: Uuid) -> Result<Applied, KvError> {
        let last = entries.last().expect("at least one entry to apply").id;
        let mut executor = Executor {
            overlay: Overlay::new(self.recent.before(self.kv.view())),
            leases: Leases::new(self.lessor.clone()),
            alarms: self.alarms.clone(),
            members: self.members.clone(),
            is_restore_unfinished: self.is_restore_unfinished,
            revisions: Vec::new(),
            entry: 0,
        };
        let mut membership = None;
        let mut outcomes = Vec::new();
        let mut terms = Vec::new();
        let mut before = self.applied;
        for Committed { id, payload } in entries {
            if let Some(before) = before {
                assert_eq!(id.index, before.index + 1, "a hole after entry {before}");
            }
            if before.is_none_or(|before| before.term < id.term) {
                terms.push(id);
            }
            before = Some(id);
            match payload {
                Payload::Blank => {}
                Payload::Membership(blob) => membership = Some(blob),
                Payload::Normal(batch) => execute(&mut executor, id, batch, own, &mut outcomes)?,
            }
        }
        if let Some(blob) = &membership {
            let key = codec::meta_key(MetaKey::Membership);
            executor.overlay.put(key, blob.clone());
        }
        let (key, record) = applied_record(last);
        executor.overlay.put(key, record);
        let publication = self.commit(executor, membership.as_ref())?;
        self.applied = Some(last);
        self.membership = membership.or_else(|| self.membership.take());
        Ok(Applied {
            last,
            revision: publication.revision(),
            outcomes,
            publication,
            terms,
        })
    }

    /// Makes a batch real: first the store, then what is kept in memory.
    fn commit(
        &mut self,
        executor: Executor,
        membership: Option<&Bytes>,
    ) -> Result<Publication, KvError> {
        let Executor {
            overlay,
            leases,
            alarms,
            members,
            is_restore_unfinished,
            revisions,
            ..
        } = executor;
        let revision = meta::current_revision(&overlay)?;
        let compact_revision = meta::compact_revision(&overlay)?;
        let batch = overlay.into_batch();
        self.recent.learn(&batch);
        self.kv.commit(batch)?;
        self.lessor.commit(&leases.into_changes());
        self.reader.count(&revisions);
        let new_alarms = (alarms != self.alarms).then(|| alarms.iter().collect());
        let new_members = (members != self.members).then(|| members.iter().cloned().collect());
        self.alarms = alarms;
        self.members = members;
        self.is_restore_unfinished = is_restore_unfinished;
        self.reader.update(|current| {
            current.is_restore_unfinished = is_restore_unfinished;
            current.revision = revision;
            current.compact_revision = compact_revision;
            if let Some(alarms) = new_alarms {
                current.alarms = alarms;
            }
            if let Some(members) = new_members {
                current.members = members;
            }
            if let Some(membership) = membership {
                current.membership = Some(membership.clone());
            }
        });
        Ok(Publication::new(revisions, revision, compact_revision))
    }

    /// Swaps to a store installed from a snapshot and rebuilds what is kept in memory. Readers see
    /// the new store from here on; the watch hub has to be reset next. The lessor no longer leads.
    ///
    /// # Errors
    ///
    /// As for [`State::open`]; the state is then as before.
    pub fn install(&mut self, kv: Arc<dyn Kv>) -> Result<(), KvError> {
        let loaded = Loaded::from(Arc::clone(&kv))?;
        self.kv = kv;
        self.recent.clear();
        self.applied = loaded.applied;
        self.membership = loaded.membership;
        self.alarms = loaded.alarms;
        self.members = loaded.members;
        self.is_restore_unfinished = loaded.current.is_restore_unfinished;
        self.lessor.reset(loaded.leases);
        self.reader.update(|current| *current = loaded.current);
        Ok(())
    }
}

/// Applies the proposals of one entry.
fn execute(
    executor: &mut Executor,
    id: EntryId,
    batch: Bytes,
    own: Uuid,
    outcomes: &mut Vec<Outcome>,
) -> Result<(), KvError> {
    let batch = log::Batch::decode(batch).map_err(|error| KvError::Corrupt {
        what: format!("log entry {id}: {error}"),
    })?;
    executor.entry = id.index;
    debug_assert_eq!(executor.overlay.recorded(), 0, "sealed with its entry");
    for proposal in batch.proposals {
        let answered = proposal.boot_id.as_ref() == own.as_bytes();
        let command = proposal.command.unwrap_or_default();
        let result = match executor.execute(command, answered) {
            Ok(answer) => Ok(answer),
            Err(Error::Refused(reason)) => Err(reason),
            Err(Error::Storage(error)) => return Err(error),
        };
        if answered {
            let id = ProposalId {
                boot: own,
                sequence: proposal.sequence,
            };
            outcomes.push(Outcome { id, result });
        }
    }
    executor.overlay.seal_events();
    Ok(())
}
