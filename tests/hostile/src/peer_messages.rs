//! What other members send: decoded, taken into raft's types and written again without a panic and
//! without a change; and whole calls to the peer service, which must answer each, whatever is in
//! them.

use std::cell::RefCell;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut, Bytes};
use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use prost::Message;
use quorate_core::peer::{
    Appends, Chunks, Handler, Local, PROTOCOL_VERSION, PeerError, Replies, RequestHandler, Timings,
    Transport,
};
use quorate_core::raft::{codec, foreign};
use quorate_core::tasks::Tasks;
use quorate_proto::log;
use quorate_proto::peer as pb;
use quorate_proto::peer::stream_frame::Kind;
use tokio::runtime::{Builder, Runtime};
use tonic::body::Body;
use tower::ServiceExt;
use uuid::Uuid;

use crate::Input;

/// Messages of one call at most.
const MESSAGES_MAX: usize = 12;
/// No run may take that long: what is waited for is there, or never comes.
const PATIENCE: Duration = Duration::from_secs(20);

const LOCAL: Local = Local {
    cluster_id: 0xc1,
    member_id: 1,
    incarnation: Uuid::from_u128(11),
    boot: Uuid::from_u128(12),
};
const TIMINGS: Timings = Timings {
    heartbeat_interval: Duration::from_secs(1),
    election_timeout: Duration::from_secs(10),
};

/// One run.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 8 {
        0 => log_batch(input.rest()),
        1 => membership(input.rest()),
        2 => snapshot_header(input.rest()),
        3..=5 => frame(input.rest()),
        _ => call(&mut input),
    }
}

fn log_batch(data: &[u8]) {
    if let Ok(batch) = log::Batch::decode(data) {
        let again = log::Batch::decode(&*batch.encode_to_vec()).expect("its own encoding");
        assert_eq!(again, batch);
    }
}

fn membership(data: &[u8]) {
    if let Ok(stored) = codec::decode_membership(data) {
        let again = codec::decode_membership(&codec::encode_membership(&stored));
        assert_eq!(again.expect("its own encoding"), stored);
    }
}

fn snapshot_header(data: &[u8]) {
    let Ok(header) = pb::SnapshotHeader::decode(data) else {
        return;
    };
    if let Ok(written) = foreign::snapshot_header(&header) {
        let again = foreign::snapshot_header(&written).expect("its own message");
        assert_eq!(again, written);
        assert_eq!((written.vote, written.last), (header.vote, header.last));
    }
}

fn frame(data: &[u8]) {
    let Ok(pb::StreamFrame { kind: Some(kind) }) = pb::StreamFrame::decode(data) else {
        return;
    };
    if let Ok(written) = foreign::rewritten(kind) {
        let again = foreign::rewritten(written.clone()).expect("its own message");
        assert_eq!(
            again, written,
            "what is understood once is understood again"
        );
    }
}

/// A raft that takes what can be taken.
#[derive(Debug)]
struct Willing;

#[async_trait]
impl Handler for Willing {
    fn append_session(&self, _from: u64, appends: Appends) -> Replies {
        appends
            .map(|append| {
                let matching = append.committed;
                foreign::append(append).is_ok().then_some(matching)
            })
            .take_while(|matching| std::future::ready(matching.is_some()))
            .map(|matching| pb::AppendReply {
                outcome: Some(pb::append_reply::Outcome::Accepted(pb::Accepted {
                    matching: matching.flatten(),
                })),
            })
            .boxed()
    }

    async fn request(&self, _from: u64, request: pb::Request) -> pb::Response {
        let request = Some(request);
        drop(foreign::rewritten(Kind::Request(pb::TaggedRequest {
            id: 0,
            request,
        })));
        pb::Response::default()
    }

    async fn snapshot(
        &self,
        _from: u64,
        header: pb::SnapshotHeader,
        mut chunks: Chunks,
    ) -> Result<pb::SnapshotReply, PeerError> {
        foreign::snapshot_header(&header)?;
        let mut expected = 0;
        while let Some(chunk) = chunks.next().await {
            assert_eq!(chunk?.sequence, expected, "chunks come in order");
            expected += 1;
        }
        Ok(pb::SnapshotReply::default())
    }
}

