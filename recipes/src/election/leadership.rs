//! What a leader holds: a guard whose writes the store refuses once it no longer leads, and with
//! which it tells the observers about itself.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::error::Result;
use crate::keys::{KeySpace, Revision};
use crate::lock::{Fence, Fenced, Hold, ReleaseRequested};
use crate::value::Json;

/// A won election; everything a guard can do is in [`Hold`]: its token, its loss, writes that the
/// store refuses once it is lost. Dropping it resigns in the background.
#[derive(Debug)]
#[must_use = "a dropped leadership resigns at once"]
pub struct Leadership<T> {
    hold: Hold,
    /// What is said about the election's candidates.
    pub(super) meta: KeySpace,
    /// The candidates.
    pub(super) space: KeySpace,
    said: Mutex<Said<T>>,
}

/// The newest value that the store has confirmed.
#[derive(Debug)]
struct Said<T> {
    at: Revision,
    value: Arc<T>,
}

impl<T> Leadership<T> {
    pub(super) fn new(hold: Hold, space: KeySpace, meta: KeySpace, value: T) -> Self {
        let at = hold.token().revision;
        let value = Arc::new(value);
        Self {
            hold,
            meta,
            space,
            said: Mutex::new(Said { at, value }),
        }
    }

    /// What the leader said last, as far as the store has confirmed it to this handle.
    #[must_use]
    pub fn value(&self) -> Arc<T> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&said.value)
    }

    /// Tells the observers something new. Proclamations take effect in the order of the calls.
    /// Returns the revision at which it was written.
    ///
    /// # Errors
    /// [`Error::SessionLost`](crate::Error::SessionLost) or
    /// [`Error::Removed`](crate::Error::Removed) when it no longer leads;
    /// [`Error::Codec`](crate::Error::Codec); the store's final refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome.
    pub async fn proclaim(&self, value: T) -> Result<Revision>
    where
        T: Serialize,
    {
        let at = self.hold.set_value(Json(&value)).await?;
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if at > said.at {
            let value = Arc::new(value);
            *said = Said { at, value };
        }
        Ok(at)
    }

    /// Waits until somebody asks it to resign, and tells why; each request is told once. See
    /// [`Election::request_resignation`](super::Election::request_resignation).
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// No request is lost when the future is dropped, as long as it stands.
    pub async fn resignation_requested(&self) -> Result<ReleaseRequested> {
        self.hold.release_requested().await
    }

    /// Gives the leadership up and waits until the store has confirmed.
    ///
    /// # Errors
    /// [`Error::Fenced`](crate::Error::Fenced) when it had been lost before;
    /// [`Error::SessionLost`](crate::Error::SessionLost). It does not lead any more in any case.
    ///
    /// # Cancel safety
    /// Resigning goes on when the future is dropped.
    pub async fn resign(self) -> Result<()> {
        self.hold.release().await
    }

    /// Ends the leadership without giving its key up: somebody else has deleted it, in its name.
    pub(super) fn forget(self) {
        self.hold.into_owned().disarm();
    }
}

impl<T> Deref for Leadership<T> {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl<T> Fenced for Leadership<T> {
    fn fence(&self) -> &Fence {
        self.hold.fence()
    }
}
