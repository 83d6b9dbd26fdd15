//! The backend for any etcd v3 server: a list of endpoints, spoken to over gRPC.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest,
};
use scopeguard::ScopeGuard;
use tokio::runtime::{self, Handle, Runtime};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::status::classify;
use super::{
    Capabilities, Cause, Lease, LeaseTtl, Store, StoreError, WatchStream, is_read_only, seconds,
};
use crate::clock::{Clock, SystemClock};
use crate::keys::LeaseId;

/// Most attempts of one call, when each was certainly not applied, unless told otherwise.
const ATTEMPTS_MAX: usize = 8;

/// What may be on the way of one stream that nobody reads, such as a watch.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// The most that HTTP/2 knows (RFC 9113, section 6.9.1): a connection has no window that its streams share.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// Longest pause before the next attempt of a call, once every endpoint was tried.
const ROUND_PAUSE: Duration = Duration::from_millis(200);

/// A store behind etcd v3 endpoints: a quorate or an etcd cluster.
///
/// Calls go to one endpoint until it fails, then to the next. A call is repeated only when the
/// first copy was certainly not applied; otherwise its outcome is reported as unknown. Connections
/// are made when first needed, and probed while in use, so that a dead server is noticed.
///
/// Plain text only for now.
pub struct Remote {
    endpoints: Vec<Server>,
    current: AtomicUsize,
    call_timeout: Duration,
    attempt_timeout: Duration,
    attempts_max: usize,
    capabilities: Capabilities,
    own: Option<OwnRuntime>,
}

/// A runtime of one thread for the connections and renewals alone.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn start() -> Result<Self, StoreError> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("quorate-remote")
            .enable_all()
            .build();
        let failed = |error| StoreError::Refused(Cause::new(format!("no thread: {error}")));
        Ok(Self(Some(runtime.map_err(failed)?)))
    }

    fn handle(&self) -> &Handle {
        self.0.as_ref().expect("until it is dropped").handle()
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        // Waiting for its end is not allowed on a runtime, where stores are dropped.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct Server {
    url: String,
    channel: Channel,
}

/// Builds a [`Remote`].
#[derive(Debug, Clone)]
pub struct RemoteBuilder {
    urls: Vec<String>,
    connect_timeout: Duration,
    call_timeout: Duration,
    attempt_timeout: Duration,
    attempts_max: usize,
    ping_interval: Duration,
    ping_timeout: Duration,
    capabilities: Capabilities,
    own_runtime: bool,
}

impl RemoteBuilder {
    /// Limit on making a connection. Default: 2 s.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Limit on a call in all, and on one attempt of a call that may not be repeated: a write
    /// without an answer by then has an unknown outcome. A change of leader takes the store a
    /// second or more. Default: 5 s.
    #[must_use]
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit;
        self
    }

    /// Limit on one attempt of a call that may be repeated: reads, renewals, opening a watch.
    /// Default: 1 s.
    #[must_use]
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.attempt_timeout = limit;
        self
    }

    /// Most attempts of one call, when each was certainly not applied; with 1, every failure is
    /// reported. Default: 8.
    #[must_use]
    pub fn attempts_max(mut self, attempts: usize) -> Self {
        self.attempts_max = attempts;
        self
    }

    /// How often an idle connection is probed, and how long an answer may take. An etcd server
    /// closes connections that probe more often than every 5 s. Default: 6 s and 2 s.
    #[must_use]
    pub fn ping(mut self, interval: Duration, timeout: Duration) -> Self {
        self.ping_interval = interval;
        self.ping_timeout = timeout;
        self
    }

    /// The server's limits, where they differ from etcd's defaults.
    #[must_use]
    pub fn capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Runs the connections, and the renewals of the sessions' leases, on a thread of their own: they go on
    /// while the program blocks the threads of its runtime for longer than it should. Work that is blocked
    /// does not notice a loss, so this is for programs that stall now and then, not for hiding it: see
    /// [`SessionBuilder::watchdog`](crate::SessionBuilder::watchdog). Default: no.
    #[must_use]
    pub fn own_runtime(mut self) -> Self {
        self.own_runtime = true;
        self
    }

    /// The store. Nothing is connected yet.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when a thread of its own cannot be started; [`StoreError::Invalid`] without endpoints, or for one that is not a URL or has a scheme
    /// other than `http`.
    pub fn build(self) -> Result<Remote, StoreError> {
        if self.urls.is_empty() {
            return Err(StoreError::Invalid(Cause::new("no endpoints")));
        }
        let own = match self.own_runtime {
            true => Some(OwnRuntime::start()?),
            false => None,
        };
        // Connections belong to the runtime that they are made on.
        let entered = own.as_ref().map(|own| own.handle().enter());
        let endpoints = self.urls.iter().map(|url| self.server(url));
        let endpoints = endpoints.collect::<Result<_, _>>()?;
        drop(entered);
        Ok(Remote {
            endpoints,
            current: AtomicUsize::new(0),
            call_timeout: self.call_timeout,
            attempt_timeout: self.attempt_timeout,
            attempts_max: self.attempts_max,
            capabilities: self.capabilities,
            own,
        })
    }

    /// The only place that makes connections.
    fn server(&self, url: &str) -> Result<Server, StoreError> {
        let invalid = |why: &str| StoreError::Invalid(Cause::new(format!("endpoint {url}: {why}")));
        let url = match url.split_once("://") {
            None => format!("http://{url}"),
            Some(("http", _)) => url.to_owned(),
            Some((scheme, _)) => {
                return Err(invalid(&format!("the scheme {scheme} is not supported")));
            }
        };
        let endpoint = Endpoint::from_shared(url.clone()).map_err(|e| invalid(&e.to_string()))?;
        let channel = endpoint
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(self.ping_interval)
            .keep_alive_timeout(self.ping_timeout)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            // What nobody reads fills the window of its own stream, and never that of all the others.
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_lazy();
        Ok(Server { url, channel })
    }
}

