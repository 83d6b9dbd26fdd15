//! A gRPC client calls servers that come and go, one replaced by the next as in a rolling upgrade, and no
//! call fails: every call goes to an instance that is registered and does not drain.
//!
//! Run with `cargo run --example balanced_channel`.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example shows what happens, and starts tasks of its own"
)]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::balance::{Balancer, Policy};
use quorate::recipes::registry::{Instance, Registration, Status};
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Session};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// How long a server goes on after it has said that it drains: longer than clients take to hear of it.
const DRAIN: Duration = Duration::from_millis(300);

struct Api(Registration<()>, oneshot::Sender<()>);

impl Api {
    /// Serves gRPC's health service, then registers: in this order nobody calls too early.
    async fn start(session: &Session, id: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let instance = Instance::builder("api").id(id);
        let instance = instance.address(listener.local_addr()?.to_string());
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let (_reporter, health) = tonic_health::server::health_reporter();
            let server = Server::builder().add_service(health);
            let incoming = TcpIncoming::from(listener);
            let stopped = async { drop(stopped.await) };
            server.serve_with_incoming_shutdown(incoming, stopped).await
        });
        let registration = session.register(instance.build()).await?;
        Ok(Self(registration, stop))
    }

    /// Says that it drains, goes on until nobody calls any more, and only then stops.
    async fn leave(self) -> anyhow::Result<()> {
        let Self(registration, stop) = self;
        registration.set_status(Status::Draining).await?;
        tokio::time::sleep(DRAIN).await;
        println!("{} leaves", registration.id());
        registration.deregister().await?;
        drop(stop);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let session = client.session().await?;
    let mut current = Api::start(&session, "api-0").await?;

    let discovery = client.discover::<()>("api").await?;
    let channel = Balancer::builder(&discovery, Policy::least_outstanding()).channel();
    let mut health = HealthClient::new(channel);
    let (enough, mut is_enough) = oneshot::channel::<()>();
    let caller = tokio::spawn(async move {
        let (mut calls, mut failed) = (0_u32, 0_u32);
        while is_enough.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            let answer = health.check(HealthCheckRequest::default()).await;
            calls += 1;
            failed += u32::from(answer.is_err());
        }
        (calls, failed)
    });

    for n in 1..=5 {
        let next = Api::start(&session, &format!("api-{n}")).await?;
        current.leave().await?;
        current = next;
    }
    drop(enough);
    let (calls, failed) = caller.await?;
    anyhow::ensure!(calls > 0 && failed == 0, "{failed} of {calls} failed");
    println!("{calls} calls, {failed} failed");
    drop(current);
    node.shutdown().await;
    Ok(())
}
