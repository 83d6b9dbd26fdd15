//! A follower too far behind gets the whole state.

use super::*;

/// A cluster in which one follower missed what the log no longer has; its place and the leader's.
async fn with_one_behind(net: &Net) -> (Vec<Member>, usize, usize, EntryId) {
    let members = three(net, 10).await;
    let leader = leader_of(&members).await;
    let behind = (leader + 1) % 3;
    let first = members[leader].put_ok("key", "0").await;
    members[behind].wait_applied(first.index).await;
    net.cut_off(members[behind].id);
    let mut last = first;
    for number in 1..=60 {
        last = members[leader].put_ok("key", &number.to_string()).await;
    }
    members[leader].consensus.purge(last.index - 5).await;
    let mut metrics = members[leader].consensus.raft().metrics();
    let purged = async {
        use openraft::async_runtime::watch::WatchReceiver;
        metrics
            .wait_until(|metrics| metrics.purged.is_some_and(|id| id.index >= last.index - 5))
            .await
    };
    tokio::time::timeout(PATIENCE, purged)
        .await
        .expect("purged")
        .expect("running");
    (members, leader, behind, last)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_the_purged_log_installs_the_state_and_goes_on() {
    let net = Net::default();
    let (members, leader, behind, last) = with_one_behind(&net).await;
    let follower = &members[behind];
    let term = follower.consensus.status().term;
    let mut ticket = follower.pending.register(term).unwrap();
    let old_view = follower.reader.view();
    net.heal(follower.id);
    follower.wait_applied(last.index).await;
    assert_eq!(follower.get("key").unwrap(), "60");
    assert_eq!(
        follower.reader.revision(),
        members[leader].reader.revision()
    );
    assert_eq!(follower.consensus.members().len(), 3);
    assert_eq!(ticket.completion().await, Completion::Unknown);
    let key = codec::key_key(b"key");
    let old = Pair::decode(old_view.get(&key).unwrap().unwrap()).unwrap();
    assert_eq!(old.value, "0", "old readers keep their view");

    let applied = members[leader].put_ok("key", "after").await;
    follower.wait_applied(applied.index).await;
    assert_eq!(follower.get("key").unwrap(), "after");
    let log = follower.wal.log_state();
    assert!(
        log.purged.is_some_and(|id| id.index >= last.index - 5),
        "{log:?}"
    );
    for member in members {
        member.stop(&net).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_follower_starts_again_even_if_its_log_never_heard_of_the_install() {
    let net = Net::default();
    let (mut members, leader, behind, last) = with_one_behind(&net).await;
    let old_log = members[behind]
        .disk
        .fs
        .power_cut(1, crate::storage::fs::Block::Page);
    net.heal(members[behind].id);
    members[behind].wait_applied(last.index).await;
    let id = members[behind].id;
    // Stopped before anything was applied on top of the install.
    let stores = members[behind].disk.stores.clone();
    members.remove(behind).stop(&net).await;
    let disk = Disk {
        fs: old_log,
        stores,
        ..Disk::new()
    };
    let before = disk.wal(id).unwrap();
    assert!(before.log_state().last.unwrap().index < last.index);
    before.close().unwrap();
    drop(before);
    let back = Member::start_keeping(id, &disk, &net, 10)
        .await
        .expect("the install is recorded");
    assert_eq!(back.get("key").unwrap(), "60");
    let leader = if leader > behind { leader - 1 } else { leader };
    let applied = members[leader].put_ok("key", "after").await;
    back.wait_applied(applied.index).await;
    assert_eq!(back.get("key").unwrap(), "after");
    back.stop(&net).await;
    for member in members {
        member.stop(&net).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_gets_the_same_snapshot_until_the_log_no_longer_continues_it() {
    let net = Net::default();
    let (members, leader, behind, last) = with_one_behind(&net).await;
    let raft = members[leader].consensus.raft();
    let id = |snapshot: &state_machine::RaftSnapshot| snapshot.meta.last_log_id.unwrap().index;
    let first = raft.get_snapshot().await.unwrap().unwrap();
    assert_eq!(id(&first), last.index);
    let next = members[leader].put_ok("key", "later").await;
    let retry = raft.get_snapshot().await.unwrap().unwrap();
    assert_eq!(id(&retry), last.index);
    members[leader].consensus.purge(next.index).await;
    let wal = &members[leader].wal;
    let deadline = crate::clock::now() + PATIENCE;
    while wal.log_state().purged.map(|id| id.index) < Some(next.index) {
        assert!(crate::clock::now() < deadline);
        tokio::task::yield_now().await;
    }
    let fresh = raft.get_snapshot().await.unwrap().unwrap();
    assert_eq!(id(&fresh), next.index);
    net.heal(members[behind].id);
    for member in members {
        member.stop(&net).await;
    }
}
