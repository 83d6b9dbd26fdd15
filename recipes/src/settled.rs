//! Something that is settled once, and those who wait for it: why a session or a hold ended. Waiters
//! are woken in the order in which they came, so a simulation repeats itself; tokio's `watch` wakes its
//! own in a random order.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// A value that is there at some time and stays. Cheap to clone; all clones are the same.
#[derive(Debug)]
pub(crate) struct Settled<T> {
    inner: Arc<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    value: OnceLock<T>,
    known: CancellationToken,
}

impl<T> Clone for Settled<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<T: Clone> Settled<T> {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                value: OnceLock::new(),
                known: CancellationToken::new(),
            }),
        }
    }

    /// Settles it, unless it is.
    pub(crate) fn settle(&self, value: T) {
        if self.inner.value.set(value).is_ok() {
            self.inner.known.cancel();
        }
    }

    pub(crate) fn get(&self) -> Option<T> {
        self.inner.value.get().cloned()
    }

    /// Waits until it is settled.
    pub(crate) async fn wait(&self) -> T {
        self.inner.known.cancelled().await;
        self.get().expect("it is known once it is set")
    }
}
