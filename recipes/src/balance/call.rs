//! The answer to one call over a balanced channel: outstanding until it has come to an end, and then a
//! success or a failure of the instance, by its gRPC status; without one it is a failure, whatever else it says.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Frame, SizeHint};
use tonic::Code;
use tonic::body::Body;

use super::pick::Pick;

/// The body of an answer, which holds the pick.
pub(super) struct Counted<M: Send + Sync + 'static> {
    body: Body,
    /// Until it is known how the call went.
    pick: Option<Pick<M>>,
}

impl<M: Send + Sync + 'static> Counted<M> {
    /// An answer that ends the pick when it has ended, or is dropped.
    pub(super) fn answer(response: Response<Body>, pick: Pick<M>) -> Response<Body> {
        let code = status(response.headers()).or_else(|| {
            // Of a proxy, or of a server that is none of gRPC's. Its body tells nothing.
            (response.status() != StatusCode::OK).then_some(Code::Unavailable)
        });
        if let Some(code) = code {
            settle(pick, code);
            return response;
        }
        response.map(|body| {
            Body::new(Self {
                body,
                pick: Some(pick),
            })
        })
    }

    fn settle(&mut self, code: Code) {
        if let Some(pick) = self.pick.take() {
            settle(pick, code);
        }
    }
}

/// The status, where there is one: gRPC puts it at the end, or first when there is nothing else.
fn status(headers: &HeaderMap) -> Option<Code> {
    headers
        .get("grpc-status")
        .map(|code| Code::from_bytes(code.as_bytes()))
}

fn settle<M: Send + Sync + 'static>(pick: Pick<M>, code: Code) {
    match code {
        Code::Unavailable
        | Code::Internal
        | Code::Unknown
        | Code::DataLoss
        | Code::DeadlineExceeded => pick.failure(),
        _ => pick.success(),
    }
}

impl<M: Send + Sync + 'static> http_body::Body for Counted<M> {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(code) = frame.trailers_ref().and_then(status) {
                    self.settle(code);
                }
            }
            Some(Err(_)) => self.settle(Code::Unavailable),
            // Cut off, as by a proxy that gave up: gRPC ends an answer with its status.
            None => self.settle(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
