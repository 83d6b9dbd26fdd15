//! Lease commands and the `leases` table. Used by the executor.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use quorate_proto::Reason;
use quorate_proto::log::{LeaseExpire, LeaseGrant, RemainingTtl};

use super::executor::Executor;
use super::{Answer, check};
use crate::lease::{Change, Lease, Lessor};
use crate::mvcc::{self, Error};
use crate::storage::codec::{self, Table};
use crate::storage::kv::{Direction, KvError, View};

/// The leases while a batch is applied: the committed ones, and what the batch changed.
#[derive(Debug, Default)]
pub(super) struct Leases {
    committed: Lessor,
    /// `None` means ended.
    pending: BTreeMap<i64, Option<Lease>>,
    changes: Vec<Change>,
}

impl Leases {
    pub(super) fn new(committed: Lessor) -> Self {
        Self {
            committed,
            ..Self::default()
        }
    }

    fn find(&self, id: i64) -> Option<Lease> {
        match self.pending.get(&id) {
            Some(lease) => *lease,
            None => self.committed.get(id),
        }
    }

    /// Refuses a lease that is not granted; 0, which is no lease, is fine.
    pub(super) fn expect(&self, id: i64) -> Result<(), Reason> {
        if id == 0 || self.find(id).is_some() {
            Ok(())
        } else {
            Err(Reason::LeaseNotFound)
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Granted(lease) => {
                self.pending.insert(lease.id, Some(lease));
            }
            Change::Ended(id) => {
                self.pending.insert(id, None);
            }
            Change::Checkpointed {
                id,
                remaining_ttl_seconds,
            } => {
                let lease = self.find(id).map(|lease| Lease {
                    remaining_ttl_seconds,
                    ..lease
                });
                self.pending.insert(id, lease);
            }
        }
        self.changes.push(change);
    }

    /// What the batch changed, in order, for the lessor.
    pub(super) fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}

impl Executor {
    pub(super) fn lease_grant(&mut self, grant: &LeaseGrant) -> Result<Answer, Error> {
        self.alarms.admit_put()?;
        check::ttl(grant.ttl_seconds)?;
        // Whoever proposes picks an id and raises the time to live first.
        if grant.id == 0 || grant.ttl_seconds < 1 {
            return Err(Reason::UnknownCommand.into());
        }
        if self.leases.find(grant.id).is_some() {
            return Err(Reason::LeaseExists.into());
        }
        let lease = Lease {
            id: grant.id,
            granted_ttl_seconds: grant.ttl_seconds,
            remaining_ttl_seconds: 0,
            granted_at: self.entry,
        };
        let (key, record) = lease_record(&lease);
        self.overlay.put(key, record);
        self.leases.change(Change::Granted(lease));
        Ok(Answer::LeaseGrant {
            revision: self.revision()?,
            id: lease.id,
            ttl_seconds: lease.granted_ttl_seconds,
        })
    }

    pub(super) fn lease_revoke(&mut self, id: i64) -> Result<Answer, Error> {
        self.alarms.admit_write()?;
        if self.leases.find(id).is_none() {
            return Err(Reason::LeaseNotFound.into());
        }
        let keys = mvcc::keys_of_lease(&self.overlay, id)?;
        self.end_lease(id, &keys)?;
        Ok(Answer::LeaseRevoke {
            revision: self.revision()?,
        })
    }

    /// Ends the leases in the order of their ids. A lease that was granted after the leader judged
    /// is another one that took over the id, and stays.
    pub(super) fn lease_expire(&mut self, expire: &LeaseExpire) -> Result<Answer, Error> {
        self.alarms.admit_write()?;
        let judged = |lease: Lease| expire.as_of == 0 || lease.granted_at <= expire.as_of;
        let ids = expire.ids.iter().copied();
        let ids: BTreeSet<i64> = ids
            .filter(|id| self.leases.find(*id).is_some_and(judged))
            .collect();
        // A key hangs on one lease, so what one of them ends leaves the others' keys as they are.
        let mut attached = mvcc::keys_of_leases(&self.overlay, &ids)?;
        for id in ids {
            let keys = attached.remove(&id).unwrap_or_default();
            self.end_lease(id, &keys)?;
        }
        Ok(Answer::LeaseExpire)
    }

