//! All connections of one member to its peers: what `raft` and `node` hold.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use quorate_proto::peer as pb;
use quorate_proto::peer::peer_server::PeerServer;
use quorate_proto::peer::unary_request::Kind as Asked;
use quorate_proto::peer::unary_response::Kind as Answered;
use tokio::sync::watch;
use uuid::Uuid;

use super::PeerError;
use super::connector::{Connector, Dial, MESSAGE_BYTES_MAX, call_error};
use super::counts::{RoundTrips, TransferCounts};
use super::dispatch::Dispatch;
use super::handler::{Chunks, Handler, RequestHandler};
use super::handshake::{Gate, Local};
use super::link::{Link, failure};
use super::pipeline::Pipeline;
use super::service::PeerService;
use super::session::AppendSession;
use super::status::{Activity, PeerStatus, StatusCell};
use super::stream::Keeper;
use crate::clock;
use crate::tasks::Tasks;

/// The timing of the connections, derived from raft's.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// Raft's heartbeat interval: the stream is probed as often.
    pub heartbeat_interval: Duration,
    /// Raft's election timeout: a stream that is silent for as long is dropped, a connection that
    /// takes as long is given up.
    pub election_timeout: Duration,
}

/// The connections of one member. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    timings: Timings,
    tasks: Tasks,
    gate: Arc<Gate>,
    dispatch: Arc<Dispatch>,
    connector: Connector,
    service: PeerService,
    peers: Mutex<BTreeMap<u64, Peer>>,
    snapshot_rate: Arc<AtomicU64>,
    streams_up: watch::Sender<u64>,
    removed: watch::Sender<bool>,
}

impl Transport {
    /// A transport without peers. Its tasks end with `tasks`.
    #[must_use]
    pub fn new(local: Local, timings: Timings, tasks: &Tasks) -> Self {
        let tasks = tasks.child();
        let gate = Arc::new(Gate::new(local));
        let dispatch = Arc::new(Dispatch::default());
        let service = PeerService::new(
            Arc::clone(&gate),
            Arc::clone(&dispatch),
            timings,
            tasks.clone(),
        );
        Self {
            shared: Arc::new(Shared {
                timings,
                tasks,
                gate,
                dispatch,
                connector: Connector::new(timings.election_timeout),
                service,
                peers: Mutex::default(),
                snapshot_rate: Arc::default(),
                streams_up: watch::Sender::default(),
                removed: watch::Sender::default(),
            }),
        }
    }

    /// Who this member is.
    #[must_use]
    pub fn local(&self) -> Local {
        *self.shared.gate.local()
    }

    /// Opens connections by other means than TCP from now on. For simulations.
    pub fn dial_with(&self, dial: Arc<dyn Dial>) {
        self.shared.connector.dial_with(dial);
    }

    /// Sets what answers consensus messages. Until then peers are told that we are not ready.
    pub fn set_handler(&self, handler: Arc<dyn Handler>) {
        self.shared.dispatch.set_raft(Some(handler));
    }

    /// Sets what answers all other requests. Until then peers are told that we are not ready.
    pub fn set_request_handler(&self, handler: Arc<dyn RequestHandler>) {
        self.shared.dispatch.set_node(Some(handler));
    }

