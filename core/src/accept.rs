//! The accept stage of every listener: bounds how many connections there are and how long one may
//! take to say what it wants, then hands it to the HTTP server. Without it whoever connects and
//! keeps silent holds a socket for ever. Used by `server` for clients and by `peer` for members.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

use crate::tasks::Tasks;

/// How long a connection may take from accept to the end of its HTTP/2 preface, or of an HTTP/1
/// request's head.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for the rest of a preface that came in pieces.
const PIECE_PAUSE: Duration = Duration::from_millis(10);
/// How long to wait after the system refused to accept, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection is silent before the other machine is probed, how often it is then, and how
/// often in vain before the connection is closed.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// Bytes of a request's headers: room for large tokens.
const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// Calls given up before they began, at most, whatever the limit of calls: an endless row of them is
/// an attack.
const RESETS_MAX: u32 = 10_000;
/// How long running requests may take once the listener stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(4);
/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The preface and the head of the SETTINGS frame that must follow it.
const HANDSHAKE_BYTES: usize = PREFACE.len() + 9;

/// How connections of one kind are held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manners {
    /// Whose they are, for the log.
    pub(crate) whose: &'static str,
    /// Calls on one connection at once; the next waits at the other end.
    pub(crate) calls_max: u32,
    /// A connection that is silent this long is asked whether it still lives.
    pub(crate) ping_interval: Duration,
    /// And is closed if it has not answered within this.
    pub(crate) ping_timeout: Duration,
    /// Bytes in flight towards us on one call.
    pub(crate) call_window_bytes: u32,
    /// Bytes in flight towards us on one connection.
    pub(crate) connection_window_bytes: u32,
}

/// Counts connections, in total and by address.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max: usize,
}

/// One counted connection.
#[derive(Debug)]
struct Admission {
    gate: Gate,
    address: IpAddr,
}

impl Gate {
    /// Lets in at most `max` connections, and at most half of them from one address.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            open: Arc::default(),
            max,
        }
    }

    fn admit(&self, address: IpAddr) -> Option<Admission> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = open.values().sum();
        let count = open.entry(address).or_default();
        if total >= self.max || *count >= self.max.div_ceil(2) {
            if *count == 0 {
                open.remove(&address);
            }
            return None;
        }
        *count += 1;
        Some(Admission {
            gate: self.clone(),
            address,
        })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut open = self
            .gate
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Accepts on `listener` until `tasks` are cancelled; each connection is a task of the group.
pub(crate) fn run(
    listener: TcpListener,
    router: Router,
    gate: Gate,
    manners: Manners,
    tasks: &Tasks,
) {
    let connections = tasks.clone();
    tasks.spawn("accept", async move {
        let mut failed = Transition::default();
        let mut refused = Transition::default();
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    if failed.begins() {
                        tracing::warn!(%error, whose = manners.whose, "cannot accept, trying on");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            failed.ends();
            let Some(admission) = gate.admit(address.ip()) else {
                if refused.begins() {
                    let (whose, max) = (manners.whose, gate.max);
                    tracing::warn!(%address, whose, max, "too many connections, refusing");
                }
                continue;
            };
            refused.ends();
            let serve = serve(
                stream,
                address,
                router.clone(),
                manners,
                connections.clone(),
            );
            connections.spawn_draining("connection", async move {
                serve.await;
                drop(admission);
            });
        }
    });
}

/// Tells the first of a row of events, so that only that is logged.
#[derive(Debug, Default)]
struct Transition(bool);

impl Transition {
    fn begins(&mut self) -> bool {
        !std::mem::replace(&mut self.0, true)
    }
    fn ends(&mut self) {
        self.0 = false;
    }
}

/// Errors of a connection that was gone before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    manners: Manners,
    tasks: Tasks,
) {
    // The second ends what waits for a machine that is gone, for which HTTP/1 has no means.
    let options = stream.set_nodelay(true).and_then(|()| {
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_TIME)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)
    });
    if let Err(error) = options {
        tracing::debug!(%address, %error, "cannot set options of a connection");
    }
    let began = tokio::select! {
        () = tasks.cancelled() => return,
        began = tokio::time::timeout(HANDSHAKE_TIMEOUT, begins(&stream)) => began,
    };
    if !matches!(began, Ok(Ok(true))) {
        tracing::debug!(%address, "connection closed before it began");
        return;
    }
    let builder = http(manners);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%address, %error, "connection ended");
            }
            return;
        }
        () = tasks.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    if tokio::time::timeout(DRAIN_LIMIT, connection).await.is_err() {
        tracing::debug!(%address, "connection closed with calls under way");
    }
}

/// Waits until a client has shown an HTTP/2 handshake or the beginning of something else, which
/// the HTTP/1 server times by itself. False when it hung up.
async fn begins(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; HANDSHAKE_BYTES];
    loop {
        let length = stream.peek(&mut seen).await?;
        let (head, preface) = (&seen[..length.min(PREFACE.len())], PREFACE);
        if length == 0 {
            return Ok(false);
        }
        if length == HANDSHAKE_BYTES || !preface.starts_with(head) {
            return Ok(true);
        }
        tokio::time::sleep(PIECE_PAUSE).await;
    }
}

fn http(manners: Manners) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(manners.ping_interval)
        .keep_alive_timeout(manners.ping_timeout)
        .max_concurrent_streams(manners.calls_max)
        // A client may give up all its calls at once; the default of 20 would end its connection.
        .max_pending_accept_reset_streams(usize::try_from(manners.calls_max.min(RESETS_MAX)).ok())
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(manners.call_window_bytes)
        .initial_connection_window_size(manners.connection_window_bytes);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_bounds_connections_in_total_and_by_address() {
        let gate = Gate::new(4);
        let (one, other, third) = ([127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]);
        let first = [
            gate.admit(one.into()).unwrap(),
            gate.admit(one.into()).unwrap(),
        ];
        assert!(
            gate.admit(one.into()).is_none(),
            "half is the share of one address"
        );
        let _others = [
            gate.admit(other.into()).unwrap(),
            gate.admit(other.into()).unwrap(),
        ];
        assert!(gate.admit(third.into()).is_none(), "4 are open");
        drop(first);
        assert!(gate.admit(third.into()).is_some());
    }
}
