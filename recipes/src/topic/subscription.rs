//! Following a topic: all partitions, each in the order of its commits.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::future::poll_fn;
use futures::stream::{self, BoxStream, StreamExt};
use serde::de::DeserializeOwned;

use super::locate::{Locator, Spot};
use super::message::{Message, ReadError, Unreadable};
use super::position::Start;
use super::reader::{Read, Reader};
use super::record::{Layout, MessageRecord};
use crate::error::{Error, Result};
use crate::keys::Key;

/// Readers of several partitions, each asked in its turn.
#[derive(Default)]
pub(super) struct Readers {
    each: Vec<(u32, BoxStream<'static, Result<Read>>)>,
    /// Whose turn is next.
    turn: usize,
}

impl Readers {
    /// Reads one more partition.
    pub(super) fn add(&mut self, layout: &Layout, partition: u32, at: Spot) {
        let reader = Reader::new(layout.clone(), partition, at);
        // It holds what is on its way when nobody asks.
        let stream = stream::unfold(reader, |mut reader| async move {
            let next = reader.next().await;
            Some((next, reader))
        });
        self.each.push((partition, stream.boxed()));
    }

    /// Reads a partition no more.
    pub(super) fn remove(&mut self, partition: u32) {
        self.each.retain(|(known, _)| *known != partition);
    }

    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Read>> {
        let count = self.each.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            if let Poll::Ready(next) = self.each[index].1.poll_next_unpin(context) {
                self.turn = (index + 1) % count;
                return Poll::Ready(next.unwrap_or(Err(Error::Closed)));
            }
        }
        Poll::Pending
    }
}

/// What was read, as a message if it is one.
pub(super) fn decode<T: DeserializeOwned>(read: Read) -> Result<Message<T>, ReadError> {
    let (position, offset, kv) = match read {
        Read::Message {
            position,
            offset,
            kv,
        } => (position, offset, kv),
        Read::Lagged(lagged) => return Err(ReadError::Lagged(Box::new(lagged))),
    };
    match MessageRecord::read(&Key::from(kv.key), &kv.value) {
        Ok(record) => Ok(Message {
            value: record.value,
            position,
            offset,
            key: record.key,
            since_ms: record.since_ms,
        }),
        Err(error) => Err(ReadError::Unreadable(Box::new(Unreadable {
            position,
            offset,
            error,
        }))),
    }
}

/// The messages of a topic, for one reader: those of a partition in the order of their commits, each once. Made
/// by [`Topic::subscribe`](super::Topic::subscribe). Dropping it closes its watches.
///
/// It holds a page of messages (about 1 MiB, at most 128, and what was committed together) of each partition,
/// however far behind it is, and reads on when asked. What was removed meanwhile it
/// [tells](ReadError::Lagged).
#[must_use = "a dropped subscription reads nothing"]
pub struct Subscription<T> {
    readers: Readers,
    failed: Option<Error>,
    ended: bool,
    of: PhantomData<fn() -> T>,
}

impl<T> Subscription<T> {
    pub(super) async fn start(layout: &Layout, start: &Start) -> Result<Self> {
        let mut readers = Readers::default();
        if let Start::After(position) = start
            && position.partition >= layout.partitions()
        {
            return Err(Error::Invalid(format!(
                "{position} is of no partition of {}",
                layout.any_key()
            )));
        }
        for partition in 0..layout.partitions() {
            let spot = Locator { layout, partition }.find(start).await?;
            readers.add(layout, partition, spot);
        }
        Ok(Self {
            readers,
            failed: None,
            ended: false,
            of: PhantomData,
        })
    }
}

impl<T: DeserializeOwned> Subscription<T> {
    /// Waits for the next message.
    ///
    /// # Errors
    /// [`ReadError::Lagged`] and [`ReadError::Unreadable`]: go on; [`ReadError::Failed`] with the store's final
    /// refusal, or for a head that is damaged, and again at every later call. Trouble with the store is waited
    /// out.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Message<T>, ReadError> {
        poll_fn(|context| self.poll_message(context)).await
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<Message<T>, ReadError>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone().into()));
        }
        Poll::Ready(match ready!(self.readers.poll_next(context)) {
            Ok(read) => decode(read),
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error.into())
            }
        })
    }
}

/// The messages as a stream, which ends after [`ReadError::Failed`].
impl<T: DeserializeOwned> Stream for Subscription<T> {
    type Item = Result<Message<T>, ReadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let subscription = self.get_mut();
        if subscription.ended {
            return Poll::Ready(None);
        }
        let next = ready!(subscription.poll_message(context));
        subscription.ended = subscription.failed.is_some();
        Poll::Ready(Some(next))
    }
}

impl<T> fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("partitions", &self.readers.each.len())
            .finish_non_exhaustive()
    }
}
