//! The checks before consensus starts: whether the state and the log of this member belong together.
//! Used by `consensus`. Pure: it is given what was found, and decides.
//!
//! The state is never ahead of the synced log, except after a snapshot was installed, which the
//! state records. So a state that the log does not reach means that the log lost acknowledged
//! entries, and a voter that forgot must not vote.

use crate::error::Error;
use crate::storage::wal::{EntryId, LogState};
use quorate_proto::Reason;

/// What to do with the log, given the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// They belong together: the log replays what the state lacks.
    GoOn,
    /// The state was installed and the log had not followed yet: discard the whole log, set its
    /// purge point here, keep the vote.
    ResetLogTo(EntryId),
    /// They do not belong together.
    Refuse(Refusal),
}

/// Why a member must not start. The messages name the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The state has applied an entry that the log does not have.
    #[error(
        "the log has lost entries: the state has applied entry {applied} but the log {}. A member \
         that forgot acknowledged entries must not vote. Way out: remove this member from the \
         cluster, delete its data directory and add it as a new member; for a cluster of one, \
         restore a snapshot",
        describe(log)
    )]
    LogLost {
        /// The last entry the state applied.
        applied: EntryId,
        /// The ends of the log.
        log: LogState,
    },
    /// The log no longer has the entries that the state needs next.
    #[error(
        "the state is behind the log: it has applied {}, but the log {}, so the entries between \
         are gone. Way out: remove this member from the cluster, delete its data directory and add \
         it as a new member; for a cluster of one, restore a snapshot",
        applied.map_or("nothing".to_owned(), |id| format!("up to entry {id}")),
        describe(log)
    )]
    StateBehind {
        /// The last entry the state applied.
        applied: Option<EntryId>,
        /// The ends of the log.
        log: LogState,
    },
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::with_detail(Reason::StorageFailed, refusal.to_string())
    }
}

fn describe(log: &LogState) -> String {
    match (log.purged, log.last) {
        (_, None) => "is empty".to_owned(),
        (None, Some(last)) => format!("holds the entries up to {last}"),
        (Some(purged), Some(last)) if purged == last => {
            format!("holds no entry and begins after {purged}")
        }
        (Some(purged), Some(last)) => format!("holds the entries after {purged} up to {last}"),
    }
}

