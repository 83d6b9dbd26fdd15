//! The owner's side of a kept key: what it wants, and what it is told.

use bytes::Bytes;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::keys::Revision;

/// Where a kept key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeptState {
    /// On the way to the store for the first time.
    Entering,
    /// In the store as its owner wants it, with a live lease.
    Kept,
    /// Lost, with its session or by somebody else's doing; it is being put back.
    Recovering,
    /// Somebody else has the key; it is put in place once that is deleted.
    Yielded,
    /// Over.
    Ended,
}

/// What the owner wants to be in the store.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Grows with every change.
    pub(super) sequence: u64,
    pub(super) value: Bytes,
    /// The last value before a clean leave.
    pub(super) farewell: Option<Bytes>,
    pub(super) leave: bool,
}

/// What is in the store.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) state: KeptState,
    /// The sequence number of the last value written.
    pub(super) written: u64,
    pub(super) revision: Revision,
    pub(super) ended: Option<Result<()>>,
}

/// The owner's side. Dropping it takes the key away, in the background.
#[derive(Debug)]
pub(crate) struct Kept {
    wanted: watch::Sender<Wanted>,
    standing: watch::Receiver<Standing>,
}

impl Kept {
    pub(super) fn new(wanted: watch::Sender<Wanted>, standing: watch::Receiver<Standing>) -> Self {
        Self { wanted, standing }
    }

    pub(crate) fn state(&self) -> KeptState {
        self.standing.borrow().state
    }

    /// Who may want other values in the owner's name.
    pub(crate) fn wants(&self) -> Wants {
        Wants(self.wanted.clone())
    }

    /// Wants another value. Returns the number under which [`Kept::written`] waits for it.
    pub(crate) fn want(&self, value: Bytes, farewell: Option<Bytes>) -> u64 {
        want(&self.wanted, value, farewell)
    }

    /// Waits until that value, or a later one, is in the store.
    pub(crate) async fn written(&self, sequence: u64) -> Result<Revision> {
        let mut standing = self.standing.clone();
        let reached = |standing: &Standing| standing.written >= sequence;
        let waited = standing.wait_for(|standing| reached(standing) || standing.ended.is_some());
        match waited.await.as_deref() {
            Ok(standing) if reached(standing) => Ok(standing.revision),
            Ok(standing) => match &standing.ended {
                Some(Err(error)) => Err(error.clone()),
                _ => Err(Error::Closed),
            },
            Err(_) => Err(Error::Closed),
        }
    }

    /// Waits until the state is one of those asked for, or it has ended, and says which.
    pub(crate) async fn until(&self, asked: impl Fn(KeptState) -> bool) -> KeptState {
        let mut standing = self.standing.clone();
        let ended = |state| state == KeptState::Ended;
        let found = standing.wait_for(|now| asked(now.state) || ended(now.state));
        found.await.map_or(KeptState::Ended, |now| now.state)
    }

    /// Waits until it has ended, and says how.
    pub(crate) async fn ended(&self) -> Result<()> {
        outcome(self.standing.clone()).await
    }

    /// Takes the key away, and waits until that is done.
    pub(crate) async fn end(self) -> Result<()> {
        let standing = self.standing.clone();
        drop(self);
        outcome(standing).await
    }
}

/// Wants other values for as long as the owner lives; keeps nothing itself. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Wants(watch::Sender<Wanted>);

impl Wants {
    /// As [`Kept::want`].
    pub(crate) fn want(&self, value: Bytes, farewell: Option<Bytes>) -> u64 {
        want(&self.0, value, farewell)
    }
}

fn want(wanted: &watch::Sender<Wanted>, value: Bytes, farewell: Option<Bytes>) -> u64 {
    let mut sequence = 0;
    wanted.send_modify(|wanted| {
        wanted.sequence += 1;
        wanted.value = value;
        wanted.farewell = farewell;
        sequence = wanted.sequence;
    });
    sequence
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.wanted.send_modify(|wanted| wanted.leave = true);
    }
}

async fn outcome(mut standing: watch::Receiver<Standing>) -> Result<()> {
    let ended = standing.wait_for(|standing| standing.ended.is_some()).await;
    match ended.map(|standing| standing.ended.clone()) {
        Ok(Some(outcome)) => outcome,
        _ => Err(Error::Closed),
    }
}
