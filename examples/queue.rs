//! Mails that are sent by whoever is free: each is done once, with its receipt; one that cannot be sent is put
//! aside after three attempts. On a node inside this process.
//!
//! Run with `cargo run --example queue`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::time::Duration;

use quorate::core::node::Node;
use quorate::recipes::queue::{Delivery, Nack};
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error, KeyRange};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Mail {
    number: u32,
    to: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let queue = client.queue::<Mail>("mails").max_attempts(3);

    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (client, queue) = (client.clone(), queue.clone());
        workers.spawn(async move {
            let session = client.session().await?;
            let consumer = queue.consumer(&session).await?;
            let send = async |mail| {
                if let Err(error) = send(&client, mail).await {
                    println!("not sent: {error}");
                }
            };
            consumer.for_each_concurrent(4, send).await
        });
    }

    let session = client.session().await?;
    let to = ["anna", "ben", "nobody", "carla"].into_iter().cycle();
    let mails: Vec<Mail> = (0..12)
        .zip(to)
        .map(|(number, to)| Mail {
            number,
            to: to.to_owned(),
        })
        .collect();
    queue.push_all(&session, &mails).await?;
    loop {
        let status = queue.status().await?;
        if status.items + status.delayed == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (_, receipts) = client.list(KeyRange::prefix("receipts/")).await?;
    let dead = queue.dead_letters(99).await?;
    println!(
        "{} sent, {} put aside: {}",
        receipts.len(),
        dead.len(),
        dead[0].reason
    );
    anyhow::ensure!((receipts.len(), dead.len()) == (9, 3));

    workers.shutdown().await;
    node.shutdown().await;
    Ok(())
}

/// The receipt is written together with the end of the item, so there is one for each mail.
async fn send(client: &Client, mail: Delivery<Mail>) -> Result<(), Error> {
    if mail.value().to == "nobody" {
        return mail.nack(Nack::After(Duration::from_millis(10))).await;
    }
    let receipt = format!("receipts/{}", mail.value().number);
    let to = mail.value().to.clone();
    mail.ack_with(client.txn().put(receipt, to)).await?;
    Ok(())
}
