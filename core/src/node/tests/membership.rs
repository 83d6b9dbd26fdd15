//! Clusters that grow and shrink.

use std::net::TcpListener;

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest,
};

use super::*;

/// A member to be: its folder and its address stay when it is stopped.
struct Seat {
    name: String,
    folder: tempfile::TempDir,
    listener: Option<TcpListener>,
    url: String,
}

impl Seat {
    fn new(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Self {
            name: name.to_owned(),
            folder: tempfile::tempdir().unwrap(),
            listener: Some(listener),
            url,
        }
    }

    /// The member's settings, with `others` in its list.
    fn builder(&mut self, others: &[&Self]) -> NodeBuilder {
        let listed = |seat: &Self| (seat.name.clone(), vec![seat.url.clone()]);
        let mut members = vec![listed(self)];
        members.extend(others.iter().map(|seat| listed(seat)));
        let builder = quick(Node::builder())
            .name(&self.name)
            .data_dir(self.folder.path())
            .cluster(members);
        match self.listener.take() {
            Some(listener) => builder.peer_listener(listener),
            None => builder.listen_peers([self.url.clone()]),
        }
    }

    fn add(&self, is_learner: bool) -> MemberAddRequest {
        MemberAddRequest {
            peer_ur_ls: vec![self.url.clone()],
            is_learner,
        }
    }
}

async fn voters(node: &Node) -> Vec<Member> {
    let members = node.member_list(false).await.unwrap().members;
    members
        .into_iter()
        .filter(|member| !member.is_learner)
        .collect()
}

async fn votes(node: &Node, count: usize) {
    eventually("all have their vote", || async {
        voters(node).await.len() == count
    })
    .await;
}

fn remove(id: u64) -> MemberRemoveRequest {
    MemberRemoveRequest { id }
}

/// A lone member with a key, and one that joined it and has its vote.
async fn two() -> ([Seat; 2], [Node; 2]) {
    let (mut a, mut b) = (Seat::new("a"), Seat::new("b"));
    let first = a.builder(&[]).start().await.unwrap();
    first.put(put("k", "before")).await.unwrap();
    let second = b.builder(&[]).join(&a.url).start().await.unwrap();
    votes(&first, 2).await;
    ([a, b], [first, second])
}

