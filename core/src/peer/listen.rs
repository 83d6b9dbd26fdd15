//! The listening side of the transport's connections.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use tonic::service::Routes;

use super::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, Transport};
use crate::accept::{self, Gate, Manners};
use crate::tasks::Tasks;

/// Connections of peers at once, half of it from one address. A member opens one for its stream,
/// one for small messages and one for each snapshot.
const CONNECTIONS_MAX: usize = 128;

const MANNERS: Manners = Manners {
    whose: "a member's",
    calls_max: 1_000,
    ping_interval: Duration::from_secs(10),
    ping_timeout: Duration::from_secs(10),
    call_window_bytes: STREAM_WINDOW_BYTES,
    connection_window_bytes: CONNECTION_WINDOW_BYTES,
};

impl Transport {
    /// Accepts peers on a bound listener until `tasks` are cancelled.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn serve(&self, listener: TcpListener, tasks: &Tasks) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = Routes::new(self.service()).into_axum_router();
        let gate = Gate::new(CONNECTIONS_MAX);
        accept::run(listener, router, gate, MANNERS, tasks);
        Ok(())
    }
}
