//! Members that come, go and lose their leases, on a store in memory: what the store accepted is judged
//! by its history, revision by revision.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::mvccpb::event::EventType;

use super::{Partition, PartitionSet};
use crate::client::Client;
use crate::error::Error;
use crate::keys::{KeySpace, Revision};
use crate::lock::Fenced;
use crate::store::MemStore;
use crate::tasks::Tasks;

const COUNT: u32 = 12;

/// Works on what falls to it, writing again and again; slow to give back what is revoked.
async fn member(client: Client, set: PartitionSet, tasks: Tasks) -> Result<(), Error> {
    let session = client.session().ttl(Duration::from_secs(5)).await?;
    let mut partitions = set.join(&session).await?;
    loop {
        let partition = partitions.next().await?;
        tasks.spawn("work", work(partition));
    }
}

async fn work(partition: Partition) {
    let revoked = partition.revoked();
    tokio::pin!(revoked);
    let mut rounds_left = None;
    while rounds_left != Some(0) {
        let key = format!("work/{}", partition.index());
        let own = partition.fence().key().to_string();
        if partition.put(key, own).await.is_err() {
            return;
        }
        tokio::select! {
            biased;
            () = &mut revoked, if rounds_left.is_none() => rounds_left = Some(5),
            () = tokio::time::sleep(Duration::from_millis(37)) => {
                rounds_left = rounds_left.map(|left: u32| left - 1);
            }
        }
    }
}

/// Checks that each accepted write to a partition came from the one who was first in its line then.
/// Returns how many writes there were, and by how many holders.
fn check(store: &MemStore, set: &KeySpace) -> (usize, usize) {
    let mut lines: BTreeMap<String, BTreeMap<i64, String>> = BTreeMap::new();
    let (mut writes, mut writers) = (0, std::collections::BTreeSet::new());
    for commit in store.history(Revision(0)) {
        for event in &commit.changes {
            let kv = event.kv.as_ref().unwrap();
            let key = String::from_utf8(kv.key.to_vec()).unwrap();
            if let Some(index) = key.strip_prefix("work/") {
                let first = lines[index].values().next();
                let writer = String::from_utf8(kv.value.to_vec()).unwrap();
                assert_eq!(first, Some(&writer), "at revision {}", commit.revision);
                writes += 1;
                writers.insert(writer);
            } else if let Some(suffix) = set.suffix(&kv.key) {
                let index = suffix.split('/').next().unwrap().to_owned();
                let line = lines.entry(index).or_default();
                line.retain(|_, contender| *contender != key);
                if event.r#type() == EventType::Put {
                    line.insert(kv.create_revision, key);
                }
            }
        }
    }
    (writes, writers.len())
}

async fn settled(set: &PartitionSet, members: usize) {
    let even = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut loads = BTreeMap::new();
            let owners = set.owners().await.unwrap();
            for owner in owners.values() {
                *loads.entry(owner.lease).or_insert(0) += 1;
            }
            let (least, most) = (loads.values().min(), loads.values().max());
            let even = most
                .zip(least)
                .is_some_and(|(most, least)| most - least <= 1);
            if owners.len() == 12 && loads.len() == members && even {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), even)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_writer_a_partition_at_every_revision() {
    let store = MemStore::new();
    let tasks: Vec<Tasks> = (0..6).map(|_| Tasks::current()).collect();
    let clients: Vec<Client> = (0..6)
        .map(|n| {
            Client::builder_shared(Arc::new(store.clone()))
                .seed(n)
                .build()
        })
        .collect();
    let set_of = |n: usize| clients[n].partitions("t", COUNT);
    let start = |n: usize| {
        let member = member(clients[n].clone(), set_of(n), tasks[n].clone());
        tasks[n].spawn("member", async move { drop(member.await) });
    };
    for n in 0..4 {
        start(n);
        tokio::time::sleep(Duration::from_millis(150 * u64::try_from(n).unwrap())).await;
    }
    settled(&set_of(0), 4).await;
    // One crashes with its holds in hand, one loses its lease and goes on writing, two join.
    tasks[1].cancel();
    let victim = set_of(0).owners().await.unwrap()[&0].lease;
    assert!(store.expire(victim));
    start(4);
    start(5);
    store.end_watches();
    tokio::time::sleep(Duration::from_secs(20)).await;
    settled(&set_of(0), 4).await;
    for member in &tasks {
        member.cancel();
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(store.keys("quorate/assign/"), [""; 0]);
    let (writes, writers) = check(&store, &KeySpace::of(super::KIND, "t"));
    assert!(writes > 1_000 && writers > 20, "{writes} by {writers}");
}
