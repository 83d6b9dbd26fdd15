//! Leases.

use anyhow::{Context as _, ensure};
use etcd_client::{EventType, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions};

use crate::{Servers, cases, refusal};

cases! {
    "a lease: its own id, keys, listed, revoked with its keys" => lease,
    "a lease expires with its keys" => expiry,
    "keep-alive keeps a lease alive beyond its TTL" => keep_alive,
    "keep-alive of a lease that is gone says so and goes on" => gone,
}

async fn lease(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let granted = client
        .lease_grant(60, Some(LeaseGrantOptions::new().with_id(4711)))
        .await?;
    ensure!((granted.id(), granted.ttl()) == (4711, 60));
    let again = client
        .lease_grant(60, Some(LeaseGrantOptions::new().with_id(4711)))
        .await;
    ensure!(refusal(again)? == "FailedPrecondition: etcdserver: lease already exists");
    client
        .put("l/1", "x", Some(PutOptions::new().with_lease(4711)))
        .await?;
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let left = client.lease_time_to_live(4711, Some(options)).await?;
    ensure!(
        (left.granted_ttl(), left.keys()) == (60, [b"l/1".to_vec()].as_slice()),
        "{left:?}"
    );
    ensure!((50..=60).contains(&left.ttl()), "{left:?}");
    ensure!(
        client
            .leases()
            .await?
            .leases()
            .iter()
            .any(|lease| lease.id() == 4711)
    );
    client.lease_revoke(4711).await?;
    ensure!(client.get("l/1", None).await?.count() == 0);
    ensure!(client.lease_time_to_live(4711, None).await?.ttl() == -1);
    let again = client.lease_revoke(4711).await;
    ensure!(refusal(again)? == "NotFound: etcdserver: requested lease not found");
    Ok(())
}

async fn expiry(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let id = client.lease_grant(2, None).await?.id();
    client
        .put("l/2", "x", Some(PutOptions::new().with_lease(id)))
        .await?;
    let mut stream = client.watch("l/2", None).await?;
    let event = loop {
        let answer = stream.message().await?.context("the stream ended")?;
        if let [event] = answer.events() {
            break event.event_type();
        }
    };
    ensure!(event == EventType::Delete && client.get("l/2", None).await?.count() == 0);
    Ok(())
}

async fn keep_alive(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let id = client.lease_grant(4, None).await?.id();
    let (mut keeper, mut kept) = client.lease_keep_alive(id).await?;
    for _ in 0..11 {
        keeper.keep_alive().await?;
        let answer = kept.message().await?.context("the stream ended")?;
        ensure!((answer.id(), answer.ttl()) == (id, 4), "{answer:?}");
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    ensure!(client.lease_time_to_live(id, None).await?.ttl() >= 0);
    client.lease_revoke(id).await?;
    Ok(())
}

async fn gone(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let id = client.lease_grant(60, None).await?.id();
    let (mut keeper, mut kept) = client.lease_keep_alive(id).await?;
    client.lease_revoke(id).await?;
    for _ in 0..2 {
        keeper.keep_alive().await?;
        let answer = kept.message().await?.context("the stream ended")?;
        ensure!((answer.id(), answer.ttl()) == (id, 0), "{answer:?}");
    }
    Ok(())
}
