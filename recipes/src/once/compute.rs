//! Computing a result, the first or a newer one, when it is one's turn in the line of candidates.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::attempt::Attempt;
use super::look::{Look, Vacancy, look, settled};
use super::{OnceCell, OnceError};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::kit::Contender;
use crate::lock::{ContenderRecord, Hold};
use crate::session::Session;
use crate::value::{Json, Value};

/// How a candidate's wait ends.
enum Turn<T> {
    Settled(Arc<T>),
    Mine(Box<Mine>),
}

/// The turn to compute.
pub(super) struct Mine {
    pub(super) hold: Hold,
    /// The value of the turn's key.
    pub(super) record: Bytes,
    pub(super) vacancy: Vacancy,
}

impl<T: Serialize + DeserializeOwned> OnceCell<T> {
    /// The result: the one published, or the one that somebody computes meanwhile, or else what `init`
    /// computes, once it is this caller's turn.
    ///
    /// `init` is dropped, wherever it stands, when the turn is lost. What it does outside the store may
    /// have been done by another candidate before.
    ///
    /// # Errors
    /// [`OnceError::Init`] when `init` failed: the others go on, and the next one computes, unless
    /// [failures are cached](OnceCell::cache_failures): then they get [`OnceError::Cached`].
    /// [`OnceError::Exhausted`] when [too many have begun](OnceCell::max_attempts).
    /// [`OnceError::Failed`]: [`Error::SessionLost`] at once when the session is lost;
    /// [`Error::Removed`] or [`Error::Fenced`] when somebody deleted this candidate's key;
    /// [`Error::Invalid`] when the result is larger than the limit; [`Error::OutcomeUnknown`] when it
    /// may have been published, and taken back or replaced since; and as [`OnceCell::get`]. Trouble
    /// with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line, and the next one computes; a result or a failure on its way
    /// then may still be published.
    pub async fn get_or_try_init<E, F, Fut>(
        &self,
        session: &Session,
        init: F,
    ) -> Result<Arc<T>, OnceError<E>>
    where
        E: fmt::Display,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.resolve(session, Revision(0), init).await
    }

    /// Replaces the result published at `revision` by what `init` computes, once it is this caller's
    /// turn. The old one is there for everybody until the moment in which the new one takes its place;
    /// `init`'s failure leaves it there. Together they take as much of the store as both.
    ///
    /// When another result is published, before or at one's turn, that one is returned and `init` is not
    /// called: of many who refresh what they all have seen, one computes. When none is, `init` computes
    /// one. So a call that is made again with the same revision does not compute again.
    ///
    /// # Errors
    /// As [`OnceCell::get_or_try_init`]; [`Error::Invalid`] for a revision of no result;
    /// [`Error::Conflict`] when the old result was taken back while `init` computed: the new one, which
    /// may be as wrong, is not published.
    ///
    /// # Cancel safety
    /// As [`OnceCell::get_or_try_init`].
    pub async fn refresh<E, F, Fut>(
        &self,
        session: &Session,
        revision: Revision,
        init: F,
    ) -> Result<Arc<T>, OnceError<E>>
    where
        E: fmt::Display,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        super::check_revision(revision)?;
        self.resolve(session, revision, init).await
    }

    /// A result other than that of `stale`.
    async fn resolve<E, F, Fut>(
        &self,
        session: &Session,
        stale: Revision,
        init: F,
    ) -> Result<Arc<T>, OnceError<E>>
    where
        E: fmt::Display,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        session.belongs_to(&self.client)?;
        let mine = match live(session, self.turn(session, stale)).await? {
            Turn::Settled(value) => return Ok(value),
            Turn::Mine(mine) => mine,
        };
        let mut attempt = Attempt::new(self, *mine);
        if let Some(most) = self.max_attempts {
            live(session, attempt.begin(most)).await?;
        }
        match attempt.hold().scope(init()).await? {
            Ok(value) => {
                let (bytes, value) = match attempt.written(&value) {
                    Ok(written) => written,
                    // It would be no better for the next one.
                    Err(error) => {
                        attempt.fail(&error).await;
                        return Err(error.into());
                    }
                };
                let published = async { attempt.publish(&bytes).await.map_err(OnceError::from) };
                let manifest = live(session, published).await?;
                attempt.end();
                let value = Arc::new(value);
                self.remember(manifest, &value);
                Ok(value)
            }
            // Whatever becomes of telling the others, this caller is to know its own error.
            Err(error) => {
                attempt.fail(&error).await;
                Err(OnceError::Init(error))
            }
        }
    }

    /// Stands in line until it is this candidate's turn to compute, or until that is not needed.
    async fn turn<E>(&self, session: &Session, stale: Revision) -> Result<Turn<T>, OnceError<E>> {
        if let Look::Settled(settled) = look(self, stale).await? {
            return settled.into_result().map(Turn::Settled);
        }
        let record = Json(ContenderRecord::of(session, &self.info));
        let record = Value::from(record).into_bytes(&self.turns().itself())?;
        let candidate = Contender::enter(session, &self.turns(), record.clone()).await?;
        let hold = tokio::select! {
            biased;
            settled = settled(self, stale) => return settled?.into_result().map(Turn::Settled),
            hold = candidate.wait_turn() => hold?,
        };
        // It may have been settled between that watch and this turn.
        match look(self, stale).await? {
            Look::Settled(settled) => settled.into_result().map(Turn::Settled),
            Look::Vacant(vacancy) => Ok(Turn::Mine(Box::new(Mine {
                hold,
                record,
                vacancy,
            }))),
        }
    }
}

/// What `work` gives, unless the session is lost before.
async fn live<T, E>(
    session: &Session,
    work: impl Future<Output = Result<T, OnceError<E>>>,
) -> Result<T, OnceError<E>> {
    tokio::select! {
        biased;
        reason = session.lost() => Err(Error::SessionLost(reason).into()),
        output = work => output,
    }
}
