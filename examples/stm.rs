//! Transactions without locks: transfers between accounts never lose or make money, and of two doctors
//! who both want to go home one stays. On a node inside this process.
//!
//! Run with `cargo run --example stm`.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use quorate::core::node::Node;
use quorate::recipes::store::embedded::Embedded;
use quorate::recipes::{Client, Error, Json, KeyRange, Session, Transaction};

const ACCOUNTS: [&str; 3] = ["account/anna", "account/ben", "account/carla"];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let node = Node::builder().in_memory().start().await?;
    let client = Client::new(Embedded::new(node.clone()));
    for account in ACCOUNTS {
        client.put(account, Json(100)).await?;
    }

    // Under a session each transfer takes place exactly once, also when its answer is lost.
    let session = client.session().await?;
    let transfers = (1..=12).map(|number: i64| {
        let (from, to) = match number % 4 {
            0 => (ACCOUNTS[0], ACCOUNTS[1]),
            1 => (ACCOUNTS[1], ACCOUNTS[2]),
            _ => (ACCOUNTS[2], ACCOUNTS[0]),
        };
        transfer(&client, &session, from, to, 5 * number)
    });
    let done = futures::future::try_join_all(transfers).await?;
    let conflicts: u32 = done.iter().map(|attempts| attempts - 1).sum();

    let sum = client
        .stm()
        .run(async |tx: Transaction| -> Result<i64, Error> {
            let accounts = tx.list(KeyRange::prefix("account/")).await?;
            for (account, value) in &accounts {
                println!("{account}: {}", String::from_utf8_lossy(value));
            }
            let mut sum = 0;
            for account in ACCOUNTS {
                sum += amount(&tx, account).await?;
            }
            Ok(sum)
        });
    let sum = sum.await?.value;
    anyhow::ensure!(sum == 300, "{sum}");
    println!(
        "still {sum}, after {} transfers and {conflicts} conflicts",
        done.len()
    );

    // Each looks whether somebody else stays, which is what the other one changes.
    for doctor in ["anna", "ben"] {
        client.put(format!("on-call/{doctor}"), "").await?;
    }
    let (anna, ben) = tokio::try_join!(go_home(&client, "anna"), go_home(&client, "ben"))?;
    anyhow::ensure!(anna != ben, "both went home, or none");
    println!("{} stays", if anna { "ben" } else { "anna" });

    session.close().await?;
    node.shutdown().await;
    Ok(())
}

/// Moves an amount, or what there is of it; returns how many attempts it took.
async fn transfer(
    client: &Client,
    session: &Session,
    from: &str,
    to: &str,
    most: i64,
) -> Result<u32, Error> {
    let stm = client.stm().retries(1_000).under(session);
    let done = stm.run(async |tx: Transaction| -> Result<(), Error> {
        let (here, there) = (amount(&tx, from).await?, amount(&tx, to).await?);
        let moved = here.min(most);
        tx.put(from, Json(here - moved));
        tx.put(to, Json(there + moved));
        Ok(())
    });
    Ok(done.await?.attempts)
}

async fn amount(tx: &Transaction, account: &str) -> Result<i64, Error> {
    Ok(tx.get_json(account).await?.unwrap_or(0))
}

/// Takes a doctor off the list if that leaves somebody there.
async fn go_home(client: &Client, doctor: &str) -> Result<bool, Error> {
    let gone = client
        .stm()
        .run(async |tx: Transaction| -> Result<bool, Error> {
            let others = tx.list(KeyRange::prefix("on-call/")).await?.len() > 1;
            if others {
                tx.delete(format!("on-call/{doctor}"));
            }
            Ok(others)
        });
    Ok(gone.await?.value)
}
