//! A cluster of one.

use super::*;
use quorate_proto::Reason;

async fn lone(disk: &Disk) -> Member {
    let net = Net::default();
    let member = Member::start(1, disk, &net).await.expect("starts");
    member
        .consensus
        .initialize(peers([1]))
        .await
        .expect("forms");
    member.wait_ready().await;
    member
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_member_answers_reads_and_comes_back_with_everything() {
    let disk = Disk::new();
    let member = lone(&disk).await;
    for number in 0..50 {
        member.put_ok(&format!("key{number}"), "value").await;
    }
    let index = member.consensus.read_index().await.expect("leads");
    member.wait_applied(index).await;
    let before = member.consensus.status();
    assert_eq!(before.leader, Some(1));
    assert_eq!(before.applied_index, index);
    member
        .consensus
        .initialize(peers([1]))
        .await
        .expect("again");
    member.stop(&Net::default()).await;

    let member = lone(&disk).await;
    assert!(
        member.consensus.status().term > before.term,
        "a new start, a new term"
    );
    assert_eq!(member.get("key49").unwrap(), "value");
    assert!(member.applied() > before.applied_index);
    member.put_ok("after", "x").await;
    member.stop(&Net::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_lost_is_replayed_from_the_log() {
    let mut disk = Disk::new();
    let member = lone(&disk).await;
    member.put_ok("key", "value").await;
    member.stop(&Net::default()).await;
    disk.stores = Stores::memory();
    let member = lone(&disk).await;
    assert_eq!(member.get("key").unwrap(), "value");
    member.stop(&Net::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_log_was_lost_does_not_start() {
    let mut disk = Disk::new();
    let member = lone(&disk).await;
    member.put_ok("key", "value").await;
    member.stop(&Net::default()).await;
    disk.fs = MemFs::crashable();
    let refused = Member::start(1, &disk, &Net::default()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::StorageFailed);
    assert!(refused.to_string().contains("lost entries"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_of_another_term_is_refused_before_it_is_appended() {
    let member = lone(&Disk::new()).await;
    let status = member.consensus.status();
    let ticket = member.pending.register(status.term).unwrap();
    for term in [status.term - 1, status.term + 1] {
        let refused = member.consensus.propose(batch(&ticket, "k", "v"), term);
        let refused = refused.await.unwrap_err();
        let (leader, term) = (Some(1), status.term);
        assert_eq!(refused, ProposeError::NotLeader { leader, term });
    }
    assert_eq!(member.consensus.status().last_index, status.last_index);
    member.stop(&Net::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_is_reported_and_ends_proposals() {
    let disk = Disk::new();
    let member = lone(&disk).await;
    disk.fs.fail_sync(1);
    let term = member.consensus.status().term;
    let ticket = member.pending.register(term).unwrap();
    let lost = member
        .consensus
        .propose(batch(&ticket, "k", "v"), term)
        .await;
    assert_eq!(lost, Err(ProposeError::Stopped));
    let failure = wait_for(&mut member.consensus.failure(), Option::is_some).await;
    assert_eq!(failure.unwrap().reason(), Reason::StorageFailed);
    assert!(member.consensus.wait_applied(u64::MAX).await.is_err());
    assert_eq!(member.get("k"), None);
    member.stop(&Net::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purging_keeps_the_state_and_the_next_start() {
    let disk = Disk::new();
    let member = lone(&disk).await;
    let mut last = member.put_ok("key", "0").await;
    for number in 1..30 {
        last = member.put_ok("key", &number.to_string()).await;
    }
    member.consensus.purge(last.index - 3).await;
    let purged = || member.wal.log_state().purged.map(|id| id.index);
    let deadline = crate::clock::now() + PATIENCE;
    while purged() != Some(last.index - 3) {
        assert!(crate::clock::now() < deadline, "{:?}", purged());
        tokio::task::yield_now().await;
    }
    member.stop(&Net::default()).await;
    let member = lone(&disk).await;
    assert_eq!(member.get("key").unwrap(), "29");
    member.put_ok("key", "30").await;
    member.stop(&Net::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_whatever_waits() {
    let member = lone(&Disk::new()).await;
    let term = member.consensus.status().term;
    let mut ticket = member.pending.register(term).unwrap();
    let consensus = member.consensus.clone();
    member.stop(&Net::default()).await;
    assert_eq!(ticket.completion().await, Completion::Unknown);
    let refused = consensus.propose(batch(&ticket, "k", "v"), term).await;
    assert_eq!(refused, Err(ProposeError::Stopped));
    assert_eq!(consensus.read_index().await, Err(Reason::Stopped));
    consensus.shutdown().await;
}

#[tokio::test]
async fn a_member_without_threads_of_its_own_does_the_same() {
    let mut disk = Disk::new();
    disk.mode = WriterMode::Caller;
    let member = lone(&disk).await;
    for number in 0..20 {
        member.put_ok("key", &number.to_string()).await;
    }
    member.stop(&Net::default()).await;
    let member = lone(&disk).await;
    assert_eq!(member.get("key").unwrap(), "19");
    member.stop(&Net::default()).await;
}
