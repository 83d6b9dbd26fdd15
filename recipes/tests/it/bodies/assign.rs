//! Partitions: all of them are worked on, evenly, and each by one member at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use quorate_recipes::{Client, Error, Partition, PartitionSet, Partitions, TxnError};
use tokio::task::JoinHandle;

use super::{keys_below, session};
use crate::support::{soon, until};

/// A member that holds its share and gives back what is revoked.
struct Worker {
    held: Arc<Mutex<BTreeMap<u32, String>>>,
    task: JoinHandle<Error>,
}

impl Worker {
    async fn start(client: &Client, set: &PartitionSet) -> Self {
        let session = session(client).await;
        let mut partitions = set.join(&session).await.unwrap();
        let held = Arc::new(Mutex::new(BTreeMap::new()));
        let task = tokio::spawn({
            let held = Arc::clone(&held);
            async move {
                loop {
                    match partitions.next().await {
                        Ok(partition) => drop(tokio::spawn(hold(partition, Arc::clone(&held)))),
                        Err(error) => return error,
                    }
                }
            }
        });
        Self { held, task }
    }

    fn held(&self) -> Vec<u32> {
        self.held.lock().unwrap().keys().copied().collect()
    }
}

async fn hold(partition: Partition, held: Arc<Mutex<BTreeMap<u32, String>>>) {
    let key = format!("assign-work/{}", partition.index());
    partition.put(key, "mine").await.unwrap();
    let token = partition.token().to_string();
    held.lock().unwrap().insert(partition.index(), token);
    tokio::select! {
        () = partition.revoked() => {}
        _ = partition.lost() => {}
    }
    held.lock().unwrap().remove(&partition.index());
    drop(partition.release().await);
}

/// Waits until all `count` partitions are held, each by one of the workers, with even loads.
async fn settled(count: u32, workers: &[Worker]) {
    until("even shares", async || {
        let mut all: Vec<u32> = workers.iter().flat_map(Worker::held).collect();
        all.sort_unstable();
        let loads: Vec<usize> = workers.iter().map(|worker| worker.held().len()).collect();
        let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        all == (0..count).collect::<Vec<_>>() && most - least <= 1
    })
    .await;
}

/// Members that come and go have even shares of all partitions, and the store's view agrees.
pub async fn shares_follow_the_members(client: &Client) {
    let set = client.partitions("follow/1", 10);
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(Worker::start(client, &set).await);
        settled(10, &workers).await;
    }
    let owners = set.owners().await.unwrap();
    assert_eq!(owners.len(), 10);
    let leaver = workers.remove(1);
    leaver.task.abort();
    settled(10, &workers).await;
    let tokens: BTreeMap<_, _> = workers
        .iter()
        .flat_map(|w| w.held.lock().unwrap().clone())
        .collect();
    let owners = set.owners().await.unwrap();
    assert_eq!(owners.len(), 10);
    for (index, owner) in owners {
        assert_eq!(tokens[&index], format!("0.{}", owner.revision));
    }
    for worker in &workers {
        worker.task.abort();
    }
    until("nothing to be left", async || {
        keys_below(client, "quorate/assign/follow%2F1").await == 0
    })
    .await;
}

async fn take(partitions: &mut Partitions, count: usize) -> BTreeMap<u32, Partition> {
    let mut taken = BTreeMap::new();
    while taken.len() < count {
        let next = soon("a partition", partitions.next()).await.unwrap();
        assert!(taken.insert(next.index(), next).is_none(), "given twice");
    }
    taken
}

