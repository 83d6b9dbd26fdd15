//! What a member does before consensus starts when its state cannot be used: it takes that of a
//! peer. Used by `bootstrap`.
//!
//! The log stays as it is: what it acknowledged is what the member votes with. The state that comes
//! reaches at least as far as the log was purged, so the log continues it; or it reaches beyond the
//! log, which then starts over, as after any snapshot.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::Reason;

use crate::apply::State;
use crate::clock;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::peer::{Peer, PeerError};
use crate::raft::snapshot::{SnapshotData, installed_in};
use crate::raft::start::{Decision, Refusal, check};
use crate::raft::{transfer, wire};
use crate::storage::kv::{Kv, KvError};
use crate::storage::snapshot::Stores;
use crate::storage::wal::{Wal, WriterMode};

/// How long the peers are asked in turn before the member gives up.
const ASK_LIMIT: Duration = Duration::from_secs(300);
/// Pause between rounds of asking.
const ASK_PAUSE: Duration = Duration::from_secs(1);

/// A state that cannot be used.
#[derive(Debug)]
pub struct Unusable {
    /// What is wrong, and the way out for one who finds no peer.
    pub cause: Error,
    /// The state needed instead reaches this index at least.
    pub at_least: u64,
}

/// The state, if the log continues it.
///
/// # Errors
///
/// It was damaged, lost or left behind. A member that has peers can take theirs.
pub fn usable(state: Result<State, KvError>, wal: &Wal) -> Result<State, Unusable> {
    let log = wal.log_state();
    let unusable = |cause: Error| Unusable {
        cause,
        at_least: log.purged.map_or(0, |purged| purged.index),
    };
    let state = state.map_err(|error| unusable(error.into()))?;
    let view = state.kv().view();
    let installed = installed_in(&*view).map_err(|error| unusable(error.into()))?;
    let (applied, _) = state.applied();
    match check(applied, installed, log, |index| wal.entry_id(index)) {
        Decision::Refuse(refusal @ Refusal::StateBehind { .. }) => Err(unusable(refusal.into())),
        // A log that lost entries is no reason to replace the state: consensus refuses to start.
        Decision::Refuse(Refusal::LogLost { .. }) | Decision::GoOn | Decision::ResetLogTo(_) => {
            Ok(state)
        }
    }
}

/// Takes the state of one of `peers` in place of the one that cannot be used.
///
/// # Errors
///
/// The cause, if there are no peers or none gives its state in time; failures to write.
pub async fn take_state(
    unusable: Unusable,
    peers: &[Peer],
    stores: &Stores,
) -> Result<Arc<dyn Kv>> {
    let Unusable { cause, at_least } = unusable;
    if peers.is_empty() {
        return Err(cause);
    }
    tracing::warn!(
        %cause,
        at_least,
        "the state cannot be used, asking the peers for theirs"
    );
    let deadline = clock::now() + ASK_LIMIT;
    loop {
        for peer in peers {
            match fetch(peer, at_least, stores).await {
                Ok(kv) => {
                    tracing::info!(peer = peer.id(), "took the state of a peer");
                    return Ok(kv);
                }
                Err(error) => tracing::info!(peer = peer.id(), %error, "no state from this peer"),
            }
        }
        if clock::now() >= deadline {
            let detail = format!("{cause}. No peer gave its state within {ASK_LIMIT:?}");
            return Err(Error::with_detail(Reason::StorageFailed, detail));
        }
        tokio::time::sleep(ASK_PAUSE).await;
    }
}

async fn fetch(peer: &Peer, at_least: u64, stores: &Stores) -> Result<Arc<dyn Kv>, PeerError> {
    let (header, chunks) = peer.fetch_snapshot(at_least).await?;
    let meta = wire::to_meta(&header)?;
    if meta.last_log_id.is_none_or(|last| last.index < at_least) {
        return Err(PeerError::Protocol(
            "an older state than asked for".to_owned(),
        ));
    }
    let mode = WriterMode::Thread;
    let part = transfer::Part::begin(stores, meta, mode).await?;
    let received = part.receive(chunks, mode).await;
    let (_, data) = received.map_err(|broken| broken.error)?;
    let SnapshotData::Staged(staged) = data else {
        return Err(PeerError::Failed("the state was not staged".to_owned()));
    };
    let stores = stores.clone();
    let adopting = tokio::task::spawn_blocking(move || {
        failpoint::reach("rebuild: staged");
        let kv = stores.adopt(staged)?;
        failpoint::reach("rebuild: adopted");
        stores.remove_stale()?;
        Ok::<_, KvError>(kv)
    });
    let adopted = adopting
        .await
        .map_err(|error| PeerError::Failed(error.to_string()))?;
    adopted.map_err(|error| PeerError::Failed(error.to_string()))
}
