//! What a member does without being asked: raises the alarm when it outgrows its quota, tells the
//! cluster its name, and notes who leads. Each duty is one task, started by `bootstrap`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::{AlarmRequest, AlarmType};
use tokio::sync::watch;

use super::Node;
use super::read::blocking;
use crate::clock;
use crate::error::Error;
use crate::raft::AppliedPoint;

/// Pause between looks at what was applied.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Pause before trying again what the cluster could not do now.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Raises this member's alarm once its store is over its quota, and again after it was lifted.
pub(super) async fn guard_quota(node: Node) {
    let mut applied = node.shared.consensus.applied();
    loop {
        let looking = node.clone();
        let over = blocking(move || Ok::<_, Error>(looking.look_at_quota()));
        if over.await.unwrap_or(false) && !node.has_space_alarm() {
            let alarm = AlarmRequest {
                action: AlarmAction::Activate.into(),
                member_id: node.member_id(),
                alarm: AlarmType::Nospace.into(),
            };
            match node.alarm(alarm).await {
                Ok(_) => tracing::warn!("the store is over its quota: writes are refused"),
                Err(error) => {
                    tracing::warn!(%error, "cannot raise the space alarm, trying again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
            }
        }
        if !changed_since(&mut applied).await {
            return;
        }
    }
}

/// Waits until something was applied, and then a little, so that a busy member is looked at now and
/// then and not after each batch. False when the member stops.
pub(super) async fn changed_since(applied: &mut watch::Receiver<AppliedPoint>) -> bool {
    let changed = applied.changed().await.is_ok();
    tokio::time::sleep(LOOK_PAUSE).await;
    changed
}

impl Node {
    /// Whether the store is over its quota, now and until the next look. Asks the file system, so not
    /// for a runtime thread.
    pub(super) fn look_at_quota(&self) -> bool {
        let over = self.shared.reader.over_quota();
        self.shared.over_quota.store(over, Ordering::Relaxed);
        over
    }

    fn has_space_alarm(&self) -> bool {
        let own = self.member_id();
        let alarms = self.shared.reader.alarms();
        alarms
            .iter()
            .any(|alarm| alarm.member == own && alarm.kind == AlarmType::Nospace)
    }
}

/// Tells the cluster who this member is, once it can.
pub(super) async fn publish(node: Node) {
    while let Err(error) = node.publish_attributes().await {
        tracing::debug!(%error, "cannot publish this member's attributes yet");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Notes since when there is a leader, for the time-outs that blame an election.
pub(super) async fn note_leaders(node: Node) {
    let mut leadership = node.shared.consensus.leadership();
    let mut last = None;
    loop {
        let known = *leadership.borrow_and_update();
        let leader = known.leader.map(|leader| (known.term, leader));
        if leader.is_some() && leader != last {
            last = leader;
            node.shared.leaders.send_modify(|leaders| {
                leaders.since = Some(clock::now());
                leaders.count += 1;
            });
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}
