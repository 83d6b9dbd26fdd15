//! Why a lock alone does not protect what it locks: a set is read, extended and written under a lock,
//! and the lock is lost between the read and the write. Written without the guard's fence, the late write
//! takes away what the next holder has added; with it, the store refuses the late write. (After the
//! set-under-lock workload of Jepsen's analysis of etcd 3.4.3.)
//!
//! Run with `cargo run --example set_under_lock` on a node inside this process, where the lock is lost on
//! purpose; or with `-- --endpoints http://127.0.0.1:2379 --rounds 5 --unfenced` as a process of its own,
//! to be stopped after it has printed `read`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Parser;
use quorate::core::node::Node;
use quorate::recipes::lock::MutexGuard;
use quorate::recipes::store::{embedded::Embedded, remote::Remote};
use quorate::recipes::{Client, Error, Fenced as _, Json, TxnError, from_json};

/// The key that holds the set.
const SET: &str = "set";

type Set = BTreeSet<String>;

#[derive(Debug, Parser)]
struct Args {
    /// The store, as a comma-separated list of URLs; none: a node inside this process.
    #[arg(long, value_delimiter = ',')]
    endpoints: Vec<String>,
    /// How many elements to add.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// The session's time to live, in seconds.
    #[arg(long, default_value_t = 2)]
    ttl: u64,
    /// How long to wait between reading and writing.
    #[arg(long, default_value_t = 500)]
    hold_ms: u64,
    /// Write without the guard's fence.
    #[arg(long)]
    unfenced: bool,
    /// Send the fenced write also when this process knows that the lock is lost, so that it is the store
    /// that refuses it.
    #[arg(long)]
    send_always: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if !args.endpoints.is_empty() {
        let client = Client::new(Remote::new(args.endpoints.clone())?);
        return work(&client, &args).await;
    }
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    for unfenced in [true, false] {
        let lost = lose_the_lock(&client, unfenced).await?;
        let how = if unfenced { "without" } else { "with" };
        println!("{how} the fence: the next holder's element is lost: {lost}");
        anyhow::ensure!(lost == unfenced, "that is not what the fence promises");
    }
    node.shutdown().await;
    Ok(())
}

/// Adds one element a round, and says at each step where it is.
async fn work(client: &Client, args: &Args) -> anyhow::Result<()> {
    for round in 1..=args.rounds {
        // On a busy machine a session may be lost before it has the lock.
        let (_session, guard) = loop {
            let session = client.session().ttl(Duration::from_secs(args.ttl)).await?;
            match client.mutex(SET).lock(&session).await {
                Ok(guard) => break (session, guard),
                Err(Error::SessionLost(_)) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let mut set = read(client).await?;
        println!("read {round}");
        tokio::time::sleep(Duration::from_millis(args.hold_ms)).await;
        set.insert(format!("victim/{round}"));
        let written = match args.send_always && !args.unfenced {
            true => send(client, &guard, &set).await,
            false => write(&guard, &set, args.unfenced).await,
        };
        match written {
            Ok(()) => println!("wrote {round}"),
            Err(TxnError::Fenced { .. } | TxnError::Conflict { .. }) => println!("refused {round}"),
            Err(TxnError::Failed(Error::SessionLost(_))) => println!("not sent {round}"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Loses the lock between the read and the write. Returns whether what the next holder added is lost.
async fn lose_the_lock(client: &Client, unfenced: bool) -> anyhow::Result<bool> {
    let (first, second) = (client.session().await?, client.session().await?);
    let mutex = client.mutex(SET);
    let guard = mutex.lock(&first).await?;
    let mut set = read(client).await?;
    client.store().lease_revoke(first.lease()).await?;

    let next = mutex.lock(&second).await?;
    let mut extended = read(client).await?;
    let element = format!("next/{unfenced}");
    extended.insert(element.clone());
    write(&next, &extended, false).await?;
    next.release().await?;

    set.insert(format!("late/{unfenced}"));
    if let Err(refused) = write(&guard, &set, unfenced).await {
        println!("refused: {refused}");
    }
    Ok(!read(client).await?.contains(&element))
}

async fn read(client: &Client) -> Result<Set, Error> {
    match client.get(SET).await? {
        Some(kv) => from_json(&kv.key, &kv.value),
        None => Ok(Set::new()),
    }
}

/// Writes under the guard's conditions, and leaves it to the store to judge them.
async fn send(client: &Client, guard: &MutexGuard, set: &Set) -> Result<(), TxnError> {
    let fence = guard.fence().compares().into_iter();
    let txn = fence.fold(client.txn(), |txn, compare| txn.when(compare));
    txn.put(SET, Json(set)).commit().await?;
    Ok(())
}

async fn write(guard: &MutexGuard, set: &Set, unfenced: bool) -> Result<(), TxnError> {
    if unfenced {
        guard.unfenced().put(SET, Json(set)).await?;
    } else {
        guard.put(SET, Json(set)).await?;
    }
    Ok(())
}
