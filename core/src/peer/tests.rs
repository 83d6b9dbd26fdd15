//! Two transports, or a transport and a bare client, over real sockets on the loopback interface.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use quorate_proto::peer as pb;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::TcpListenerStream;
use uuid::Uuid;

use super::*;
use crate::tasks::Tasks;

const CLUSTER: u64 = 0xc1;
const LIMIT: Duration = Duration::from_secs(10);
const TIMINGS: Timings = Timings {
    heartbeat_interval: Duration::from_millis(50),
    election_timeout: Duration::from_millis(500),
};

/// Answers everything; what it does is set by the test.
struct Scripted {
    /// Appends with entries wait for a permit each.
    appends: Semaphore,
    /// Requests wait for a permit each.
    requests: Semaphore,
    seen: AtomicU64,
    /// Chunks taken so far, and the end of the last snapshot.
    chunks: watch::Sender<(u64, Option<Result<(), PeerError>>)>,
    /// Chunks wait for a permit each.
    chunk_permits: Semaphore,
}

impl Scripted {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            appends: Semaphore::new(0),
            requests: Semaphore::new(0),
            seen: AtomicU64::new(0),
            chunks: watch::channel((0, None)).0,
            chunk_permits: Semaphore::new(0),
        })
    }

    fn willing() -> Arc<Self> {
        let handler = Self::new();
        for permits in [&handler.appends, &handler.requests, &handler.chunk_permits] {
            permits.add_permits(Semaphore::MAX_PERMITS);
        }
        handler
    }
}

/// A handler a transport can own while the test keeps the script.
#[derive(Clone)]
struct Shared(Arc<Scripted>);

async fn take(permits: &Semaphore) {
    permits.acquire().await.unwrap().forget();
}

#[async_trait]
impl Handler for Shared {
    fn append_session(&self, _from: u64, appends: Appends) -> Replies {
        let script = Arc::clone(&self.0);
        appends
            .then(move |append| {
                let script = Arc::clone(&script);
                async move {
                    if !append.entries.is_empty() {
                        take(&script.appends).await;
                    }
                    script.seen.fetch_add(1, Ordering::SeqCst);
                    accepted(append.committed)
                }
            })
            .boxed()
    }

    async fn request(&self, from: u64, request: pb::Request) -> pb::Response {
        take(&self.0.requests).await;
        let Some(pb::request::Kind::Vote(vote)) = request.kind else {
            panic!("only votes are asked for");
        };
        pb::Response {
            kind: Some(pb::response::Kind::Vote(pb::VoteResponse {
                vote: vote.vote,
                granted: from == 1,
                last: None,
            })),
        }
    }

    async fn snapshot(
        &self,
        _from: u64,
        header: pb::SnapshotHeader,
        mut chunks: Chunks,
    ) -> Result<pb::SnapshotReply, PeerError> {
        let tell = |taken: u64, end: Option<Result<(), PeerError>>| {
            self.0.chunks.send_replace((taken, end));
        };
        let mut taken = 0;
        while let Some(chunk) = chunks.next().await {
            match chunk {
                Ok(chunk) => assert_eq!(chunk.sequence, taken),
                Err(error) => {
                    tell(taken, Some(Err(error.clone())));
                    return Err(error);
                }
            }
            take(&self.0.chunk_permits).await;
            taken += 1;
            tell(taken, None);
        }
        tell(taken, Some(Ok(())));
        Ok(pb::SnapshotReply {
            vote: header.vote,
            ..pb::SnapshotReply::default()
        })
    }

    async fn fetch_snapshot(
        &self,
        _from: u64,
        at_least_index: u64,
    ) -> Result<(pb::SnapshotHeader, Chunks), PeerError> {
        if at_least_index > 100 {
            return Err(PeerError::NotReady("no snapshot that new".to_owned()));
        }
        Ok((pb::SnapshotHeader::default(), chunks(3, 10)))
    }
}

#[async_trait]
impl RequestHandler for Shared {
    async fn request(&self, _from: u64, _request: pb::Request) -> pb::Response {
        take(&self.0.requests).await;
        self.0.seen.fetch_add(1, Ordering::SeqCst);
        pb::Response {
            kind: Some(pb::response::Kind::ReadIndex(pb::ReadIndexResponse {
                outcome: Some(pb::read_index_response::Outcome::Index(7)),
            })),
        }
    }

