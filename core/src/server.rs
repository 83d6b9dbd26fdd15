//! Listeners: accepts client connections and routes them to gRPC services and HTTP routes. Used by
//! the binary and by tests.

use std::net::{SocketAddr, TcpListener};

use crate::node::Node;

/// What a server serves and where, before it listens. Made by [`Server::builder`].
#[derive(Debug)]
#[must_use = "nothing listens until `start`"]
pub struct ServerBuilder {}

/// A listening server. Dropping it closes its connections at once; [`Server::stop`] waits for them.
#[derive(Debug)]
pub struct Server {}

impl Server {
    /// A server of this member with etcd's services, that listens nowhere yet.
    pub fn builder(_node: Node) -> ServerBuilder {
        unimplemented!()
    }

    /// The bound addresses, in the order they were given.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        unimplemented!()
    }

    /// Stops accepting, lets running requests end for a while, then closes.
    pub async fn stop(self) {
        unimplemented!()
    }
}

impl ServerBuilder {
    /// Also listens on this `http://host:port`; port 0 lets the system choose.
    pub fn listen(self, _url: impl Into<String>) -> Self {
        unimplemented!()
    }

    /// Also serves this bound listener.
    pub fn listener(self, _listener: TcpListener) -> Self {
        unimplemented!()
    }

    /// Adds gRPC services: `|routes| { routes.add_service(..); }`.
    pub fn services(self, _add: impl FnOnce(&mut tonic::service::RoutesBuilder)) -> Self {
        unimplemented!()
    }

    /// Adds HTTP routes.
    pub fn routes(self, _routes: axum::Router) -> Self {
        unimplemented!()
    }

    /// Binds all addresses and serves.
    ///
    /// # Errors
    /// An address that cannot be bound; nothing listens then.
    pub async fn start(self) -> std::io::Result<Server> {
        unimplemented!()
    }
}
