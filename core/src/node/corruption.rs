//! Whether the members have the same data: the leader compares hashes now and then, and raises the
//! CORRUPT alarm for whoever differs from a quorum. Run by `bootstrap` as one task.
//!
//! The hash covers what can be read, not what is on disk, so members that keep more or less of the
//! old history agree. While the alarm stands nobody writes, as on etcd; and the member it was raised
//! for answers no reads either.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::{AlarmRequest, AlarmType, HashKvRequest};
use quorate_proto::peer as pb;
use quorate_proto::peer::request::Kind as Asked;
use quorate_proto::peer::response::Kind as Answered;

use super::Node;
use crate::clock;
use crate::error::{Error, Result};

/// How long a member may take to hash its data.
const HASH_LIMIT: Duration = Duration::from_secs(600);
/// Comparing takes at most this part of a member's time, however short the interval.
const REST_FACTOR: u32 = 20;
/// How often a member that is behind is asked again.
const ATTEMPTS: u32 = 10;
/// Pause between asking again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What members said of their data, by id: hash and compact revision, at one revision.
type Hashes = BTreeMap<u64, (u32, i64)>;

/// Compares regularly while this member leads.
pub(super) async fn compare(node: Node) {
    let Some(interval) = node.shared.config.corrupt_check_interval else {
        return;
    };
    let mut pause = interval;
    loop {
        tokio::time::sleep(pause).await;
        if node.leadership().leader != Some(node.member_id()) {
            pause = interval;
            continue;
        }
        if node.is_own_data_corrupt() {
            // Whoever leads answers for the data: let it be one that is sound.
            node.hand_over().await;
            pause = interval;
            continue;
        }
        let began = clock::now();
        match node.look_for_corruption().await {
            Ok(members) => tracing::debug!(members, "compared the members' data"),
            Err(error) => tracing::warn!(%error, "cannot compare the members' data"),
        }
        pause = interval.max(began.elapsed() * REST_FACTOR);
    }
}

impl Node {
    /// Whether the alarm stands that says that this member's data is not that of the others.
    pub(super) fn is_own_data_corrupt(&self) -> bool {
        let own = self.member_id();
        let alarms = self.shared.reader.alarms();
        alarms
            .iter()
            .any(|alarm| alarm.member == own && alarm.kind == AlarmType::Corrupt)
    }

    /// Refuses to answer from data that is not that of the others.
    pub(super) fn check_sound(&self) -> Result<()> {
        if self.is_own_data_corrupt() {
            return Err(Reason::Corrupt.into());
        }
        Ok(())
    }

    /// Compares once, and once more before anything is raised. How many members were compared.
    async fn look_for_corruption(&self) -> Result<usize> {
        let quorum = self.shared.consensus.members().len() / 2 + 1;
        let hashes = self.hashes().await?;
        if judge(&hashes, quorum).is_empty() {
            return Ok(hashes.len());
        }
        let again = self.hashes().await?;
        let suspects = judge(&hashes, quorum);
        for member in judge(&again, quorum) {
            if suspects.contains(&member) {
                self.raise_corrupt(member, &again).await?;
            }
        }
        Ok(again.len())
    }

