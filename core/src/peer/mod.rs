//! Talking to the other members: one long-lived stream a direction of each pair for everything
//! small, and a pipeline of short-lived calls for what is large, or for when the stream is down.
//!
//! Messages are those of [`quorate_proto::peer`]; no raft library's type is seen here. The use is
//! by `raft::network` and `node`, which send through [`Transport::peer`], and by `raft::handler`
//! and `node`, which answer through [`Handler`] and [`RequestHandler`].
//!
//! ```text
//!  Peer ── append_session ┐                               ┌ Handler::append_session
//!       ── append ────────┤                               │ Handler::request
//!       ── request ───────┼ Link: lanes ─ one call ─ Incoming ┤ RequestHandler::request
//!       ── (no link) ─────┼ Pipeline ── unary call ─ Service ─┘
//!       ── send_snapshot ─┴ Pipeline ── connection ─ Service ── Handler::snapshot
//! ```
//!
//! Nothing here sends a message twice, and sending never blocks on a slow peer: a full buffer
//! refuses and says so. What was under way when a stream breaks fails at once, and the error says
//! whether the peer may have got it. Appends of one session arrive and are answered in order;
//! between sessions, and between requests, there is no order. A request whose stream breaks is
//! still finished by the peer.

mod error;
mod handler;
mod transport;

mod counts;
mod handshake;
mod status;

mod link;
mod session;
mod stream;

mod pipeline;
mod snapshot;

mod dispatch;
mod incoming;
mod listen;
mod service;

mod connector;
mod lanes;

#[cfg(test)]
mod tests;

pub use connector::{
    CONNECTION_WINDOW_BYTES, Connection, Dial, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
};
pub use counts::{RoundTrips, TransferCounts};
pub use error::PeerError;
pub use handler::{Appends, Chunks, Handler, Replies, RequestHandler};
pub use handshake::{Local, PROTOCOL_VERSION};
pub use service::PeerService;
pub use session::AppendSession;
pub use status::{Activity, PeerStatus};
pub use transport::{Peer, Timings, Transport, ask_to_join, fetch_members};
