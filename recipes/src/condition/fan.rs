//! Taking what has passed a gate one by one, as from a queue.

use std::fmt;

use futures::{Stream, stream};
use serde::de::DeserializeOwned;

use super::look::Looker;
use crate::error::Result;
use crate::queue::{self, Delivery};
use crate::session::Session;

/// Takes tasks one by one once their gate is open, and opens it while there is none to take. All that is said of a
/// [queue's consumer](queue::Consumer) holds; the id of a delivery is the epoch and the escaped id of the task.
pub struct Consumer<T> {
    pub(super) tasks: queue::Consumer<T>,
    pub(super) looker: Looker,
}

impl<T> Consumer<T> {
    /// The session that tasks are taken under.
    #[must_use]
    pub fn session(&self) -> &Session {
        self.tasks.session()
    }
}

impl<T: DeserializeOwned + Send + 'static> Consumer<T> {
    /// Takes the next task that has passed a gate, and waits for one while there is none.
    ///
    /// # Errors
    /// As [`queue::Consumer::pop`].
    ///
    /// # Cancel safety
    /// As [`queue::Consumer::pop`].
    pub async fn pop(&self) -> Result<Delivery<T>> {
        // Its looks open gates.
        self.tasks.pop_or(self.looker.go_on()).await
    }

    /// Takes a task that is there now; `None` when none has passed a gate and is free. Opens the gate first if
    /// its condition holds.
    ///
    /// # Errors
    /// As [`Consumer::pop`].
    ///
    /// # Cancel safety
    /// As [`Consumer::pop`].
    pub async fn try_pop(&self) -> Result<Option<Delivery<T>>> {
        self.looker.look().await?;
        self.tasks.try_pop().await
    }

    /// The tasks as they are taken, which ends after the first error.
    pub fn stream(&self) -> impl Stream<Item = Result<Delivery<T>>> + Send {
        stream::unfold(Some(self), |consumer| async move {
            let consumer = consumer?;
            match consumer.pop().await {
                Ok(delivery) => Some((Ok(delivery), Some(consumer))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("tasks", &self.tasks)
            .finish_non_exhaustive()
    }
}
