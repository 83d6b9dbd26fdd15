//! The members behind the proxy: which there are, how each has done lately, and which one is asked next.
//! The only place that makes connections.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::FutureExt as _;
use quorate::core::clock::{self, Instant};
use quorate::core::config::url_authority;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, watch};
use tonic::transport::{Channel, Endpoint};

/// Endpoints at most, those of members and those given on the command line.
pub(super) const ENDPOINTS_MAX: usize = 64;
/// Limit on making a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How often a connection in use is probed, and how long the answer may take. etcd closes connections
/// that probe more often than every 5 s, or while they are idle.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_LIMIT: Duration = Duration::from_secs(2);
/// How long a connection is silent before the machine behind it is probed, for those not in use.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// How long an endpoint is left alone after its first failure, and at most.
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(5);
/// Bytes in flight on one call and on one connection, where every answer is taken at once.
const CALL_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CALLS_WINDOW_BYTES: u32 = 64 * 1024 * 1024;
/// The same where a slow client makes answers wait: so small, and so large, that thousands of calls that
/// wait do not hold up another one.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const STREAMS_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// Which connection to an endpoint a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Answers are taken at once.
    Calls,
    /// Answers wait for a client to take them.
    Streams,
}

/// All endpoints. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// As given on the command line.
    given: Vec<String>,
    servers: Mutex<Vec<Arc<Server>>>,
    turn: AtomicUsize,
    random: Mutex<SmallRng>,
    failed: Notify,
    is_live: watch::Sender<bool>,
}

/// One endpoint.
pub(super) struct Server {
    url: String,
    calls: Channel,
    streams: Channel,
    health: Mutex<Health>,
    under_way: AtomicUsize,
    begun: AtomicU64,
    failed: AtomicU64,
}

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, Default)]
struct Health {
    /// Failures since the last success.
    failures: u32,
    rests_until: Option<Instant>,
    facts: Facts,
}

/// What an endpoint said of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// It serves little, so it is not asked while there are others.
    pub(super) is_learner: bool,
    /// It answers requests for progress after all events before them.
    pub(super) orders_progress: bool,
    /// It belongs to another cluster than the others, and is not asked at all.
    pub(super) is_foreign: bool,
}

/// An endpoint as metrics show it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) url: String,
    pub(super) is_live: bool,
    pub(super) begun: u64,
    pub(super) failed: u64,
}

/// A call under way at an endpoint.
#[derive(Debug)]
pub(super) struct Visit(Arc<Server>);

impl Pool {
    /// The endpoints given on the command line; `seed` decides about pauses. Needs a runtime; nothing is
    /// connected yet.
    ///
    /// # Errors
    /// None or too many are given, or one is not `http://host:port`.
    pub(super) fn new(given: &[String], seed: u64) -> anyhow::Result<Self> {
        ensure!(!given.is_empty(), "no endpoints");
        ensure!(
            given.len() <= ENDPOINTS_MAX,
            "more than {ENDPOINTS_MAX} endpoints"
        );
        let given: Vec<String> = given
            .iter()
            .map(|url| normal(url))
            .collect::<Result<_, _>>()?;
        let pool = Self(Arc::new(Inner {
            given: given.clone(),
            servers: Mutex::default(),
            turn: AtomicUsize::new(0),
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            failed: Notify::new(),
            is_live: watch::Sender::new(true),
        }));
        pool.become_these(&[])?;
        Ok(pool)
    }

