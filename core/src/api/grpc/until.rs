//! An answer's body that something from outside may end. Used by the layers around the services.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;

/// A refusal as a whole answer.
pub(super) fn refusal(status: Status) -> Response {
    status.into_http::<tonic::body::Body>().map(Body::new)
}

/// The answer, which ends with the status that `end` gives, if that comes first.
pub(super) fn until(
    response: Response,
    end: impl Future<Output = Status> + Send + 'static,
) -> Response {
    response.map(|inner| {
        let end = Some(Box::pin(end) as _);
        Body::new(Until { inner, end })
    })
}

struct Until {
    inner: Body,
    /// None once it has ended the body.
    end: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(end) = &mut self.end else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(status) = end.as_mut().poll(context) {
            self.end = None;
            let mut trailers = HeaderMap::new();
            let told = status.add_header(&mut trailers);
            let trailers = told.map(|()| Frame::trailers(trailers));
            return Poll::Ready(Some(trailers.map_err(axum::Error::new)));
        }
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
