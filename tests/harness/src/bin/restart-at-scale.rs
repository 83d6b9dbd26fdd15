//! How soon a member with many keys is back after SIGKILL under load, and how much memory it takes.
//!
//! ```sh
//! cargo build --release && cargo run --release --bin restart-at-scale -- target/release/quorate
//! ```
//!
//! Three members over loopback; 1,000,000 keys of 256 bytes; then one member after the other is
//! killed while writers go on. It prints, for each, the time from exec to the first linearizable
//! get that the member itself answers, and its resident memory.

#![expect(clippy::print_stdout, reason = "a tool that prints what it measured")]
#![expect(clippy::disallowed_methods, reason = "measures what clients see")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::load::Load;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op};

const KEYS: usize = 1_000_000;
const VALUE_BYTES: usize = 256;
const KEYS_PER_TXN: usize = 100;
const LOADERS: usize = 16;
const WRITERS: usize = 16;
const LOAD_BEFORE_KILL: Duration = Duration::from_secs(5);
const BACK_WITHIN: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments
        .next()
        .context("usage: restart-at-scale PATH-OF-QUORATE [KEYS]")?;
    let keys = match arguments.next() {
        Some(keys) => keys.to_string_lossy().parse()?,
        None => KEYS,
    };
    let mut cluster = ProcessCluster::start(&PathBuf::from(program), 3, &[]).await?;
    let began = Instant::now();
    fill(&cluster, keys).await?;
    println!(
        "{keys} keys of {VALUE_BYTES} bytes written in {:.1?}",
        began.elapsed()
    );

    for member in 0..cluster.size() {
        let load = Load::start(&cluster.endpoints(), WRITERS, VALUE_BYTES);
        tokio::time::sleep(LOAD_BEFORE_KILL).await;
        let before = resident_kib(&mut cluster, member)?;
        let leads = cluster.leader(BACK_WITHIN).await? == member;
        cluster.kill(member)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let exec = Instant::now();
        cluster.launch(member)?;
        cluster.serves(member, BACK_WITHIN).await?;
        let back = exec.elapsed();
        let after = resident_kib(&mut cluster, member)?;
        let report = load.stop().await?;
        report.verify(cluster.endpoint(member)).await?;
        println!(
            "member {member}{}: exec to first linearizable get {back:.2?}; resident {} MiB before \
             the kill, {} MiB after; {} writes acknowledged meanwhile, all there",
            if leads { " (led)" } else { "" },
            before / 1024,
            after / 1024,
            report.pairs.len()
        );
    }
    Ok(())
}

async fn fill(cluster: &ProcessCluster, keys: usize) -> anyhow::Result<()> {
    let endpoints = cluster.endpoints();
    let loaders = (0..LOADERS).map(|loader| {
        let endpoint = endpoints[loader % endpoints.len()].clone();
        async move {
            let mut client = KvClient::connect(endpoint).await?;
            let mut first = loader * KEYS_PER_TXN;
            while first < keys {
                let puts = (first..(first + KEYS_PER_TXN).min(keys)).map(put).collect();
                client
                    .txn(TxnRequest {
                        success: puts,
                        ..TxnRequest::default()
                    })
                    .await?;
                first += LOADERS * KEYS_PER_TXN;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(loaders).await?;
    Ok(())
}

fn put(n: usize) -> RequestOp {
    let put = PutRequest {
        key: format!("scale/{n:09}").into(),
        value: format!("{n:0VALUE_BYTES$}").into(),
        ..PutRequest::default()
    };
    RequestOp {
        request: Some(request_op::Request::RequestPut(put)),
    }
}

fn resident_kib(cluster: &mut ProcessCluster, member: usize) -> anyhow::Result<u64> {
    let pid = cluster.process(member).context("it runs")?.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
