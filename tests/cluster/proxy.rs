//! The proxy before members, and before a real etcd: every service works through it as without it,
//! clients share what they can, and nobody notices that members die.

mod calls;
mod deaths;
mod sharing;
mod slow;
mod watcher;

use std::path::Path;

use bytes::Bytes;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::proxy::Proxy;
use quorate_proto::etcdserverpb::PutRequest;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use tonic::transport::{Channel, Endpoint};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_quorate"))
}

/// Three members and a proxy that was told of the first alone.
async fn cluster(arguments: &[&str]) -> anyhow::Result<(ProcessCluster, Proxy)> {
    let cluster = ProcessCluster::start(program(), 3, &[]).await?;
    let first = [cluster.endpoint(0).to_owned()];
    let arguments = [arguments, &["--endpoint-refresh", "2s"]].concat();
    let proxy = Proxy::start(program(), &first, &arguments).await?;
    Ok((cluster, proxy))
}

async fn connect(endpoint: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
    Ok(endpoint.tcp_nodelay(true).connect().await?)
}

async fn put(channel: &Channel, key: &str, value: impl Into<Bytes>) -> anyhow::Result<i64> {
    let request = PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.into(),
        ..PutRequest::default()
    };
    let answer = KvClient::new(channel.clone()).put(request).await?;
    Ok(answer
        .into_inner()
        .header
        .map_or(0, |header| header.revision))
}
