//! Leaving so that no client of this member sees a request fail. A member that was removed hears
//! nothing more of the log, and so not what became of the commands it had forwarded. Therefore the
//! leader asks it to drain before it removes it: it sends nothing new, and answers once what is under
//! way is decided. What came meanwhile was certainly never proposed, and once the member was removed
//! it is refused as such. Used by `membership`, `forward`, `batch` and `cluster`.

use std::time::Duration;

use quorate_proto::peer as pb;
use quorate_proto::peer::request::Kind as Asked;

use super::Node;
use crate::clock::{self, Instant};

/// How long what is under way may take to be decided before the member is removed all the same.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// Pause between looks at what is under way.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// How long a member holds back for, if it is not removed after all. Much less than any client waits.
const HOLD: Duration = Duration::from_secs(3);

/// Whether this member sends commands to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sending {
    #[default]
    Freely,
    /// It is about to be removed, unless this passes first.
    HeldUntil(Instant),
    /// It was removed.
    Never,
}

impl Node {
    /// Sends nothing new from now on, and waits until what was sent is decided, but not for long.
    pub(super) async fn drain(&self) {
        let until = clock::now() + HOLD;
        self.shared.sending.send_if_modified(|sending| {
            let is_member = *sending != Sending::Never;
            if is_member {
                *sending = Sending::HeldUntil(until);
            }
            is_member
        });
        let deadline = clock::now() + DRAIN_LIMIT;
        while !self.shared.pending.is_empty() && clock::now() < deadline {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Has a member drain that is about to be removed. One that does not answer had its chance.
    pub(super) async fn have_drained(&self, id: u64) {
        let transport = self.shared.transport.as_ref();
        let Some(peer) = transport.and_then(|transport| transport.peer(id)) else {
            return;
        };
        if !peer.is_active() {
            return;
        }
        let request = pb::Request {
            kind: Some(Asked::Drain(pb::DrainRequest {})),
        };
        if let Err(error) = peer.request(request, 2 * DRAIN_LIMIT).await {
            tracing::debug!(member = id, %error, "removed without having drained");
        }
    }

    /// Sends nothing ever again.
    pub(super) fn send_never(&self) {
        self.shared.sending.send_replace(Sending::Never);
    }

    /// Whether commands are held back now.
    pub(super) fn is_held(&self) -> bool {
        match *self.shared.sending.borrow() {
            Sending::Freely => false,
            Sending::HeldUntil(until) => clock::now() < until,
            Sending::Never => true,
        }
    }

    /// Whether this member will send nothing ever again.
    pub(super) fn sends_never(&self) -> bool {
        *self.shared.sending.borrow() == Sending::Never
    }

    /// Completes when commands are not held back, or never will be sent again.
    pub(super) async fn hold_over(&self) {
        let mut sending = self.shared.sending.subscribe();
        loop {
            let now = *sending.borrow_and_update();
            let Sending::HeldUntil(until) = now else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                changed = sending.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Completes when this member will send nothing ever again.
    pub(super) async fn sending_over(&self) {
        let mut sending = self.shared.sending.subscribe();
        drop(sending.wait_for(|sending| *sending == Sending::Never).await);
    }
}