    async fn members(&self) -> Option<pb::MembersResponse> {
        Some(pb::MembersResponse {
            cluster_id: CLUSTER,
            members: Vec::new(),
        })
    }
}

fn accepted(matching: Option<pb::LogId>) -> pb::AppendReply {
    pb::AppendReply {
        outcome: Some(pb::append_reply::Outcome::Accepted(pb::Accepted {
            matching,
        })),
    }
}

/// An append that is answered with `mark`; `bytes` of entries, none for 0.
fn append(mark: u64, bytes: usize) -> pb::AppendRequest {
    let entry = pb::Entry {
        payload: Bytes::from(vec![7; bytes]),
        ..pb::Entry::default()
    };
    pb::AppendRequest {
        committed: Some(pb::LogId {
            term: 1,
            index: mark,
        }),
        entries: if bytes == 0 { vec![] } else { vec![entry] },
        ..pb::AppendRequest::default()
    }
}

fn mark(reply: &pb::AppendReply) -> u64 {
    match &reply.outcome {
        Some(pb::append_reply::Outcome::Accepted(accepted)) => accepted.matching.unwrap().index,
        other => panic!("{other:?}"),
    }
}

fn vote(term: u64) -> pb::Request {
    pb::Request {
        kind: Some(pb::request::Kind::Vote(pb::VoteRequest {
            vote: Some(pb::Vote {
                term,
                voted_for: 1,
                committed: false,
            }),
            ..pb::VoteRequest::default()
        })),
    }
}

fn read_index() -> pb::Request {
    pb::Request {
        kind: Some(pb::request::Kind::ReadIndex(pb::ReadIndexRequest {})),
    }
}

fn chunks(count: usize, bytes: usize) -> Chunks {
    futures::stream::iter(0..count)
        .map(move |_| {
            Ok(pb::SnapshotChunk {
                sequence: 0,
                payload: Bytes::from(vec![1; bytes]),
            })
        })
        .boxed()
}

fn local(cluster_id: u64, member_id: u64) -> Local {
    Local {
        cluster_id,
        member_id,
        incarnation: Uuid::from_u128(u128::from(member_id)),
        boot: Uuid::from_u128(u128::from(member_id) + 1000),
    }
}

/// A transport, and what it takes to serve it.
struct Member {
    transport: Transport,
    tasks: Tasks,
}

impl Member {
    fn new(local: Local) -> Self {
        let tasks = Tasks::new();
        Self {
            transport: Transport::new(local, TIMINGS, &tasks),
            tasks,
        }
    }

    fn answering(local: Local, script: &Arc<Scripted>) -> Self {
        let member = Self::new(local);
        let handler = Shared(Arc::clone(script));
        member.transport.set_handler(Arc::new(handler.clone()));
        member.transport.set_request_handler(Arc::new(handler));
        member
    }

    /// Serves on `address`, port 0 for any, until the returned group is stopped.
    async fn serve(&self, address: SocketAddr) -> (SocketAddr, Tasks) {
        let listener = bind(address).await;
        let address = listener.local_addr().unwrap();
        let serving = self.tasks.child();
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .add_service(self.transport.service())
            .serve_with_incoming(TcpListenerStream::new(listener));
        serving.spawn("test server", async move {
            server.await.ok();
        });
        (address, serving)
    }

    fn knows(&self, id: u64, address: SocketAddr) -> Peer {
        let url = format!("http://{address}");
        self.transport.set_peer(id, "other", &[url]);
        self.transport.peer(id).unwrap()
    }
}

/// Binds, waiting for an earlier server's socket to be gone.
async fn bind(address: SocketAddr) -> TcpListener {
    let mut last = None;
    for _ in 0..200 {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{last:?}");
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, wait).await;
    assert!(waited.is_ok(), "not within {LIMIT:?}: {what}");
}

async fn up(peer: &Peer) {
    until("the stream is up", || peer.is_active()).await;
}

/// Member 1 with a stream to member 2, which answers by `script`.
async fn pair(script: &Arc<Scripted>) -> (Member, Member, Peer) {
    let (one, two) = (
        Member::new(local(CLUSTER, 1)),
        Member::answering(local(CLUSTER, 2), script),
    );
    let (address, _) = two.serve(any_port()).await;
    let peer = one.knows(2, address);
    up(&peer).await;
    (one, two, peer)
}

