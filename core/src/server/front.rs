//! A server of gRPC services and HTTP routes that are not a member's, held to the bounds, deadlines and
//! words of one. Used by the binary's proxy.

use std::collections::BTreeSet;
use std::io;
use std::net::TcpListener;

use axum::Router;
use axum::middleware::from_fn_with_state;
use prometheus_client::collector::Collector;
use tonic::service::{Routes, RoutesBuilder};

use super::around::Around;
use super::{Server, bind, serve};
use crate::api;
use crate::api::grpc::Traffic;
use crate::api::http::origin::Access;
use crate::config::Limits;
use crate::tasks::Tasks;

/// What a server without a member serves and where, before it listens. Made by [`Server::front`].
#[derive(Debug)]
#[must_use = "nothing listens until `start`"]
pub struct FrontBuilder {
    limits: Limits,
    urls: Vec<String>,
    listeners: Vec<TcpListener>,
    services: RoutesBuilder,
    calls: Router,
    routes: Router,
    names: BTreeSet<String>,
    access: Access,
    traffic: Traffic,
    tasks: Tasks,
}

impl FrontBuilder {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            urls: Vec::new(),
            listeners: Vec::new(),
            services: Routes::builder(),
            calls: Router::new(),
            routes: Router::new(),
            names: BTreeSet::new(),
            access: Access::default(),
            traffic: Traffic::new(),
            tasks: Tasks::new(),
        }
    }

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

    /// The group that is cancelled when the server stops. Calls that never end by themselves must end
    /// with it.
    #[must_use]
    pub fn serving(&self) -> &Tasks {
        &self.tasks
    }

    /// Adds gRPC services.
    pub fn services(mut self, add: impl FnOnce(&mut RoutesBuilder)) -> Self {
        add(&mut self.services);
        self
    }

    /// Adds gRPC calls by their paths, `/package.Service/Method`.
    pub fn calls(mut self, calls: Router) -> Self {
        self.calls = self.calls.merge(calls);
        self
    }

    /// Names services for tools that ask by reflection.
    pub fn names(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.names.extend(names);
        self
    }

    /// Adds HTTP routes.
    pub fn routes(mut self, routes: Router) -> Self {
        self.routes = self.routes.merge(routes);
        self
    }

    /// Adds `/metrics`: what `look` finds at each scrape, with the calls that were carried and the
    /// process.
    pub fn metrics<L>(mut self, look: L) -> Self
    where
        L: Fn() -> Box<dyn Collector> + Clone + Send + Sync + 'static,
    {
        let route = api::http::metrics_of_others(look, self.traffic.clone());
        self.routes = self.routes.route("/metrics", route);
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
        serve(bound, self.listeners, &router, &self.limits, self.tasks)
    }

    fn router(&mut self) -> io::Result<Router> {
        let mut services = std::mem::take(&mut self.services);
        let names = self.names.iter().map(String::as_str);
        api::grpc::add_reflection(&mut services, names).map_err(io::Error::other)?;
        let services = services.routes().into_axum_router();
        let services = services.merge(std::mem::take(&mut self.calls));
        let around = Around {
            traffic: self.traffic.clone(),
            node: None,
        };
        let services = around.all(services);
        let guard = from_fn_with_state(self.access.clone(), api::http::origin::guard);
        let plain = std::mem::take(&mut self.routes);
        Ok(services.merge(plain.layer(guard)))
    }
}
