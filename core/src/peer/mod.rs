//! Talking to the other members: one long-lived stream a direction of each pair for everything
//! small, and a pipeline of short-lived calls for what is large, or for when the stream is down.
//!
//! Messages are those of [`quorate_proto::peer`]; no raft library's type is seen here. The use is
//! by `raft::network` and `node`, which send through [`Transport::peer`], and by `raft::handler`
//! and `node`, which answer through [`Handler`] and [`RequestHandler`].
//!
//! ```text
//!  Peer ── AppendSession ┐                                  ┌ Handler::append_session
//!       ── request ──────┤ Link: lanes ── one call ── Inbound ┤ Handler::request
//!       (no link) ───────┼─ Pipeline: unary call ─── Service ─┤ RequestHandler::request
//!       ── send_snapshot ┴─ Pipeline: own connection ─────────┴ Handler::snapshot
//! ```
//!
//! Nothing here retries a message. Sending never blocks on a slow peer: a full buffer refuses and
//! says so. What was under way when a stream breaks fails at once, and the error says whether the
//! peer may have got it.

mod error;
mod handler;
mod handshake;
mod session;
mod status;
mod transport;

pub use error::PeerError;
pub use handler::{Appends, Chunks, Handler, Replies, RequestHandler};
pub use handshake::{Local, PROTOCOL_VERSION};
pub use session::AppendSession;
pub use status::{Activity, PeerStatus};
pub use transport::{Peer, Timings, Transport};
