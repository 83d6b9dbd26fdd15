//! Balancing: calls follow the instances as they come, drain and go, and none is lost by that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_recipes::balance::{BalanceKey, Balancer, Policy};
use quorate_recipes::registry::{Discovery, Instance, Registration, Status};
use quorate_recipes::{Client, Session};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::session;
use crate::support::{soon, until};

/// A gRPC server that is registered.
struct Served {
    registration: Registration<()>,
    calls: Arc<AtomicU64>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Served {
    #[allow(
        clippy::disallowed_methods,
        reason = "a server for the test, ended by it"
    )]
    async fn start(session: &Session, id: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let (reporter, health) = tonic_health::server::health_reporter();
        let counted = Arc::clone(&calls);
        let mut server =
            Server::builder().layer(tonic::service::InterceptorLayer::new(move |request| {
                counted.fetch_add(1, Ordering::Relaxed);
                Ok(request)
            }));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = server.add_service(health).serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            async { drop(stopped.await) },
        );
        let server = tokio::spawn(async move {
            let _reporter = reporter;
            server.await.unwrap();
        });
        let instance = Instance::builder("balanced").id(id);
        let instance = instance.address(address.to_string()).build();
        Self {
            registration: session.register(instance).await.unwrap(),
            calls,
            stop,
            server,
        }
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    async fn drain(&self, discovery: &mut Discovery<()>) {
        let at = self
            .registration
            .set_status(Status::Draining)
            .await
            .unwrap();
        let seen = discovery.wait_for(|view| view.revision >= at);
        soon("the drain to be seen", seen).await.unwrap();
    }

    async fn stop(self) {
        self.registration.deregister().await.unwrap();
        let _ = self.stop.send(());
        soon("a graceful stop", self.server).await.unwrap();
    }
}

