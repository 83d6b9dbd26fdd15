//! What a worker reports with: cheap calls that never wait, and a few that do.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::cancel;
use super::record::{TaskName, Written, cancel_key, record_key};
use super::start::Previous;
use super::writer::{Draft, Hurry, Progress, Shared};
use crate::error::{Error, Result};
use crate::session::Session;

/// Most bytes of a stage or a message; more is cut off.
const TEXT_MOST: usize = 4_096;

/// Most bytes of a checkpoint, as JSON.
const CHECKPOINT_MOST: usize = 256 * 1024;

/// How an attempt ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The task is done.
    Done,
    /// It failed, for this reason, which becomes the message.
    Failed(String),
    /// It ends before it is done, because that was asked for, or is to be told so.
    Cancelled,
}

/// An attempt at a task. Reports go out at most twice a second, except for what cannot wait: the end, at
/// once, and a new stage, within a tenth of a second. Only this attempt can write the task's record: the
/// store refuses a worker whose lease has gone, however late it wakes up.
///
/// Dropping it without [`Reporter::finish`] reports the task as abandoned.
#[must_use = "a dropped reporter abandons its task"]
pub struct Reporter {
    // Dropped before the session, so that the last report comes before a session's end.
    shared: Arc<Shared>,
    name: TaskName,
    attempt: u32,
    previous: Option<Previous>,
    /// Requests to end are listened for.
    listening: AtomicBool,
    session: Session,
}

impl Reporter {
    pub(super) fn new(
        shared: Arc<Shared>,
        name: TaskName,
        attempt: u32,
        previous: Option<Previous>,
        session: Session,
    ) -> Self {
        Self {
            shared,
            name,
            attempt,
            previous,
            listening: AtomicBool::new(false),
            session,
        }
    }

    /// Notes something that can wait for the next report.
    fn note(&self, change: impl FnOnce(&mut Draft)) {
        self.shared.change(Hurry::Not, change);
    }

    /// Notes that so many more units are done. Never waits.
    pub fn inc(&self, units: u64) {
        self.note(|draft| draft.done = draft.done.saturating_add(units));
    }

    /// Notes how many units are done in all. A smaller number than before changes nothing. Never
    /// waits.
    pub fn set_done(&self, done: u64) {
        self.note(|draft| draft.done = draft.done.max(done));
    }

    /// Notes units that an attempt before this one has done: they count as done, and not for the
    /// rate. Never waits.
    pub fn skip(&self, units: u64) {
        self.note(|draft| {
            draft.done = draft.done.saturating_add(units);
            draft.skipped = draft.skipped.saturating_add(units);
        });
    }