#[tokio::test]
async fn requests_reach_their_handler_and_are_answered() {
    let (one, _two, peer) = pair(&Scripted::willing()).await;
    let response = peer.request(vote(9), LIMIT).await.unwrap();
    let Some(pb::response::Kind::Vote(vote)) = response.kind else {
        panic!("{response:?}");
    };
    assert!(vote.granted, "the handler saw the caller's id");
    assert_eq!(vote.vote.unwrap().term, 9);
    assert!(peer.request(read_index(), LIMIT).await.is_ok());
    let status = &one.transport.status()[0];
    assert!(matches!(status.activity, Activity::Active(_)));
    assert_eq!(status.incarnation, Some(Uuid::from_u128(2)));
    until("a round trip is measured", || {
        one.transport.status()[0].rtt.is_some()
    })
    .await;
}

#[tokio::test]
async fn a_member_without_handlers_says_that_it_is_not_ready() {
    let (one, two) = (
        Member::new(local(CLUSTER, 1)),
        Member::new(local(CLUSTER, 2)),
    );
    let (address, _) = two.serve(any_port()).await;
    let peer = one.knows(2, address);
    up(&peer).await;
    for request in [vote(1), read_index()] {
        let error = peer.request(request, LIMIT).await.unwrap_err();
        assert!(matches!(error, PeerError::NotReady(_)), "{error}");
    }
    let error = peer.append(append(1, 0), LIMIT).await.unwrap_err();
    assert!(matches!(error, PeerError::NotReady(_)), "{error}");
    let mut session = peer.append_session().unwrap();
    session.try_send(append(1, 1)).unwrap();
    let error = session.reply().await.unwrap().unwrap_err();
    assert!(matches!(error, PeerError::NotReady(_)), "{error}");
}

#[tokio::test]
async fn a_session_is_answered_in_order_however_it_is_windowed() {
    let (_one, _two, peer) = pair(&Scripted::willing()).await;
    let appends = futures::stream::iter(0..500).map(|n| append(n, 3000));
    let session = peer.append_session().unwrap();
    let replies: Vec<u64> = session
        .pipe(appends, LIMIT)
        .map(|reply| mark(&reply.unwrap()))
        .collect()
        .await;
    assert_eq!(replies, (0..500).collect::<Vec<_>>());
}

#[tokio::test]
async fn heartbeats_and_other_sessions_overtake_a_stuck_session() {
    let script = Scripted::new();
    let (_one, _two, peer) = pair(&script).await;
    let mut stuck = peer.append_session().unwrap();
    let mut sent = 0;
    while stuck.try_send(append(sent, 500_000)).is_ok() {
        sent += 1;
    }
    assert!(sent > 4, "the window holds several appends, not {sent}");
    let reply = peer.append(append(77, 0), LIMIT).await.unwrap();
    assert_eq!(mark(&reply), 77);
    let mut other = peer.append_session().unwrap();
    until("the lane has room", || {
        other.try_send(append(88, 0)).is_ok()
    })
    .await;
    let reply = other.reply().await.unwrap().unwrap();
    assert_eq!(mark(&reply), 88);
    assert_eq!(stuck.in_flight(), usize::try_from(sent).unwrap());
    script.appends.add_permits(usize::try_from(sent).unwrap());
    for n in 0..sent {
        assert_eq!(mark(&stuck.reply().await.unwrap().unwrap()), n);
    }
}

#[tokio::test]
async fn a_session_without_answers_is_given_up() {
    let (_one, _two, peer) = pair(&Scripted::new()).await;
    let session = peer.append_session().unwrap();
    let appends = futures::stream::iter([append(1, 1)]);
    let replies = session.pipe(appends, Duration::from_millis(50));
    let replies: Vec<_> = replies.collect().await;
    assert!(
        matches!(replies[..], [Err(PeerError::Timeout { sent: true, .. })]),
        "{replies:?}"
    );
}

