//! Maintenance and members.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use etcd_client::{AlarmAction, AlarmType, Client};
use sha2::{Digest as _, Sha256};

use crate::{Servers, cases, connect, refusal};

cases! {
    "status, hash, hash_kv and defragment" => status,
    "an alarm stops writes until it is disarmed" => alarm,
    "a snapshot: whole pages, and their digest at the end" => snapshot,
    "three members: listed, and one behind each endpoint" => members,
    "three members: move_leader moves it" => move_leader,
    "three members: endpoints that are added and removed" => endpoints,
}

async fn status(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let status = client.status().await?;
    let header = status.header().context("a header")?;
    ensure!(
        status.leader() == header.member_id() && status.version().starts_with("3."),
        "{status:?}"
    );
    ensure!(
        status.db_size() > 0 && status.raft_index() > 0 && status.raft_term() > 0,
        "{status:?}"
    );
    ensure!(
        !status.is_learner() && status.errors().is_empty(),
        "{status:?}"
    );
    ensure!(client.hash().await?.hash() == client.hash().await?.hash());
    client.put("h", "x", None).await?;
    let before = client.hash_kv(0).await?.hash();
    client.put("h", "y", None).await?;
    ensure!(client.hash_kv(0).await?.hash() != before);
    let revision = header.revision() + 1;
    ensure!(client.hash_kv(revision).await?.hash() == before);
    client.defragment().await?;
    ensure!(client.get("h", None).await?.kvs()[0].value() == b"y");
    Ok(())
}

async fn alarm(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    client
        .alarm(AlarmAction::Activate, AlarmType::Nospace, None)
        .await?;
    let listed = client.alarm(AlarmAction::Get, AlarmType::None, None).await;
    let put = client.put("x", "y", None).await;
    let gone = client
        .alarm(AlarmAction::Deactivate, AlarmType::Nospace, None)
        .await?;
    ensure!(listed?.alarms().len() == 1 && gone.alarms().len() == 1);
    ensure!(refusal(put)? == "ResourceExhausted: etcdserver: mvcc: database space exceeded");
    client.put("x", "y", None).await?;
    Ok(())
}

async fn snapshot(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    client.put("snap", "shot", None).await?;
    let mut stream = client.snapshot().await?;
    let (mut file, mut remaining) = (Vec::new(), None);
    while let Some(chunk) = stream.message().await? {
        ensure!(remaining.is_none_or(|before| before >= chunk.remaining_bytes()));
        remaining = Some(chunk.remaining_bytes());
        file.extend_from_slice(chunk.blob());
    }
    ensure!(
        remaining == Some(0) && file.len() % 512 == 32,
        "{remaining:?} {}",
        file.len()
    );
    let (data, digest) = file.split_at(file.len() - 32);
    ensure!(Sha256::digest(data).as_slice() == digest);
    Ok(())
}

async fn members(servers: Servers) -> anyhow::Result<()> {
    let mut client = connect(servers.cluster()).await?;
    let listed = client.member_list().await?;
    let mut urls: Vec<_> = listed
        .members()
        .iter()
        .flat_map(|member| member.client_urls())
        .cloned()
        .collect();
    let mut given = servers.cluster().to_vec();
    urls.sort();
    given.sort();
    ensure!(urls == given, "{urls:?}");
    ensure!(
        listed
            .members()
            .iter()
            .all(|member| !member.name().is_empty() && !member.is_learner())
    );
    let mut found: Vec<u64> = Vec::new();
    for (_, header, _) in statuses(&servers).await? {
        found.push(header);
    }
    let mut ids: Vec<_> = listed.members().iter().map(|member| member.id()).collect();
    found.sort_unstable();
    ids.sort_unstable();
    ensure!(found == ids, "{found:?} {ids:?}");
    Ok(())
}

async fn move_leader(servers: Servers) -> anyhow::Result<()> {
    let before = statuses(&servers).await?;
    let (mut client, leader, _) = before
        .iter()
        .find(|(_, id, leader)| id == leader)
        .cloned()
        .context("a leader")?;
    let (mut follower, target, _) = before
        .iter()
        .find(|(_, id, leader)| id != leader)
        .cloned()
        .context("a follower")?;
    ensure!(
        refusal(follower.move_leader(target).await)?
            == "FailedPrecondition: etcdserver: not leader"
    );
    ensure!(
        refusal(client.move_leader(12345).await)?
            == "FailedPrecondition: etcdserver: bad leader transferee"
    );
    let moved = client.move_leader(target).await?;
    ensure!(moved.header().is_none(), "{moved:?}");
    while follower.status().await?.leader() != target {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.put("after", format!("{leader:x}"), None).await?;
    Ok(())
}

async fn endpoints(servers: Servers) -> anyhow::Result<()> {
    let [one, two, three] = servers.cluster() else {
        anyhow::bail!("three members")
    };
    let mut client = connect(std::slice::from_ref(one)).await?;
    client.put("endpoints", "x", None).await?;
    client.add_endpoint(two).await?;
    client.add_endpoint(three).await?;
    client.remove_endpoint(one).await?;
    for _ in 0..10 {
        ensure!(client.get("endpoints", None).await?.count() == 1);
    }
    Ok(())
}

/// For each endpoint a client, its member's id and whom that takes for the leader.
async fn statuses(servers: &Servers) -> anyhow::Result<Vec<(Client, u64, u64)>> {
    let mut found = Vec::new();
    for endpoint in servers.cluster() {
        let mut client = connect(std::slice::from_ref(endpoint)).await?;
        let status = client.status().await?;
        let id = status.header().context("a header")?.member_id();
        found.push((client, id, status.leader()));
    }
    Ok(found)
}
