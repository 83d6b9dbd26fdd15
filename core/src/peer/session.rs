//! The sending side of one append session, used by `raft::network`.

use quorate_proto::peer as pb;

use super::PeerError;

/// A logical stream of appends to one peer: answers come in the order of the appends.
///
/// Dropping it ends the session at the peer. It never moves to another connection: when the stream
/// breaks, the session ends with [`PeerError::Lost`].
#[derive(Debug)]
pub struct AppendSession {}

impl AppendSession {
    /// Appends sent and not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        unimplemented!()
    }

    /// Waits until [`AppendSession::try_send`] has room, or the session is over.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn room(&mut self) {
        unimplemented!()
    }

    /// Queues one append.
    ///
    /// # Errors
    /// [`PeerError::Full`] when the session's window or the append lane is full: the append was
    /// not sent and the session lives on. [`PeerError::Lost`] when the stream broke.
    pub fn try_send(&mut self, request: pb::AppendRequest) -> Result<(), PeerError> {
        let _ = request;
        unimplemented!()
    }

    /// The next answer; `None` when the peer ended the session in good order.
    ///
    /// # Errors
    /// Whatever ended the session.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn reply(&mut self) -> Option<Result<pb::AppendReply, PeerError>> {
        unimplemented!()
    }
}
