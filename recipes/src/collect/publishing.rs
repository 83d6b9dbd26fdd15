//! Publishing what an agent has gathered, however long that takes.

use super::batch::Batch;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::store::StoreError;
use crate::topic::Topic;
use crate::wait::Backoff;

/// What came of publishing.
pub(super) struct Sent {
    pub(super) session: Option<Session>,
    /// Lines that are refused for what they are.
    pub(super) refused: u64,
}

/// Publishes batches in their order, at least once: what was on its way when a session was lost is published
/// again. One that cannot be published, whatever the state of the store, costs no other one.
pub(super) async fn publish(
    topic: Topic<Batch>,
    session: Option<Session>,
    batches: Vec<Batch>,
) -> Sent {
    let mut sent = Sent {
        session,
        refused: 0,
    };
    if publish_at_once(&topic, &mut sent.session, &batches)
        .await
        .is_ok()
    {
        return sent;
    }
    for batch in &batches {
        let alone = std::slice::from_ref(batch);
        if let Err(error) = publish_at_once(&topic, &mut sent.session, alone).await {
            let lines = batch.count();
            tracing::error!(%error, lines, "lines can never be published, and are dropped");
            sent.refused += lines;
        }
    }
    sent
}

/// Publishes batches, however long that takes.
///
/// # Errors
/// Only what is wrong with the batches themselves. What the store refuses for other reasons, as when it is full
/// or somebody may not write now, is tried again until it takes them.
async fn publish_at_once(
    topic: &Topic<Batch>,
    session: &mut Option<Session>,
    batches: &[Batch],
) -> Result<()> {
    let client = topic.client();
    let mut pause = Backoff::between_attempts(client);
    let source = batches.first().map(|batch| batch.source.as_str());
    loop {
        let live = match session.take().filter(|session| session.check().is_ok()) {
            Some(session) => session,
            None => match client.session().await {
                Ok(session) => session,
                Err(error) => {
                    tracing::debug!(%error, "no session for a log agent");
                    pause.pause().await;
                    continue;
                }
            },
        };
        let published = topic
            .publish_all_keyed(&live, source.unwrap_or_default(), batches)
            .await;
        *session = Some(live);
        match published {
            Ok(_) => return Ok(()),
            Err(error @ (Error::Invalid(_) | Error::Store(StoreError::Invalid(_)))) => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(%error, "a log agent cannot publish, and tries again");
            }
        }
        pause.pause().await;
    }
}
