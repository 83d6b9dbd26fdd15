//! Broken log collections.

use std::time::Duration;

use quorate_recipes::collect::Batch;
use quorate_recipes::topic::{GroupConsumer, Message};
use quorate_recipes::{Result, Session};
use quorate_simulation::Player;
use quorate_simulation::scenarios::{Collect, WrittenLine, collection_of};

use super::broken::{Broken, World};
use super::mutants::is_found;

/// The next batch of the client's share, if there is one in time.
async fn next(
    player: &Player,
    session: &Session,
) -> Result<(GroupConsumer<Batch>, Option<Message<Batch>>)> {
    let mut consumer = collection_of(player).topic().group(session, "c").await?;
    let next = tokio::time::timeout(Duration::from_secs(2), consumer.next()).await;
    Ok((consumer, next.ok().and_then(|next| next.ok())))
}

/// A collector that ends between the two.
struct NotesFirst;

impl Broken for NotesFirst {
    type Whole = Collect;

    const NAME: &'static str = "a collector that notes what it has not written";
    const FINISHES: bool = true;

    async fn step(logging: &Collect, player: &Player, session: &Session) -> Result<()> {
        logging.log(player, |taken| taken).await?;
        if !player.one_in(4) {
            return logging.collect(player, session).await;
        }
        let (mut consumer, message) = next(player, session).await?;
        if let Some(message) = message {
            consumer.commit(&message).await?;
        }
        consumer.leave().await
    }
}

/// Lines of a batch from the last to the first.
struct Backwards;

impl Broken for Backwards {
    type Whole = Collect;

    const NAME: &'static str = "a collector that writes backwards";
    const FINISHES: bool = true;

    async fn step(logging: &Collect, player: &Player, session: &Session) -> Result<()> {
        logging.log(player, |taken| taken).await?;
        let (consumer, message) = next(player, session).await?;
        if let Some(message) = message {
            let token = consumer.token(message.position.partition());
            let batch = message.value;
            let numbered: Vec<_> = (batch.first..).zip(batch.lines).collect();
            for (number, line) in numbered.into_iter().rev() {
                logging.writes(WrittenLine {
                    source: batch.source.clone(),
                    run: batch.run.clone(),
                    number,
                    line,
                    token: token.map_or(i64::MAX, |token| token.revision.0),
                });
            }
        }
        consumer.leave().await
    }
}

/// An agent that says that it has taken what it had no room for.
struct Boasts;

impl Broken for Boasts {
    type Whole = Collect;

    const NAME: &'static str = "an agent that drops what it has taken";
    const FINISHES: bool = true;

    async fn step(logging: &Collect, player: &Player, session: &Session) -> Result<()> {
        logging.log(player, |_| true).await?;
        logging.collect(player, session).await
    }
}

#[test]
fn a_collector_that_notes_first_is_found() {
    is_found::<World<NotesFirst>>("were dropped");
}

#[test]
fn a_collector_that_writes_backwards_is_found() {
    is_found::<World<Backwards>>("came behind");
}

#[test]
fn an_agent_that_drops_what_it_has_taken_is_found() {
    is_found::<World<Boasts>>("was not taken so");
}
