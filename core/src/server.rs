//! Listeners: accepts client connections and routes them to gRPC services and HTTP routes, both
//! HTTP/2 and HTTP/1.1 on one port. Used by the binary and by tests.

mod around;
mod front;
mod words;

pub use front::FrontBuilder;

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use tonic::service::{Routes, RoutesBuilder};

use self::around::Around;
use crate::accept::{self, Manners};
use crate::api;
use crate::api::grpc::Traffic;
use crate::api::http::gateway::{ROUTES, Route};
use crate::api::http::origin::Access;
use crate::config::{Limits, url_authority};
use crate::node::Node;
use crate::tasks::Tasks;

/// How long [`Server::stop`] lets running requests end before it closes their connections.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How client connections are held that may have so many calls at once. Watches and keep-alives are
/// long calls, so it is far more than HTTP/2's usual 100.
const fn manners(calls_max: u32) -> Manners {
    Manners {
        calls_max,
        whose: "a client's",
        ping_interval: Duration::from_secs(30),
        ping_timeout: Duration::from_secs(20),
        call_window_bytes: 1024 * 1024,
        connection_window_bytes: 8 * 1024 * 1024,
    }
}

/// What a server serves and where, before it listens. Made by [`Server::builder`].
#[derive(Debug)]
#[must_use = "nothing listens until `start`"]
pub struct ServerBuilder {
    node: Node,
    urls: Vec<String>,
    listeners: Vec<TcpListener>,
    services: RoutesBuilder,
    gateway: Vec<Route>,
    routes: Router,
    access: Access,
    traffic: Traffic,
    tasks: Tasks,
}

/// A listening server. Dropping it stops accepting and closes its connections;
/// [`Server::stop`] also waits for them.
#[derive(Debug)]
pub struct Server {
    addrs: Vec<SocketAddr>,
    tasks: Tasks,
}

impl Server {
    /// A server of this member with etcd's services and the HTTP routes, that listens nowhere yet.
    pub fn builder(node: Node) -> ServerBuilder {
        let mut services = Routes::builder();
        let tasks = Tasks::new();
        api::grpc::add_services(&mut services, &node, &tasks);
        let traffic = Traffic::new();
        ServerBuilder {
            routes: api::http::routes(node.clone(), traffic.clone()),
            access: Access::default(),
            traffic,
            node,
            urls: Vec::new(),
            listeners: Vec::new(),
            services,
            gateway: ROUTES.to_vec(),
            tasks,
        }
    }

    /// A server of gRPC services and HTTP routes that are not a member's, that listens nowhere yet.
    pub fn front(limits: Limits) -> FrontBuilder {
        FrontBuilder::new(limits)
    }

    /// The bound addresses, in the order they were given.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Stops accepting, lets running requests end for at most 5 s, then closes. Stop the server
    /// before its node: requests under way can then still be answered.
    pub async fn stop(self) {
        if !self.tasks.stop(STOP_LIMIT).await {
            tracing::warn!("some connections had to be closed with requests under way");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl ServerBuilder {
    /// Also listens on this `http://host:port`; port 0 lets the system choose.
    pub fn listen(mut self, url: impl Into<String>) -> Self {
        self.urls.push(url.into());
        self
    }

    /// Also serves this bound listener.
    pub fn listener(mut self, listener: TcpListener) -> Self {
        self.listeners.push(listener);
        self
    }

    /// Adds gRPC services: `|routes, node, serving| { routes.add_service(..); }`. Their calls that
    /// never end by themselves must end when `serving` is cancelled.
    pub fn services(mut self, add: impl FnOnce(&mut RoutesBuilder, &Node, &Tasks)) -> Self {
        add(&mut self.services, &self.node, &self.tasks);
        self
    }

    /// Adds JSON routes to methods of services that were added.
    pub fn gateway(mut self, routes: impl IntoIterator<Item = Route>) -> Self {
        self.gateway.extend(routes);
        self
    }

    /// Adds HTTP routes.
    pub fn routes(mut self, routes: Router) -> Self {
        self.routes = self.routes.merge(routes);
        self
    }

    /// Which web pages may use the HTTP routes, and by which host names; by default only pages that
    /// come from this server.
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Binds all addresses and serves.
    ///
    /// # Errors
    /// An address that is malformed or cannot be bound; nothing listens then.
    pub async fn start(mut self) -> io::Result<Server> {
        let bound = bind(&self.urls).await?;
        let router = self.router()?;
        let limits = self.node.limits();
        serve(bound, self.listeners, &router, limits, self.tasks)
    }

    /// Everything that is served, in one.
    fn router(&mut self) -> io::Result<Router> {
        let mut services = std::mem::take(&mut self.services);
        // Whatever has JSON routes is a service of the API.
        let named: BTreeSet<&str> = self.gateway.iter().map(Route::service).collect();
        api::grpc::add_reflection(&mut services, named).map_err(io::Error::other)?;
        let around = Around {
            traffic: self.traffic.clone(),
            node: Some(self.node.clone()),
        };
        let services = around.all(services.routes().into_axum_router());
        let message_bytes_max = api::grpc::message_bytes_max(&self.node);
        let gateway = api::http::gateway::router(&self.gateway, &services, message_bytes_max);
        let guard = from_fn_with_state(self.access.clone(), api::http::origin::guard);
        let plain = std::mem::take(&mut self.routes).merge(gateway);
        Ok(services.merge(plain.layer(guard)))
    }
}

/// Binds `http://host:port` URLs.
async fn bind(urls: &[String]) -> io::Result<Vec<tokio::net::TcpListener>> {
    let mut listeners = Vec::new();
    for url in urls {
        let address = url_authority(url).ok_or_else(|| {
            let text = format!("client URL {url:?} is not of the form http://host:port");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Serves `router` on all of these listeners, within `limits`.
fn serve(
    mut listeners: Vec<tokio::net::TcpListener>,
    given: Vec<TcpListener>,
    router: &Router,
    limits: &Limits,
    tasks: Tasks,
) -> io::Result<Server> {
    for listener in given {
        listener.set_nonblocking(true)?;
        listeners.push(tokio::net::TcpListener::from_std(listener)?);
    }
    let addrs = listeners
        .iter()
        .map(tokio::net::TcpListener::local_addr)
        .collect::<io::Result<_>>()?;
    let gate = accept::Gate::new(limits.max_connections);
    let manners = manners(limits.max_concurrent_streams);
    for listener in listeners {
        accept::run(listener, router.clone(), gate.clone(), manners, &tasks);
    }
    Ok(Server { addrs, tasks })
}
