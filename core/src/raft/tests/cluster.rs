//! A cluster of three.

use super::*;
use quorate_proto::Reason;

#[tokio::test(flavor = "multi_thread")]
async fn every_member_applies_what_the_leader_proposes_and_only_the_leader_may() {
    let net = Net::default();
    let members = three(&net, 5_000).await;
    let leader = leader_of(&members).await;
    let applied = members[leader].put_ok("key", "value").await;
    for member in &members {
        member.wait_applied(applied.index).await;
        assert_eq!(member.get("key").unwrap(), "value");
        assert_eq!(member.consensus.members().len(), 3);
    }
    let follower = (leader + 1) % 3;
    let refused = members[follower].put("key", "other").await.unwrap_err();
    let expected = Some(members[leader].id);
    assert!(matches!(refused, ProposeError::NotLeader { leader, .. } if leader == expected));
    let read = members[follower].consensus.read_index().await;
    assert_eq!(read, Err(Reason::NotLeader));
    for member in members {
        member.stop(&net).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_leader_serves_no_read_and_its_unanswered_proposals_are_lost() {
    let net = Net::default();
    let members = three(&net, 5_000).await;
    let old = leader_of(&members).await;
    members[old].put_ok("key", "old").await;
    let term = members[old].consensus.status().term;
    net.cut_off(members[old].id);

    let mut ticket = members[old].pending.register(term).unwrap();
    let proposal = batch(&ticket, "key", "never");
    let cut_off = members[old].consensus.clone();
    let proposal = async move { cut_off.propose(proposal, term).await };
    let proposal = beside(proposal);
    let others: Vec<_> = (0..3).filter(|place| *place != old).collect();
    assert_eq!(
        members[old].consensus.read_index().await,
        Err(Reason::Timeout)
    );
    let mut leadership = members[old].consensus.leadership();
    let silent = wait_for(&mut leadership, |l| l.leader.is_none()).await;
    assert_eq!(silent.term, term);

    let new = loop {
        let waits = others
            .iter()
            .map(|place| Box::pin(members[*place].wait_ready()));
        let ((), at, _) = futures::future::select_all(waits).await;
        if members[others[at]].consensus.status().term > term {
            break others[at];
        }
    };
    let applied = members[new].put_ok("key", "new").await;
    net.heal(members[old].id);
    members[old].wait_applied(applied.index).await;
    assert_eq!(members[old].get("key").unwrap(), "new");
    assert_eq!(ticket.completion().await, Completion::Lost);
    let resolved = proposal.await;
    assert_eq!(resolved, Err(ProposeError::Discarded));
    for member in members {
        member.stop(&net).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_to_voters_only() {
    let net = Net::default();
    let members = three(&net, 5_000).await;
    let old = leader_of(&members).await;
    let new = (old + 1) % 3;
    let leader = &members[old].consensus;
    let refused = leader.transfer_leader(9).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::BadLeaderTransferee);
    leader
        .transfer_leader(members[new].id)
        .await
        .expect("handed over");
    members[new].wait_ready().await;
    let refused = leader.transfer_leader(members[new].id).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::NotLeader);
    let applied = members[new].put_ok("key", "value").await;
    members[old].wait_applied(applied.index).await;
    for member in members {
        member.stop(&net).await;
    }
}