    /// Limits each snapshot sent from now on to this many bytes a second; 0, the default, is no
    /// limit.
    pub fn limit_snapshots(&self, bytes_per_second: u64) {
        let rate = &self.shared.snapshot_rate;
        rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// What to mount on the peer listener. The listener should use [`STREAM_WINDOW_BYTES`] and
    /// [`CONNECTION_WINDOW_BYTES`] and probe idle connections.
    ///
    /// [`STREAM_WINDOW_BYTES`]: super::STREAM_WINDOW_BYTES
    /// [`CONNECTION_WINDOW_BYTES`]: super::CONNECTION_WINDOW_BYTES
    #[must_use]
    pub fn service(&self) -> PeerServer<PeerService> {
        PeerServer::new(self.shared.service.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The service without its transport's limits, to be wrapped by a test.
    #[cfg(test)]
    pub(super) fn service_for_tests(&self) -> PeerService {
        self.shared.service.clone()
    }

    /// Adds a peer, or changes its name and addresses (`http://host:port`, tried in turn), and
    /// keeps a stream to it. This member itself, and a peer as it is already known, change nothing;
    /// new addresses break the stream to the old one.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn set_peer(&self, id: u64, name: &str, urls: &[String]) {
        let shared = &self.shared;
        if id == shared.gate.local().member_id {
            return;
        }
        let mut peers = shared.lock();
        if let Some(known) = peers.get(&id) {
            if known.inner.pipeline.urls() == urls {
                *known.inner.name() = name.to_owned();
                return;
            }
            known.inner.tasks.cancel();
        }
        peers.insert(id, shared.connect(id, name, urls));
    }

    /// Forgets a peer and ends the stream to it. Whoever holds a [`Peer`] for it gets
    /// [`PeerError::Unknown`] from now on.
    pub fn remove_peer(&self, id: u64) {
        if let Some(peer) = self.shared.lock().remove(&id) {
            peer.inner.tasks.cancel();
        }
    }

    /// Refuses every contact with this id from now on, and ends the stream it has open: it was
    /// removed from the cluster for good.
    pub fn refuse(&self, id: u64) {
        self.shared.gate.refuse(id);
        self.shared.service.end_refused_stream(id);
    }

    /// Binds a peer to its incarnation: from now on any other under this id is refused, and streams
    /// that are up with another end. Which one a peer shows is in [`PeerStatus::incarnation`].
    pub fn set_incarnation(&self, id: u64, incarnation: Uuid) {
        let shared = &self.shared;
        shared.gate.bind(id, incarnation);
        shared.service.end_refused_stream(id);
        let mut peers = shared.lock();
        let Some(known) = peers.get(&id) else {
            return;
        };
        let link = known.inner.link.load_full();
        if link.is_some_and(|link| !shared.gate.still_admits(link.contact())) {
            known.inner.tasks.cancel();
            let (name, urls) = (known.inner.name().clone(), known.inner.pipeline.urls());
            let anew = shared.connect(id, &name, urls);
            peers.insert(id, anew);
        }
    }

    /// The incarnation a peer is bound to, if it is.
    #[must_use]
    pub fn bound_incarnation(&self, id: u64) -> Option<Uuid> {
        self.shared.gate.bound(id)
    }

    /// The peer with this id, if it is known.
    #[must_use]
    pub fn peer(&self, id: u64) -> Option<Peer> {
        self.shared.lock().get(&id).cloned()
    }

    /// How many streams to peers have come up since the start: whoever waited for a peer to come
    /// back sees it change.
    #[must_use]
    pub fn streams_up(&self) -> watch::Receiver<u64> {
        self.shared.streams_up.subscribe()
    }

    /// Whether a peer has said that this member was removed from the cluster, which is for good.
    #[must_use]
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.shared.removed.subscribe()
    }

    /// The state of every peer's connection, in the order of their ids.
    #[must_use]
    pub fn status(&self) -> Vec<PeerStatus> {
        let shared = &self.shared;
        let peers: Vec<Peer> = shared.lock().values().cloned().collect();
        let status = |peer: &Peer| {
            let inner = &peer.inner;
            let contact = shared.gate.contact(inner.id);
            let mut status = PeerStatus {
                id: inner.id,
                name: inner.name().clone(),
                urls: inner.pipeline.urls().to_vec(),
                activity: Activity::Inactive(clock::now()),
                incoming: shared.service.has_stream(inner.id),
                rtt: None,
                round_trips: RoundTrips::default(),
                in_flight: inner.link.load().as_ref().map_or(0, |l| l.in_flight()),
                dropped: 0,
                connects: 0,
                disconnects: 0,
                snapshots: TransferCounts::default(),
                last_error: None,
                incarnation: contact.map(|contact| contact.incarnation),
                boot: contact.map(|contact| contact.boot),
            };
            inner.status.fill(&mut status);
            status
        };
        peers.iter().map(status).collect()
    }

    /// Snapshots received from any peer, since the start.
    #[must_use]
    pub fn snapshots_received(&self) -> TransferCounts {
        self.shared.service.snapshots_received()
    }

    /// Ends all streams and lets go of the handlers. Nothing is sent or accepted any more.
    pub fn stop(&self) {
        self.shared.tasks.cancel();
        self.shared.dispatch.set_raft(None);
        self.shared.dispatch.set_node(None);
    }
}

impl Shared {
    /// A peer with a task that keeps a stream to it.
    fn connect(&self, id: u64, name: &str, urls: &[String]) -> Peer {
        let peer = Peer {
            inner: Arc::new(Inner {
                id,
                name: Mutex::new(name.to_owned()),
                pipeline: Pipeline::new(
                    id,
                    urls.to_vec(),
                    Arc::clone(&self.gate),
                    self.connector.clone(),
                    Arc::clone(&self.snapshot_rate),
                ),
                link: Arc::default(),
                status: Arc::new(StatusCell::new(id)),
                tasks: self.tasks.child(),
            }),
        };
        let keeper = Keeper {
            peer: id,
            urls: urls.to_vec(),
            gate: Arc::clone(&self.gate),
            connector: self.connector.clone(),
            timings: self.timings,
            status: Arc::clone(&peer.inner.status),
            link: Arc::clone(&peer.inner.link),
            streams_up: self.streams_up.clone(),
            removed: self.removed.clone(),
        };
        peer.inner.tasks.spawn("peer stream", keeper.run());
        peer
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Peer>> {
        // Every section leaves the map whole, so a panic elsewhere does not spoil it.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A way to one peer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Peer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: u64,
    name: Mutex<String>,
    pipeline: Pipeline,
    link: Arc<ArcSwapOption<Link>>,
    status: Arc<StatusCell>,
    /// Cancelled when the peer is forgotten or has moved.
    tasks: Tasks,
}

impl Peer {
    /// The peer's member id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// Whether the stream to the peer is up.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.inner.link.load().is_some()
    }

    /// Opens an append session on the stream.
    ///
    /// # Errors
    /// [`PeerError::Unreachable`] while the stream is down: use [`Peer::append`] meanwhile.
    pub fn append_session(&self) -> Result<AppendSession, PeerError> {
        self.usable()?;
        let link = self.inner.link.load_full();
        let link = link.ok_or_else(|| PeerError::Unreachable("the stream is down".to_owned()))?;
        self.counted(link.open_session())
    }

    /// Sends one append as a session of its own, ahead of whatever the append sessions have
    /// queued: for heartbeats and probes. While the stream is down it goes as a unary call.
    ///
    /// # Errors
    /// See [`PeerError`]; an answer that is a failure is turned into one.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the answer; the peer may still handle the append.
    pub async fn append(
        &self,
        request: pb::AppendRequest,
        timeout: Duration,
    ) -> Result<pb::AppendReply, PeerError> {
        self.usable()?;
        let link = self.inner.link.load_full();
        let reply = match link {
            Some(link) => link.append(request, timeout).await,
            None => {
                let call = self.inner.pipeline.unary(Asked::Append(request), timeout);
                match call.await {
                    Ok(Answered::Append(reply)) => Ok(reply),
                    Ok(Answered::Response(_)) => {
                        Err(PeerError::Protocol("response to an append".to_owned()))
                    }
                    Err(error) => Err(error),
                }
            }
        };
        match self.counted(reply)?.outcome {
            Some(pb::append_reply::Outcome::Failure(why)) => Err(failure(&why)),
            outcome => Ok(pb::AppendReply { outcome }),
        }
    }

    /// Sends a request and waits for its response, at most `timeout`. While the stream is down it
    /// goes as a unary call.
    ///
    /// # Errors
    /// See [`PeerError`]; a response that is a failure is turned into one.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the response; the peer may still handle the request.
    pub async fn request(
        &self,
        request: pb::Request,
        timeout: Duration,
    ) -> Result<pb::Response, PeerError> {
        self.usable()?;
        let link = self.inner.link.load_full();
        let response = match link {
            Some(link) => link.request(request, timeout).await,
            None => {
                let call = self.inner.pipeline.unary(Asked::Request(request), timeout);
                match call.await {
                    Ok(Answered::Response(response)) => Ok(response),
                    Ok(Answered::Append(_)) => {
                        Err(PeerError::Protocol("append answers a request".to_owned()))
                    }
                    Err(error) => Err(error),
                }
            }
        };
        match self.counted(response)?.kind {
            Some(pb::response::Kind::Failure(why)) => Err(failure(&why)),
            kind => Ok(pb::Response { kind }),
        }
    }

    /// Sends a snapshot over a connection of its own. The header's handshake and the numbers of the
    /// chunks are filled in here.
    ///
    /// # Errors
    /// See [`PeerError`]; an error among the chunks ends the call with that error.
    ///
    /// # Cancel safety
    /// Dropping the future breaks the connection: the peer sees an incomplete snapshot, unless it
    /// had received all of it, when it may still install it.
    pub async fn send_snapshot(
        &self,
        header: pb::SnapshotHeader,
        chunks: Chunks,
    ) -> Result<pb::SnapshotReply, PeerError> {
        self.usable()?;
        let transfer = self.inner.status.snapshots().begin();
        let reply = self.inner.pipeline.send_snapshot(header, chunks).await?;
        transfer.succeeded();
        Ok(reply)
    }

    /// Asks the peer for a snapshot at or past `at_least_index`, over a connection of its own.
    ///
    /// # Errors
    /// See [`PeerError`]. The last item of the chunks is an error unless the snapshot is complete.
    ///
    /// # Cancel safety
    /// Dropping the future or the chunks ends the call; nothing changes at the peer.
    pub async fn fetch_snapshot(
        &self,
        at_least_index: u64,
    ) -> Result<(pb::SnapshotHeader, Chunks), PeerError> {
        self.usable()?;
        self.inner.pipeline.fetch_snapshot(at_least_index).await
    }

    fn usable(&self) -> Result<(), PeerError> {
        if self.inner.tasks.is_cancelled() {
            return Err(PeerError::Unknown(self.inner.id));
        }
        Ok(())
    }

    /// Counts what a full buffer refused.
    fn counted<T>(&self, result: Result<T, PeerError>) -> Result<T, PeerError> {
        if matches!(result, Err(PeerError::Full(_))) {
            self.inner.status.drop_one();
        }
        result
    }
}

impl Inner {
    fn name(&self) -> MutexGuard<'_, String> {
        // A name is replaced as a whole, so a panic elsewhere does not spoil it.
        self.name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks whoever serves peers at `url` who is in its cluster, at most for `timeout`. For a member
/// that is about to join and knows neither its id nor its cluster's.
///
/// # Errors
/// See [`PeerError`].
pub async fn fetch_members(url: &str, timeout: Duration) -> Result<pb::MembersResponse, PeerError> {
    within(timeout, async {
        let mut client = Connector::new(timeout).connect(url).await?;
        let answer = client.members(pb::MembersRequest {}).await;
        Ok(answer.map_err(|status| call_error(&status))?.into_inner())
    })
    .await
}

/// Asks whoever serves peers at `url` to add this member to its cluster, at most for `timeout`.
/// Asking again is harmless.
///
/// # Errors
/// See [`PeerError`]; a refusal of the cluster is in the answer.
pub async fn ask_to_join(
    url: &str,
    request: pb::JoinRequest,
    timeout: Duration,
) -> Result<pb::JoinResponse, PeerError> {
    within(timeout, async {
        let mut client = Connector::new(timeout).connect(url).await?;
        let answer = client.join(request).await;
        Ok(answer.map_err(|status| call_error(&status))?.into_inner())
    })
    .await
}

async fn within<T>(
    timeout: Duration,
    ask: impl Future<Output = Result<T, PeerError>>,
) -> Result<T, PeerError> {
    let answer = tokio::time::timeout(timeout, ask).await;
    answer.unwrap_or(Err(PeerError::Timeout {
        sent: true,
        after: timeout,
    }))
}
