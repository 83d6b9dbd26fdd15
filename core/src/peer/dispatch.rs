//! Hands incoming messages to their handlers, whether they came by stream or by unary call.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_proto::peer as pb;
use quorate_proto::peer::failure::Kind as FailureKind;
use quorate_proto::peer::request::Kind as Asked;

use super::handler::{Handler, RequestHandler};

/// The handlers, as far as they are set.
#[derive(Default)]
pub(super) struct Dispatch {
    handlers: Mutex<Handlers>,
}

#[derive(Default, Clone)]
struct Handlers {
    raft: Option<Arc<dyn Handler>>,
    node: Option<Arc<dyn RequestHandler>>,
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handlers = self.handlers();
        f.debug_struct("Dispatch")
            .field("raft", &handlers.raft.is_some())
            .field("node", &handlers.node.is_some())
            .finish()
    }
}

impl Dispatch {
    pub(super) fn set_raft(&self, handler: Option<Arc<dyn Handler>>) {
        self.change(|handlers| handlers.raft = handler);
    }

    pub(super) fn set_node(&self, handler: Option<Arc<dyn RequestHandler>>) {
        self.change(|handlers| handlers.node = handler);
    }

    /// What handles consensus messages, once it is set.
    pub(super) fn raft(&self) -> Option<Arc<dyn Handler>> {
        self.handlers().raft
    }

    /// What handles other requests, once it is set.
    pub(super) fn node(&self) -> Option<Arc<dyn RequestHandler>> {
        self.handlers().node
    }

    /// Answers a request.
    pub(super) async fn request(&self, from: u64, request: pb::Request) -> pb::Response {
        let not_ready = || refusal(FailureKind::NotReady, "starting");
        match request.kind {
            None => refusal(FailureKind::UnknownMessage, "no request of a known kind"),
            Some(
                Asked::Vote(_)
                | Asked::PreVote(_)
                | Asked::TransferLeader(_)
                | Asked::SnapshotProgress(_),
            ) => match self.raft() {
                Some(handler) => handler.request(from, request).await,
                None => not_ready(),
            },
            Some(_) => match self.node() {
                Some(handler) => handler.request(from, request).await,
                None => not_ready(),
            },
        }
    }

    fn handlers(&self) -> Handlers {
        let handlers = self.handlers.lock();
        handlers.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Handlers)) {
        let handlers = self.handlers.lock();
        change(&mut handlers.unwrap_or_else(PoisonError::into_inner));
    }
}

/// A response that says why there is none.
pub(super) fn refusal(kind: FailureKind, detail: &str) -> pb::Response {
    pb::Response {
        kind: Some(pb::response::Kind::Failure(failed(kind, detail))),
    }
}

/// A failure message.
pub(super) fn failed(kind: FailureKind, detail: &str) -> pb::Failure {
    pb::Failure {
        kind: kind.into(),
        detail: detail.to_owned(),
    }
}