    /// How many units are done.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.shared.read(|draft| draft.done)
    }

    /// Notes how much there is to do. Never waits.
    pub fn set_total(&self, total: u64) {
        self.note(|draft| draft.total = Some(total));
    }

    /// Notes what the task is at; goes out within a tenth of a second. Never waits. Cut off after
    /// 4 KiB.
    pub fn stage(&self, stage: impl Into<String>) {
        let stage = cut(stage.into());
        if self.shared.read(|draft| draft.stage != stage) {
            self.shared.change(Hurry::Soon, |draft| draft.stage = stage);
        }
    }

    /// Notes something for people to read. Never waits. Cut off after 4 KiB.
    pub fn message(&self, message: impl Into<String>) {
        let message = cut(message.into());
        self.note(|draft| draft.message = message);
    }

    /// Notes from where the next attempt can go on, should this one not finish. Never waits; call
    /// [`Reporter::flush`] before relying on it.
    ///
    /// # Errors
    /// [`Error::Codec`]; [`Error::Invalid`] for more than 256 KiB of JSON.
    pub fn checkpoint<C: Serialize>(&self, checkpoint: &C) -> Result<()> {
        let key = || record_key(&self.name);
        let encoded = serde_json::to_value(checkpoint).and_then(|value| {
            let length = serde_json::to_vec(&value)?.len();
            Ok((value, length))
        });
        let (value, length) = encoded.map_err(|error| Error::Codec {
            key: key(),
            reason: error.to_string(),
        })?;
        if length > CHECKPOINT_MOST {
            return Err(Error::Invalid(format!(
                "a checkpoint of {length} bytes; at most {CHECKPOINT_MOST}"
            )));
        }
        self.note(|draft| draft.checkpoint = value);
        Ok(())
    }

    /// Waits until everything noted so far is in the store.
    ///
    /// # Errors
    /// Why reporting has ended, as [`Reporter::ended`] says.
    ///
    /// # Cancel safety
    /// The report goes out when the future is dropped.
    pub async fn flush(&self) -> Result<()> {
        let Some(version) = self.shared.change(Hurry::Now, |_| {}) else {
            return Err(self.ended().await);
        };
        let mut progress = self.shared.progress.subscribe();
        let reached = |p: &Progress| p.written >= version || p.ended.is_some();
        match progress.wait_for(reached).await.as_deref() {
            Ok(progress) if progress.written >= version => Ok(()),
            Ok(Progress {
                ended: Some(Err(error)),
                ..
            }) => Err(error.clone()),
            _ => Err(Error::Closed),
        }
    }

    /// Ends the attempt and waits until that is in the store. Done means done: commit the work
    /// first.
    ///
    /// # Errors
    /// [`Error::SessionLost`], [`Error::Removed`] or [`Error::Fenced`] when the attempt was lost
    /// before; the store's final refusals. The task is not reported as finished then.
    /// [`Error::OutcomeUnknown`] when it was lost with the answer still to come.
    ///
    /// # Cancel safety
    /// The report goes out when the future is dropped.
    pub async fn finish(self, outcome: Outcome) -> Result<()> {
        self.shared.change(Hurry::Now, |draft| match outcome {
            Outcome::Done => draft.terminal = Some(Written::Done),
            Outcome::Failed(reason) => {
                draft.message = cut(reason);
                draft.terminal = Some(Written::Failed);
            }
            Outcome::Cancelled => draft.terminal = Some(Written::Cancelled),
        });
        let mut progress = self.shared.progress.subscribe();
        let ended = progress.wait_for(|progress| progress.ended.is_some()).await;
        match ended.map(|progress| progress.ended.clone()) {
            Ok(Some(outcome)) => outcome,
            _ => Err(Error::Closed),
        }
    }

    /// Waits until reporting has ended although it was not finished, and says why:
    /// [`Error::SessionLost`], [`Error::Removed`] when somebody deleted the owner key,
    /// [`Error::Fenced`] when a guard it is [`under`](super::ReporterBuilder::under) was lost. Another
    /// worker may have the task then: stop.
    ///
    /// The last two show when the next report is refused.
    ///
    /// # Cancel safety
    /// Nothing happens when the future is dropped.
    pub async fn ended(&self) -> Error {
        let mut progress = self.shared.progress.subscribe();
        let ended = progress.wait_for(|progress| progress.ended.is_some()).await;
        match ended.map(|progress| progress.ended.clone()) {
            Ok(Some(Err(error))) => error,
            _ => Error::Closed,
        }
    }

    /// Whether the task is [asked to end](crate::Client::cancel_task). What was asked before the attempt
    /// began is known from the beginning; the first call of this or of [`Reporter::cancelled`] begins
    /// to listen for what is asked later.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.listen();
        self.shared.progress.borrow().cancelling
    }

    /// Completes when the task is asked to end. End it with [`Outcome::Cancelled`], or otherwise. Trouble
    /// with the store is waited out; a refusal for good, or the end of the attempt, never completes it.
    /// The future does not keep the attempt.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + use<> {
        self.listen();
        let mut progress = self.shared.progress.subscribe();
        async move {
            let asked = progress.wait_for(|progress| progress.cancelling);
            if asked.await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Begins to listen for requests to end, unless it does.
    fn listen(&self) {
        let known = self.shared.progress.borrow().cancelling;
        if known || self.listening.swap(true, Ordering::Relaxed) {
            return;
        }
        let actor = self.session.actor();
        let key = cancel_key(&self.name);
        let listening = cancel::listen(actor.clone(), Arc::clone(&self.shared), key);
        actor.spawn("listen", listening);
    }

    /// Which attempt at the task this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The attempt before this one, if there was one.
    #[must_use]
    pub fn previous(&self) -> Option<&Previous> {
        self.previous.as_ref()
    }

    /// The session it reports under.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.shared.change(Hurry::Now, |draft| {
            draft.terminal = Some(Written::Abandoned)
        });
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter")
            .field("name", &self.name)
            .field("attempt", &self.attempt)
            .field("done", &self.done())
            .finish_non_exhaustive()
    }
}

/// Cuts a text off at a character's end.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > TEXT_MOST {
        let end = (0..=TEXT_MOST)
            .rev()
            .find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short".to_owned()), "short");
        let long = "ü".repeat(TEXT_MOST);
        assert_eq!(cut(format!("a{long}")).len(), TEXT_MOST - 1);
    }
}
