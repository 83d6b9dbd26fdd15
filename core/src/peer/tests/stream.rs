//! Sessions, requests and the life of the stream.

use super::*;

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
    assert_eq!(*one.transport.streams_up().borrow(), 1);
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
