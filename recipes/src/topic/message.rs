//! What a reader is given: messages, and what there is to tell besides.

use super::position::Position;
use crate::error::Error;

/// A message that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message<T> {
    /// What was published.
    pub value: T,
    /// Where it stands.
    pub position: Position,
    /// How many messages of its partition came before it, removed ones included: 0 for the first. `None` when
    /// the reader began behind a message that had been removed before.
    pub offset: Option<u64>,
    /// The key that its partition was chosen by, if it was published with one.
    pub key: Option<String>,
    /// When it was published, in milliseconds since the Unix epoch by the publisher's wall clock.
    pub since_ms: u64,
}

/// What a reader was given, and can say to be done: a [`Message`], or an [`Unreadable`] one.
pub trait Received: sealed::Sealed {
    /// Where it stands.
    fn position(&self) -> &Position;

    /// How many messages of its partition came before it, if that is known.
    fn offset(&self) -> Option<u64>;
}

mod sealed {
    pub trait Sealed {}
}

impl<T> sealed::Sealed for Message<T> {}

impl<T> Received for Message<T> {
    fn position(&self) -> &Position {
        &self.position
    }

    fn offset(&self) -> Option<u64> {
        self.offset
    }
}

/// Messages that a reader missed, because they were removed before it came to them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lagged {
    /// How many; `None` when that cannot be known.
    pub skipped: Option<u64>,
    /// The reader had come up to here.
    pub from: Position,
    /// It goes on behind this place.
    pub to: Position,
}

/// A message that was published and cannot be read as what the reader takes it for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Unreadable {
    /// Where it stands.
    pub position: Position,
    /// How many messages of its partition came before it, as of a [`Message`].
    pub offset: Option<u64>,
    /// Why.
    pub error: Error,
}

impl sealed::Sealed for Unreadable {}

impl Received for Unreadable {
    fn position(&self) -> &Position {
        &self.position
    }

    fn offset(&self) -> Option<u64> {
        self.offset
    }
}

/// What a reader is told instead of a message.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Messages were removed before the reader came to them. It goes on behind them.
    #[error("{} messages were missed up to {}", skipped(.0), .0.to)]
    Lagged(Box<Lagged>),
    /// A message cannot be read. The reader goes on behind it.
    #[error("the message at {} cannot be read: {}", .0.position, .0.error)]
    Unreadable(Box<Unreadable>),
    /// Nothing more can be read.
    #[error(transparent)]
    Failed(#[from] Error),
}

fn skipped(lagged: &Lagged) -> String {
    match lagged.skipped {
        Some(skipped) => skipped.to_string(),
        None => "an unknown number of".to_owned(),
    }
}

impl ReadError {
    /// Whether the reader goes on after this.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}
