//! Twelve partitions shared among workers that come, leave and crash: each partition is worked on by one
//! of them at a time, and all have even shares. On a node inside this process.
//!
//! Run with `cargo run --example partitions`.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example shows what happens, and starts tasks of its own"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error, Partition, PartitionSet, Session};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let set = client.partitions("topic", 12);

    // Every process joins under its own session.
    let mut workers = BTreeMap::new();
    for name in ["anna", "ben", "carl"] {
        let session = client.session().ttl(Duration::from_secs(3)).await?;
        let task = tokio::spawn(worker(name, set.clone(), session.clone()));
        workers.insert(name, (session, task));
        shared_by(&set, &workers, workers.len()).await?;
    }

    let (session, task) = workers.remove("ben").expect("ben has joined");
    println!("ben leaves");
    session.close().await?;
    println!("  his end: {}", task.await?);
    shared_by(&set, &workers, 2).await?;

    println!("the lease of carl is gone");
    let (session, task) = workers.remove("carl").expect("carl has joined");
    client.store().lease_revoke(session.lease()).await?;
    println!("  his end: {}", task.await?);
    shared_by(&set, &workers, 1).await?;

    for (_, (session, task)) in workers {
        session.close().await?;
        task.await?;
    }
    node.shutdown().await;
    Ok(())
}

/// Works on its share until its session is over.
async fn worker(name: &'static str, set: PartitionSet, session: Session) -> Error {
    let mut partitions = match set.join(&session).await {
        Ok(partitions) => partitions,
        Err(error) => return error,
    };
    drop(session);
    loop {
        match partitions.next().await {
            Ok(partition) => drop(tokio::spawn(serve(name, partition))),
            Err(error) => return error,
        }
    }
}

/// Works on one partition until it is somebody else's share.
async fn serve(name: &'static str, partition: Partition) {
    let key = format!("topic/{}/served-by", partition.index());
    // Refused by the store if the partition was lost meanwhile.
    if let Err(error) = partition.put(key, name).await {
        println!("  {name}: {error}");
        return;
    }
    tokio::select! {
        () = partition.revoked() => drop(partition.release().await),
        _ = partition.lost() => {}
    }
}

/// Waits until the partitions are shared by as many, and shows how.
async fn shared_by<T>(
    set: &PartitionSet,
    workers: &BTreeMap<&str, (Session, T)>,
    count: usize,
) -> anyhow::Result<()> {
    loop {
        let mut shares: BTreeMap<_, Vec<u32>> = BTreeMap::new();
        for (index, owner) in set.owners().await? {
            shares.entry(owner.lease).or_default().push(index);
        }
        let loads = || shares.values().map(Vec::len);
        let spread = loads().max().unwrap_or(0) - loads().min().unwrap_or(0);
        if loads().sum::<usize>() == 12 && loads().count() == count && spread <= 1 {
            for (name, (session, _)) in workers {
                println!("  {name}: {:?}", shares.get(&session.lease()));
            }
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
