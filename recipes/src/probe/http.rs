//! The check by HTTP: one GET on a connection of its own.

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{Request, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::check::{Answer, because};

/// Whom to ask what.
pub(super) struct Target {
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Target {
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
        if uri.scheme_str() != Some("http") {
            return Err(format!("{url:?} is no http:// URL"));
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err(format!("{url:?} has a user: a probe does not log in"));
        }
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(format!("{url:?} has no host"));
        }
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(80),
            authority: authority.to_owned(),
            path: uri
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .to_owned(),
        })
    }

    pub(super) async fn ask(&self) -> Answer {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = TokioIo::new(stream.map_err(|error| error.to_string())?);
        let opened = http1::handshake(stream).await;
        let (mut sender, connection) = opened.map_err(|error| because(&error))?;
        let request = Request::get(&self.path)
            .header(HOST, &self.authority)
            .header(USER_AGENT, "quorate-probe")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request);
        tokio::pin!(answer);
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer,
            // The answer may have been the last that came.
            _ = connection => answer.await,
        };
        let status = answer.map_err(|error| because(&error))?.status();
        match status.is_success() {
            true => Ok(()),
            false => Err(format!("answered with {status}")),
        }
    }
}
