//! Who is let in, unary calls, snapshots.

use super::*;

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

#[tokio::test]
async fn streams_with_another_incarnation_end_when_the_right_one_becomes_known() {
    let one = Member::answering(local(CLUSTER, 1), &Scripted::willing());
    let two = Member::answering(local(CLUSTER, 2), &Scripted::willing());
    let (address_of_one, _) = one.serve(any_port()).await;
    let (address_of_two, _) = two.serve(any_port()).await;
    let to_two = one.knows(2, address_of_two);
    up(&to_two).await;
    up(&two.knows(1, address_of_one)).await;
    until("the stream of 2 is there", || {
        one.transport.status()[0].incoming
    })
    .await;
    // What it is already: nothing ends.
    one.transport
        .set_incarnation(2, local(CLUSTER, 2).incarnation);
    assert!(to_two.is_active() && one.transport.status()[0].incoming);
    one.transport.set_incarnation(2, Uuid::from_u128(22));
    until("both streams are down", || {
        let status = one.transport.status();
        let refused = status[0].last_error.as_ref();
        !status[0].incoming && refused.is_some_and(|last| last.contains("without its data"))
    })
    .await;
    let to_two = one.transport.peer(2).unwrap();
    let error = to_two.request(vote(1), LIMIT).await.unwrap_err();
    assert!(matches!(error, PeerError::Refused(_)), "{error}");
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

    async fn join(
        &self,
        request: tonic::Request<pb::JoinRequest>,
    ) -> Result<tonic::Response<pb::JoinResponse>, tonic::Status> {
        self.0.join(request).await
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

#[tokio::test]
async fn a_caller_that_overruns_a_session_loses_only_that_session() {
    use pb::stream_frame::Kind;
    let two = Member::answering(local(CLUSTER, 2), &Scripted::new());
    let (address, _) = two.serve(any_port()).await;
    let url = format!("http://{address}");
    let mut client = pb::peer_client::PeerClient::connect(url).await.unwrap();
    let handshake = Kind::Handshake(local(CLUSTER, 1).handshake(2));
    let appends = (0..200).map(|sequence| {
        Kind::Append(pb::SessionAppend {
            session: 5,
            sequence,
            single: false,
            request: Some(append(sequence, 1)),
        })
    });
    let ping = Kind::Ping(pb::Ping { sequence: 9 });
    let frames: Vec<_> = [handshake]
        .into_iter()
        .chain(appends)
        .chain([ping])
        .map(|kind| pb::StreamFrame { kind: Some(kind) })
        .collect();
    let frames = futures::stream::iter(frames).chain(futures::stream::pending());
    let mut answers = client.stream(frames).await.unwrap().into_inner();
    let mut said = Vec::new();
    while said.len() < 3 {
        let frame = tokio::time::timeout(LIMIT, answers.message()).await;
        said.push(frame.unwrap().unwrap().unwrap().kind.unwrap());
    }
    let closed = said.iter().find_map(|kind| match kind {
        Kind::Closed(closed) => closed.failure.clone(),
        _ => None,
    });
    assert_eq!(closed.unwrap().kind(), pb::failure::Kind::Full);
    assert!(said.contains(&Kind::Pong(pb::Pong { sequence: 9 })));
}

#[tokio::test]
async fn a_crowd_on_the_peer_port_leaves_the_members_alone() {
    const CROWD: usize = 200;
    let one = Member::answering(local(CLUSTER, 1), &Scripted::willing());
    let two = Member::answering(local(CLUSTER, 2), &Scripted::willing());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = Tasks::new();
    two.transport.serve(listener, &tasks).unwrap();
    let to_two = one.knows(2, address);
    up(&to_two).await;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    // Whoever is not let in is hung up on; half of all places are the most for one address.
    let hung_up = |stream: &tokio::net::TcpStream| match stream.try_read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    until("most are refused", || {
        crowd.iter().filter(|stream| hung_up(stream)).count() >= CROWD - 64
    })
    .await;
    assert!(to_two.request(vote(1), LIMIT).await.is_ok());
    assert!(tasks.stop(LIMIT).await);
}
