//! Log collection: every line that was taken is written, whatever becomes of the store, the agent or a collector,
//! and once in a sink that can tell a chunk that comes again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_recipes::collect::{Agent, AgentError, Chunk, CollectError, Collection, Collector};
use quorate_recipes::store::faulty::{Calls, Fault, Faulty, Outage, Stage};
use quorate_recipes::{Client, Error, Store};
use tokio::task::JoinHandle;

use super::{session, short_session};
use crate::support::{soon, until};

/// Lines by source and run, each under its number.
type Lines = BTreeMap<(String, String), BTreeMap<u64, String>>;

/// A sink that knows which lines it has, and counts what it was given.
#[derive(Debug, Clone, Default)]
struct Sink {
    lines: Arc<Mutex<Lines>>,
    given: Arc<Mutex<u64>>,
}

impl Sink {
    fn write(&self, chunk: &Chunk) {
        assert_eq!(chunk.missing, 0, "{chunk:?}");
        let mut lines = self.lines.lock().unwrap();
        let run = (chunk.source.clone(), chunk.run.clone());
        let run = lines.entry(run).or_default();
        for (number, line) in (chunk.first..).zip(&chunk.lines) {
            let before = run.insert(number, line.clone());
            assert!(before.is_none_or(|before| before == *line), "{chunk:?}");
        }
        *self.given.lock().unwrap() += chunk.lines.len() as u64;
    }

    fn given(&self) -> u64 {
        *self.given.lock().unwrap()
    }

    fn count(&self) -> u64 {
        let lines = self.lines.lock().unwrap();
        lines.values().map(|run| run.len() as u64).sum()
    }

    /// The lines of a source in the order of their texts; those of each run must be in that order, without a gap.
    fn of(&self, source: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let mut all = Vec::new();
        for (_, run) in lines.iter().filter(|((of, _), _)| of == source) {
            let numbers = run.keys().copied();
            assert!(numbers.eq(0..run.len() as u64), "{source}: {run:?}");
            assert!(run.values().is_sorted(), "{source}: {run:?}");
            all.extend(run.values().cloned());
        }
        all.sort();
        all
    }
}

fn logs(client: &Client) -> Collection {
    client.log_collection("logs").partitions(3)
}

fn texts(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("{n:04}")).collect()
}