    /// Deletes a lease's keys, in the order given and in one revision, and the lease.
    fn end_lease(&mut self, id: i64, keys: &[Bytes]) -> Result<(), Error> {
        let mut txn = self.overlay.begin()?;
        for key in keys {
            txn.delete(key)?;
        }
        txn.set(codec::lease_key(id), None);
        let committed = txn.commit();
        self.keep(committed);
        self.leases.change(Change::Ended(id));
        Ok(())
    }

    pub(super) fn lease_checkpoint(&mut self, leases: &[RemainingTtl]) -> Answer {
        for checkpoint in leases {
            let Some(lease) = self.leases.find(checkpoint.id) else {
                continue;
            };
            let remaining_ttl_seconds = checkpoint.remaining_ttl_seconds.max(0);
            let lease = Lease {
                remaining_ttl_seconds,
                ..lease
            };
            let (key, record) = lease_record(&lease);
            self.overlay.put(key, record);
            self.leases.change(Change::Checkpointed {
                id: lease.id,
                remaining_ttl_seconds,
            });
        }
        Answer::LeaseCheckpoint
    }
}

/// The record of a lease: format, granted and remaining seconds, index of the entry that granted it,
/// big-endian.
fn encode(lease: &Lease) -> Bytes {
    let mut record = BytesMut::with_capacity(25);
    record.put_u8(codec::FORMAT);
    record.put_i64(lease.granted_ttl_seconds);
    record.put_i64(lease.remaining_ttl_seconds);
    record.put_u64(lease.granted_at);
    record.freeze()
}

/// The stored key and record of a lease.
#[must_use]
pub fn lease_record(lease: &Lease) -> (Bytes, Bytes) {
    (codec::lease_key(lease.id), encode(lease))
}

/// Reads a record; the first ones ended before the index.
fn decode(id: i64, record: &[u8]) -> Option<Lease> {
    let numbers = record.strip_prefix(&[codec::FORMAT])?;
    let (numbers, []) = numbers.as_chunks::<8>() else {
        return None;
    };
    let (granted, remaining, granted_at) = match numbers {
        [granted, remaining] => (granted, remaining, &[0; 8]),
        [granted, remaining, granted_at] => (granted, remaining, granted_at),
        _ => return None,
    };
    Some(Lease {
        id,
        granted_ttl_seconds: i64::from_be_bytes(*granted),
        remaining_ttl_seconds: i64::from_be_bytes(*remaining),
        granted_at: u64::from_be_bytes(*granted_at),
    })
}

/// All leases granted as of `view`, by id.
///
/// # Errors
///
/// A storage failure or a damaged record.
pub fn leases_in(view: &dyn View) -> Result<Vec<Lease>, KvError> {
    let (start, end) = codec::table_bounds(Table::Leases);
    let rows = view.range(start, end, Direction::Forward);
    rows.map(|row| {
        let (key, record) = row?;
        let id = codec::lease_of(&key)?;
        decode(id, &record).ok_or_else(|| KvError::Corrupt {
            what: format!("lease {id}"),
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_without_the_granting_entry_still_reads() {
        let lease = Lease {
            id: -3,
            granted_ttl_seconds: 60,
            remaining_ttl_seconds: 12,
            granted_at: 77,
        };
        let record = encode(&lease);
        assert_eq!(decode(-3, &record), Some(lease));
        let old = Lease {
            granted_at: 0,
            ..lease
        };
        assert_eq!(decode(-3, &record[..17]), Some(old));
        assert_eq!(decode(-3, &record[..16]), None);
        assert_eq!(decode(-3, &[]), None);
    }
}