#[tokio::test]
async fn a_full_window_refuses_and_is_counted() {
    let script = Scripted::new();
    let (one, _two, peer) = pair(&script).await;
    let mut session = peer.append_session().unwrap();
    for n in 0..session::SESSION_APPENDS_MAX {
        session
            .try_send(append(u64::try_from(n).unwrap(), 1))
            .unwrap();
    }
    let refused = session.try_send(append(0, 1)).unwrap_err();
    assert_eq!(refused, PeerError::Full("session window"));
    until("all are on their way", || {
        one.transport.status()[0].in_flight == session::SESSION_APPENDS_MAX
    })
    .await;
    let mut sessions = Vec::new();
    let full = loop {
        match peer.append_session() {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
    };
    assert!(full.certainly_not_handled(), "{full}");
    assert_eq!(one.transport.status()[0].dropped, 1);
}

#[tokio::test]
async fn what_waits_fails_when_the_stream_breaks_and_comes_back_after() {
    let script = Scripted::new();
    let (one, two) = (
        Member::new(local(CLUSTER, 1)),
        Member::answering(local(CLUSTER, 2), &script),
    );
    let (address, serving) = two.serve(any_port()).await;
    let peer = one.knows(2, address);
    up(&peer).await;
    let mut session = peer.append_session().unwrap();
    session.try_send(append(1, 1)).unwrap();
    let asking = peer.request(read_index(), LIMIT);
    let breaking = async {
        until("both are on their way", || {
            one.transport.status()[0].in_flight == 2
        })
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        serving.stop(LIMIT).await;
        two.tasks.stop(LIMIT).await;
    };
    let (answer, ()) = tokio::join!(asking, breaking);
    let error = answer.unwrap_err();
    assert!(
        matches!(error, PeerError::Lost { sent: true, .. }),
        "{error}"
    );
    let error = session.reply().await.unwrap().unwrap_err();
    assert!(matches!(error, PeerError::Lost { .. }), "{error}");
    assert!(
        session.try_send(append(2, 1)).is_err(),
        "it does not move on"
    );
    until("the stream is down", || !peer.is_active()).await;
    let error = peer.request(vote(1), LIMIT).await.unwrap_err();
    assert!(error.certainly_not_handled(), "nobody listens: {error}");

    let again = Member::answering(local(CLUSTER, 2), &Scripted::willing());
    let (_, _serving) = again.serve(address).await;
    up(&peer).await;
    peer.request(vote(1), LIMIT).await.unwrap();
    assert_eq!(one.transport.status()[0].connects, 2);
}

async fn frozen_now(freeze: &mut watch::Receiver<bool>) {
    freeze.wait_for(|frozen| *frozen).await.ok();
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_noticed() {
    // A relay that can stop relaying while the sockets stay open.
    let two = Member::answering(local(CLUSTER, 2), &Scripted::willing());
    let (address, _) = two.serve(any_port()).await;
    let relay = bind(any_port()).await;
    let entry = relay.local_addr().unwrap();
    let (frozen, _) = watch::channel(false);
    let tasks = Tasks::new();
    let (freeze, inner) = (frozen.subscribe(), tasks.clone());
    tasks.spawn("relay", async move {
        while let Ok((mut near, _)) = relay.accept().await {
            let mut freeze = freeze.clone();
            inner.spawn("relayed", async move {
                let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
                tokio::select! {
                    biased;
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = frozen_now(&mut freeze) => {}
                }
                // The sockets stay open.
                std::future::pending::<()>().await;
            });
        }
    });
    let one = Member::new(local(CLUSTER, 1));
    let peer = one.knows(2, entry);
    up(&peer).await;
    frozen.send_replace(true);
    let error = peer.request(vote(1), LIMIT).await.unwrap_err();
    assert!(
        matches!(error, PeerError::Lost { sent: true, .. }),
        "{error}"
    );
    assert!(!peer.is_active());
}

#[tokio::test]
async fn strangers_never_reach_a_handler() {
    let script = Scripted::willing();
    let two = Member::answering(local(CLUSTER, 2), &script);
    two.transport.set_incarnation(4, Uuid::from_u128(4));
    let (address, _) = two.serve(any_port()).await;
    let mut wiped = local(CLUSTER, 4);
    wiped.incarnation = Uuid::from_u128(44);
    for (caller, called, why) in [
        (local(CLUSTER + 1, 1), 2, "cluster id mismatch"),
        (local(CLUSTER, 1), 3, "wrong member"),
        (wiped, 2, "without its data"),
    ] {
        let stranger = Member::new(caller);
        let peer = stranger.knows(called, address);
        let error = peer.request(vote(1), LIMIT).await.unwrap_err();
        let PeerError::Refused(text) = &error else {
            panic!("{error}");
        };
        assert!(text.contains(why), "{text}");
        let error = peer
            .send_snapshot(pb::SnapshotHeader::default(), chunks(1, 1))
            .await
            .unwrap_err();
        assert!(matches!(error, PeerError::Refused(_)), "{error}");
        until("the stream is refused as well", || {
            let last = stranger.transport.status()[0].last_error.clone();
            last.is_some_and(|last| last.contains(why))
        })
        .await;
        assert!(!peer.is_active());
    }
    assert_eq!(script.seen.load(Ordering::SeqCst), 0);
    let member = Member::new(local(CLUSTER, 4));
    up(&member.knows(2, address)).await;
}

#[tokio::test]
async fn a_member_does_not_talk_to_itself_or_to_a_wiped_peer() {
    let one = Member::answering(local(CLUSTER, 1), &Scripted::willing());
    let (address, _) = one.serve(any_port()).await;
    let peer = one.knows(2, address);
    until("it notices", || {
        let last = one.transport.status()[0].last_error.clone();
        last.is_some_and(|last| last.contains("to itself"))
    })
    .await;
    assert!(!peer.is_active());
    let three = Member::answering(local(CLUSTER, 3), &Scripted::willing());
    let (address, _) = three.serve(any_port()).await;
    one.transport.set_incarnation(3, Uuid::from_u128(33));
    let peer = one.knows(3, address);
    let error = peer.request(vote(1), LIMIT).await.unwrap_err();
    assert!(matches!(error, PeerError::Refused(_)), "{error}");
    one.transport.remove_peer(3);
    let error = peer.request(vote(1), LIMIT).await.unwrap_err();
    assert_eq!(error, PeerError::Unknown(3));
}

/// A peer whose stream call is refused, while its other calls work.
#[derive(Debug, Clone)]
struct NoStream(PeerService);

#[async_trait]
impl pb::peer_server::Peer for NoStream {
    type StreamStream = <PeerService as pb::peer_server::Peer>::StreamStream;
    type FetchSnapshotStream = <PeerService as pb::peer_server::Peer>::FetchSnapshotStream;

    async fn stream(
        &self,
        _request: tonic::Request<tonic::Streaming<pb::StreamFrame>>,
    ) -> Result<tonic::Response<Self::StreamStream>, tonic::Status> {
        Err(tonic::Status::unavailable("no streams here"))
    }

    async fn unary(
        &self,
        request: tonic::Request<pb::UnaryRequest>,
    ) -> Result<tonic::Response<pb::UnaryResponse>, tonic::Status> {
        self.0.unary(request).await
    }

    async fn snapshot(
        &self,
        request: tonic::Request<tonic::Streaming<pb::SnapshotFrame>>,
    ) -> Result<tonic::Response<pb::SnapshotReply>, tonic::Status> {
        self.0.snapshot(request).await
    }

    async fn fetch_snapshot(
        &self,
        request: tonic::Request<pb::FetchSnapshotRequest>,
    ) -> Result<tonic::Response<Self::FetchSnapshotStream>, tonic::Status> {
        self.0.fetch_snapshot(request).await
    }

    async fn members(
        &self,
        request: tonic::Request<pb::MembersRequest>,
    ) -> Result<tonic::Response<pb::MembersResponse>, tonic::Status> {
        self.0.members(request).await
    }
}

#[tokio::test]
async fn small_messages_go_as_unary_calls_while_the_stream_is_down() {
    let two = Member::answering(local(CLUSTER, 2), &Scripted::willing());
    let listener = bind(any_port()).await;
    let address = listener.local_addr().unwrap();
    let service = NoStream(two.transport.service_for_tests());
    let server = tonic::transport::Server::builder()
        .add_service(pb::peer_server::PeerServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener));
    two.tasks.spawn("test server", async move {
        server.await.ok();
    });
    let one = Member::new(local(CLUSTER, 1));
    let peer = one.knows(2, address);
    until("the stream has failed", || {
        one.transport.status()[0].last_error.is_some()
    })
    .await;
    peer.request(vote(1), LIMIT).await.unwrap();
    peer.request(read_index(), LIMIT).await.unwrap();
    let reply = peer.append(append(5, 1), LIMIT).await.unwrap();
    assert_eq!(mark(&reply), 5);
    let error = peer.append_session().unwrap_err();
    assert!(matches!(error, PeerError::Unreachable(_)), "{error}");
    assert!(!peer.is_active());
}

#[tokio::test]
async fn a_request_that_times_out_says_whether_it_was_sent() {
    let (_one, _two, peer) = pair(&Scripted::new()).await;
    let error = peer
        .request(read_index(), Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(
        matches!(error, PeerError::Timeout { sent: true, .. }),
        "{error}"
    );
    let lonely = Member::new(local(CLUSTER, 3));
    let listener = bind(any_port()).await; // Accepts, and never says a word.
    let peer = lonely.knows(2, listener.local_addr().unwrap());
    let error = peer.request(vote(1), LIMIT).await.unwrap_err();
    assert!(!peer.is_active(), "{error}");
}

#[tokio::test]
async fn a_snapshot_is_received_at_the_receivers_pace() {
    let script = Scripted::new();
    let (_one, _two, peer) = pair(&script).await;
    let made = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&made);
    let source = chunks(400, 100_000).inspect(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let header = pb::SnapshotHeader {
        vote: Some(pb::Vote {
            term: 4,
            ..pb::Vote::default()
        }),
        ..pb::SnapshotHeader::default()
    };
    let sending = peer.send_snapshot(header, source.boxed());
    let slow = async {
        // Nothing is taken yet: the sender must come to rest with little of the 40 MB made.
        let mut before = u64::MAX;
        while before != made.load(Ordering::SeqCst) || before == 0 {
            before = made.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(before < 200, "{before} chunks were made for nobody");
        assert!(peer.append(append(3, 0), LIMIT).await.is_ok(), "meanwhile");
        script.chunk_permits.add_permits(400);
    };
    let (reply, ()) = tokio::join!(sending, slow);
    assert_eq!(reply.unwrap().vote.unwrap().term, 4);
    assert_eq!(*script.chunks.borrow(), (400, Some(Ok(()))));
}

#[tokio::test]
async fn a_cancelled_or_failed_snapshot_is_never_taken_for_a_complete_one() {
    let script = Scripted::willing();
    let (_one, _two, peer) = pair(&script).await;
    let endless = chunks(3, 10).chain(futures::stream::pending()).boxed();
    let sending = peer.send_snapshot(pb::SnapshotHeader::default(), endless);
    let mut told = script.chunks.subscribe();
    tokio::select! {
        ended = sending => panic!("{ended:?}"),
        taken = told.wait_for(|(taken, _)| *taken == 3) => drop(taken.unwrap()),
    }
    // The receiver's handler is dropped or gets an error; in no case does it see the end.
    let broken = PeerError::Failed("the disk".to_owned());
    let failing = chunks(2, 10).chain(futures::stream::iter([Err(broken.clone())]));
    let sent = peer.send_snapshot(pb::SnapshotHeader::default(), failing.boxed());
    assert_eq!(sent.await.unwrap_err(), broken);
    let told = script.chunks.borrow().clone();
    assert!(!matches!(told.1, Some(Ok(()))), "{told:?}");
}

#[tokio::test]
async fn a_snapshot_can_be_asked_for() {
    let (_one, _two, peer) = pair(&Scripted::willing()).await;
    let (_, chunks) = peer.fetch_snapshot(5).await.unwrap();
    let chunks: Vec<_> = chunks.collect().await;
    assert_eq!(chunks.len(), 3);
    assert!(chunks.iter().all(Result::is_ok));
    let error = peer.fetch_snapshot(101).await.map(drop).unwrap_err();
    assert!(matches!(error, PeerError::NotReady(_)), "{error}");
}

#[tokio::test]
async fn a_joining_member_can_ask_who_is_there() {
    let two = Member::answering(local(CLUSTER, 2), &Scripted::willing());
    let (address, _) = two.serve(any_port()).await;
    let members = fetch_members(&format!("http://{address}"), LIMIT).await;
    assert_eq!(members.unwrap().cluster_id, CLUSTER);
}
