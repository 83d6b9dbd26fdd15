//! The watches of one front: only those that have news are asked for it, however many there are.

use std::collections::BTreeMap;
use std::future::{pending, ready};

use futures::stream::{AbortHandle, Abortable, BoxStream, SelectAll, once};
use futures::{Stream, StreamExt};

use crate::error::{Error, Result};
use crate::watch::Batch;

/// Watches by what they are of.
pub(super) struct Watches<S> {
    all: SelectAll<BoxStream<'static, (S, Result<Batch>)>>,
    open: BTreeMap<S, AbortHandle>,
}

impl<S: Copy + Ord + Send + 'static> Watches<S> {
    pub(super) fn new() -> Self {
        Self {
            all: SelectAll::new(),
            open: BTreeMap::new(),
        }
    }

    /// Opens a watch, in the place of the one of the same source if there is one.
    pub(super) fn open(
        &mut self,
        source: S,
        batches: impl Stream<Item = Result<Batch>> + Send + 'static,
    ) {
        self.close(source);
        let (end, registration) = AbortHandle::new_pair();
        let batches = batches.chain(once(ready(Err(Error::Closed))));
        let batches = batches.map(move |batch| (source, batch));
        self.all.push(Abortable::new(batches, registration).boxed());
        self.open.insert(source, end);
    }

    /// Closes a watch. Nothing of it comes any more.
    pub(super) fn close(&mut self, source: S) {
        if let Some(end) = self.open.remove(&source) {
            end.abort();
        }
    }

    /// Closes all watches of these sources.
    pub(super) fn close_all(&mut self, of: impl Fn(&S) -> bool) {
        let ended = self.open.extract_if(.., |source, _| of(source));
        ended.for_each(|(_, end)| end.abort());
    }

    /// How many watches of these sources are open.
    pub(super) fn count(&self, of: impl Fn(&S) -> bool) -> usize {
        self.open.keys().filter(|source| of(source)).count()
    }

    /// The next batch of any of them.
    ///
    /// # Cancel safety
    /// No batch is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> (S, Result<Batch>) {
        match self.all.next().await {
            Some(news) => news,
            None => pending().await,
        }
    }
}
