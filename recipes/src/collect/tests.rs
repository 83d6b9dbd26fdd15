use std::time::Duration;

use super::*;
use crate::store::faulty::{Calls, Outage, Stage};
use crate::store::{Faulty, MemStore};

async fn soon<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(120), work).await;
    done.expect("it ends by itself")
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// Collects until so many lines have come; all that came, with the number of each chunk's first.
async fn collect(client: &Client, name: &str, count: usize) -> (Vec<String>, CollectorStats) {
    let session = client.session().await.unwrap();
    let mut collector = client
        .log_collection("l")
        .collector(&session, name)
        .await
        .unwrap();
    let mut lines = Vec::new();
    let run = collector.run(async |chunk: &Chunk| {
        lines.extend(chunk.lines.clone());
        if lines.len() >= count {
            Err("enough")
        } else {
            Ok(())
        }
    });
    let ended = soon(run).await;
    assert!(
        matches!(ended, Err(CollectError::Sink("enough"))),
        "{ended:?}"
    );
    // The last chunk is given again, and done this time.
    let again = collector.run(async |_: &Chunk| Ok::<(), &str>(()));
    let again = tokio::time::timeout(Duration::from_secs(10), again).await;
    assert!(again.is_err(), "{again:?}");
    let stats = collector.stats();
    collector.leave().await.unwrap();
    (lines, stats)
}

#[tokio::test(start_paused = true)]
async fn lines_come_in_order_and_once() {
    let client = Client::builder(MemStore::new()).seed(1).build();
    let agent = client.log_collection("l").agent("host").batch_bytes(64);
    let agent = agent.window(1_000).await.unwrap();
    let lines = numbers(0..500);
    for line in &lines {
        assert!(agent.log(line.as_str()));
    }
    assert!(!agent.log("x".repeat(65)), "too long");
    soon(agent.flush()).await.unwrap();
    let stats = agent.stats();
    assert_eq!(
        (stats.accepted, stats.published, stats.dropped),
        (500, 500, 1)
    );
    agent.close().await.unwrap();
    let (collected, stats) = collect(&client, "archive", 500).await;
    assert_eq!(collected, lines);
    assert_eq!(
        (stats.written, stats.duplicates, stats.missing),
        (500, 0, 0)
    );
}

/// A batch is sent again when its session is lost with the answer on its way: it is written once.
#[tokio::test(start_paused = true)]
async fn what_is_published_twice_is_written_once() {
    let store = MemStore::new();
    let faulty = Faulty::new(store.clone());
    let client = Client::builder(faulty.clone()).seed(1).build();
    let agent = client.log_collection("l").agent("host").await.unwrap();
    agent.log("0");
    soon(agent.flush()).await.unwrap();
    let held = faulty.hold(1, Calls::Txn, Stage::AppliedUnanswered);
    agent.log("1");
    // The session ends before the answer comes, or the lane can tell.
    soon(held.reached()).await;
    assert!(store.expire(store.leases()[0]));
    tokio::time::sleep(Duration::from_secs(60)).await;
    held.release();
    soon(agent.flush()).await.unwrap();
    agent.log("2");
    soon(agent.flush()).await.unwrap();
    agent.close().await.unwrap();
    let status = client.log_collection("l").topic().status().await.unwrap();
    assert_eq!(status.partitions[0].messages, 4, "one of three came twice");
    let (collected, stats) = collect(&client, "archive", 3).await;
    assert_eq!(collected, ["0", "1", "2"]);
    assert_eq!((stats.written, stats.duplicates), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn what_has_no_room_is_dropped_and_counted() {
    for overflow in [Overflow::DropNewest, Overflow::DropOldest] {
        let faulty = Faulty::new(MemStore::new());
        let client = Client::builder(faulty.clone()).seed(1).build();
        faulty.disconnect(Outage::Refused);
        let agent = client.log_collection("l").agent("host").batch_bytes(2);
        let agent = agent.window(10).overflow(overflow).await.unwrap();
        let mut taken = 0;
        for line in numbers(10..60) {
            taken += u64::from(agent.log(line));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        faulty.reconnect();
        soon(agent.flush()).await.unwrap();
        assert!(agent.log("60"));
        soon(agent.flush()).await.unwrap();
        let stats = soon(agent.close()).await.unwrap();
        assert_eq!(stats.accepted, taken + 1);
        assert!(
            stats.dropped > 20 && stats.published + stats.dropped == 51,
            "{stats:?}"
        );
        let expected = usize::try_from(stats.published).unwrap();
        let (collected, told) = collect(&client, "archive", expected).await;
        assert!(collected.is_sorted() && collected.last().unwrap() == "60");
        let missing = match overflow {
            // It was never given a number.
            Overflow::DropNewest => 0,
            Overflow::DropOldest => stats.dropped,
        };
        assert_eq!(told.missing, missing, "{overflow:?}");
    }
}

#[tokio::test]
async fn the_spool_takes_over_and_outlives_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let faulty = Faulty::new(MemStore::new());
    let client = Client::builder(faulty.clone()).seed(1).build();
    faulty.disconnect(Outage::Refused);
    let start = || {
        let agent = client.log_collection("l").agent("host").batch_bytes(3);
        agent.window(2).spool(folder.path(), 1 << 20)
    };
    let agent = start().await.unwrap();
    let busy = start().await;
    assert!(matches!(busy, Err(AgentError::Spool(_))), "{busy:?}");
    let lines = numbers(100..140);
    for line in &lines {
        // Faster than the disk, it would drop some.
        while !agent.log(line.as_str()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let stats = soon(agent.close()).await.unwrap();
    assert_eq!((stats.accepted, stats.published), (40, 0));
    assert!(stats.spooled_bytes > 0);
    faulty.reconnect();
    let agent = start().await.unwrap();
    agent.log("140");
    soon(agent.flush()).await.unwrap();
    let stats = soon(agent.close()).await.unwrap();
    assert_eq!(
        (stats.published, stats.dropped, stats.spooled_bytes),
        (41, 0, 0)
    );
    let mut collected = Vec::new();
    let session = client.session().await.unwrap();
    let mut collector = client
        .log_collection("l")
        .collector(&session, "c")
        .await
        .unwrap();
    let run = collector.run(async |chunk: &Chunk| {
        collected.extend(chunk.lines.clone());
        if collected.len() >= 41 {
            Err("enough")
        } else {
            Ok(())
        }
    });
    assert!(soon(run).await.is_err());
    assert_eq!(collected, numbers(100..141));
}

/// What a disk does not take, as when it is full, waits in memory, and what finds no room there is counted.
#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_nothing_loses_nothing_uncounted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let faulty = Faulty::new(MemStore::new());
    let client = Client::builder(faulty.clone()).seed(1).build();
    faulty.disconnect(Outage::Refused);
    let agent = client.log_collection("l").agent("host").batch_bytes(2);
    let agent = agent.window(2).spool(&path, 1 << 20).await.unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    let mut taken = Vec::new();
    for line in numbers(10..20) {
        if agent.log(line.clone()) {
            taken.push(line);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    faulty.reconnect();
    soon(agent.flush()).await.unwrap();
    let stats = soon(agent.close()).await.unwrap();
    assert_eq!(stats.published, stats.accepted, "{stats:?}");
    assert_eq!(stats.accepted + stats.dropped, 10, "{stats:?}");
    assert!(taken.len() >= 4, "{taken:?}");
    let (collected, _) = collect(&client, "archive", taken.len()).await;
    assert_eq!(collected, taken);
}