async fn third(a: &Seat, first: &Node) -> (Seat, Node) {
    let mut c = Seat::new("c");
    let third = c.builder(&[]).join(&a.url).start().await.unwrap();
    votes(first, 3).await;
    (c, third)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_adds_itself_catches_up_and_votes() {
    let ([a, _b], [first, second]) = two().await;
    assert_eq!(values(&second.range(get("k")).await.unwrap()), ["before"]);
    let (_c, third) = third(&a, &first).await;
    // A quorum without the first one: the others really vote.
    first.shutdown().await;
    second.put(put("k", "after")).await.unwrap();
    assert_eq!(values(&third.range(get("k")).await.unwrap()), ["after"]);
    third.shutdown().await;
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_added_finds_itself_by_its_address() {
    let (mut a, mut b) = (Seat::new("a"), Seat::new("b"));
    let first = a.builder(&[]).start().await.unwrap();
    first.put(put("k", "1")).await.unwrap();
    let added = first.member_add(b.add(false)).await.unwrap();
    assert_eq!(
        (added.header.unwrap().revision, added.members.len()),
        (0, 2)
    );
    let added = added.member.unwrap();
    assert!(added.is_learner && added.name.is_empty());
    first
        .put(put("k", "2"))
        .await
        .expect("one that does not run yet takes nothing from the quorum");
    let second = b.builder(&[&a]).existing().start().await.unwrap();
    assert_eq!(second.member_id(), added.id);
    assert_eq!(second.cluster_id(), first.cluster_id());
    votes(&first, 2).await;
    second.put(put("k", "3")).await.unwrap();

    // Its folder knows it from now on, whatever the settings say.
    second.shutdown().await;
    drop(second);
    let second = b.builder(&[&a]).start().await.unwrap();
    assert_eq!(second.member_id(), added.id);
    second.put(put("k", "4")).await.unwrap();
    assert_eq!(values(&first.range(get("k")).await.unwrap()), ["4"]);
    second.shutdown().await;
    first.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_stays_one_until_it_is_promoted() {
    let (mut a, mut b) = (Seat::new("a"), Seat::new("b"));
    let first = a.builder(&[]).start().await.unwrap();
    let added = first.member_add(b.add(true)).await.unwrap().member.unwrap();
    let promote = MemberPromoteRequest { id: added.id };
    let early = first.member_promote(promote).await.unwrap_err();
    assert_eq!(early.reason(), Reason::LearnerNotReady);
    let another = first
        .member_add(Seat::new("c").add(true))
        .await
        .unwrap_err();
    assert_eq!(another.reason(), Reason::TooManyLearners);

    let second = b.builder(&[&a]).existing().start().await.unwrap();
    eventually("it can be promoted, asked by way of itself", || async {
        second.member_promote(promote).await.is_ok()
    })
    .await;
    assert_eq!(voters(&second).await.len(), 2);
    let again = first.member_promote(promote).await.unwrap_err();
    assert_eq!(again.reason(), Reason::MemberNotLearner);
    second.shutdown().await;
    first.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_at_once_are_each_checked_against_those_before() {
    let ([_a, _b], [first, second]) = two().await;
    for _ in 0..10 {
        let seats: Vec<Seat> = (0..16).map(|n| Seat::new(&format!("c{n}"))).collect();
        let adding = seats.iter().enumerate().map(|(n, seat)| {
            let node = if n % 2 == 0 { &first } else { &second };
            node.member_add(seat.add(true))
        });
        let (added, refused): (Vec<_>, Vec<_>) = futures::future::join_all(adding)
            .await
            .into_iter()
            .partition(Result::is_ok);
        let [Ok(added)] = &added[..] else {
            panic!("only one learner may be there: {added:?}");
        };
        for refused in refused {
            assert_eq!(refused.unwrap_err().reason(), Reason::TooManyLearners);
        }
        let id = added.member.as_ref().expect("it is in its own answer").id;
        assert_eq!(added.members.len(), 3);
        let removed = second.member_remove(remove(id)).await.unwrap();
        assert_eq!(removed.members.len(), 2, "it is gone in its own answer");
    }
    for node in [second, first] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_stops_and_does_not_come_back() {
    let ([a, _b], [first, second]) = two().await;
    let (mut c, third) = third(&a, &first).await;
    let removed = second
        .member_remove(remove(third.member_id()))
        .await
        .unwrap();
    assert_eq!(removed.members.len(), 2);
    let cause = tokio::time::timeout(PATIENCE, third.failed())
        .await
        .unwrap();
    assert_eq!(cause.reason(), Reason::MemberRemoved);
    third.shutdown().await;
    drop(third);
    let refused = c.builder(&[]).join(&a.url).start().await.unwrap_err();
    assert!(refused.to_string().contains("was removed"), "{refused}");
    first.put(put("k", "after")).await.unwrap();

    // With an empty folder it is another member.
    let mut anew = Seat::new("c");
    let fourth = anew.builder(&[]).join(&a.url).start().await.unwrap();
    votes(&first, 3).await;
    for node in [fourth, second, first] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_removed_while_it_was_down_hears_of_it_when_it_starts() {
    let ([a, _b], [first, second]) = two().await;
    let (mut c, third) = third(&a, &first).await;
    let id = third.member_id();
    third.shutdown().await;
    drop(third);
    first.member_remove(remove(id)).await.unwrap();
    let third = c.builder(&[]).join(&a.url).start().await.unwrap();
    let cause = tokio::time::timeout(PATIENCE, third.failed())
        .await
        .unwrap();
    assert_eq!(cause.reason(), Reason::MemberRemoved);
    for node in [third, second, first] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_hands_over_before_it_is_removed() {
    let ([a, _b], [first, second]) = two().await;
    let (_c, third) = third(&a, &first).await;
    let leader = first.wait_for_leader().await.unwrap();
    let nodes = [first, second, third];
    let (leads, rest): (Vec<_>, Vec<_>) = nodes
        .into_iter()
        .partition(|node| node.member_id() == leader);
    let began = crate::clock::now();
    rest[0].member_remove(remove(leader)).await.unwrap();
    rest[1].put(put("k", "after")).await.unwrap();
    assert!(
        began.elapsed() < 2 * ELECTION_TIMEOUT,
        "nobody waited for an election"
    );
    let cause = tokio::time::timeout(PATIENCE, leads[0].failed())
        .await
        .unwrap();
    assert_eq!(cause.reason(), Reason::MemberRemoved);
    for node in leads.iter().chain(&rest) {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_removed_leaves_no_write_in_doubt() {
    let ([a, _b], [first, second]) = two().await;
    let (_c, third) = third(&a, &first).await;
    let writers = (0..8).map(|writer| {
        let node = third.clone();
        async move {
            for n in 0.. {
                let key = format!("{writer}/{n}");
                if let Err(error) = node.put(put(&key, "v")).await {
                    return (key, error, n);
                }
            }
            unreachable!("it is removed")
        }
    });
    let removal = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        first
            .member_remove(remove(third.member_id()))
            .await
            .unwrap();
    };
    let (ends, ()) = tokio::join!(futures::future::join_all(writers), removal);
    for (key, error, written) in ends {
        assert_eq!(
            error.reason(),
            Reason::NoLeader,
            "{key}: certainly not applied"
        );
        assert!(values(&first.range(get(&key)).await.unwrap()).is_empty());
        assert!(written > 0, "it was removed before it wrote");
    }
    for node in [third, second, first] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_cannot_be_are_refused_in_etcds_words() {
    let ([a, b], [first, second]) = two().await;
    let add = |peer_ur_ls: Vec<String>| MemberAddRequest {
        peer_ur_ls,
        is_learner: false,
    };
    let update = |id: u64, url: &str| MemberUpdateRequest {
        id,
        peer_ur_ls: vec![url.to_owned()],
    };
    let reason = |result: Result<(), crate::error::Error>| result.unwrap_err().reason();
    for node in [&first, &second] {
        let added = |urls| async { node.member_add(add(urls)).await.map(drop) };
        assert_eq!(reason(added(vec![]).await), Reason::MemberBadUrls);
        assert_eq!(
            reason(added(vec!["nonsense".to_owned()]).await),
            Reason::MemberBadUrls
        );
        assert_eq!(
            reason(added(vec![b.url.clone()]).await),
            Reason::PeerUrlExists
        );
        let unknown = node.member_remove(remove(7)).await.map(drop);
        assert_eq!(reason(unknown), Reason::MemberNotFound);
        let unknown = node
            .member_promote(MemberPromoteRequest { id: 7 })
            .await
            .map(drop);
        assert_eq!(reason(unknown), Reason::MemberNotFound);
        let unknown = node.member_update(update(7, "http://x:1")).await.map(drop);
        assert_eq!(reason(unknown), Reason::MemberNotFound);
        let used = node.member_update(update(first.member_id(), &b.url)).await;
        assert_eq!(reason(used.map(drop)), Reason::PeerUrlExists);
    }
    // Two members run. A third may be added unstarted, a fourth not: there would be no quorum.
    let unstarted = first.member_add(Seat::new("c").add(false)).await.unwrap();
    let fourth = first.member_add(Seat::new("d").add(false)).await.map(drop);
    assert_eq!(reason(fourth), Reason::NotEnoughStartedMembers);
    let id = unstarted.member.unwrap().id;
    let renamed = first
        .member_update(update(id, "http://127.0.0.1:9"))
        .await
        .unwrap();
    let renamed = renamed.members.iter().find(|member| member.id == id);
    assert_eq!(renamed.unwrap().peer_ur_ls, ["http://127.0.0.1:9"]);
    first.member_remove(remove(id)).await.unwrap();

    let (_c, third) = third(&a, &first).await;
    third.shutdown().await;
    eventually("the third is missed", || async {
        first
            .peers()
            .iter()
            .any(|peer| !matches!(peer.activity, crate::peer::Activity::Active(_)))
    })
    .await;
    let running = second.member_id();
    let unsafe_removal = first.member_remove(remove(running)).await.map(drop);
    assert_eq!(reason(unsafe_removal), Reason::Unhealthy);
    first
        .member_remove(remove(third.member_id()))
        .await
        .unwrap();
    first.member_remove(remove(running)).await.unwrap();
    let last = first
        .member_remove(remove(first.member_id()))
        .await
        .map(drop);
    assert_eq!(reason(last), Reason::NotEnoughStartedMembers);
    first.put(put("k", "alone")).await.unwrap();
    for node in [second, first] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_moves_to_another_address() {
    let ([a, mut b], [first, second]) = two().await;
    let (_c, third) = third(&a, &first).await;
    second.shutdown().await;
    let id = second.member_id();
    drop(second);
    let moved = Seat::new("b");
    b.url.clone_from(&moved.url);
    b.listener = moved.listener;
    let request = MemberUpdateRequest {
        id,
        peer_ur_ls: vec![b.url.clone()],
    };
    third.member_update(request).await.unwrap();
    let second = b.builder(&[&a]).start().await.unwrap();
    assert_eq!(second.member_id(), id);
    second.put(put("k", "moved")).await.unwrap();
    assert_eq!(values(&first.range(get("k")).await.unwrap()), ["moved"]);
    for node in [third, second, first] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_in_no_cluster_is_told_so() {
    let (mut a, mut b) = (Seat::new("a"), Seat::new("b"));
    let first = a.builder(&[]).start().await.unwrap();
    let lone = b.builder(&[]).existing().start().await.unwrap_err();
    assert!(lone.to_string().contains("names nobody else"), "{lone}");
    // It is added while it asks.
    b.listener = Some(TcpListener::bind(b.url.strip_prefix("http://").unwrap()).unwrap());
    let request = b.add(false);
    let starting = b.builder(&[&a]).existing().start();
    let (second, added) = tokio::join!(starting, async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        first.member_add(request).await
    });
    assert_eq!(
        second.as_ref().unwrap().member_id(),
        added.unwrap().member.unwrap().id
    );
    second.unwrap().shutdown().await;
    first.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_network_says_that_it_cannot_grow() {
    let node = lone().await;
    let refused = node
        .member_add(Seat::new("b").add(false))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("without peers"), "{refused}");
    node.shutdown().await;
}