    /// The endpoint to ask next, other than those `tried` if there is one: of those that have not failed
    /// lately the one with the fewest calls under way, in turn; if all have, the one whose rest
    /// ends first.
    pub(super) fn choose(&self, tried: &[Arc<Server>]) -> Arc<Server> {
        let (now, turn) = (clock::now(), self.0.turn.fetch_add(1, Relaxed));
        let servers = self.usable();
        let count = servers.len();
        let mut best = None;
        for i in 0..count {
            let server = &servers[(turn + i) % count];
            let was_tried = tried.iter().any(|tried| Arc::ptr_eq(tried, server));
            let rank = (was_tried, server.rank(now));
            if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, server));
            }
        }
        let (_, server) = best.expect("there is always an endpoint");
        Arc::clone(server)
    }

    /// The number of endpoints that may be asked.
    pub(super) fn len(&self) -> usize {
        self.usable().len()
    }

    /// Those of one cluster; where there are none of it left, whoever is there.
    fn usable(&self) -> Vec<Arc<Server>> {
        let mut servers = self.all();
        if servers.iter().any(|server| !server.facts().is_foreign) {
            servers.retain(|server| !server.facts().is_foreign);
        }
        servers
    }

    /// All endpoints.
    pub(super) fn all(&self) -> Vec<Arc<Server>> {
        self.servers().clone()
    }

    /// Exactly these endpoints and those given on the command line, as far as there is room. Known ones
    /// keep their connections. Returns whether anything changed.
    ///
    /// # Errors
    /// One cannot be used; nothing has changed then.
    pub(super) fn become_these(&self, urls: &[String]) -> anyhow::Result<bool> {
        let mut wanted: Vec<String> = Vec::new();
        for url in self.0.given.iter().chain(urls) {
            let url = normal(url)?;
            if !wanted.contains(&url) && wanted.len() < ENDPOINTS_MAX {
                wanted.push(url);
            }
        }
        let mut servers = self.servers();
        let is_same = servers.len() == wanted.len()
            && servers.iter().all(|server| wanted.contains(&server.url));
        if is_same {
            return Ok(false);
        }
        let known = |url: &String| servers.iter().find(|server| server.url == *url);
        let become_these = wanted.iter().map(|url| match known(url) {
            Some(server) => Ok(Arc::clone(server)),
            None => Server::new(url).map(Arc::new),
        });
        *servers = become_these.collect::<anyhow::Result<_>>()?;
        Ok(true)
    }

    /// An endpoint answered.
    pub(super) fn succeeded(&self, server: &Server) {
        let mut health = server.health();
        if health.failures > 0 {
            (health.failures, health.rests_until) = (0, None);
            drop(health);
            tracing::info!(endpoint = server.url, "the endpoint answers again");
            self.look_at_all();
        }
    }

    /// An endpoint did not answer, or could not help: it rests for a while, longer each time.
    pub(super) fn failed(&self, server: &Server, cause: &tonic::Status) {
        server.failed.fetch_add(1, Relaxed);
        let mut health = server.health();
        health.failures = health.failures.saturating_add(1);
        let rest = self.jittered(rest(health.failures));
        health.rests_until = Some(clock::now() + rest);
        let is_first = health.failures == 1;
        drop(health);
        if is_first {
            tracing::warn!(endpoint = server.url, %cause, "the endpoint fails");
        }
        self.look_at_all();
        self.0.failed.notify_one();
    }

    /// Completes when an endpoint has failed since the last time. For one reader.
    pub(super) async fn some_failed(&self) {
        self.0.failed.notified().await;
    }

    /// Takes note that an endpoint has failed, so that it is not told again.
    pub(super) fn failures_are_known(&self) {
        self.some_failed().now_or_never();
    }

    /// Whether some endpoint can be used, and each change of that.
    pub(super) fn is_live(&self) -> watch::Receiver<bool> {
        self.0.is_live.subscribe()
    }

    /// Between half of `pause` and all of it.
    pub(super) fn jittered(&self, pause: Duration) -> Duration {
        let random = self.0.random.lock();
        let mut random = random.unwrap_or_else(PoisonError::into_inner);
        pause.mul_f64(random.random_range(0.5..1.0))
    }

    /// All endpoints as metrics show them.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let servers = self.all();
        let seen = servers.iter().map(|server| Seen {
            url: server.url.clone(),
            is_live: server.health().failures == 0,
            begun: server.begun.load(Relaxed),
            failed: server.failed.load(Relaxed),
        });
        seen.collect()
    }

    fn look_at_all(&self) {
        let is_live = self.all().iter().any(|server| {
            let health = server.health();
            health.failures == 0 && !health.facts.is_foreign
        });
        self.0.is_live.send_if_modified(|was| {
            let is_new = *was != is_live;
            *was = is_live;
            is_new
        });
    }

    fn servers(&self) -> MutexGuard<'_, Vec<Arc<Server>>> {
        let servers = self.0.servers.lock();
        servers.unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long an endpoint rests after so many failures in a row.
fn rest(failures: u32) -> Duration {
    let doubled = failures.saturating_sub(1).min(16);
    REST_MAX.min(REST_FIRST * 2_u32.pow(doubled))
}

/// `http://host:port`, also for one given without a scheme.
fn normal(url: &str) -> anyhow::Result<String> {
    let url = match url.split_once("://") {
        None => format!("http://{url}"),
        Some(("http", _)) => url.to_owned(),
        Some((scheme, _)) => bail!("endpoint {url}: the scheme {scheme} is not supported yet"),
    };
    let authority = url_authority(&url);
    let authority =
        authority.with_context(|| format!("endpoint {url}: not of the form http://host:port"))?;
    Ok(format!("http://{authority}"))
}