/// Has the agent take lines, and waits while it has no room.
async fn log(agent: &Agent, range: std::ops::Range<u32>) {
    for line in texts(range) {
        while !agent.log(line.as_str()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Writes what comes until it is stopped.
fn collects(mut collector: Collector, sink: &Sink) -> JoinHandle<CollectError<String>> {
    let sink = sink.clone();
    tokio::spawn(async move {
        let run = collector.run(async move |chunk: &Chunk| {
            sink.write(chunk);
            Ok::<(), String>(())
        });
        match run.await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    })
}

/// Several agents, and collectors that fail, leave and lose their sessions: all lines are in the sink in the end, in
/// their order, and little came again.
pub async fn lines_are_collected_once(client: &Client) {
    const SOURCES: u32 = 4;
    const LINES: u32 = 60;
    let sink = Sink::default();
    let mut agents = Vec::new();
    for source in 0..SOURCES {
        let agent = logs(client).agent(format!("host-{source}"));
        let agent = agent.batch_bytes(21).window(1_000).await.unwrap();
        log(&agent, 0..LINES / 2).await;
        agents.push(agent);
    }
    let mine = session(client).await;
    let mut failing = logs(client).collector(&mine, "archive").await.unwrap();
    let mut left = 5;
    let run = failing.run(async |chunk: &Chunk| {
        if left == 0 {
            return Err("the disk is full");
        }
        left -= 1;
        sink.write(chunk);
        Ok(())
    });
    let ended = soon("the sink to fail", run).await;
    assert!(matches!(ended, Err(CollectError::Sink("the disk is full"))));
    assert_eq!(failing.stats().written, sink.given());
    // It is the same chunk that comes again.
    let again = collects(failing, &sink);
    let dying = short_session(client).await;
    let second = logs(client).collector(&dying, "archive").await.unwrap();
    let second = collects(second, &sink);
    for agent in &agents {
        log(agent, LINES / 2..LINES).await;
    }
    client.store().lease_revoke(dying.lease()).await.unwrap();
    let ended = soon("the collector to end", second).await.unwrap();
    assert!(
        matches!(ended, CollectError::Failed(Error::SessionLost(_))),
        "{ended:?}"
    );
    for agent in agents {
        let stats = soon("the agent to end", agent.close()).await.unwrap();
        assert_eq!((stats.published, stats.dropped), (u64::from(LINES), 0));
    }
    let all = u64::from(SOURCES * LINES);
    until("all lines to be written", async || sink.count() == all).await;
    for source in 0..SOURCES {
        assert_eq!(sink.of(&format!("host-{source}")), texts(0..LINES));
    }
    until("all of it to be noted", async || {
        let status = logs(client).topic().status().await.unwrap();
        let group = &status.groups["archive"];
        group
            .partitions
            .iter()
            .all(|lag| lag.lag.is_none_or(|lag| lag == 0))
    })
    .await;
    again.abort();
    // A chunk of three lines each time that a partition changed hands while it was written.
    let twice = sink.given() - all;
    assert!(twice <= 3 * 3, "{twice} lines came again");
}

/// An agent whose store is away keeps its lines on disk, and the one after it publishes them first, although answers
/// get lost. What is published twice by that is written once.
pub async fn a_spool_outlives_store_and_agent(client: &Client) {
    let folder = tempfile::tempdir().unwrap();
    let store: Faulty<Arc<dyn Store>> = Faulty::new(Arc::clone(client.store()));
    let cut_off = Client::new(store.clone());
    let start = async || {
        let agent = logs(&cut_off).agent("host").batch_bytes(21).window(2);
        agent.spool(folder.path(), 1 << 20).await
    };
    let agent = start().await.unwrap();
    log(&agent, 0..20).await;
    soon("the first lines", agent.flush()).await.unwrap();
    let held = store.hold(1, Calls::Txn, Stage::AppliedUnanswered);
    log(&agent, 20..23).await;
    soon("a batch without an answer", held.reached()).await;
    store.disconnect(Outage::Refused);
    log(&agent, 23..100).await;
    let busy = start().await;
    assert!(matches!(busy, Err(AgentError::Spool(_))), "{busy:?}");
    let stats = soon("the agent to end", agent.close()).await.unwrap();
    assert_eq!((stats.accepted, stats.published), (100, 20), "{stats:?}");
    assert!(stats.spooled_bytes > 0, "the others are on disk");
    held.release();

    store.reconnect();
    store.plan("quorate/topic/", [Fault::NotSent, Fault::Unanswered]);
    let agent = start().await.unwrap();
    log(&agent, 100..120).await;
    soon("the spool to be empty", agent.flush()).await.unwrap();
    assert_eq!((agent.stats().spooled_bytes, store.left()), (0, 0));
    let stats = soon("the agent to end", agent.close()).await.unwrap();
    assert_eq!((stats.accepted, stats.published), (20, 100), "{stats:?}");

    let sink = Sink::default();
    let session = session(client).await;
    let mut collector = logs(client).collector(&session, "c").await.unwrap();
    let run = collector.run(async |chunk: &Chunk| {
        sink.write(chunk);
        Ok::<(), String>(())
    });
    tokio::select! {
        ended = run => panic!("{ended:?}"),
        () = until("all lines to be written", async || sink.count() == 120) => {}
    }
    assert_eq!(sink.of("host"), texts(0..120));
    assert_eq!(sink.given(), 120, "none is given twice");
    assert_eq!(collector.stats().duplicates, 3, "although some came twice");
}
