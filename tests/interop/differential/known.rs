//! The differences there are, each with the etcd versions that show it and the reason why quorate
//! does not do as they do. An answer may differ from etcd's only in one of these ways.

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::AlarmResponse;
use tonic::Code;

use super::op::{Answer, Op, Reply};

/// A difference that is not one of quorate's mistakes.
#[derive(Debug)]
pub(crate) struct Known {
    pub name: &'static str,
    /// The lines that show it, such as `3.4`.
    pub etcd: &'static [&'static str],
    pub reason: &'static str,
    /// Whether it is this one: the operation, etcd's answer, quorate's answer.
    is_it: fn(&Op, &Answer, &Answer) -> bool,
}

/// All of them that random sequences can meet.
pub(crate) const KNOWN: &[Known] = &[
    Known {
        name: "progress is told without watchers or before they are in sync",
        etcd: &["3.4", "3.5"],
        reason: "corrected later in the 3.5 line (seen in 3.5.30, not yet in 3.5.1), which quorate follows",
        is_it: |op, etcd, quorate| {
            matches!(op, Op::WatchProgress { in_sync: false, .. })
                && matches!(etcd, Ok(Reply::Watch(_)))
                && matches!(quorate, Ok(Reply::Nothing))
        },
    },
    Known {
        name: "an alarm answer has no header",
        etcd: &["3.4"],
        reason: "added in 3.5",
        is_it: |_, etcd, quorate| match (etcd, quorate) {
            (Ok(Reply::Alarm(etcd)), Ok(Reply::Alarm(quorate))) => {
                let headless = AlarmResponse {
                    header: None,
                    ..quorate.clone()
                };
                *etcd == headless
            }
            _ => false,
        },
    },
    Known {
        name: "the compacted revision cannot be hashed",
        etcd: &["3.4", "3.5"],
        reason: "corrected later in the 3.5 line (a read of that revision always was fine)",
        is_it: |op, etcd, quorate| match (op, etcd, quorate) {
            (Op::HashKv(request), Err(refusal), Ok(Reply::HashKv(answer))) => {
                request.revision == answer.compact_revision
                    && refusal.message == Reason::Compacted.text()
            }
            _ => false,
        },
    },
    Known {
        name: "there is no Downgrade",
        etcd: &["3.4"],
        reason: "added in 3.5",
        is_it: |op, etcd, quorate| {
            matches!(op, Op::Downgrade(_))
                && matches!(etcd, Err(refusal) if refusal.code == Code::Unimplemented)
                && matches!(quorate, Err(refusal) if refusal.code != Code::Unimplemented)
        },
    },
];

impl Known {
    /// The entry that explains why these two answers differ, for an etcd of this version.
    pub(crate) fn find(
        version: &str,
        op: &Op,
        etcd: &Answer,
        quorate: &Answer,
    ) -> Option<&'static Self> {
        KNOWN.iter().find(|known| {
            let shows = |line: &&str| {
                version
                    .strip_prefix(*line)
                    .is_some_and(|rest| rest.starts_with('.'))
            };
            known.etcd.iter().any(shows) && (known.is_it)(op, etcd, quorate)
        })
    }
}
