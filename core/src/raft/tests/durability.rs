//! What a power cut may take away, and what it must not.

use super::*;
use crate::storage::fs::Block;

/// Every entry of a member's log, by id.
fn entries(wal: &Wal) -> BTreeMap<EntryId, wal::Entry> {
    let end = wal.log_state().last.map_or(0, |id| id.index + 1);
    let entries = wal.read(0..end, usize::MAX).expect("readable");
    entries.into_iter().map(|entry| (entry.id, entry)).collect()
}

/// What the disk holds after a power cut that took everything unsynced.
fn without_unsynced(disk: &Disk, id: u64, synced: u64) -> Disk {
    for seed in 0..1_000 {
        let image = Disk {
            fs: disk.fs.power_cut(seed, Block::Page),
            ..Disk::new()
        };
        let wal = image.wal(id).expect("a torn tail is cut");
        let last = wal.log_state().last;
        wal.close().expect("closes");
        if last.map(|id| id.index) == Some(synced) {
            return image;
        }
    }
    panic!("no power cut took the tail");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_leader_that_lost_its_unsynced_tail_never_reuses_a_log_id() {
    let net = Net::default();
    let members = three(&net, 5_000).await;
    let old = leader_of(&members).await;
    let synced = members[old].put_ok("before", "cut").await.index;
    let term = members[old].consensus.status().term;

    // The leader sends an entry that it never syncs; the others have it, so it is committed.
    let hold = members[old].disk.fs.hold_syncs();
    let ticket = members[old].pending.register(term).unwrap();
    let (zombie, proposal) = (members[old].consensus.clone(), batch(&ticket, "first", "x"));
    let proposal = beside(async move { zombie.propose(proposal, term).await });
    let others = [(old + 1) % 3, (old + 2) % 3];
    for place in others {
        members[place].wait_applied(synced + 1).await;
    }
    let id = members[old].id;
    net.cut_off(id);
    net.leave(id);
    let disk = without_unsynced(&members[old].disk, id, synced);

    // It is back before anybody misses it, under its own name.
    net.heal(id);
    let back = Member::start(id, &disk, &net).await.expect("starts");
    let running: Vec<&Member> = others
        .iter()
        .map(|place| &members[*place])
        .chain([&back])
        .collect();
    let waits = running.iter().map(|member| Box::pin(member.wait_ready()));
    let ((), at, _) = futures::future::select_all(waits).await;
    let applied = running[at].put_ok("second", "y").await;
    for member in &running {
        member.wait_applied(applied.index).await;
        assert_eq!(member.get("first").expect("it was committed"), "x");
        assert_eq!(member.get("second").unwrap(), "y");
    }
    let mut all: BTreeMap<EntryId, wal::Entry> = entries(&members[old].wal);
    for member in &running {
        for (id, entry) in entries(&member.wal) {
            let known = all.entry(id).or_insert_with(|| entry.clone());
            assert_eq!(*known, entry, "{id} is two entries");
        }
    }
    drop(hold);
    back.stop(&net).await;
    for member in members {
        member.stop(&net).await;
    }
    drop(proposal.await);
}

#[tokio::test(flavor = "multi_thread")]
async fn state_is_never_ahead_of_the_synced_log() {
    let net = Net::default();
    let members = three(&net, 5_000).await;
    let leader = leader_of(&members).await;
    let member = &members[leader];
    let synced = member.put_ok("key", "synced").await.index;
    let term = member.consensus.status().term;
    let hold = member.disk.fs.hold_syncs();
    let mut ticket = member.pending.register(term).unwrap();
    let (consensus, proposal) = (member.consensus.clone(), batch(&ticket, "key", "unsynced"));
    let proposal = beside(async move { consensus.propose(proposal, term).await });
    for place in [(leader + 1) % 3, (leader + 2) % 3] {
        members[place].wait_applied(synced + 1).await;
        assert_eq!(members[place].get("key").unwrap(), "unsynced");
    }
    // The leader knows that it is committed; its own disk does not have it.
    let committed = member
        .consensus
        .raft()
        .with_raft_state(|state| state.local_committed().copied());
    let committed = committed.await.unwrap().map(|id| id.index);
    assert_eq!(committed, Some(synced + 1));
    tokio::time::sleep(HEARTBEAT).await;
    assert_eq!(member.applied(), synced);
    assert_eq!(member.get("key").unwrap(), "synced");

    drop(hold);
    member.wait_applied(synced + 1).await;
    assert_eq!(member.get("key").unwrap(), "unsynced");
    assert!(matches!(
        ticket.completion().await,
        Completion::Answer { .. }
    ));
    assert_eq!(proposal.await, Ok(()));
    for member in members {
        member.stop(&net).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_a_power_cut_of_all() {
    let net = Net::default();
    let members = three(&net, 5_000).await;
    let leader = leader_of(&members).await;
    for number in 0..20 {
        members[leader]
            .put_ok(&format!("key{number}"), "value")
            .await;
    }
    let disks: Vec<Disk> = members
        .iter()
        .map(|member| Disk {
            fs: member.disk.fs.power_cut(member.id, Block::Sector),
            ..Disk::new()
        })
        .collect();
    for member in members {
        member.stop(&net).await;
    }
    let net = Net::default();
    let mut back = Vec::new();
    for (disk, id) in disks.iter().zip(1..) {
        back.push(Member::start(id, disk, &net).await.expect("starts"));
    }
    let leader = leader_of(&back).await;
    for number in 0..20 {
        assert_eq!(back[leader].get(&format!("key{number}")).unwrap(), "value");
    }
    for member in back {
        member.stop(&net).await;
    }
}
