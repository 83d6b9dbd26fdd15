//! The Watch service: carries one stream's requests to a watch session and its answers back.

use std::convert::Infallible;
use std::pin::Pin;

use futures::Stream;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::watch_server;
use quorate_proto::etcdserverpb::{WatchRequest, WatchResponse};
use tonic::{Request, Response, Status, Streaming};

use super::in_etcds_words;
use crate::node::{Node, WatchControl, WatchSession};
use crate::tasks::Tasks;

/// etcd's Watch service, for one member.
#[derive(Debug)]
pub struct Watch {
    node: Node,
    serving: Tasks,
}

impl Watch {
    /// The service of this member; its calls end when `serving` is cancelled.
    #[must_use]
    pub fn new(node: Node, serving: Tasks) -> Self {
        Self { node, serving }
    }
}

/// What one call holds.
struct Call {
    session: WatchSession,
    /// Carries requests to the session; ends when the call breaks.
    requests: Pin<Box<dyn Future<Output = Result<Infallible, Status>> + Send>>,
    /// Ends when the server stops.
    stopping: Pin<Box<dyn Future<Output = ()> + Send>>,
}

#[tonic::async_trait]
impl watch_server::Watch for Watch {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let session = self.node.watch();
        let call = Call {
            requests: Box::pin(carry(request.into_inner(), session.control())),
            session,
            stopping: Box::pin(self.serving.cancelled()),
        };
        let answers = futures::stream::unfold(Some(call), |call| async move {
            let mut call = call?;
            match call.answer().await {
                Ok(answer) => Some((Ok(answer), Some(call))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Call {
    /// The next answer, or the end of the call. All branches are cancel safe: the two inner
    /// futures are kept over calls.
    async fn answer(&mut self) -> Result<WatchResponse, Status> {
        tokio::select! {
            biased;
            broken = &mut self.requests => match broken? {},
            answer = self.session.next() => Ok(answer?),
            () = &mut self.stopping => Err(Reason::Stopped.into()),
        }
    }
}

/// Carries requests to the session. As on etcd, a client that has no more of them still gets
/// answers: this ends only when the call breaks.
async fn carry(
    mut requests: Streaming<WatchRequest>,
    control: WatchControl,
) -> Result<Infallible, Status> {
    while let Some(request) = requests.message().await.map_err(in_etcds_words)? {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => control.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => control.cancel(cancel.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => control.progress().await,
            None => {}
        }
        // A client that never pauses must not keep its answers, and others, from getting their turn.
        tokio::task::coop::consume_budget().await;
    }
    std::future::pending().await
}
