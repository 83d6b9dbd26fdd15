//! A view of a range of keys that is more than the keys: computed by a [`Digest`] from the changes
//! and the time of the client's clock, and kept up to date in the background. Under discovery and the
//! progress monitor.

use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;

use crate::client::Client;
use crate::clock::Instant;
use crate::error::{Error, Result};
use crate::keys::KeyRange;
use crate::tasks::Tasks;
use crate::watch::Batch;

/// Makes views of changes.
pub(crate) trait Digest: Send + 'static {
    /// What readers see.
    type View: Send + Sync + 'static;

    /// Takes in what changed.
    fn take(&mut self, batch: Batch, now: Instant);

    /// Does what time alone brings about. Returns whether the view has changed.
    fn tick(&mut self, now: Instant) -> bool;

    /// When [`Digest::tick`] will have something to do.
    fn next_deadline(&self) -> Option<Instant>;

    /// The view now; `stale_since`: since when the store has been out of reach.
    fn view(&self, stale_since: Option<Instant>) -> Self::View;
}

/// The newest view of a digest. Clones share it; each waits for changes by itself. Dropping the
/// last stops following.
#[derive(Debug)]
pub(crate) struct Followed<V> {
    view: watch::Receiver<Arc<V>>,
    failed: watch::Receiver<Option<Error>>,
    following: Arc<Following>,
    client: Client,
}

#[derive(Debug)]
struct Following(Tasks);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl<V> Clone for Followed<V> {
    fn clone(&self) -> Self {
        Self {
            view: self.view.clone(),
            failed: self.failed.clone(),
            following: Arc::clone(&self.following),
            client: self.client.clone(),
        }
    }
}

impl<V: Send + Sync + 'static> Followed<V> {
    /// Lists the range, then follows it.
    pub(crate) async fn start<D>(client: &Client, range: KeyRange, mut digest: D) -> Result<Self>
    where
        D: Digest<View = V>,
    {
        let watcher = client.watch(range);
        let link = watcher.link();
        let mut batches = watcher.into_stream().boxed();
        match batches.next().await {
            Some(first) => digest.take(first?, client.now()),
            None => return Err(Error::Closed),
        }
        Ok(Self::go_on(client, digest, batches, link))
    }

    /// Follows the range; until the first listing the view is that of the digest as it is.
    pub(crate) fn begin<D>(client: &Client, range: KeyRange, digest: D) -> Self
    where
        D: Digest<View = V>,
    {
        let watcher = client.watch(range);
        let link = watcher.link();
        Self::go_on(client, digest, watcher.into_stream().boxed(), link)
    }

    fn go_on<D>(
        client: &Client,
        digest: D,
        batches: BoxStream<'static, Result<Batch>>,
        link: watch::Receiver<bool>,
    ) -> Self
    where
        D: Digest<View = V>,
    {
        let (publish, view) = watch::channel(Arc::new(digest.view(None)));
        let (fail, failed) = watch::channel(None);
        let tasks = Tasks::current();
        let follower = Follower {
            client: client.clone(),
            digest,
            batches,
            link,
            stale_since: None,
            publish,
        };
        tasks.spawn("follow", async move {
            let error = follower.run(&fail).await;
            tracing::warn!(%error, "a view is not kept up to date any more");
        });
        Self {
            view,
            failed,
            following: Arc::new(Following(tasks)),
            client: client.clone(),
        }
    }

    /// The views, which end with the following: this does not keep it going.
    pub(crate) fn views(&self) -> watch::Receiver<Arc<V>> {
        self.view.clone()
    }

    pub(crate) fn view(&self) -> Arc<V> {
        Arc::clone(&self.view.borrow())
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether there is a view that has not been waited for or taken. Costs one load.
    pub(crate) fn has_changed(&self) -> bool {
        // Once the follower has ended only the value itself says whether it was the last one seen.
        self.view
            .has_changed()
            .unwrap_or_else(|_| self.view.borrow().has_changed())
    }

    /// The newest view, which then counts as waited for.
    pub(crate) fn take(&mut self) -> Arc<V> {
        Arc::clone(&self.view.borrow_and_update())
    }

    /// Counts the view now as not waited for yet.
    pub(crate) fn mark_changed(&mut self) {
        self.view.mark_changed();
    }

    pub(crate) async fn changed(&mut self) -> Result<Arc<V>> {
        match self.view.changed().await {
            Ok(()) => Ok(Arc::clone(&self.view.borrow_and_update())),
            Err(_) => Err(self.failure()),
        }
    }

    pub(crate) async fn wait_for(&mut self, mut enough: impl FnMut(&V) -> bool) -> Result<Arc<V>> {
        let found = self.view.wait_for(|view| enough(view)).await;
        match found.map(|view| Arc::clone(&view)) {
            Ok(view) => Ok(view),
            Err(_) => Err(self.failure()),
        }
    }

    fn failure(&self) -> Error {
        self.failed.borrow().clone().unwrap_or(Error::Closed)
    }
}

