//! The Lock and Election services.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use etcd_client::{GetOptions, LockOptions, ProclaimOptions, ResignOptions};

use crate::{Servers, cases, refusal};

cases! {
    "lock: one holder, the next in line after it" => lock,
    "lock: released when the holder's lease ends" => lost_lock,
    "election: a leader, an observer, a proclamation, a successor" => election,
}

async fn lock(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let lease = client.lease_grant(60, None).await?.id();
    let first = client
        .lock("lock", Some(LockOptions::new().with_lease(lease)))
        .await?;
    ensure!(first.key() == format!("lock/{lease:x}").as_bytes());
    let mut waiting = {
        let mut client = client.clone();
        tokio::spawn(async move { client.lock("lock", None).await })
    };
    in_line(&servers, "lock/", 2).await?;
    let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    ensure!(early.is_err(), "two hold it: {early:?}");
    client.unlock(first.key()).await?;
    let second = waiting.await??;
    ensure!(second.key() != first.key());
    client.unlock(second.key()).await?;
    in_line(&servers, "lock/", 0).await
}

async fn lost_lock(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let lease = client.lease_grant(60, None).await?.id();
    client
        .lock("lost", Some(LockOptions::new().with_lease(lease)))
        .await?;
    let waiting = {
        let mut client = client.clone();
        tokio::spawn(async move { client.lock("lost", None).await })
    };
    in_line(&servers, "lost/", 2).await?;
    client.lease_revoke(lease).await?;
    let second = waiting.await??;
    client.unlock(second.key()).await?;
    Ok(())
}

async fn election(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let (one, two) = (
        client.lease_grant(60, None).await?.id(),
        client.lease_grant(60, None).await?.id(),
    );
    ensure!(refusal(client.leader("e").await)? == "Unknown: election: no leader");
    let won = client.campaign("e", "one", one).await?;
    // The call returns with the first header, which etcd sends with the first leader.
    let mut observer = client.observe("e").await?;
    let leader = won.leader().context("a leader")?.clone();
    ensure!((leader.lease(), leader.name()) == (one, b"e".as_slice()));
    let second = {
        let mut client = client.clone();
        tokio::spawn(async move { client.campaign("e", "two", two).await })
    };
    in_line(&servers, "e/", 2).await?;
    ensure!(client.leader("e").await?.kv().context("a pair")?.value() == b"one");
    let options = ProclaimOptions::new().with_leader(leader.clone());
    client.proclaim("uno", Some(options)).await?;
    client
        .resign(Some(ResignOptions::new().with_leader(leader.clone())))
        .await?;
    let next = second.await??.take_leader().context("a leader")?;
    let stale = client
        .proclaim("x", Some(ProclaimOptions::new().with_leader(leader)))
        .await;
    ensure!(refusal(stale)? == "Unknown: election: not leader");
    let mut heard = Vec::new();
    while heard.last().is_none_or(|last| last != "two") {
        let answer = observer.message().await?.context("the stream ended")?;
        heard.push(answer.kv().context("a pair")?.value_str()?.to_owned());
    }
    // Two values that follow each other at once may be told as one.
    ensure!(["one", "uno"].contains(&heard[0].as_str()), "{heard:?}");
    client
        .resign(Some(ResignOptions::new().with_leader(next)))
        .await?;
    in_line(&servers, "e/", 0).await
}

/// Waits until that many stand in line below `prefix`.
async fn in_line(servers: &Servers, prefix: &str, number: i64) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    loop {
        let options = GetOptions::new().with_prefix().with_count_only();
        if client.get(prefix, Some(options)).await?.count() == number {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