    async fn raise_corrupt(&self, member: u64, hashes: &Hashes) -> Result<()> {
        let alarms = self.shared.reader.alarms();
        let stands = |alarm: &&crate::apply::Alarm| {
            alarm.member == member && alarm.kind == AlarmType::Corrupt
        };
        if alarms.iter().any(|alarm| stands(&alarm)) {
            return Ok(());
        }
        tracing::error!(
            member = format_args!("{member:016x}"),
            ?hashes,
            "a member's data differs from that of the others: raising the CORRUPT alarm"
        );
        let alarm = AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: member,
            alarm: AlarmType::Corrupt.into(),
        };
        self.alarm(alarm).await.map(drop)
    }

    /// This member's hash now, and the others' at the same revision, of those that tell.
    async fn hashes(&self) -> Result<Hashes> {
        let own = self.hash_kv(HashKvRequest::default()).await?;
        let revision = own.hash_revision;
        let peers = self.peers();
        let asked = peers.iter().map(|peer| async move {
            let told = self.hash_of(peer.id, revision).await;
            (peer.id, told)
        });
        let mut hashes = Hashes::from([(self.member_id(), (own.hash, own.compact_revision))]);
        for (id, told) in futures::future::join_all(asked).await {
            match told {
                Ok(content) => {
                    hashes.insert(id, (content.hash, content.compact_revision));
                }
                Err(error) => tracing::debug!(peer = id, %error, "no hash of its data"),
            }
        }
        Ok(hashes)
    }

    async fn hash_of(&self, id: u64, revision: i64) -> Result<pb::ContentHash> {
        use pb::hash_kv_response::Outcome;
        let unknown = || Error::from(Reason::MemberNotFound);
        let transport = self.shared.transport.as_ref().ok_or_else(unknown)?;
        let way = transport.peer(id).ok_or_else(unknown)?;
        for _ in 0..ATTEMPTS {
            let request = pb::Request {
                kind: Some(Asked::HashKv(pb::HashKvRequest { revision })),
            };
            let answer = way.request(request, HASH_LIMIT).await;
            let answer = answer.map_err(|error| Error::from(Reason::Timeout).caused_by(error))?;
            match answer.kind {
                Some(Answered::HashKv(pb::HashKvResponse {
                    outcome: Some(Outcome::Content(content)),
                })) => return Ok(content),
                Some(Answered::HashKv(pb::HashKvResponse {
                    outcome: Some(Outcome::Refused(refusal)),
                })) if refusal.text == Reason::FutureRevision.text() => {
                    // It is behind, and will not be for long.
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                _ => return Err(Reason::Compacted.into()),
            }
        }
        Err(Reason::TimeoutWaitApplied.into())
    }
}

/// Who differs from a quorum that agrees; 0, for nobody knows who, if there is no such quorum although
/// members differ. Members that were compacted differently cannot be compared.
fn judge(hashes: &Hashes, quorum: usize) -> Vec<u64> {
    let mut differing = Vec::new();
    let compact_revisions: std::collections::BTreeSet<i64> =
        hashes.values().map(|(_, compact)| *compact).collect();
    for compact in compact_revisions {
        let comparable = hashes.iter().filter(|(_, told)| told.1 == compact);
        let mut groups: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for (id, (hash, _)) in comparable {
            groups.entry(*hash).or_default().push(*id);
        }
        if groups.len() < 2 {
            continue;
        }
        match groups.values().find(|group| group.len() >= quorum) {
            Some(agreeing) => {
                let others = groups.values().filter(|group| *group != agreeing);
                differing.extend(others.flatten().copied());
            }
            None => differing.push(0),
        }
    }
    differing
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: [u64; 0] = [];

    fn judged(told: &[(u64, u32, i64)], quorum: usize) -> Vec<u64> {
        let hashes = told
            .iter()
            .map(|&(id, hash, compact)| (id, (hash, compact)));
        judge(&hashes.collect(), quorum)
    }

    #[test]
    fn whoever_differs_from_a_quorum_is_found() {
        assert_eq!(judged(&[(1, 7, 0), (2, 7, 0), (3, 7, 0)], 2), NOBODY);
        assert_eq!(judged(&[(1, 7, 0), (2, 7, 0), (3, 8, 0)], 2), [3]);
        assert_eq!(
            judged(&[(1, 9, 0), (2, 7, 0), (3, 7, 0)], 2),
            [1],
            "the leader too"
        );
        assert_eq!(
            judged(&[(1, 7, 0), (2, 7, 0), (3, 7, 0), (4, 8, 0), (5, 9, 0)], 3),
            [4, 5]
        );
    }

    #[test]
    fn without_a_quorum_nobody_is_named() {
        assert_eq!(judged(&[(1, 7, 0), (2, 8, 0)], 2), [0]);
        assert_eq!(judged(&[(1, 7, 0), (2, 8, 0), (3, 9, 0)], 2), [0]);
        assert_eq!(judged(&[(1, 7, 0)], 2), NOBODY);
    }

    #[test]
    fn what_was_compacted_differently_is_not_compared() {
        assert_eq!(judged(&[(1, 7, 3), (2, 8, 4), (3, 7, 3)], 2), NOBODY);
        assert_eq!(judged(&[(1, 7, 3), (2, 8, 4), (3, 9, 3)], 2), [0]);
    }
}
