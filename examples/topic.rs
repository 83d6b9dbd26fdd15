//! Orders that several programs want to hear of: an audit reads all of them from the beginning, and the members
//! of a group bill each once, though one of them goes away in between. On a node inside this process.
//!
//! Run with `cargo run --example topic`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::topic::{Start, Topic};
use quorate::recipes::{Client, KeyRange};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    number: u32,
    customer: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let topic: Topic<Order> = client.topic("orders").partitions(4);

    let mut members = tokio::task::JoinSet::new();
    for leaves_after in [3, usize::MAX, usize::MAX] {
        members.spawn(bill(client.clone(), topic.clone(), leaves_after));
    }

    let session = client.session().await?;
    let customers = ["anna", "ben", "carla"].into_iter().cycle();
    for (number, customer) in (0..30).zip(customers) {
        let customer = customer.to_owned();
        let order = Order { number, customer };
        let key = order.customer.clone();
        topic.publish_keyed(&session, &key, &order).await?;
    }

    // Whoever comes later reads everything nevertheless, the orders of a customer in their order.
    let mut audit = topic.subscribe(Start::Earliest).await?;
    let mut of_anna = Vec::new();
    for _ in 0..30 {
        let order = audit.next().await?.value;
        if order.customer == "anna" {
            of_anna.push(order.number);
        }
    }

    loop {
        let status = topic.status().await?;
        let group = status.groups.get("billing");
        let lags = group.into_iter().flat_map(|group| &group.partitions);
        if lags.map(|lag| lag.lag).sum::<Option<u64>>() == Some(0) && group.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let (_, bills) = client.list(KeyRange::prefix("bills/")).await?;
    println!("{} bills; anna's orders: {of_anna:?}", bills.len());
    anyhow::ensure!(bills.len() == 30 && bills.iter().all(|bill| bill.version == 1));
    anyhow::ensure!(of_anna.len() == 10 && of_anna.is_sorted());

    members.shutdown().await;
    node.shutdown().await;
    Ok(())
}

/// Each bill is written together with the group's cursor, so there is one for each order.
async fn bill(client: Client, topic: Topic<Order>, leaves_after: usize) -> anyhow::Result<()> {
    let session = client.session().await?;
    let mut billing = topic.group(&session, "billing").await?;
    for _ in 0..leaves_after {
        let order = billing.next().await?;
        let bill = format!("bills/{}", order.value.number);
        let txn = client.txn().put(bill, order.value.customer.clone());
        // Refused when the partition went to another member meanwhile, which has the order then.
        drop(billing.commit_with(&order, txn).await);
    }
    billing.leave().await?;
    Ok(())
}
