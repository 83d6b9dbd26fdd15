//! Software transactional memory: a closure reads and writes as if it were alone, and its writes are
//! committed only if nothing that it read has changed since. `transaction` is what a closure sees;
//! here is when it is run, and again.

#[cfg(test)]
mod tests;
mod transaction;

pub use transaction::Transaction;

use crate::client::Client;
use crate::error::{Error, TxnError};
use crate::keys::Revision;
use crate::session::Session;
use crate::wait::Backoff;

/// Most runs of a closure, unless told otherwise.
const ATTEMPTS_DEFAULT: u32 = 32;

/// A transaction to be run.
///
/// ```no_run
/// # use quorate_recipes::{Client, Error, stm::Transaction};
/// # async fn example(client: Client) -> Result<(), Error> {
/// let moved = client.stm().run(async |tx: Transaction| -> Result<bool, Error> {
///     let from: i64 = tx.get_json("account/1").await?.unwrap_or(0);
///     let to: i64 = tx.get_json("account/2").await?.unwrap_or(0);
///     if from < 10 {
///         return Ok(false);
///     }
///     tx.put("account/1", quorate_recipes::Json(from - 10));
///     tx.put("account/2", quorate_recipes::Json(to + 10));
///     Ok(true)
/// }).await?;
/// println!("{} after {} attempts", moved.value, moved.attempts);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens before run"]
pub struct Stm {
    client: Client,
    session: Option<Session>,
    attempts: u32,
}

/// A transaction that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done<T> {
    /// What the closure returned.
    pub value: T,
    /// How often it was run: one more than there were conflicts.
    pub attempts: u32,
    /// The revision at which all its writes took place, or, without writes, at which all was read; 0
    /// if it neither read nor wrote.
    pub revision: Revision,
}

impl Stm {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            session: None,
            attempts: ATTEMPTS_DEFAULT,
        }
    }

    /// How often the closure is run again after a conflict. Default: 31.
    pub fn retries(mut self, retries: u32) -> Self {
        self.attempts = retries.saturating_add(1);
        self
    }

    /// Commits exactly once, although answers get lost, through a lane of this session. It costs one
    /// compare and one operation of those that a transaction may have. It is no guard: see
    /// [`Transaction::guard`].
    pub fn under(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }

    /// Runs `body`, commits what it wrote, and runs it again when that conflicts with a concurrent
    /// change. Transactions are serializable, and linearizable if they write: a committed one read
    /// what was there at the revision of its commit. Reads in any run, also one that will conflict, are
    /// of one revision, so `body` never sees half of another transaction.
    ///
    /// `body` may be run several times, so it should change nothing but through the transaction. When
    /// it returns an error, nothing is written and the error is returned. It is an async closure
    /// (`async |tx: Transaction| ...`, which borrows what it uses), or one that returns a future
    /// (`move |tx| async move { ... }`).
    ///
    /// # Errors
    /// Those of `body`. [`Error::Conflict`] after the last attempt; [`Error::Fenced`] when a guard of the
    /// transaction is no longer held; [`Error::Invalid`] when it reads and writes more keys than fit one
    /// of the store's transactions; [`Error::Codec`] for a value that cannot be written; the store's
    /// final refusals: nothing was written. An ambiguous one ([`Error::is_ambiguous`]) may have been
    /// written, which does not happen [under a session](Stm::under) that lives on.
    ///
    /// # Cancel safety
    /// Dropped before its commit, nothing happens; during it, the outcome is unknown.
    pub async fn run<T, E, F, Fut>(self, mut body: F) -> Result<Done<T>, E>
    where
        F: FnMut(Transaction) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        if let Some(session) = &self.session {
            session.belongs_to(&self.client)?;
        }
        let mut pause = Backoff::contended(&self.client);
        for attempt in 1..=self.attempts {
            if attempt > 1 {
                pause.pause().await;
            }
            let transaction = Transaction::new(self.client.clone());
            let outcome = body(transaction.share()).await;
            if transaction.is_outdated() {
                // What it read is no longer all there to be read.
                continue;
            }
            let value = outcome?;
            match transaction.commit(self.session.as_ref()).await {
                Ok(revision) => {
                    return Ok(Done {
                        value,
                        attempts: attempt,
                        revision,
                    });
                }
                Err(TxnError::Conflict { .. }) => {}
                Err(error) => return Err(Error::from(error).into()),
            }
        }
        Err(Error::Conflict.into())
    }
}