#[async_trait]
impl RequestHandler for Willing {
    async fn request(&self, _from: u64, _request: pb::Request) -> pb::Response {
        pb::Response::default()
    }
}

fn uuid(uuid: Uuid) -> Bytes {
    Bytes::copy_from_slice(uuid.as_bytes())
}

/// The handshake of a member that is let in.
fn handshake() -> pb::Handshake {
    pb::Handshake {
        protocol_version: PROTOCOL_VERSION,
        cluster_id: LOCAL.cluster_id,
        from: 2,
        to: LOCAL.member_id,
        incarnation: uuid(Uuid::from_u128(21)),
        boot_id: uuid(Uuid::from_u128(22)),
        to_incarnation: Bytes::new(),
    }
}

/// A call of the peer service: which one, and the bytes of its messages.
fn call(input: &mut Input<'_>) {
    let choice = input.byte();
    let mut first = handshake();
    if choice >= 0xe0 {
        first.from = input.extreme();
        first.incarnation = Bytes::copy_from_slice(input.piece());
    }
    let method = match choice % 8 {
        0 => "Unary",
        1 => "Snapshot",
        2 => "FetchSnapshot",
        3 => "Members",
        _ => "Stream",
    };
    let mut messages = Vec::new();
    if method == "Stream" && choice % 16 < 14 {
        let kind = Some(Kind::Handshake(first.clone()));
        messages.push(pb::StreamFrame { kind }.encode_to_vec());
    }
    for _ in 0..MESSAGES_MAX {
        if input.is_empty() {
            break;
        }
        messages.push(input.piece().to_vec());
    }
    if let Some(message) = messages.first_mut() {
        show_handshake(method, message, &first);
    }
    let mut body = Vec::new();
    for message in &messages {
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).expect("an input is short"));
        body.extend_from_slice(message);
    }
    if choice % 32 == 31 {
        body.extend_from_slice(&[0, 0xff, 0xff, 0xff, 0xff]);
    }
    answered(method, body.into());
}

/// Puts a handshake into the message that has to have one, if it is such a message.
fn show_handshake(method: &str, message: &mut Vec<u8>, shown: &pb::Handshake) {
    let shown = Some(shown.clone());
    match method {
        "Unary" => {
            if let Ok(mut request) = pb::UnaryRequest::decode(&**message) {
                request.handshake = shown;
                *message = request.encode_to_vec();
            }
        }
        "Snapshot" => {
            if let Ok(mut header) = pb::SnapshotHeader::decode(&**message) {
                header.handshake = shown;
                let kind = Some(pb::snapshot_frame::Kind::Header(header));
                *message = pb::SnapshotFrame { kind }.encode_to_vec();
            }
        }
        "FetchSnapshot" => {
            if let Ok(mut request) = pb::FetchSnapshotRequest::decode(&**message) {
                request.handshake = shown;
                *message = request.encode_to_vec();
            }
        }
        _ => {}
    }
}

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without I/O"),
    );
}

/// Makes the call and reads its answer to the end.
fn answered(method: &str, body: Bytes) {
    RUNTIME.with_borrow(|runtime| {
        runtime.block_on(async {
            let tasks = Tasks::new();
            let transport = Transport::new(LOCAL, TIMINGS, &tasks);
            transport.set_handler(std::sync::Arc::new(Willing));
            transport.set_request_handler(std::sync::Arc::new(Willing));
            transport.set_incarnation(3, Uuid::from_u128(31));
            transport.refuse(4);
            let request = http::Request::post(format!("/quorate.peer.v1.Peer/{method}"))
                .header("content-type", "application/grpc")
                .body(Body::new(Full::new(body)))
                .expect("a well-formed request");
            let answer = async {
                let response = transport.service().oneshot(request).await;
                let response = response.unwrap_or_else(|never| match never {});
                drop(response.into_body().collect().await);
            };
            let answered = tokio::time::timeout(PATIENCE, answer).await;
            assert!(answered.is_ok(), "the call was never answered");
            transport.stop();
        });
    });
}
