//! What the tests share: two transports, or a transport and a bare client, over real sockets on the loopback interface.

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

mod calls;
mod stream;

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
