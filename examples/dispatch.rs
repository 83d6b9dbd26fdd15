//! A console that sends commands: to any worker of a service, to all that are there, and one that it cancels.
//! On a node inside this process.
//!
//! Run with `cargo run --example dispatch`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::convert::Infallible;

use quorate::core::node::Node;
use quorate::recipes::dispatch::{Dispatcher, Ended, Sending, Target};
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Square(u64),
    Name,
    Sleep,
}

type Console = Dispatcher<Order, String>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    let console: Console = client.dispatcher("console");
    let mut workers = tokio::task::JoinSet::new();
    for name in ["anna", "ben"] {
        workers.spawn(work(client.clone(), console.clone(), name));
    }

    let session = client.session().await?;
    while console.status().await?.instances.len() < 2 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let anybody = || Target::Any("math".to_owned());
    let square = console
        .send(&session, anybody(), &Order::Square(12))
        .await?;
    let sleep = console.send(&session, anybody(), &Order::Sleep).await?;
    let names = console
        .send_all(&session, |_| true, &Order::Name, Sending::new())
        .await?;
    println!("job {} is known anywhere by its id", square.id());
    let square = console.job(square.id()).wait().await?;
    sleep.cancel().await?;
    let names = names.wait().await?;
    let sleep = sleep.wait().await?;
    println!("{square:?}, {sleep:?}, {names:?}");
    anyhow::ensure!(square == Ended::Done("144".to_owned()) && sleep == Ended::Cancelled);
    let both = ["anna", "ben"].map(|name| (name.to_owned(), Ended::Done(name.to_owned())));
    anyhow::ensure!(names == both);

    workers.shutdown().await;
    node.shutdown().await;
    Ok(())
}

/// Does what comes in, until the store refuses for good.
async fn work(client: Client, console: Console, name: &str) -> Result<Infallible, Error> {
    let session = client.session().await?;
    let targets = [
        Target::Instance(name.to_owned()),
        Target::Any("math".to_owned()),
    ];
    let inbox = console.inbox(&session, targets).await?;
    loop {
        let mut command = inbox.next().await?;
        println!("{name}: {:?}", command.value());
        match command.value() {
            Order::Square(n) => {
                let reply = (n * n).to_string();
                command.reply(&reply).await?;
            }
            Order::Name => {
                command.reply(&name.to_owned()).await?;
            }
            Order::Sleep => {
                command.cancelled().await;
                command.stop().await?;
            }
        }
    }
}
