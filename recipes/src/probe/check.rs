//! One question to a target, and its answer.

use std::ffi::OsString;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::net::TcpStream;

use super::command::Program;
use super::{grpc, http};

/// Passed, or why it failed.
pub(super) type Answer = Result<(), String>;

/// What is asked.
#[derive(Clone)]
pub(super) enum Check {
    Tcp(String),
    Http(String),
    Grpc { endpoint: String, service: String },
    Command(Program),
    Call(Arc<dyn Fn() -> BoxFuture<'static, Answer> + Send + Sync>),
}

impl Check {
    /// Says what is wrong with it, before it is ever asked.
    pub(super) fn validate(&self) -> Answer {
        match self {
            Self::Tcp(address) => {
                let port = address.rsplit_once(':');
                let port = port.filter(|(host, _)| !host.is_empty());
                let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
                match port {
                    Some(1..) => Ok(()),
                    _ => Err(format!("{address:?} is no address: host:port")),
                }
            }
            Self::Http(url) => http::Target::parse(url).map(drop),
            Self::Grpc { endpoint, .. } => grpc::endpoint(endpoint).map(drop),
            Self::Command(Program { path, .. }) if *path == OsString::new() => {
                Err("the program of a probe has no name".to_owned())
            }
            Self::Command(_) | Self::Call(_) => Ok(()),
        }
    }

    /// Asks.
    pub(super) async fn ask(&self) -> Answer {
        match self {
            Self::Tcp(address) => {
                let connected = TcpStream::connect(address).await;
                connected.map(drop).map_err(|error| error.to_string())
            }
            Self::Http(url) => http::Target::parse(url)?.ask().await,
            Self::Grpc { endpoint, service } => grpc::ask(endpoint, service).await,
            Self::Command(program) => program.run().await,
            Self::Call(call) => {
                let answer = AssertUnwindSafe(async { call().await })
                    .catch_unwind()
                    .await;
                answer.unwrap_or_else(|_| Err("the check panicked".to_owned()))
            }
        }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.debug_tuple("Tcp").field(address).finish(),
            Self::Http(url) => f.debug_tuple("Http").field(url).finish(),
            Self::Grpc { endpoint, service } => f
                .debug_tuple("Grpc")
                .field(endpoint)
                .field(service)
                .finish(),
            Self::Command(program) => f.debug_tuple("Command").field(&program.path).finish(),
            Self::Call(_) => f.write_str("Call"),
        }
    }
}

/// An error and what it comes from, in one line.
pub(super) fn because(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let told = cause.to_string();
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        source = cause.source();
    }
    text
}
