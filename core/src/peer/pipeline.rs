//! Short calls outside the stream: small messages while it is down, snapshots always. Used by
//! [`Peer`](super::Peer).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use quorate_proto::peer as pb;
use quorate_proto::peer::peer_client::PeerClient;
use quorate_proto::peer::unary_request::Kind as Asked;
use quorate_proto::peer::unary_response::Kind as Answered;
use tokio::sync::{Mutex, Semaphore};
use tonic::transport::Channel;

use super::PeerError;
use super::connector::{Connector, call_error};
use super::handler::Chunks;
use super::handshake::Gate;
use super::snapshot::{Outcome, Outgoing, read_frames};
use crate::clock::{self, Instant};

/// Small messages under way to a peer at a time.
const CALLS_MAX: usize = 64;
/// After a failed connection, calls fail at once for this long instead of dialling again.
const REDIAL_PAUSE: Duration = Duration::from_millis(50);
/// A snapshot call in which no chunk moves for this long is given up.
const SNAPSHOT_STALL: Duration = Duration::from_secs(30);
/// How long the receiver may take to install a snapshot it has received.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// The calls to one peer.
#[derive(Debug)]
pub(super) struct Pipeline {
    peer: u64,
    urls: Vec<String>,
    gate: Arc<Gate>,
    connector: Connector,
    turn: AtomicUsize,
    small: Mutex<Small>,
    calls: Semaphore,
    snapshot_rate: Arc<AtomicU64>,
}

/// The connection for small messages, kept between calls.
#[derive(Debug, Default)]
struct Small {
    client: Option<PeerClient<Channel>>,
    failed: Option<(Instant, PeerError)>,
}

impl Pipeline {
    /// Calls to `peer` at one of `urls`; `snapshot_rate` in bytes a second, 0 for no limit.
    pub(super) fn new(
        peer: u64,
        urls: Vec<String>,
        gate: Arc<Gate>,
        connector: Connector,
        snapshot_rate: Arc<AtomicU64>,
    ) -> Self {
        Self {
            peer,
            urls,
            gate,
            connector,
            turn: AtomicUsize::new(0),
            small: Mutex::default(),
            calls: Semaphore::new(CALLS_MAX),
            snapshot_rate,
        }
    }

    /// The addresses, tried in turn.
    pub(super) fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Sends one small message and waits for its answer.
    pub(super) async fn unary(
        &self,
        kind: Asked,
        timeout: Duration,
    ) -> Result<Answered, PeerError> {
        let _permit = self
            .calls
            .try_acquire()
            .map_err(|_| PeerError::Full("unary calls in flight"))?;
        let deadline = clock::now() + timeout;
        let late = |sent| PeerError::Timeout {
            sent,
            after: timeout,
        };
        let mut client = tokio::time::timeout_at(deadline, self.client())
            .await
            .map_err(|_| late(false))??;
        let request = pb::UnaryRequest {
            handshake: Some(self.gate.handshake(self.peer)),
            kind: Some(kind),
        };
        let answer = tokio::time::timeout_at(deadline, client.unary(request))
            .await
            .map_err(|_| late(true))?;
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                self.forget().await;
                return Err(call_error(&status));
            }
        };
        // It has handled the call, whoever it is.
        let known = self.gate.recognise(answer.handshake.as_ref(), self.peer);
        known.map_err(|error| PeerError::Lost {
            sent: true,
            detail: error.to_string(),
        })?;
        answer
            .kind
            .ok_or_else(|| PeerError::Protocol("an answer without content".to_owned()))
    }

    /// Sends a snapshot over a connection of its own.
    pub(super) async fn send_snapshot(
        &self,
        mut header: pb::SnapshotHeader,
        chunks: Chunks,
    ) -> Result<pb::SnapshotReply, PeerError> {
        let mut client = self.dial().await?;
        header.handshake = Some(self.gate.handshake(self.peer));
        let rate = self.snapshot_rate.load(Ordering::Relaxed);
        let (frames, mut outcome) = Outgoing::frames(header, chunks, rate);
        let answer = {
            let call = client.snapshot(frames);
            tokio::pin!(call);
            loop {
                let limit = match outcome.progress() {
                    Outcome::Complete => INSTALL_LIMIT,
                    _ => SNAPSHOT_STALL,
                };
                tokio::select! {
                    biased;
                    answer = &mut call => break answer,
                    () = outcome.changed() => {}
                    () = tokio::time::sleep(limit) => {
                        return Err(PeerError::Timeout { sent: true, after: limit });
                    }
                }
            }
        };
        // What went wrong here explains more than the peer's complaint about it.
        if let Outcome::Failed(error) = outcome.progress() {
            return Err(error);
        }
        let reply = answer.map_err(|status| call_error(&status))?.into_inner();
        self.recognise(reply.handshake.as_ref())?;
        Ok(reply)
    }

    /// Asks for a snapshot over a connection of its own, which lives as long as the chunks.
    pub(super) async fn fetch_snapshot(
        &self,
        at_least_index: u64,
    ) -> Result<(pb::SnapshotHeader, Chunks), PeerError> {
        let mut client = self.dial().await?;
        let request = pb::FetchSnapshotRequest {
            handshake: Some(self.gate.handshake(self.peer)),
            at_least_index,
        };
        let stalled = |_| PeerError::Timeout {
            sent: true,
            after: SNAPSHOT_STALL,
        };
        let frames = tokio::time::timeout(SNAPSHOT_STALL, client.fetch_snapshot(request))
            .await
            .map_err(stalled)?
            .map_err(|status| call_error(&status))?
            .into_inner();
        let (header, chunks) = read_frames(frames, SNAPSHOT_STALL).await?;
        self.recognise(header.handshake.as_ref())?;
        // The connection ends with its client.
        let chunks: BoxStream<'static, _> = chunks
            .map(move |chunk| {
                let _keep = &client;
                chunk
            })
            .boxed();
        Ok((header, chunks))
    }

    fn recognise(&self, shown: Option<&pb::Handshake>) -> Result<(), PeerError> {
        self.gate.recognise(shown, self.peer).map(drop)
    }

    /// The connection for small messages, opened if need be; others wait meanwhile.
    async fn client(&self) -> Result<PeerClient<Channel>, PeerError> {
        let mut small = self.small.lock().await;
        if let Some(client) = &small.client {
            return Ok(client.clone());
        }
        if let Some((at, error)) = &small.failed
            && clock::now() < *at + REDIAL_PAUSE
        {
            return Err(error.clone());
        }
        match self.dial().await {
            Ok(client) => {
                small.failed = None;
                small.client = Some(client.clone());
                Ok(client)
            }
            Err(error) => {
                small.failed = Some((clock::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Dials anew for the next small message.
    async fn forget(&self) {
        self.small.lock().await.client = None;
    }

    async fn dial(&self) -> Result<PeerClient<Channel>, PeerError> {
        let count = self.urls.len().max(1);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % count;
        let url = self.urls.get(turn);
        let url = url.ok_or_else(|| PeerError::Unreachable("no address".to_owned()))?;
        self.connector.connect(url).await
    }
}
