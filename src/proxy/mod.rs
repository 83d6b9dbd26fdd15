//! `quorate proxy`: a stateless face of a cluster, of quorate or etcd members, for many clients.
//!
//! Calls go to whichever member is well; watches of the same keys and keep-alives of the same lease are
//! shared upstream; members that come, go or die are hidden. A layer at a time:
//!
//! - [`endpoints`] is which members there are and how they do, [`refresh`] keeps that in step with the
//!   cluster; [`fate`] says what became of a failed call.
//! - [`calls`] makes a call at one member after the other, [`upstream`] keeps a long one up.
//! - [`pass`] passes calls on as they are; [`cluster`], [`lease`] (with [`renew`]) and [`watch`] are the
//!   ones that are more than passed on.
//! - [`latest`] is where the store stands, for what the proxy says itself; [`health`] and [`metrics`] are about the proxy itself.

mod args;
mod caller;
mod calls;
mod cluster;
mod endpoints;
mod fate;
mod health;
mod latest;
mod lease;
mod messages;
mod metrics;
mod pass;
mod refresh;
mod renew;
mod upstream;
mod watch;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::routing::{get, post};
use quorate::core::api::grpc::methods;
use quorate::core::config::{Limits, url_authority};
use quorate::core::server::Server;
use quorate::core::tasks::Tasks;
use quorate::proto::etcdserverpb::watch_server::WatchServer;
use quorate::proto::limits::GRPC_OVERHEAD_BYTES;
use tonic::codec::CompressionEncoding;
use tonic_health::pb::health_server::HealthServer;
use tracing::info;

pub(crate) use self::args::ProxyArgs;
use self::cluster::{MEMBER_LIST, MemberList};
use self::endpoints::Pool;
use self::latest::Latest;
use self::lease::{KEEP_ALIVE, KeepAlives};
use self::metrics::Scrape;
use self::pass::Passing;
use self::watch::Watches;
use crate::{files, logging, signals};

/// The largest answer of a member that is taken: what etcd's own clients take.
const ANSWER_BYTES_MAX: usize = i32::MAX as usize;
/// Answers, and their bytes, that wait for one client before its watchers fall behind.
const ROOM: watch::Room = watch::Room {
    answers: 1_024,
    bytes: 4 * 1024 * 1024,
};
/// How long the background work may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(1);
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// How a proxy is set up.
#[derive(Debug)]
struct Config {
    endpoints: Vec<String>,
    listen_urls: Vec<String>,
    advertised: Vec<String>,
    /// `None` keeps to the endpoints.
    refresh: Option<Duration>,
    limits: Limits,
}

/// A running proxy.
#[derive(Debug)]
struct Proxy {
    server: Server,
    tasks: Tasks,
}

/// Runs a proxy until it is asked to stop.
///
/// # Errors
/// An address or endpoint that cannot be used.
pub(crate) async fn run(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    logging::start(&args.log_level)?;
    let mut limits = args.limits();
    files::fit(&mut limits);
    let stop = signals::stop(args.exit_with_stdin);
    let config = Config {
        listen_urls: args.listen_urls(),
        endpoints: args.endpoints,
        advertised: args.advertise_client_url,
        refresh: (!args.endpoint_refresh.is_zero()).then_some(args.endpoint_refresh),
        limits,
    };
    let proxy = Proxy::start(config).await?;
    for address in proxy.server.local_addrs() {
        info!(%address, "serving clients");
    }
    stop.await?;
    info!("stopping");
    proxy.stop().await;
    Ok(ExitCode::SUCCESS)
}

impl Proxy {
    async fn start(config: Config) -> anyhow::Result<Self> {
        let limits = config.limits;
        check(&config)?;
        let pool = Pool::new(
            &config.endpoints,
            RandomState::new().build_hasher().finish(),
        )?;
        let front = Server::front(limits);
        let serving = front.serving().clone();
        let message_bytes_max = limits.max_request_bytes + GRPC_OVERHEAD_BYTES;
        let latest = Latest::default();
        let passing = Passing::new(
            pool.clone(),
            latest.clone(),
            message_bytes_max,
            serving.clone(),
        );
        let keep_alives = KeepAlives::new(pool.clone(), passing.clone(), serving.clone());
        let watch_limits = watch::Limits {
            watchers: limits.max_watchers_per_stream,
            piece_bytes: message_bytes_max,
            room: ROOM,
        };
        let watches = Watches::new(pool.clone(), latest, watch_limits, serving.clone());
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let list = MemberList::new(passing.clone(), config.advertised, name);
        let calls = passing
            .routes(&[WATCH, KEEP_ALIVE, MEMBER_LIST])
            .route(
                KEEP_ALIVE,
                post(lease::keep_alive).with_state(keep_alives.clone()),
            )
            .route(
                MEMBER_LIST,
                post(cluster::member_list).with_state(Arc::new(list)),
            );
        let scrape = Scrape {
            pool: pool.clone(),
            watches: watches.clone(),
            keep_alives,
        };
        let health = health::Health::new(pool.clone(), serving);
        let mut front = front
            .calls(calls)
            .names(names())
            .services(|services| {
                services.add_service(
                    WatchServer::new(watches)
                        .max_decoding_message_size(message_bytes_max)
                        .accept_compressed(CompressionEncoding::Gzip),
                );
                services.add_service(
                    HealthServer::new(health).accept_compressed(CompressionEncoding::Gzip),
                );
            })
            .metrics(move || Box::new(scrape.clone()))
            .routes(Router::new().route("/health", get(health::health).with_state(pool.clone())));
        for url in &config.listen_urls {
            front = front.listen(url);
        }
        // So that what the members are is known to the first client.
        let mut seen = refresh::Seen::default();
        refresh::once(&pool, &mut seen, config.refresh.is_some()).await;
        let server = front.start().await.context("cannot listen for clients")?;
        let tasks = Tasks::new();
        tasks.spawn(
            "refresh endpoints",
            refresh::run(pool, config.refresh, seen),
        );
        Ok(Self { server, tasks })
    }

    async fn stop(self) {
        self.server.stop().await;
        self.tasks.stop(STOP_LIMIT).await;
    }
}

/// The services of the API, for tools that ask.
fn names() -> impl Iterator<Item = String> {
    let named = methods().values().map(|method| method.service.clone());
    named.filter(|name| !name.starts_with("quorate.") && !name.starts_with("grpc."))
}

fn check(config: &Config) -> anyhow::Result<()> {
    for url in &config.advertised {
        ensure!(
            url_authority(url).is_some(),
            "--advertise-client-url {url}: not of the form http://host:port"
        );
    }
    ensure!(
        config.limits.max_connections > 0 && config.limits.max_concurrent_streams > 0,
        "a limit of 0 connections or calls refuses everything"
    );
    ensure!(
        config.limits.max_watchers_per_stream > 0 && config.limits.max_request_bytes > 0,
        "a limit of 0 watchers or bytes refuses everything"
    );
    Ok(())
}
