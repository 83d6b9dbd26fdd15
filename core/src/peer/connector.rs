//! The only place that opens connections to peers, used by the stream and the pipeline.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use quorate_proto::peer::peer_client::PeerClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::PeerError;

/// Largest message between members, in bytes. More than twice the largest request a client may be
/// allowed to send, since a log entry carries a batch of them.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// HTTP/2 flow-control window of a stream between members, in bytes: two of the largest usual
/// appends, so that one is on the way while another is read.
pub const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// HTTP/2 flow-control window of a connection between members, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// An open byte stream to a peer.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

/// Opens byte streams; a simulation has its own.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// Opens a byte stream to `host` and `port`.
    ///
    /// # Errors
    /// When nobody answers there.
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>>;
}

/// Dials TCP.
#[derive(Debug, Clone, Copy)]
struct Tcp;

#[async_trait]
impl Dial for Tcp {
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// Opens HTTP/2 connections to peers.
#[derive(Clone)]
pub(super) struct Connector {
    dial: Arc<Mutex<Arc<dyn Dial>>>,
    /// Limit for opening a connection, and for a kept-alive one to be silent.
    timeout: Duration,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector over TCP.
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            dial: Arc::new(Mutex::new(Arc::new(Tcp))),
            timeout,
        }
    }

    /// Dials by other means from now on.
    pub(super) fn dial_with(&self, dial: Arc<dyn Dial>) {
        *self.dial.lock().unwrap_or_else(PoisonError::into_inner) = dial;
    }

    /// Connects to `url` and speaks HTTP/2 there.
    ///
    /// # Errors
    /// [`PeerError::Unreachable`].
    pub(super) async fn connect(&self, url: &str) -> Result<PeerClient<Channel>, PeerError> {
        let unreachable = |why: String| PeerError::Unreachable(format!("{url}: {why}"));
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|error| unreachable(chain(&error)))?
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(self.timeout)
            .keep_alive_timeout(self.timeout)
            .keep_alive_while_idle(true);
        let dial = Arc::clone(&self.dial.lock().unwrap_or_else(PoisonError::into_inner));
        let dialler = tower::service_fn(move |uri: Uri| {
            let dial = Arc::clone(&dial);
            async move {
                let (host, port) = address(&uri)?;
                dial.dial(&host, port).await.map(TokioIo::new)
            }
        });
        let connecting = endpoint.connect_with_connector(dialler);
        let channel = tokio::time::timeout(self.timeout, connecting)
            .await
            .map_err(|_| unreachable(format!("no connection within {:?}", self.timeout)))?
            .map_err(|error| unreachable(chain(&error)))?;
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

/// Host and port of a peer URL.
fn address(uri: &Uri) -> io::Result<(String, u16)> {
    let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    if uri.scheme_str() != Some("http") {
        return Err(invalid("a peer URL must start with http://"));
    }
    let host = uri.host().ok_or_else(|| invalid("no host in the URL"))?;
    let port = uri
        .port_u16()
        .ok_or_else(|| invalid("no port in the URL"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), port))
}

/// An error with its causes: transport errors say little without them.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// What a failed call to a peer means. Codes that the transport itself produces mean that the
/// connection was lost, unless it had never been made.
pub(super) fn call_error(status: &tonic::Status) -> PeerError {
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        if inner.is::<tonic::ConnectError>() {
            return PeerError::Unreachable(chain(inner));
        }
        cause = inner.source();
    }
    let detail = status.message().to_owned();
    if std::error::Error::source(status).is_some() {
        // Made here, by the transport; what the peer says comes without a source.
        return PeerError::Lost {
            sent: true,
            detail: chain(status),
        };
    }
    match status.code() {
        tonic::Code::FailedPrecondition => PeerError::Refused(detail),
        tonic::Code::PermissionDenied => PeerError::Removed(detail),
        tonic::Code::ResourceExhausted => PeerError::Full("the peer's"),
        tonic::Code::Aborted => PeerError::NotReady(detail),
        tonic::Code::Internal | tonic::Code::OutOfRange => PeerError::Failed(detail),
        tonic::Code::InvalidArgument => PeerError::Protocol(detail),
        code => PeerError::Lost {
            sent: true,
            detail: format!("{code:?}: {}", chain(status)),
        },
    }
}

/// The status that [`call_error`] turns back into `error`.
pub(super) fn to_status(error: &PeerError) -> tonic::Status {
    let text = error.to_string();
    match error {
        PeerError::Refused(why) => tonic::Status::failed_precondition(why),
        PeerError::Removed(why) => tonic::Status::permission_denied(why),
        PeerError::Full(_) => tonic::Status::resource_exhausted(text),
        PeerError::NotReady(why) => tonic::Status::aborted(why),
        PeerError::Protocol(why) => tonic::Status::invalid_argument(why),
        PeerError::Failed(why) => tonic::Status::internal(why),
        PeerError::Unknown(_)
        | PeerError::Unreachable(_)
        | PeerError::Lost { .. }
        | PeerError::Timeout { .. }
        | PeerError::Cancelled(_) => tonic::Status::internal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_taken_apart() {
        let parts = |url: &str| address(&url.parse().unwrap()).ok();
        assert_eq!(parts("http://a.b:2380"), Some(("a.b".to_owned(), 2380)));
        assert_eq!(parts("http://[::1]:2380"), Some(("::1".to_owned(), 2380)));
        assert_eq!(
            parts("https://a:2380"),
            None,
            "never plain where TLS was asked for"
        );
        assert_eq!(parts("http://a"), None);
    }

    #[test]
    fn what_the_peer_said_survives_the_call() {
        for error in [
            PeerError::Refused("cluster".to_owned()),
            PeerError::Removed("you".to_owned()),
            PeerError::NotReady("starting".to_owned()),
            PeerError::Failed("disk".to_owned()),
            PeerError::Protocol("order".to_owned()),
        ] {
            assert_eq!(call_error(&to_status(&error)), error);
        }
        assert!(call_error(&to_status(&PeerError::Full("queue"))).certainly_not_handled());
        assert!(!call_error(&tonic::Status::unavailable("gone")).certainly_not_handled());
    }
}