/// Compares the state, whose last entry is `applied`, with the log (`purged`, `last`], by index and
/// by id. `installed` is the entry of the snapshot the state came from, if it came from one;
/// `id_at` is the id of an entry the log holds.
#[must_use]
pub fn check(
    applied: Option<EntryId>,
    installed: Option<EntryId>,
    log: LogState,
    id_at: impl FnOnce(u64) -> Option<EntryId>,
) -> Decision {
    let Some(applied) = applied else {
        return match log.purged {
            None => Decision::GoOn,
            Some(_) => Decision::Refuse(Refusal::StateBehind { applied: None, log }),
        };
    };
    if log.purged == Some(applied) {
        return Decision::GoOn;
    }
    if log
        .purged
        .is_some_and(|purged| applied.index < purged.index)
    {
        let applied = Some(applied);
        return Decision::Refuse(Refusal::StateBehind { applied, log });
    }
    let in_log = log.purged.is_none_or(|purged| applied.index > purged.index)
        && log.last.is_some_and(|last| applied.index <= last.index);
    if in_log && id_at(applied.index) == Some(applied) {
        return Decision::GoOn;
    }
    if installed == Some(applied) {
        return Decision::ResetLogTo(applied);
    }
    Decision::Refuse(Refusal::LogLost { applied, log })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(term: u64, index: u64) -> EntryId {
        EntryId::new(term, index)
    }

    fn log(purged: Option<EntryId>, last: Option<EntryId>) -> LogState {
        LogState { purged, last }
    }

    /// A log whose entries above index 5 are of term 2, the others of term 1.
    fn decide(
        applied: Option<EntryId>,
        installed: Option<EntryId>,
        purged: Option<u64>,
        last: Option<u64>,
    ) -> Decision {
        let id_at = |index: u64| Some(id(if index > 5 { 2 } else { 1 }, index));
        let log = log(purged.and_then(id_at), last.and_then(id_at));
        check(applied, installed, log, id_at)
    }

    #[test]
    fn a_new_member_and_a_state_that_the_log_replays_go_on() {
        assert_eq!(decide(None, None, None, None), Decision::GoOn);
        assert_eq!(decide(None, None, None, Some(9)), Decision::GoOn);
    }

    #[test]
    fn a_state_inside_the_log_goes_on_by_index_and_id() {
        for applied in [id(1, 0), id(1, 5), id(2, 6), id(2, 9)] {
            assert_eq!(decide(Some(applied), None, None, Some(9)), Decision::GoOn);
        }
        assert_eq!(
            decide(Some(id(1, 4)), None, Some(3), Some(9)),
            Decision::GoOn
        );
    }

    #[test]
    fn a_state_at_the_purge_point_goes_on() {
        for last in [3, 9] {
            let decision = decide(Some(id(1, 3)), None, Some(3), Some(last));
            assert_eq!(decision, Decision::GoOn);
        }
    }

    #[test]
    fn a_state_beyond_the_log_means_that_the_log_was_lost() {
        for (purged, last) in [(None, None), (None, Some(9)), (Some(9), Some(9))] {
            let decision = decide(Some(id(2, 10)), None, purged, last);
            assert!(matches!(
                decision,
                Decision::Refuse(Refusal::LogLost { .. })
            ));
            let decision = decide(Some(id(2, 10)), Some(id(2, 8)), purged, last);
            assert!(matches!(
                decision,
                Decision::Refuse(Refusal::LogLost { .. })
            ));
        }
    }

    #[test]
    fn another_entry_where_the_state_applied_one_means_that_the_log_was_lost() {
        for applied in [id(3, 8), id(1, 8)] {
            let decision = decide(Some(applied), None, None, Some(9));
            assert!(matches!(
                decision,
                Decision::Refuse(Refusal::LogLost { .. })
            ));
        }
        let decision = decide(Some(id(3, 3)), None, Some(3), Some(9));
        assert!(matches!(
            decision,
            Decision::Refuse(Refusal::LogLost { .. })
        ));
    }

    #[test]
    fn a_recorded_install_resets_the_log_it_left_behind() {
        let installed = id(3, 10);
        for (purged, last) in [
            (None, None),
            (None, Some(9)),
            (Some(4), Some(9)),
            (Some(4), Some(12)),
        ] {
            let decision = decide(Some(installed), Some(installed), purged, last);
            assert_eq!(decision, Decision::ResetLogTo(installed));
        }
        let same_index = id(3, 3);
        let decision = decide(Some(same_index), Some(same_index), Some(3), Some(9));
        assert_eq!(decision, Decision::ResetLogTo(same_index));
    }

    #[test]
    fn an_install_that_the_log_followed_goes_on() {
        let installed = Some(id(1, 3));
        assert_eq!(
            decide(installed, installed, Some(3), Some(3)),
            Decision::GoOn
        );
        assert_eq!(decide(installed, installed, None, Some(9)), Decision::GoOn);
        assert_eq!(
            decide(Some(id(2, 8)), installed, Some(3), Some(9)),
            Decision::GoOn
        );
    }

    #[test]
    fn a_state_behind_the_purge_point_cannot_be_replayed() {
        for applied in [None, Some(id(1, 2))] {
            let decision = decide(applied, None, Some(3), Some(9));
            let Decision::Refuse(refusal) = decision else {
                panic!("{decision:?}");
            };
            let text = refusal.to_string();
            assert!(text.contains("delete its data directory"), "{text}");
            assert!(text.contains("after 1.3"), "{text}");
        }
        let installed = Some(id(1, 2));
        let decision = decide(installed, installed, Some(3), Some(9));
        assert!(matches!(
            decision,
            Decision::Refuse(Refusal::StateBehind { .. })
        ));
    }
}
