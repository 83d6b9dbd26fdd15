//! Writes beside compaction, and what compaction gives back.
//!
//! Stretches without and with compaction alternate under the same load; in those with, history is
//! given up every second, and first of all what the stretch before has piled up. Then everything
//! old is given up and the disk is looked at.

use std::time::Duration;

use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{CompactionRequest, DefragmentRequest, RangeRequest};
use tonic::transport::Channel;

use crate::server::{Server, rest};
use crate::writers::Writers;

const WRITERS: usize = 32;
const KEYS: usize = 20_000;
const VALUE_BYTES: usize = 512;
const PAIRS: usize = 4;
const WARM_UP: Duration = Duration::from_secs(5);
const COMPACT_EVERY: Duration = Duration::from_secs(1);
/// What compaction may add to the slowest write of a thousand, in milliseconds.
const P999_ADDED_MAX: f64 = 50.0;
/// What a store without history may take on the disk, as a multiple of its values, beside what it
/// takes in any case.
const DISK_FACTOR_MAX: i64 = 3;
/// See [`DISK_FACTOR_MAX`]: journals.
const DISK_MIB_MIN: i64 = 128;
/// How long the server may take to give space back once writes have stopped.
const SETTLE: Duration = Duration::from_secs(10);

/// Measures; `seconds` is the length of a stretch.
pub(crate) async fn measure(mut server: Server, seconds: Option<usize>) -> anyhow::Result<()> {
    let stretch = Duration::from_secs(u64::try_from(seconds.unwrap_or(15))?);
    let mut client = KvClient::new(server.connect().await?);
    let writers = Writers::start(&server, WRITERS, "c/", KEYS, VALUE_BYTES).await?;
    rest(WARM_UP).await;
    writers.stretch();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for pair in 1..=PAIRS {
        rest(stretch).await;
        let quiet = writers.stretch();
        let piled = server.folder_mib()?;
        let mut left = stretch;
        while left > Duration::ZERO {
            compact(&mut client, false).await?;
            rest(COMPACT_EVERY.min(left)).await;
            left = left.saturating_sub(COMPACT_EVERY);
        }
        let busy = writers.stretch();
        println!("{pair}. without compaction: {}", quiet.describe());
        println!("   with compaction:    {}", busy.describe());
        println!(
            "   on disk {piled} MiB before, {} MiB after; resident {} MiB",
            server.folder_mib()?,
            server.resident_mib()?
        );
        without.push(quiet.millis(0.999));
        with.push(busy.millis(0.999));
    }
    writers.stop().await?;

    let [median_without, median_with] = [&mut without, &mut with].map(|all| {
        all.sort_by(f64::total_cmp);
        f64::midpoint(all[PAIRS / 2 - 1], all[PAIRS / 2])
    });
    let added = median_with - median_without;
    println!(
        "p99.9, median of {PAIRS}: {median_without:.1} ms without, {median_with:.1} ms with: {added:+.1} ms"
    );
    disk(&server, &mut client).await?;
    anyhow::ensure!(
        added <= P999_ADDED_MAX,
        "compaction added more than {P999_ADDED_MAX} ms"
    );
    Ok(())
}

/// What giving up all history gives back.
async fn disk(server: &Server, client: &mut KvClient<Channel>) -> anyhow::Result<()> {
    println!("before the last compaction: {}", sizes(server).await?);
    compact(client, true).await?;
    println!("removed:                    {}", sizes(server).await?);
    rest(SETTLE).await;
    println!("a little later:             {}", sizes(server).await?);
    let mut maintenance = MaintenanceClient::new(server.connect().await?);
    maintenance.defragment(DefragmentRequest::default()).await?;
    println!("after defragmentation:      {}", sizes(server).await?);
    let live = i64::try_from((KEYS * VALUE_BYTES) >> 20)?;
    println!("values that are still current: {live} MiB");
    let (all, _) = server.store_mib().await?;
    anyhow::ensure!(
        all <= live * DISK_FACTOR_MAX + DISK_MIB_MIN,
        "history is still on the disk"
    );
    Ok(())
}

async fn sizes(server: &Server) -> anyhow::Result<String> {
    let (all, in_use) = server.store_mib().await?;
    let folder = server.folder_mib()?;
    Ok(format!(
        "store {all} MiB, in use {in_use} MiB; whole data folder {folder} MiB"
    ))
}

/// Gives up everything before the current revision; `physical`: and waits until it is gone.
async fn compact(client: &mut KvClient<Channel>, physical: bool) -> anyhow::Result<()> {
    let range = RangeRequest {
        key: "c/".into(),
        ..RangeRequest::default()
    };
    let answer = client.range(range).await?.into_inner();
    let revision = answer.header.map_or(0, |header| header.revision);
    let request = CompactionRequest { revision, physical };
    match client.compact(request).await {
        Ok(_) => Ok(()),
        // Nothing was written since the last one.
        Err(status) if status.message().contains("compacted") => Ok(()),
        Err(status) => Err(status.into()),
    }
}