impl Remote {
    /// A store at these endpoints (`http://host:port` or `host:port`), with default settings.
    /// Must be called on a tokio runtime; nothing is connected yet.
    ///
    /// # Errors
    /// As [`RemoteBuilder::build`].
    pub fn new<S: Into<String>>(
        endpoints: impl IntoIterator<Item = S>,
    ) -> Result<Self, StoreError> {
        Self::builder(endpoints).build()
    }

    /// A store at these endpoints, to be configured.
    pub fn builder<S: Into<String>>(endpoints: impl IntoIterator<Item = S>) -> RemoteBuilder {
        RemoteBuilder {
            urls: endpoints.into_iter().map(Into::into).collect(),
            connect_timeout: Duration::from_secs(2),
            call_timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(1),
            attempts_max: ATTEMPTS_MAX,
            ping_interval: Duration::from_secs(6),
            ping_timeout: Duration::from_secs(2),
            capabilities: Capabilities::default(),
            own_runtime: false,
        }
    }

    /// Makes a call, at one endpoint after the other while that is safe, within the call timeout.
    async fn call<T, F, Fut>(&self, repeatable: bool, call: F) -> Result<T, StoreError>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let limit = if repeatable {
            self.attempt_timeout
        } else {
            self.call_timeout
        };
        let attempts = self.attempts(repeatable, limit, call);
        match tokio::time::timeout(self.call_timeout, attempts).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Unknown(Cause::new("no answer in time"))),
        }
    }

    async fn attempts<T, F, Fut>(
        &self,
        repeatable: bool,
        limit: Duration,
        call: F,
    ) -> Result<T, StoreError>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let mut attempt = 1;
        loop {
            let chosen = self.current.load(Ordering::Relaxed) % self.endpoints.len();
            let server = &self.endpoints[chosen];
            // A caller with less patience may drop the call before its time is up.
            let started = SystemClock.now();
            let dropped = scopeguard::guard(started, |started| {
                if SystemClock.now() - started >= self.attempt_timeout / 2 {
                    self.rotate(chosen);
                }
            });
            let outcome = tokio::time::timeout(limit, call(server.channel.clone())).await;
            ScopeGuard::into_inner(dropped);
            let error = match outcome {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => classify(&status),
                Err(_) => StoreError::Unknown(Cause::new(format!("no answer from {}", server.url))),
            };
            if !error.is_transient() {
                return Err(error);
            }
            self.rotate(chosen);
            tracing::debug!(endpoint = server.url, attempt, %error, "call failed");
            if attempt >= self.attempts_max || !(repeatable || error.is_retryable()) {
                return Err(error);
            }
            if attempt % self.endpoints.len() == 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            attempt += 1;
        }
    }

    /// Moves on from an endpoint that failed, unless somebody else has already.
    fn rotate(&self, failed: usize) {
        let next = (failed + 1) % self.endpoints.len();
        let moved =
            self.current
                .compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() && self.endpoints.len() > 1 {
            tracing::info!(
                from = self.endpoints[failed].url,
                to = self.endpoints[next].url,
                "endpoint changed"
            );
        }
    }
}

