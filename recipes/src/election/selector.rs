//! Leading as a loop: campaign, do the leader's work while it lasts, campaign again. (Curator has the
//! two shapes as well: its latch is [`Election::campaign`], its selector is this.)

use std::sync::Arc;

use serde::Serialize;

use super::{Election, Leadership};
use crate::error::{Error, Result};
use crate::session::{Session, SessionBuilder};
use crate::wait::Backoff;

impl<T: Serialize + Clone> Election<T> {
    /// Campaigns under a session of its own, and runs `lead` whenever it is elected. When the leadership
    /// is lost, `lead`'s future is dropped where it stands, and it campaigns again after a random pause,
    /// under a new session if the old one is lost. Once `lead` comes to its end it resigns, and this
    /// returns what `lead` returned.
    ///
    /// Clones of the leadership that `lead` puts elsewhere keep it alive after `lead`'s end.
    ///
    /// ```no_run
    /// # async fn serve() {}
    /// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
    /// let election = client.election("primary");
    /// election.run(client.session(), "node-1".to_owned(), |leadership| async move {
    ///     tokio::select! {
    ///         () = serve() => {}
    ///         asked = leadership.resignation_requested() => println!("resigning: {asked:?}"),
    ///     }
    /// }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::ForeignKey`]; [`Error::Codec`]; the store's final refusals. Trouble with the store is
    /// waited out, and so are lost sessions and keys that somebody deleted.
    ///
    /// # Cancel safety
    /// Dropping the future drops `lead`'s, and resigns or withdraws.
    pub async fn run<F, Fut, R>(&self, sessions: SessionBuilder, value: T, mut lead: F) -> Result<R>
    where
        F: FnMut(Arc<Leadership<T>>) -> Fut,
        Fut: Future<Output = R>,
    {
        let mut pause = Backoff::between_attempts(&self.client);
        let mut session: Option<Session> = None;
        loop {
            let under = match session.take() {
                Some(session) => session,
                None => match sessions.clone().await {
                    Err(Error::Store(error)) if error.is_transient() => {
                        pause.pause().await;
                        continue;
                    }
                    opened => opened?,
                },
            };
            let leadership = match self.campaign(&under, value.clone()).await {
                Ok(leadership) => Arc::new(leadership),
                Err(Error::SessionLost(_)) => {
                    pause.pause().await;
                    continue;
                }
                Err(Error::Removed(key)) => {
                    tracing::warn!(%key, "a candidate's key was deleted; standing anew");
                    session = Some(under);
                    pause.pause().await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            pause.reset();
            if let Ok(done) = leadership.scope(lead(Arc::clone(&leadership))).await {
                // That it had been lost in the last moment changes nothing about what was done.
                if let Some(leadership) = Arc::into_inner(leadership)
                    && let Err(error) = leadership.resign().await
                {
                    tracing::debug!(%error, "resigning after the leader's work");
                }
                return Ok(done);
            }
            tracing::info!(prefix = self.prefix(), "leadership lost; campaigning again");
            session = under.check().is_ok().then_some(under);
            pause.pause().await;
        }
    }
}
