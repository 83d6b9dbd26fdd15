//! One number, changed by compare-and-swap: every change is exact, and tells the new value.

use super::{parse, sum};
use crate::client::Client;
use crate::error::Result;
use crate::keys::{Key, KeySpace};
use crate::register::{Register, Step};
use crate::session::Session;

/// A number that every process sees and changes. A handle: cheap to clone, holds nothing. It is 0
/// until somebody changes it, and stays when everybody is gone.
///
/// Changes are counted exactly once although answers get lost, and linearizable: each returns the
/// value that it made. Where many add at a high rate and nobody needs the value at once, an
/// [`Adder`](super::Adder) does without the contention.
///
/// Costs: a change is one transaction if nobody else changed the number since this handle last did;
/// otherwise one more, and one read and one more again for each time that another was faster. Clones of
/// a handle wait for one another instead of competing. `get` is one read.
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
/// let session = client.session().await?;
/// let visits = client.counter("visits");
/// let mine = visits.add(&session, 1).await?; // the number with this visit
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct AtomicCounter {
    client: Client,
    key: Key,
    register: Register,
}

impl AtomicCounter {
    pub(crate) fn new(client: Client, name: &str) -> Self {
        Self {
            client,
            key: KeySpace::of("counter", name).key("value"),
            register: Register::default(),
        }
    }

    /// The key that has the number, in decimal digits.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The number now. Needs no session.
    ///
    /// # Errors
    /// [`Error::Codec`](crate::Error::Codec) when the key's value is not a number; the store's.
    pub async fn get(&self) -> Result<i64> {
        let kv = self.client.get(&self.key).await?;
        parse(&self.key, kv.map(|kv| kv.value).as_ref())
    }

    /// Adds `delta`, which may be negative, and returns the sum. Waits, however often others are
    /// faster, and while the store is out of reach.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) when the sum does not fit 64 bits,
    /// [`Error::SessionLost`](crate::Error::SessionLost),
    /// [`Error::Codec`](crate::Error::Codec) and the store's final refusals: nothing was added.
    /// [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown) when the session ended with an answer
    /// still to come.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: an attempt on its way takes place once or not at
    /// all, and there is none after it.
    pub async fn add(&self, session: &Session, delta: i64) -> Result<i64> {
        let step = |value: Option<&bytes::Bytes>| {
            let now = sum(&self.key, parse(&self.key, value)?, delta)?;
            Ok(Step::Write(now.to_string().into(), now))
        };
        self.register
            .update(&self.client, session, &self.key, step)
            .await
    }

    /// Makes the number `new` if it is `expected`; returns whether it was.
    ///
    /// # Errors
    /// As [`AtomicCounter::add`], without the overflow.
    ///
    /// # Cancel safety
    /// As [`AtomicCounter::add`].
    pub async fn compare_and_set(
        &self,
        session: &Session,
        expected: i64,
        new: i64,
    ) -> Result<bool> {
        let step = |value: Option<&bytes::Bytes>| {
            Ok(if parse::<i64>(&self.key, value)? == expected {
                Step::Write(new.to_string().into(), true)
            } else {
                Step::Leave(false)
            })
        };
        self.register
            .update(&self.client, session, &self.key, step)
            .await
    }

    /// Makes the number `new`, whatever it was; returns what it was. Also over a value that is not a
    /// number, which counts as 0 then.
    ///
    /// # Errors
    /// As [`AtomicCounter::compare_and_set`].
    ///
    /// # Cancel safety
    /// As [`AtomicCounter::add`].
    pub async fn set(&self, session: &Session, new: i64) -> Result<i64> {
        let step = |value: Option<&bytes::Bytes>| {
            let before = parse(&self.key, value).unwrap_or(0);
            Ok(Step::Write(new.to_string().into(), before))
        };
        self.register
            .update(&self.client, session, &self.key, step)
            .await
    }
}
