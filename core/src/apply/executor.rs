//! One applied batch: every proposal in turn, each a transaction of its own, on one overlay of the
//! store. Used by the state machine.

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{CompactionRequest, CompactionResponse, ResponseHeader};
use quorate_proto::log::{Command, command::Kind};

use super::alarm::Alarms;
use super::lease::Leases;
use super::members::Members;
use super::{Answer, check, kv, txn};
use crate::mvcc::{self, Error, Event, Overlay, compaction, meta};

/// The state while a batch is applied: the store and the tables kept in memory, with the changes
/// so far.
#[derive(Debug)]
pub(super) struct Executor {
    pub(super) overlay: Overlay,
    pub(super) leases: Leases,
    pub(super) alarms: Alarms,
    pub(super) members: Members,
    /// Events of each new main revision.
    pub(super) revisions: Vec<Vec<Event>>,
    /// Whether the state was restored and takes nothing from clients yet.
    pub(super) is_restore_unfinished: bool,
    /// Index of the log entry that is being applied.
    pub(super) entry: u64,
}

/// A header with nothing but the revision.
pub(super) fn header(revision: i64) -> ResponseHeader {
    ResponseHeader {
        revision,
        ..ResponseHeader::default()
    }
}

impl Executor {
    pub(super) fn revision(&self) -> Result<i64, Error> {
        Ok(meta::current_revision(&self.overlay)?)
    }

    /// Keeps what a transaction wrote.
    pub(super) fn keep(&mut self, committed: mvcc::Committed) {
        if committed.revision.is_some() {
            self.revisions.push(committed.events);
        }
    }

    /// Does what a command says. Its reads are only worth doing if somebody here waits for the
    /// answer (`answered`); without, the answer's content is undefined.
    ///
    /// # Errors
    ///
    /// Refused: nothing is changed. Storage: the whole batch is lost.
    pub(super) fn execute(&mut self, command: Command, answered: bool) -> Result<Answer, Error> {
        let Some(kind) = command.kind else {
            return Err(Reason::UnknownCommand.into());
        };
        self.admit_clients(&kind)?;
        match kind {
            Kind::Put(request) => {
                check::put(&request)?;
                self.alarms.admit_put()?;
                self.leases.expect(request.lease)?;
                let mut txn = self.overlay.begin()?;
                let answer = kv::put(&mut txn, &self.leases, request)?;
                let committed = txn.commit();
                self.keep(committed);
                Ok(Answer::Put(answer))
            }
            Kind::DeleteRange(request) => {
                check::delete_range(&request)?;
                self.alarms.admit_write()?;
                let mut txn = self.overlay.begin()?;
                let answer = kv::delete_range(&mut txn, request)?;
                let committed = txn.commit();
                self.keep(committed);
                Ok(Answer::DeleteRange(answer))
            }
            Kind::Txn(request) => {
                check::txn(&request, check::OPS_UNLIMITED)?;
                let writes = txn::Writes::of(&request);
                if writes.puts {
                    self.alarms.admit_put()?;
                } else if writes.deletes {
                    self.alarms.admit_write()?;
                }
                let mut txn = self.overlay.begin()?;
                let answer = txn::run(&mut txn, &self.leases, request, answered)?;
                let committed = txn.commit();
                self.keep(committed);
                Ok(Answer::Txn(answer))
            }
            Kind::Compact(request) => self.compact(&request),
            Kind::LeaseGrant(grant) => self.lease_grant(&grant),
            Kind::LeaseRevoke(revoke) => self.lease_revoke(revoke.id),
            Kind::LeaseExpire(expire) => self.lease_expire(&expire),
            Kind::LeaseCheckpoint(checkpoint) => Ok(self.lease_checkpoint(&checkpoint.leases)),
            Kind::Alarm(request) => {
                check::alarm(&request)?;
                let mut answer = self.alarms.execute(&mut self.overlay, &request);
                answer.header = Some(header(self.revision()?));
                Ok(Answer::Alarm(answer))
            }
            Kind::MemberAttributes(attributes) => {
                self.members.record(&mut self.overlay, attributes);
                Ok(Answer::MemberAttributes)
            }
            Kind::FinishRestore(finish) => self.finish_restore(finish.wall_millis),
        }
    }

    fn compact(&mut self, request: &CompactionRequest) -> Result<Answer, Error> {
        self.alarms.admit_write()?;
        let current = self.revision()?;
        let compacted = meta::compact_revision(&self.overlay)?;
        compaction::check(current, compacted, request.revision)?;
        compaction::schedule(&mut self.overlay, request.revision);
        Ok(Answer::Compaction(CompactionResponse {
            header: Some(header(current)),
        }))
    }
}
