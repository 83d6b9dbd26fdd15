//! Log collection: agents and collectors dropped at each call. What an agent has on disk is published by the next one,
//! and no line is given to the sink twice but those of the chunk that was in a collector's hands.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use quorate_recipes::collect::{Agent, AgentError, Chunk, CollectError, Collection};
use quorate_recipes::store::faulty::Outage;
use quorate_recipes::{Client, Session};

use super::{Outcome, Place, QUIET, World, at_every_call, in_time};

const DURABLE: [&str; 4] = [
    "quorate/topic/x/partition/",
    "quorate/topic/x/meta",
    "quorate/topic/x/group/",
    "quorate/collect/x/c/",
];

/// How many lines there are.
const LINES: usize = 6;

/// What an agent logs once it has its spool: published when all before it is.
const LAST: &str = "last";

/// How often a sink was given each line, by text, run and number.
type Given = RefCell<BTreeMap<(String, String, u64), usize>>;

/// Makes sure that all lines of the first agent are there, in their order, and how often.
fn times(at: Place, given: Given) -> Vec<usize> {
    let given = given.into_inner();
    let first = given.iter().filter(|((text, ..), _)| text != LAST);
    let numbers = first
        .clone()
        .map(|((text, _, number), _)| (text.clone(), *number));
    let expected = (0..).take(LINES).map(|number| (number.to_string(), number));
    assert!(numbers.eq(expected), "{at}: {given:?}");
    let mut others = given.iter().filter(|((text, ..), _)| text == LAST);
    assert!(others.all(|(_, times)| *times == 1), "{at}: {given:?}");
    first.map(|(_, times)| *times).collect()
}

fn logs(client: &Client) -> Collection {
    client.log_collection("x")
}

/// An agent for a spool that another one may have just left.
async fn agent(client: &Client, spool: &Path) -> Agent {
    loop {
        let agent = logs(client).agent("host").batch_bytes(14).window(2);
        match agent.spool(spool, 1 << 20).await {
            Ok(agent) => return agent,
            Err(AgentError::Spool(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn published(agent: Agent) -> Outcome {
    assert!(agent.log(LAST));
    agent.flush().await?;
    match agent.close().await {
        Ok(stats) => {
            assert_eq!(stats.dropped, 0, "{stats:?}");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Writes what there is.
async fn collect(client: &Client, session: &Session, given: &Given) -> Outcome {
    let mut collector = logs(client).collector(session, "c").await?;
    let run = collector.run(async |chunk: &Chunk| {
        assert_eq!(chunk.missing, 0, "{chunk:?}");
        for (number, line) in (chunk.first..).zip(&chunk.lines) {
            let line = (line.clone(), chunk.run.clone(), number);
            *given.borrow_mut().entry(line).or_default() += 1;
        }
        Ok::<(), String>(())
    });
    match tokio::time::timeout(Duration::from_secs(5), run).await {
        Ok(Err(CollectError::Failed(error))) => return Err(error),
        Ok(ended) => panic!("{ended:?}"),
        Err(_) => {}
    }
    collector.leave().await
}

/// An agent's lines all on disk, since the store was away.
async fn spooled(world: &World, spool: &Path) {
    world.faulty.disconnect(Outage::Refused);
    let first = agent(&world.user.0, spool).await;
    for line in 0..LINES {
        while !first.log(line.to_string()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let stats = first.close().await.unwrap();
    assert_eq!((stats.accepted, stats.published), (LINES as u64, 0));
    world.faulty.reconnect();
}

/// An agent with a full spool: the next one that is given it publishes the rest, and what comes twice by that is left
/// out.
#[tokio::test(start_paused = true)]
async fn an_agent_with_a_spool() {
    let visited = at_every_call(async |at| {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new().await;
        spooled(&world, folder.path()).await;
        tokio::time::sleep(QUIET).await;
        let user = async { published(agent(&world.user.0, folder.path()).await).await };
        let stopped = world.stop(at, user).await;
        let reached = stopped.held.is_reached();
        stopped.held.release();
        let (client, session) = &world.other;
        let next = async { published(agent(client, folder.path()).await).await };
        in_time(at, "the next one", next).await;
        let given = Given::default();
        in_time(at, "the collector", collect(client, session, &given)).await;
        assert_eq!(times(at, given), [1; LINES], "{at}");
        tokio::time::sleep(QUIET).await;
        assert_eq!(world.left(&DURABLE), [""; 0], "{at}");
        reached
    })
    .await;
    assert!(visited >= 4 * 5, "{visited} calls only");
}

/// A collector: the next one goes on where it was, with the chunk that it had.
#[tokio::test(start_paused = true)]
async fn a_collector() {
    let visited = at_every_call(async |at| {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new().await;
        let (client, session) = &world.other;
        let agent = agent(client, folder.path()).await;
        for line in 0..LINES {
            assert!(agent.log(line.to_string()));
            if line % 2 == 1 {
                agent.flush().await.unwrap();
            }
        }
        published(agent).await.unwrap();
        let given = Given::default();
        let user = collect(&world.user.0, &world.user.1, &given);
        let stopped = world.stop(at, user).await;
        let reached = stopped.held.is_reached();
        stopped.held.release();
        in_time(at, "the next one", collect(client, session, &given)).await;
        tokio::time::sleep(QUIET).await;
        in_time(at, "the next one", collect(client, session, &given)).await;
        let times = times(at, given);
        let again: usize = times.iter().map(|times| times - 1).sum();
        let most = if stopped.finished { 0 } else { 2 };
        assert!(again <= most, "{at}: {times:?}");
        tokio::time::sleep(QUIET).await;
        assert_eq!(world.left(&DURABLE), [""; 0], "{at}");
        reached
    })
    .await;
    assert!(visited >= 4 * 8, "{visited} calls only");
}