/// Callers that go on until they are stopped.
struct Callers {
    done: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Callers {
    fn start<S>(channel: &S) -> Self
    where
        S: GrpcService<Body> + Clone + Send + 'static,
        S::Future: Send,
        S::ResponseBody: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        <S::ResponseBody as http_body::Body>::Error:
            Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let mut callers = Self {
            done: Arc::default(),
            calls: Arc::default(),
            tasks: JoinSet::new(),
        };
        for _ in 0..4 {
            let mut health = HealthClient::new(channel.clone());
            let (done, calls) = (Arc::clone(&callers.done), Arc::clone(&callers.calls));
            callers.tasks.spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let answer = health.check(HealthCheckRequest::default()).await;
                    answer.expect("no call fails");
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        callers
    }

    /// Waits for so many more calls.
    async fn more(&self, calls: u64) {
        let enough = self.calls.load(Ordering::Relaxed) + calls;
        until("calls", async || {
            assert_eq!(self.tasks.len(), 4);
            self.calls.load(Ordering::Relaxed) >= enough
        })
        .await;
    }

    async fn stop(mut self) {
        self.done.store(true, Ordering::Relaxed);
        while let Some(ended) = soon("the end", self.tasks.join_next()).await {
            ended.expect("no call failed");
        }
    }
}

/// Servers come, drain and go under calls by a balancer: none fails, and all servers get some.
pub async fn calls_follow_the_service(client: &Client) {
    let session = session(client).await;
    let mut servers = vec![
        Served::start(&session, "0").await,
        Served::start(&session, "1").await,
    ];
    let mut discovery = client.discover::<()>("balanced").await.unwrap();
    let channel = Balancer::builder(&discovery, Policy::default()).channel();
    let balancer = channel.balancer().clone();
    let callers = Callers::start(&channel);
    for round in 2..6 {
        servers.push(Served::start(&session, &round.to_string()).await);
        let newest = servers.last().unwrap();
        until("calls to the new one", async || newest.calls() > 10).await;
        let oldest = servers.remove(0);
        oldest.drain(&mut discovery).await;
        // No more picks of it from here on; those before come to an end.
        let id = oldest.registration.id();
        until("the last of its calls", async || {
            let loads = balancer.loads();
            let mut loads = loads.iter().filter(|load| load.endpoint.id == id);
            loads.all(|load| load.outstanding == 0)
        })
        .await;
        let before = oldest.calls();
        callers.more(50).await;
        assert_eq!(oldest.calls(), before);
        oldest.stop().await;
        callers.more(50).await;
    }
    callers.stop().await;
    assert!(servers.iter().all(|server| server.calls() > 0));
}

/// Calls of one key meet one server, as the balancer says, until it leaves.
pub async fn calls_go_by_their_keys(client: &Client) {
    const CALLS: u64 = 20;
    let session = session(client).await;
    let mut servers = Vec::new();
    for id in ["0", "1", "2"] {
        servers.push(Served::start(&session, id).await);
    }
    let mut discovery = client.discover::<()>("balanced").await.unwrap();
    let all = discovery.wait_for(|view| view.instances.len() == 3);
    soon("all of them", all).await.unwrap();
    for policy in [Policy::consistent_hash(), Policy::default().sticky()] {
        let channel = Balancer::builder(&discovery, policy).channel();
        let balancer = channel.balancer().clone();
        let mut health = HealthClient::new(channel);
        for key in ["ann", "bob", "eve", "dan"] {
            let before: Vec<u64> = servers.iter().map(Served::calls).collect();
            for _ in 0..CALLS {
                let mut request = tonic::Request::new(HealthCheckRequest::default());
                request.extensions_mut().insert(BalanceKey::of(key));
                health.check(request).await.unwrap();
            }
            let of_key = balancer.pick_for(key).unwrap().id.clone();
            for (server, before) in servers.iter().zip(before) {
                let wanted = if server.registration.id() == of_key {
                    CALLS
                } else {
                    0
                };
                assert_eq!(server.calls() - before, wanted, "{key}");
            }
        }
    }
    for server in servers {
        server.stop().await;
    }
}

/// The same over tonic's own channel, which is told the instances.
pub async fn tonics_channel_follows_the_service(client: &Client) {
    let session = session(client).await;
    let mut discovery = client.discover::<()>("balanced").await.unwrap();
    // Calls wait for the first instance.
    let callers = Callers::start(&discovery.channel());
    let mut servers = vec![Served::start(&session, "0").await];
    for round in 1..4 {
        servers.push(Served::start(&session, &round.to_string()).await);
        let newest = servers.last().unwrap();
        until("calls to the new one", async || newest.calls() > 10).await;
        let oldest = servers.remove(0);
        oldest.drain(&mut discovery).await;
        until("its calls to end", async || {
            let before = oldest.calls();
            callers.more(100).await;
            oldest.calls() == before
        })
        .await;
        oldest.stop().await;
        callers.more(50).await;
    }
    callers.stop().await;
}

/// A server that dies without a word is left alone long before its lease ends.
pub async fn the_dead_are_left_alone(client: &Client) {
    let session = session(client).await;
    let servers = [
        Served::start(&session, "0").await,
        Served::start(&session, "1").await,
    ];
    let discovery = client.discover::<()>("balanced").await.unwrap();
    let channel = Balancer::builder(&discovery, Policy::default()).channel();
    let mut health = HealthClient::new(channel.clone());
    for _ in 0..20 {
        health.check(HealthCheckRequest::default()).await.unwrap();
    }
    let [dead, alive] = servers;
    dead.server.abort();
    let balancer = channel.balancer();
    let ejection = async {
        while balancer.loads()[0].ejected_for.is_none() {
            drop(health.check(HealthCheckRequest::default()).await);
        }
    };
    soon("its ejection", ejection).await;
    assert_eq!(balancer.loads().len(), 2, "it is still registered");
    let before = alive.calls();
    for _ in 0..20 {
        health.check(HealthCheckRequest::default()).await.unwrap();
    }
    assert_eq!(alive.calls(), before + 20);
}

/// An instance that cannot be connected to costs no call: nothing was sent, so another one is tried.
pub async fn unreachable_instances_cost_no_call(client: &Client) {
    let session = session(client).await;
    let alive = Served::start(&session, "alive").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    drop(listener);
    let gone = Instance::builder("balanced").id("gone").address(nobody);
    let _gone = session.register(gone.build()).await.unwrap();
    let discovery = client.discover::<()>("balanced").await.unwrap();
    let channel = Balancer::builder(&discovery, Policy::default()).channel();
    let mut health = HealthClient::new(channel.clone());
    for _ in 0..50 {
        health.check(HealthCheckRequest::default()).await.unwrap();
    }
    assert_eq!(alive.calls(), 50);
    let loads = channel.balancer().loads();
    assert!(loads[1].ejected_for.is_some(), "and it is left alone");
    assert!(loads.iter().all(|load| load.outstanding == 0));
}