/// Asks the server to end the stream when it has no leader, instead of staying silent.
fn needs_leader<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let yes = MetadataValue::from_static("true");
    request.metadata_mut().insert("hasleader", yes);
    request
}

#[async_trait]
impl Store for Remote {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.call(true, |channel| {
            let request = request.clone();
            async move {
                let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
                Ok(client.range(request).await?.into_inner())
            }
        })
        .await
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        self.call(is_read_only(&request), |channel| {
            let request = request.clone();
            async move {
                let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
                Ok(client.txn(request).await?.into_inner())
            }
        })
        .await
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        let creates: Vec<WatchRequest> = (1..)
            .zip(requests)
            .map(|(watch_id, request)| WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
                    watch_id,
                    ..request
                })),
            })
            .collect();
        let answers = self
            .call(true, |channel| {
                // The sending half stays open: a server may take its end for the end of the watch.
                let sent = stream::iter(creates.clone()).chain(stream::pending());
                async move {
                    let mut client =
                        WatchClient::new(channel).max_decoding_message_size(usize::MAX);
                    Ok(client.watch(needs_leader(sent)).await?.into_inner())
                }
            })
            .await?;
        Ok(answers
            .map(|answer| answer.map_err(|status| classify(&status)))
            .boxed())
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let answer = self
            .call(false, |channel| async move {
                let request = LeaseGrantRequest { ttl, id: id.0 };
                let mut client = LeaseClient::new(channel);
                Ok(client.lease_grant(request).await?.into_inner())
            })
            .await?;
        let header = answer.header.unwrap_or_default();
        Ok(Lease::new(LeaseId(answer.id), seconds(answer.ttl), header))
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        let answer = self
            .call(true, |channel| async move {
                let request = LeaseKeepAliveRequest { id: id.0 };
                // Not ended before the answer is in, for servers that answer no half-closed stream.
                let sent = stream::iter([request]).chain(stream::pending());
                let mut client = LeaseClient::new(channel);
                let mut answers = client
                    .lease_keep_alive(needs_leader(sent))
                    .await?
                    .into_inner();
                let answer = answers.message().await?;
                answer.ok_or_else(|| Status::unavailable("the keep-alive stream ended"))
            })
            .await?;
        let header = answer.header.unwrap_or_default();
        Ok((answer.ttl > 0).then(|| Lease::new(id, seconds(answer.ttl), header)))
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        let answer = self
            .call(true, |channel| async move {
                let request = LeaseTimeToLiveRequest {
                    id: id.0,
                    keys: false,
                };
                let mut client = LeaseClient::new(channel);
                Ok(client.lease_time_to_live(request).await?.into_inner())
            })
            .await?;
        let header = answer.header.unwrap_or_default();
        let (left, granted) = (seconds(answer.ttl), seconds(answer.granted_ttl));
        Ok((answer.ttl >= 0).then(|| LeaseTtl::new(left, granted, header)))
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        let revoked = self.call(false, |channel| async move {
            let request = LeaseRevokeRequest { id: id.0 };
            LeaseClient::new(channel).lease_revoke(request).await
        });
        revoked.await.map(drop)
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn runtime(&self) -> Option<Handle> {
        self.own.as_ref().map(|own| own.handle().clone())
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<_> = self.endpoints.iter().map(|server| &server.url).collect();
        f.debug_struct("Remote")
            .field("endpoints", &urls)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A caller that gives up before the store does is not sent to the same silent endpoint again.
    #[tokio::test]
    async fn a_dropped_call_leaves_a_silent_endpoint() {
        let listeners = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let urls = listeners.each_ref();
        let urls = urls.map(|listener| listener.local_addr().unwrap().to_string());
        let remote = Remote::new(urls).unwrap();
        let patience = remote.attempt_timeout * 3 / 4;
        for next in [1, 0] {
            let renewal = remote.lease_keep_alive(LeaseId(1));
            assert!(tokio::time::timeout(patience, renewal).await.is_err());
            assert_eq!(remote.current.load(Ordering::Relaxed), next);
        }
        // One that is dropped at once says nothing about the endpoint.
        let renewal = remote.lease_keep_alive(LeaseId(1));
        assert!(tokio::time::timeout(Duration::ZERO, renewal).await.is_err());
        assert_eq!(remote.current.load(Ordering::Relaxed), 0);
    }
}
