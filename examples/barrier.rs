//! Three workers who wait until the data is there, work in rounds, and leave together, on a node inside
//! this process; and a round that breaks because one of them dies.
//!
//! Run with `cargo run --example barrier`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));

    // Nobody begins before the data is there.
    let session = client.session().label("loader").await?;
    let loading = client.barrier("data").hold(&session).await?;
    let work = async {
        let workers = ["anna", "ben", "carl"].map(|name| worker(&client, name));
        futures::future::try_join_all(workers).await
    };
    let load = async {
        loading.put("data/rows", "1000").await?;
        println!("the data is there");
        loading.release().await
    };
    tokio::try_join!(work, load)?;

    // A round in which one member ends: the other is told, and does not wait for ever.
    let rounds = client.cyclic_barrier("rounds", 3);
    let dying = client.session().label("dora").await?;
    let (broken, lost, ended) = tokio::join!(rounds.wait(&session), rounds.wait(&dying), async {
        both_have_come(&client).await?;
        // What the end of its process does, once its lease has run out.
        Ok::<_, Error>(client.store().lease_revoke(dying.lease()).await?)
    });
    ended?;
    println!("dora: {:?}", lost.map(drop));
    match broken {
        Err(Error::Broken { generation, .. }) => println!("generation {generation} is broken"),
        outcome => anyhow::bail!("the generation did not break: {outcome:?}"),
    }

    node.shutdown().await;
    Ok(())
}

async fn both_have_come(client: &Client) -> Result<(), Error> {
    let rounds = client.cyclic_barrier("rounds", 3);
    while rounds.gathering().await?.arrived < 2 {
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn worker(client: &Client, name: &str) -> Result<(), Error> {
    client.barrier("data").wait().await?;
    let session = client.session().label(name).await?;
    let inside = client.double_barrier("work", 3).enter(&session).await?;
    for _ in 0..2 {
        let passed = client.cyclic_barrier("rounds", 3).wait(&session).await?;
        if passed.index == 0 {
            println!("{name} has the first place in round {}", passed.generation);
        }
    }
    inside.leave().await?;
    println!("{name} has left, and so have all");
    session.close().await
}
