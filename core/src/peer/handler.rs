//! What a member does with the messages of its peers; implemented above this layer.

use async_trait::async_trait;
use futures::stream::BoxStream;
use quorate_proto::peer as pb;

use super::PeerError;

/// The appends of one session, in order; ends when the caller ends it or the stream breaks.
pub type Appends = BoxStream<'static, pb::AppendRequest>;
/// The answers of one session, one an append, in order.
pub type Replies = BoxStream<'static, pb::AppendReply>;
/// The chunks of one snapshot, in order. It is complete only if the stream ends without an error.
pub type Chunks = BoxStream<'static, Result<pb::SnapshotChunk, PeerError>>;

/// Consensus messages. `from` is the caller's member id, checked by the handshake.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Handles a session of appends. Ending the answers ends the session.
    fn append_session(&self, from: u64, appends: Appends) -> Replies;

    /// Answers a vote, a pre-vote, a leadership transfer or how far a snapshot came; others never get
    /// here.
    async fn request(&self, from: u64, request: pb::Request) -> pb::Response;

    /// Receives a snapshot and installs it.
    ///
    /// # Errors
    /// Any; the caller gets [`PeerError::Failed`] with its text. A broken or incomplete stream of
    /// chunks must lead to one, and leave the state as it was.
    async fn snapshot(
        &self,
        from: u64,
        header: pb::SnapshotHeader,
        chunks: Chunks,
    ) -> Result<pb::SnapshotReply, PeerError>;

    /// Serves a snapshot at or past `at_least_index`, to a member that cannot start without one.
    ///
    /// # Errors
    /// Any; the caller gets [`PeerError::Failed`] with its text. The default serves none.
    async fn fetch_snapshot(
        &self,
        from: u64,
        at_least_index: u64,
    ) -> Result<(pb::SnapshotHeader, Chunks), PeerError> {
        let _ = (from, at_least_index);
        Err(PeerError::NotReady("serves no snapshots".to_owned()))
    }
}

/// Messages between nodes: all requests that are not consensus messages.
#[async_trait]
pub trait RequestHandler: Send + Sync + 'static {
    /// Answers a request. One it does not know gets a failure of kind `UnknownMessage`.
    async fn request(&self, from: u64, request: pb::Request) -> pb::Response;

    /// Who is in the cluster, for a member that is about to join.
    async fn members(&self) -> Option<pb::MembersResponse> {
        None
    }

    /// Adds the caller to the cluster. The default adds nobody.
    async fn join(&self, request: pb::JoinRequest) -> Option<pb::JoinResponse> {
        let _ = request;
        None
    }
}
