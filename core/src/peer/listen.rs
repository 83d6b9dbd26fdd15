//! The listening side of the transport's connections.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, Transport};
use crate::tasks::Tasks;

/// A connection that is silent this long is asked whether it still lives.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// And is closed if it has not answered within this.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

impl Transport {
    /// Accepts peers on a bound listener until `tasks` are cancelled.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn serve(&self, listener: TcpListener, tasks: &Tasks) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .add_service(self.service())
            .serve_with_incoming_shutdown(incoming, tasks.cancelled());
        tasks.spawn_draining("peer listener", async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "peers can no longer connect");
            }
        });
        Ok(())
    }
}