/// A partition that moves stays with its holder until that gives it back; then the next one has it.
pub async fn a_partition_is_never_taken_by_force(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let set = client.partitions("force", 4);
    let mut first = set.join(&a).await.unwrap();
    assert_eq!(first.share(), [0, 1, 2, 3]);
    let mut held = take(&mut first, 4).await;
    let mut second = set.join(&b).await.unwrap();
    assert_eq!(second.share().len(), 2);
    for index in second.share() {
        soon("the revocation", held[&index].revoked()).await;
        assert!(held[&index].is_revoked());
        held[&index].put("force", "still mine").await.unwrap();
    }
    for index in second.share() {
        // It stands in line, and what is written after is written by the one who has it.
        until("the next one in line", async || {
            keys_below(client, &format!("quorate/assign/force/{index}")).await == 2
        })
        .await;
        held[&index].put("force", "still mine").await.unwrap();
    }
    assert!(second.next().now_or_never().is_none(), "taken by force");
    for index in second.share() {
        let before = held.remove(&index).unwrap();
        let token = before.token();
        before.release().await.unwrap();
        let next = soon("the partition", second.next()).await.unwrap();
        assert_eq!(next.index(), index);
        assert!(next.token() > token);
        // Dropped while it is still its own: it comes again.
        drop(next);
        let again = soon("it again", second.next()).await.unwrap();
        assert_eq!(again.index(), index);
        held.insert(index, again);
    }
    assert!(held.values().all(|partition| !partition.is_revoked()));
    // A handle that leaves revokes what was taken from it, and that is held until it is dropped.
    let share = second.share();
    second.leave().await.unwrap();
    for index in &share {
        soon("the revocation", held[index].revoked()).await;
        held[index].put("force", "still").await.unwrap();
        held.remove(index);
    }
    let back = take(&mut first, 2).await;
    assert_eq!(back.into_keys().collect::<Vec<_>>(), share);
    assert!(matches!(
        client.partitions("force", 0).join(&a).await,
        Err(Error::Invalid(_))
    ));
}

/// A member whose lease is gone loses its partitions; its writes are refused, and others have them.
pub async fn losses_free_what_was_held(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let set = client.partitions("losses", 3);
    let mut first = set.join(&a).await.unwrap();
    let held = take(&mut first, 3).await;
    let mut second = set.join(&b).await.unwrap();
    client.store().lease_revoke(a.lease()).await.unwrap();
    let taken = take(&mut second, 3).await;
    for (index, partition) in &held {
        let late = partition.put(format!("losses/{index}"), "late").await;
        assert!(
            matches!(
                &late,
                Err(TxnError::Fenced { .. } | TxnError::Failed(Error::SessionLost(_)))
            ),
            "{late:?}"
        );
        let now = taken[index].put(format!("losses/{index}"), "now").await;
        now.unwrap();
    }
    let ended = soon("the end", first.next()).await;
    assert!(matches!(ended, Err(Error::SessionLost(_))), "{ended:?}");
    // Put out of the group by hand: no member any more, and told so.
    let member = client.list(quorate_recipes::KeyRange::prefix(
        "quorate/assign/losses/member/",
    ));
    let (_, members) = member.await.unwrap();
    assert_eq!(members.len(), 1);
    client.delete(members[0].key.clone()).await.unwrap();
    let ended = soon("the end", second.next()).await;
    assert!(matches!(ended, Err(Error::Removed(_))), "{ended:?}");
    for partition in taken.values() {
        soon("the revocation", partition.revoked()).await;
    }
}

/// Members dropped at any moment leave no key behind.
pub async fn dropped_members_give_everything_back(client: &Client) {
    let session = session(client).await;
    let set = client.partitions("dropped", 6);
    for micros in [0, 500, 2_000, 5_000, 20_000] {
        let limit = Duration::from_micros(micros);
        let work = async {
            let mut partitions = set.join(&session).await.unwrap();
            let _one = partitions.next().await.unwrap();
            std::future::pending::<()>().await;
        };
        drop(tokio::time::timeout(limit, work).await);
    }
    until("nothing to be left", async || {
        keys_below(client, "quorate/assign/dropped").await == 0
    })
    .await;
    let mut partitions = set.join(&session).await.unwrap();
    take(&mut partitions, 6).await;
}

/// A key that no member can have put into one partition's line is told of, and stops no other.
pub async fn foreign_keys_stop_one_partition_only(client: &Client) {
    let session = session(client).await;
    client.put("quorate/assign/foreign/1/x", "x").await.unwrap();
    let mut partitions = client
        .partitions("foreign", 3)
        .join(&session)
        .await
        .unwrap();
    let (mut taken, mut told) = (Vec::new(), false);
    while taken.len() < 2 || !told {
        match soon("a partition", partitions.next()).await {
            Ok(partition) => taken.push(partition),
            Err(Error::ForeignKey(key)) => {
                assert_eq!(key.to_string(), "quorate/assign/foreign/1/x");
                told = true;
            }
            Err(error) => panic!("{error}"),
        }
    }
    client.delete("quorate/assign/foreign/1/x").await.unwrap();
    loop {
        match soon("the third", partitions.next()).await {
            Ok(partition) => break assert_eq!(partition.index(), 1),
            Err(error) => assert!(matches!(error, Error::ForeignKey(_))),
        }
    }
}