impl Server {
    fn new(url: &str) -> anyhow::Result<Self> {
        let endpoint = |call_bytes, connection_bytes| {
            let endpoint = Endpoint::from_shared(url.to_owned());
            let endpoint = endpoint.with_context(|| format!("endpoint {url}"))?;
            let channel = endpoint
                .connect_timeout(CONNECT_LIMIT)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_LIMIT)
                .keep_alive_while_idle(false)
                .tcp_nodelay(true)
                .tcp_keepalive(Some(TCP_KEEPALIVE))
                .initial_stream_window_size(call_bytes)
                .initial_connection_window_size(connection_bytes)
                .connect_lazy();
            anyhow::Ok(channel)
        };
        Ok(Self {
            url: url.to_owned(),
            calls: endpoint(CALL_WINDOW_BYTES, CALLS_WINDOW_BYTES)?,
            streams: endpoint(STREAM_WINDOW_BYTES, STREAMS_WINDOW_BYTES)?,
            health: Mutex::default(),
            under_way: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Its URL.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// A connection to it.
    pub(super) fn channel(&self, lane: Lane) -> Channel {
        match lane {
            Lane::Calls => self.calls.clone(),
            Lane::Streams => self.streams.clone(),
        }
    }

    /// Counts a call that begins, until the visit is dropped.
    pub(super) fn visit(self: &Arc<Self>) -> Visit {
        self.begun.fetch_add(1, Relaxed);
        self.under_way.fetch_add(1, Relaxed);
        Visit(Arc::clone(self))
    }

    /// What it said of itself.
    pub(super) fn facts(&self) -> Facts {
        self.health().facts
    }

    /// It has said this of itself.
    pub(super) fn learn(&self, facts: Facts) {
        self.health().facts = facts;
    }

    /// The lower, the better to ask.
    fn rank(&self, now: Instant) -> (bool, Option<Instant>, usize) {
        let health = self.health();
        let rests = health.rests_until.filter(|until| *until > now);
        let under_way = self.under_way.load(Relaxed);
        (health.facts.is_learner, rests, under_way)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("url", &self.url)
            .field("health", &*self.health())
            .finish_non_exhaustive()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn pool(urls: &[&str]) -> Pool {
        let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
        Pool::new(&urls, 7).unwrap()
    }

    fn down() -> Status {
        Status::unavailable("down")
    }

    #[tokio::test]
    async fn calls_take_turns_and_pass_by_who_failed_until_it_has_rested() {
        let pool = pool(&["a:1", "b:1", "c:1"]);
        let next = || pool.choose(&[]).url().to_owned();
        let mut all = [next(), next(), next()];
        all.sort();
        assert_eq!(all, ["http://a:1", "http://b:1", "http://c:1"]);
        let bad = pool.choose(&[]);
        pool.failed(&bad, &down());
        assert!((0..6).all(|_| next() != bad.url()));
        tokio::time::sleep(REST_FIRST).await;
        assert!((0..6).any(|_| next() == bad.url()));
    }

    #[tokio::test]
    async fn when_all_failed_the_one_whose_rest_ends_first_is_asked() {
        let pool = pool(&["a:1", "b:1"]);
        let live = pool.is_live();
        let (one, other) = (pool.choose(&[]), pool.choose(&[]));
        (0..5).for_each(|_| pool.failed(&one, &down()));
        pool.failed(&other, &down());
        assert!(!*live.borrow());
        assert_eq!(pool.choose(&[]).url(), other.url());
        assert_eq!(pool.choose(&[other]).url(), one.url(), "but once only");
        pool.succeeded(&one);
        assert!(*live.borrow());
        assert_eq!(pool.choose(&[]).url(), one.url());
    }

    #[tokio::test]
    async fn calls_go_where_fewer_are_under_way_and_not_to_learners() {
        let pool = pool(&["a:1", "b:1", "c:1"]);
        let (one, other, learner) = (pool.choose(&[]), pool.choose(&[]), pool.choose(&[]));
        learner.learn(Facts {
            is_learner: true,
            ..Facts::default()
        });
        let visits = [one.visit(), one.visit(), other.visit()];
        assert!((0..5).all(|_| pool.choose(&[]).url() == other.url()));
        drop(visits);
        assert!((0..5).all(|_| pool.choose(&[]).url() != learner.url()));
    }

    #[tokio::test]
    async fn endpoints_come_and_go_and_those_given_stay() {
        let pool = pool(&["http://a:1/"]);
        let kept = pool.choose(&[]);
        let these = |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
            pool.become_these(&urls)
        };
        assert!(these(&["http://b:1", "http://a:1"]).unwrap());
        assert!(!these(&["http://a:1", "b:1"]).unwrap());
        assert_eq!(pool.len(), 2);
        assert!(these(&["https://c:1"]).is_err());
        assert!(these(&[]).unwrap());
        assert!(pool.len() == 1 && Arc::ptr_eq(&pool.choose(&[]), &kept));
        for wrong in ["https://a:1", "a", "http://a:1/x", "unix:///a"] {
            assert!(Pool::new(&[wrong.to_owned()], 0).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rests_grow_up_to_a_bound() {
        assert_eq!(rest(1), REST_FIRST);
        assert_eq!(rest(3), 4 * REST_FIRST);
        assert_eq!(rest(u32::MAX), REST_MAX);
    }
}
