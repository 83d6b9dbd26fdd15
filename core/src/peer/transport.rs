//! All connections of one member to its peers: what `raft` and `node` hold.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::peer as pb;
use uuid::Uuid;

use super::PeerError;
use super::handler::{Chunks, Handler, RequestHandler};
use super::handshake::Local;
use super::session::AppendSession;
use super::status::PeerStatus;
use crate::tasks::Tasks;

/// The timing of the connections, derived from raft's.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// Raft's heartbeat interval: the stream is probed as often.
    pub heartbeat_interval: Duration,
    /// Raft's election timeout: a stream that is silent for as long is dropped, a connection that
    /// takes as long is given up.
    pub election_timeout: Duration,
}

/// The connections of one member. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Transport {}

impl Transport {
    /// A transport without peers; nothing is sent or accepted yet.
    #[must_use]
    pub fn new(local: Local, timings: Timings, tasks: &Tasks) -> Self {
        let _ = (local, timings, tasks);
        unimplemented!()
    }

    /// Who this member is.
    #[must_use]
    pub fn local(&self) -> Local {
        unimplemented!()
    }

    /// Sets what answers consensus messages. Until then peers are told that we are not ready.
    pub fn set_handler(&self, handler: Arc<dyn Handler>) {
        let _ = handler;
        unimplemented!()
    }

    /// Sets what answers all other requests. Until then peers are told that we are not ready.
    pub fn set_request_handler(&self, handler: Arc<dyn RequestHandler>) {
        let _ = handler;
        unimplemented!()
    }

    /// Adds a peer, or changes its name and addresses (`http://host:port`), and keeps a stream to it.
    pub fn set_peer(&self, id: u64, name: &str, urls: &[String]) {
        let _ = (id, name, urls);
        unimplemented!()
    }

    /// Forgets a peer and ends the stream to it.
    pub fn remove_peer(&self, id: u64) {
        let _ = id;
        unimplemented!()
    }

    /// Refuses every contact with this id from now on: it was removed from the cluster for good.
    pub fn refuse(&self, id: u64) {
        let _ = id;
        unimplemented!()
    }

    /// Binds a peer to its incarnation: from now on any other under this id is refused.
    pub fn set_incarnation(&self, id: u64, incarnation: Uuid) {
        let _ = (id, incarnation);
        unimplemented!()
    }

    /// The peer with this id, if it is known.
    #[must_use]
    pub fn peer(&self, id: u64) -> Option<Peer> {
        let _ = id;
        unimplemented!()
    }

    /// The state of every peer's connection, by id.
    #[must_use]
    pub fn status(&self) -> Vec<PeerStatus> {
        unimplemented!()
    }
}

/// A way to one peer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Peer {}

impl Peer {
    /// The peer's member id.
    #[must_use]
    pub fn id(&self) -> u64 {
        unimplemented!()
    }

    /// Opens an append session on the stream.
    ///
    /// # Errors
    /// [`PeerError::Unreachable`] while the stream is down: use [`Peer::append`] meanwhile.
    pub fn append_session(&self) -> Result<AppendSession, PeerError> {
        unimplemented!()
    }

    /// Sends one append as a session of its own, ahead of whatever the append sessions have
    /// queued: for heartbeats and probes. While the stream is down it goes as a unary call.
    ///
    /// # Errors
    /// See [`PeerError`].
    ///
    /// # Cancel safety
    /// Dropping the future forgets the answer; the peer may still handle the append.
    pub async fn append(
        &self,
        request: pb::AppendRequest,
        timeout: Duration,
    ) -> Result<pb::AppendReply, PeerError> {
        let _ = (request, timeout);
        unimplemented!()
    }

    /// Sends a request and waits for its response, at most `timeout`. While the stream is down it
    /// goes as a unary call.
    ///
    /// # Errors
    /// See [`PeerError`]; a response that is a failure is turned into one.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the response; the peer may still handle the request.
    pub async fn request(
        &self,
        request: pb::Request,
        timeout: Duration,
    ) -> Result<pb::Response, PeerError> {
        let _ = (request, timeout);
        unimplemented!()
    }

    /// Sends a snapshot over a connection of its own. The header's handshake is filled in here.
    ///
    /// # Errors
    /// See [`PeerError`]; an error among the chunks ends the call with that error.
    ///
    /// # Cancel safety
    /// Dropping the future breaks the connection: the peer sees an incomplete snapshot.
    pub async fn send_snapshot(
        &self,
        header: pb::SnapshotHeader,
        chunks: Chunks,
    ) -> Result<pb::SnapshotReply, PeerError> {
        let _ = (header, chunks);
        unimplemented!()
    }

    /// Asks the peer for a snapshot at or past `at_least_index`, over a connection of its own.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn fetch_snapshot(
        &self,
        at_least_index: u64,
    ) -> Result<(pb::SnapshotHeader, Chunks), PeerError> {
        let _ = at_least_index;
        unimplemented!()
    }
}
