//! Topics: publications, commits of groups and removals, dropped everywhere.

use std::time::Duration;

use quorate_recipes::topic::{ReadError, Retention, Start, Topic};
use quorate_recipes::{Client, Error, Session};

use super::{Outcome, QUIET, World, at_every_call, in_time};

const DURABLE: [&str; 4] = [
    "quorate/topic/x/partition/",
    "quorate/topic/x/meta",
    "quorate/topic/x/group/",
    "quorate/topic/x/removed/",
];

const LIVE: &str = "quorate/live-topic/x/last";

fn topic(client: &Client) -> Topic<u32> {
    client.topic("x").with_segment_items(2)
}

fn failed(error: ReadError) -> Error {
    match error {
        ReadError::Failed(error) => error,
        other => Error::Invalid(other.to_string()),
    }
}

/// Does a message of the group, if one comes in time. Returns whether one did.
async fn do_one(client: &Client, session: &Session) -> Result<bool, Error> {
    let mut consumer = topic(client).group(session, "g").await?;
    let next = tokio::time::timeout(Duration::from_secs(5), consumer.next()).await;
    let Ok(next) = next else {
        consumer.leave().await?;
        return Ok(false);
    };
    let message = next.map_err(failed)?;
    let txn = client.txn().put(format!("done/{}", message.value), "");
    consumer.commit_with(&message, txn).await?;
    consumer.leave().await?;
    Ok(true)
}

async fn drain(client: &Client, session: &Session) -> Outcome {
    while do_one(client, session).await? {}
    Ok(())
}

/// Drops `work` at each of its calls, with messages 1 to 3 in the topic, then has somebody else do what is left:
/// each message is done once; so is one more if `work` publishes one, or not at all if it was dropped.
async fn dropped_everywhere(
    work: impl AsyncFn(&Client, &Session) -> Outcome,
    publishes: bool,
    least_calls: usize,
) {
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let (client, session) = &world.other;
        let shared = topic(client);
        shared.publish_all(session, &[1, 2, 3]).await.unwrap();
        let user = work(&world.user.0, &world.user.1);
        let stopped = world.stop(at, user).await;
        let (reached, finished) = (stopped.held.is_reached(), stopped.finished);
        stopped.held.release();
        in_time(at, "the other one", drain(client, session)).await;
        tokio::time::sleep(QUIET).await;
        in_time(at, "the other one", drain(client, session)).await;
        let mut done = 0;
        for number in 1..=9 {
            let effect = client.get(format!("done/{number}")).await.unwrap();
            done += usize::from(effect.is_some());
            assert!(
                effect.is_none_or(|effect| effect.version == 1),
                "{at}: message {number}"
            );
        }
        let expected = match (publishes, finished) {
            (false, _) => 3..=3,
            (true, false) => 3..=4,
            (true, true) => 4..=4,
        };
        assert!(expected.contains(&done), "{at}: {done}");
        tokio::time::sleep(QUIET).await;
        assert_eq!(world.left(&DURABLE), [""; 0], "{at}");
        reached
    })
    .await;
    assert!(visited >= 4 * least_calls, "{visited} calls only");
}

#[tokio::test(start_paused = true)]
async fn a_message_done_by_a_group() {
    let work = async |client: &Client, session: &Session| {
        assert!(do_one(client, session).await?);
        Ok(())
    };
    dropped_everywhere(work, false, 8).await;
}

/// The consumer itself is dropped, with a message in hand.
#[tokio::test(start_paused = true)]
async fn a_member_that_goes() {
    let work = async |client: &Client, session: &Session| {
        let mut consumer = topic(client).group(session, "g").await?;
        consumer.next().await.map(drop).map_err(failed)
    };
    dropped_everywhere(work, false, 6).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_published() {
    let work = async |client: &Client, session: &Session| {
        topic(client).publish(session, &4).await.map(drop)
    };
    dropped_everywhere(work, true, 3).await;
}

/// A reader that is dropped leaves nothing, and one that begins anew misses nothing.
#[tokio::test(start_paused = true)]
async fn a_subscription() {
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let (client, session) = &world.other;
        let shared = topic(client);
        shared.publish_all(session, &[1, 2, 3]).await.unwrap();
        let user = async {
            let mut messages = topic(&world.user.0).subscribe(Start::Earliest).await?;
            for _ in 0..3 {
                messages.next().await.map_err(failed)?;
            }
            Ok(())
        };
        let stopped = world.stop(at, user).await;
        let reached = stopped.held.is_reached();
        stopped.held.release();
        tokio::time::sleep(QUIET).await;
        assert_eq!(world.left(&DURABLE), [""; 0], "{at}");
        reached
    })
    .await;
    assert!(visited >= 4 * 3, "{visited} calls only");
}

/// What is removed is removed once and counted, wherever the one who does it stops.
#[tokio::test(start_paused = true)]
async fn a_removal() {
    let tick = Duration::from_millis(100);
    let retention = || Retention::default().max_segments(1).look_every(tick);
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let (client, session) = &world.other;
        for number in 0..9 {
            topic(client).publish(session, &number).await.unwrap();
        }
        let user = async {
            let retained = topic(&world.user.0).retain(retention());
            let _retainer = retained.retainer(&world.user.1)?;
            tokio::time::sleep(10 * tick).await;
            Ok(())
        };
        let stopped = world.stop(at, user).await;
        let reached = stopped.held.is_reached();
        stopped.held.release();
        tokio::time::sleep(QUIET).await;
        assert_eq!(world.left(&DURABLE), [""; 0], "{at}");
        let retainer = topic(client).retain(retention()).retainer(session).unwrap();
        tokio::time::sleep(10 * tick).await;
        let status = topic(client).status().await.unwrap();
        let partition = &status.partitions[0];
        assert_eq!((partition.removed, partition.messages), (6, 3), "{at}");
        drop(retainer);
        reached && at.nth < 12
    })
    .await;
    assert!(visited >= 4 * 5, "{visited} calls only");
}

once_or_not_at_all! {
    live_message, [LIVE],
        async |_, _| Ok(()),
        async |client: Client, session: Session| {
            client.live_topic("x").publish(&session, &7).await.map(drop)
        },
        async |client: Client, session: Session| {
            client.live_topic("x").publish(&session, &1_000).await.map(drop)
        },
        |written| written.given(LIVE, r#""value":7"#);
}
