use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::LateClock;
use crate::store::faulty::{Calls, Fault, Outage, Stage};
use crate::store::{Faulty, MemStore};
use crate::topic::Start;

async fn soon<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(120), work).await;
    done.expect("it ends by itself")
}

/// A client, and its store, which is out of reach.
fn away() -> (Faulty<MemStore>, Client) {
    let faulty = Faulty::new(MemStore::new());
    let client = Client::builder(faulty.clone()).seed(1).build();
    faulty.disconnect(Outage::Refused);
    (faulty, client)
}

/// An agent with a batch for each line of three digits.
fn agent(client: &Client) -> AgentBuilder {
    client.log_collection("l").agent("host").batch_bytes(6)
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

/// Lines that are alike lie compressed in the store, and in the spool before, and are written as they came.
#[tokio::test(start_paused = true)]
async fn lines_that_are_alike_are_compressed() {
    let folder = tempfile::tempdir().unwrap();
    let (faulty, client) = away();
    let agent = client.log_collection("l").agent("host").window(1);
    let agent = agent.spool(folder.path(), 1 << 20).await.unwrap();
    let mut lines: Vec<String> = (0..4_000)
        .map(|n| format!("GET /orders/{n} took {} ms", n % 100))
        .collect();
    assert!(lines.iter().all(|line| agent.log(line.as_str())));
    let stats = soon(agent.close()).await.unwrap();
    let plain: usize = lines.iter().map(String::len).sum();
    let spooled = usize::try_from(stats.spooled_bytes).unwrap();
    assert!((1..plain / 2).contains(&spooled), "{spooled} of {plain}");
    faulty.reconnect();
    let agent = client.log_collection("l").agent("host");
    let agent = agent.spool(folder.path(), 1 << 20).await.unwrap();
    assert_eq!(agent.stats().spooled_bytes, stats.spooled_bytes);
    agent.log("the last");
    soon(agent.flush()).await.unwrap();
    agent.close().await.unwrap();
    lines.push("the last".to_owned());
    let (collected, _) = collect(&client, "archive", lines.len()).await;
    assert_eq!(collected, lines);
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
        let agent = client.log_collection("l").agent("host").batch_bytes(5);
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
    let (faulty, client) = away();
    let start = || agent(&client).window(2).spool(folder.path(), 1 << 20);
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
    let (faulty, client) = away();
    let agent = client.log_collection("l").agent("host").batch_bytes(5);
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

/// A store that refuses lines because it is full, or does not let the agent write, will take them some day.
#[tokio::test(start_paused = true)]
async fn what_is_refused_for_now_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    for spool in [false, true] {
        let faulty = Faulty::new(MemStore::new());
        let client = Client::builder(faulty.clone()).seed(1).build();
        let agent = match spool {
            true => agent(&client).window(1).spool(folder.path(), 1 << 20),
            false => agent(&client).window(100),
        };
        let agent = agent.await.unwrap();
        agent.log("099");
        soon(agent.flush()).await.unwrap();
        faulty.plan("quorate/topic/", vec![Fault::Refused; 10]);
        let lines = numbers(100..120);
        for line in &lines {
            while !agent.log(line.as_str()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        soon(agent.flush()).await.unwrap();
        assert_eq!(faulty.left(), 0);
        let stats = soon(agent.close()).await.unwrap();
        assert_eq!(stats.published, 21, "{stats:?}");
        let (collected, _) = collect(&client, "archive", 21).await;
        assert_eq!(collected[1..], lines);
    }
}

/// With a spool, too, it is the oldest that goes, though the very oldest is on its way.
#[tokio::test(start_paused = true)]
async fn a_full_spool_makes_room_for_the_latest() {
    let folder = tempfile::tempdir().unwrap();
    let faulty = Faulty::new(MemStore::new());
    let client = Client::builder(faulty.clone()).seed(1).build();
    let start = || {
        let agent = agent(&client).window(1).spool(folder.path(), 1_000);
        agent.overflow(Overflow::DropOldest)
    };
    faulty.disconnect(Outage::Refused);
    let agent = start().await.unwrap();
    agent.log("100");
    agent.close().await.unwrap();
    // The next one begins with that.
    let agent = start().await.unwrap();
    for line in numbers(101..150) {
        assert!(agent.log(line));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    faulty.reconnect();
    soon(agent.flush()).await.unwrap();
    let stats = soon(agent.close()).await.unwrap();
    assert!(stats.dropped > 30, "{stats:?}");
    assert_eq!(stats.published + stats.dropped, 50, "{stats:?}");
    let published = usize::try_from(stats.published).unwrap();
    let (collected, _) = collect(&client, "archive", published).await;
    assert_eq!(collected[0], "100");
    let latest = 150 - u32::try_from(published - 1).unwrap();
    assert_eq!(collected[1..], numbers(latest..150));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_gone_holds_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (faulty, client) = away();
    let start = || agent(&client).window(1).spool(folder.path(), 1 << 20);
    let agent = start().await.unwrap();
    for line in numbers(100..110) {
        assert!(agent.log(line));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    agent.close().await.unwrap();
    let files = std::fs::read_dir(folder.path()).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some());
    files.sort();
    let agent = start().await.unwrap();
    for gone in [3, 5] {
        std::fs::remove_file(&files[gone]).unwrap();
    }
    faulty.reconnect();
    agent.log("110");
    soon(agent.flush()).await.unwrap();
    let stats = soon(agent.close()).await.unwrap();
    assert_eq!((stats.published, stats.dropped), (9, 2), "{stats:?}");
    assert_eq!(stats.spooled_bytes, 0);
}

/// Lines without text, and such as grow when they are written, stay within batches that a store takes.
#[tokio::test(start_paused = true)]
async fn batches_are_bounded_whatever_is_logged() {
    let client = Client::builder(MemStore::new()).seed(1).build();
    let logs = client.log_collection("l");
    let agent = logs.agent("host").batch_bytes(usize::MAX).await.unwrap();
    let most = client.store().capabilities().max_request_bytes / 8;
    for _ in 0..2 * most / 4 {
        assert!(agent.log("\u{1}"));
    }
    assert!(agent.log("\u{1}".repeat(most - 3)));
    for _ in 0..most {
        assert!(agent.log(""));
    }
    soon(agent.flush()).await.unwrap();
    let stats = soon(agent.close()).await.unwrap();
    assert_eq!((stats.published, stats.dropped), (stats.accepted, 0));
    let status = logs.topic().status().await.unwrap();
    let messages = status.partitions[0].messages;
    assert!((6..9).contains(&messages), "{messages}");
}

/// A source that says nothing any more is forgotten, one that does is not, and neither is one that cannot be read.
#[tokio::test(start_paused = true)]
async fn silent_sources_are_forgotten() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let store = MemStore::new();
    let clock = Arc::new(LateClock::default());
    let client = Client::builder(store.clone()).clock(clock).seed(1).build();
    let logs = client.log_collection("l");
    let session = client.session().await.unwrap();
    let collector = logs.collector(&session, "c").await.unwrap();
    let mut collector = collector.forget_after(2 * HOUR);
    let missing = RefCell::new(Vec::new());
    let run = collector.run(async |chunk: &Chunk| {
        missing.borrow_mut().push(chunk.missing);
        Ok::<(), &str>(())
    });
    let key = |source: &str| format!("quorate/collect/l/c/0/{source}");
    let all = || store.keys("quorate/collect/");
    let story = async {
        client.put(key("broken"), "no JSON").await.unwrap();
        let silent = logs.agent("silent").await.unwrap();
        let busy = logs.agent("busy").await.unwrap();
        for agent in [&silent, &busy] {
            assert!(agent.log("first"));
        }
        tokio::time::sleep(HOUR * 3 / 2).await;
        let everything = ["broken", "busy", "silent"].map(key);
        assert_eq!(all(), everything);
        assert!(busy.log("again"));
        tokio::time::sleep(HOUR * 17 / 10).await;
        assert_eq!(all(), ["broken", "busy"].map(key));
        assert!(busy.log("still there"));
        // After all.
        assert!(silent.log("again"));
        tokio::time::sleep(HOUR / 10).await;
        assert_eq!(all(), everything);
        silent.close().await.unwrap();
        busy.close().await.unwrap();
    };
    tokio::select! {
        ended = run => panic!("{ended:?}"),
        () = story => {}
    }
    assert_eq!(collector.stats().duplicates, 0);
    assert_eq!(
        missing.into_inner(),
        [0; 5],
        "what it has in memory, it knows"
    );
}

/// What waits in the topic is written before its source is forgotten, however long that has been silent, and wherever
/// a collector that has just come is held up.
#[tokio::test(start_paused = true)]
async fn nothing_is_forgotten_while_it_waits() {
    for calls in [Calls::Txn, Calls::Read] {
        let mut nth = 1;
        while knows_what_waits(nth, calls).await {
            nth += 1;
        }
        assert!(nth > 2, "{calls:?}");
    }
}

/// Returns whether the collector makes so many calls.
async fn knows_what_waits(nth: usize, calls: Calls) -> bool {
    const MINUTE: Duration = Duration::from_secs(60);
    let store = MemStore::new();
    let faulty = Faulty::new(store.clone());
    let clock = Arc::new(LateClock::default());
    let before = Client::builder(store.clone()).clock(Arc::clone(&clock) as _);
    let before = before.seed(1).build();
    let logs = before.log_collection("l");
    let agent = logs.agent("host").await.unwrap();
    agent.log("0");
    soon(agent.flush()).await.unwrap();
    let (collected, _) = collect(&before, "archive", 1).await;
    assert_eq!(collected, ["0"]);
    // It comes again.
    let session = before.session().await.unwrap();
    let mut batches = logs.topic().subscribe(Start::Earliest).await.unwrap();
    let batch = batches.next().await.unwrap().value;
    let again = logs.topic().publish_keyed(&session, "host", &batch);
    again.await.unwrap();
    tokio::time::sleep(60 * MINUTE).await;

    let client = Client::builder(faulty.clone()).clock(clock).seed(2).build();
    let session = client.session().await.unwrap();
    let held = faulty.hold(nth, calls, Stage::NotSent);
    let collecting = async {
        let logs = client.log_collection("l");
        let collector = logs.collector(&session, "archive").await.unwrap();
        let mut collector = collector.forget_after(30 * MINUTE);
        let run = collector.run(async |chunk: &Chunk| Err::<(), _>(chunk.clone()));
        let ended = tokio::time::timeout(20 * MINUTE, run).await;
        assert!(ended.is_err(), "{nth}: it is written again: {ended:?}");
        assert_eq!(collector.stats().duplicates, 1, "{nth}");
    };
    let release = async {
        let reached = tokio::time::timeout(10 * MINUTE, held.reached()).await;
        tokio::time::sleep(5 * MINUTE).await;
        held.release();
        reached.is_ok()
    };
    tokio::join!(collecting, release).1
}
