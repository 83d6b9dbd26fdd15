//! The end of a restore, in the restored cluster: its first leader raises the epoch of fencing tokens,
//! and clients are let in. Why, is in `apply`. Run by `bootstrap` as one task of every member, for
//! whoever leads.

use std::time::Duration;

use quorate_proto::log::FinishRestore;
use quorate_proto::log::command::Kind;

use crate::clock;
use crate::node::Node;
use crate::raft::Leadership;

/// Pause before trying again what the cluster could not do now.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Finishes the restore of the state whenever this member leads one that needs it.
pub(in crate::node) async fn run(node: Node) {
    let mut leadership = node.shared.consensus.leadership();
    loop {
        let known = *leadership.borrow_and_update();
        if known.ready {
            node.finish_restore(known).await;
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

impl Node {
    /// Proposes until it is done, or another leads.
    async fn finish_restore(&self, known: Leadership) {
        let leads = || *self.shared.consensus.leadership().borrow() == known;
        while self.shared.reader.is_restore_unfinished() && leads() {
            let wall_millis = clock::wall_millis();
            let proposed = self.propose(Kind::FinishRestore(FinishRestore { wall_millis }));
            match proposed.await {
                Ok(_) => tracing::info!("the restore is finished, clients are let in"),
                Err(error) => {
                    tracing::warn!(%error, "the restore is not finished yet, trying again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Completes once this member's state takes what clients ask for; also when the member stops.
    pub(in crate::node) async fn restore_finished(&self) {
        let mut applied = self.shared.consensus.applied();
        while self.shared.reader.is_restore_unfinished() {
            if applied.changed().await.is_err() {
                return;
            }
        }
    }
}