/// The task that keeps a view.
struct Follower<D: Digest> {
    client: Client,
    digest: D,
    batches: BoxStream<'static, Result<Batch>>,
    link: watch::Receiver<bool>,
    stale_since: Option<Instant>,
    publish: watch::Sender<Arc<D::View>>,
}

impl<D: Digest> Follower<D> {
    /// Runs until the store refuses for good, and tells why before the view ends.
    async fn run(mut self, fail: &watch::Sender<Option<Error>>) -> Error {
        loop {
            let deadline = self.digest.next_deadline();
            let news = tokio::select! {
                biased;
                batch = self.batches.next() => match self.take_all(batch) {
                    Ok(()) => true,
                    Err(error) => {
                        // Who only looks at the view learns by this that it is the last one.
                        self.stale_since = self.stale_since.or_else(|| Some(self.client.now()));
                        self.show();
                        fail.send_replace(Some(error.clone()));
                        return error;
                    }
                },
                Ok(()) = self.link.changed() => self.note_link(),
                () = self.client.until(deadline) => self.digest.tick(self.client.now()),
            };
            if news {
                self.show();
            }
        }
    }

    fn show(&self) {
        let view = Arc::new(self.digest.view(self.stale_since));
        self.publish.send_replace(view);
    }

    /// Takes the batch and all that are ready behind it, so that they make one view.
    fn take_all(&mut self, mut batch: Option<Result<Batch>>) -> Result<()> {
        loop {
            match batch {
                Some(batch) => self.digest.take(batch?, self.client.now()),
                None => return Err(Error::Closed),
            }
            match self.batches.next().now_or_never() {
                Some(more) => batch = more,
                None => return Ok(()),
            }
        }
    }

    /// Returns whether the view has become stale, or is no longer.
    fn note_link(&mut self) -> bool {
        let before = self.stale_since;
        self.stale_since = match *self.link.borrow_and_update() {
            true => None,
            false => before.or_else(|| Some(self.client.now())),
        };
        self.stale_since.is_some() != before.is_some()
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;
    use crate::keys::Revision;
    use crate::store::MemStore;
    use crate::watch::Origin;

    /// Counts batches, and says whether it is stale.
    struct Count(usize);

    impl Digest for Count {
        type View = (usize, bool);

        fn take(&mut self, _batch: Batch, _now: Instant) {
            self.0 += 1;
        }

        fn tick(&mut self, _now: Instant) -> bool {
            false
        }

        fn next_deadline(&self) -> Option<Instant> {
            None
        }

        fn view(&self, stale_since: Option<Instant>) -> Self::View {
            (self.0, stale_since.is_some())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_view_is_stale() {
        let client = Client::new(MemStore::new());
        let batch = Batch {
            revision: Revision(1),
            origin: Origin::Listing,
            changes: Vec::new(),
        };
        let refused = stream::iter([Ok(batch), Err(Error::Conflict)]).boxed();
        let (_linked, link) = watch::channel(true);
        let mut followed = Followed::go_on(&client, Count(0), refused, link);
        let error = loop {
            match followed.changed().await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Conflict), "{error:?}");
        assert_eq!(*followed.view(), (1, true));
    }
}
