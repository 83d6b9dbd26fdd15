//! Broken live topics.

use std::time::Duration;

use quorate_recipes::{Error, Result, Session};
use quorate_simulation::Player;
use quorate_simulation::scenarios::{Heard, LAST, LiveTopic, live_topic_of};
use serde_json::{Value, json};

use super::broken::{Broken, World};
use super::mutants::is_found;

/// After a lost answer a message is published again.
struct NoLane;

impl Broken for NoLane {
    type Whole = LiveTopic;

    const NAME: &'static str = "a live topic whose messages have no lane";

    async fn step(airing: &LiveTopic, player: &Player, _session: &Session) -> Result<()> {
        let publish = |number: i64| async move {
            let message = json!({"v": 1, "since_ms": 0, "value": number}).to_string();
            loop {
                match player.client().put(LAST, message.clone()).await {
                    Ok(revision) => return Ok(revision.0),
                    Err(Error::Store(error)) if error.is_transient() => player.pause(100).await,
                    Err(error) => return Err(error),
                }
            }
        };
        airing.publish(player, publish).await
    }
}

/// A listener that looks at the last message again and again.
struct Polls;

impl Broken for Polls {
    type Whole = LiveTopic;

    const NAME: &'static str = "a listener that polls";

    async fn attend(airing: &LiveTopic, player: &Player) {
        airing.begins(player, 0);
        let mut last = 0;
        loop {
            if let Ok(Some(kv)) = player.client().get(LAST).await
                && kv.mod_revision > last
            {
                last = kv.mod_revision;
                let value: Value = serde_json::from_slice(&kv.value).unwrap();
                let number = value["value"].as_i64().unwrap();
                let offset = u64::try_from(kv.version - 1).unwrap();
                airing.hears(player, Heard::Message(number, last, offset));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// A listener that does not tell what it missed.
struct Silent;

impl Broken for Silent {
    type Whole = LiveTopic;

    const NAME: &'static str = "a listener that does not tell what it missed";

    async fn attend(airing: &LiveTopic, player: &Player) {
        let messages = |heard| match heard {
            Heard::Message(..) => vec![heard],
            Heard::Lagged { .. } => Vec::new(),
        };
        airing.listen(player, messages).await;
    }
}

/// A listener that begins anew with the last message when it was cut off.
struct Again;

impl Broken for Again {
    type Whole = LiveTopic;

    const NAME: &'static str = "a listener that hears the last message again";

    async fn attend(airing: &LiveTopic, player: &Player) {
        let twice = |heard| match heard {
            Heard::Message(..) if player.one_in(30) => vec![heard, heard],
            _ => vec![heard],
        };
        airing.listen(player, twice).await;
    }
}

/// A listener that begins anew when it was cut off, and says that it missed something.
struct Anew;

impl Broken for Anew {
    type Whole = LiveTopic;

    const NAME: &'static str = "a listener that gives up what it could be told";

    async fn attend(airing: &LiveTopic, player: &Player) {
        let mut held: Option<(i64, i64)> = None;
        let mut last = 0;
        let lagging = |heard| match heard {
            Heard::Message(_, revision, _) => {
                let before = std::mem::replace(&mut last, revision);
                match held.take() {
                    Some((from, to)) => {
                        let skipped = Some(1);
                        vec![Heard::Lagged { skipped, from, to }, heard]
                    }
                    None if before > 0 && player.one_in(10) => {
                        held = Some((before, revision));
                        Vec::new()
                    }
                    None => vec![heard],
                }
            }
            Heard::Lagged { .. } => vec![heard],
        };
        airing.listen(player, lagging).await;
    }
}

/// A listener that misses what is published before its watch is open.
struct Late;

impl Broken for Late {
    type Whole = LiveTopic;

    const NAME: &'static str = "a listener that is ready before it hears";

    async fn attend(airing: &LiveTopic, player: &Player) {
        airing.begins(player, 0);
        player.pause(3_000).await;
        let mut messages = live_topic_of(player).subscribe().await.unwrap();
        while let Ok(message) = messages.next().await {
            let revision = message.position.revision().0;
            let offset = message.offset.unwrap();
            airing.hears(player, Heard::Message(message.value, revision, offset));
        }
    }
}

#[test]
fn a_live_topic_without_a_lane_is_found() {
    // What was told is the second time; it has been published before.
    is_found::<World<NoLane>>("was told");
}

#[test]
fn a_listener_that_polls_is_found() {
    is_found::<World<Polls>>("comes in the wrong place");
}

#[test]
fn a_listener_that_does_not_tell_what_it_missed_is_found() {
    is_found::<World<Silent>>("comes in the wrong place");
}

#[test]
fn a_message_that_is_heard_again_is_found() {
    is_found::<World<Again>>("comes in the wrong place");
}

#[test]
fn a_message_that_was_given_up_is_found() {
    is_found::<World<Anew>>("was still there to be told");
}

#[test]
fn a_listener_that_is_late_is_found() {
    is_found::<World<Late>>("was to come");
}
