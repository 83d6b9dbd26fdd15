//! Following a service: a view of its instances, kept up to date in the background.

use std::collections::VecDeque;
use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::tracker::{MassLoss, Tracker};
use super::view::{Change, ServiceView, difference};
use crate::client::Client;
use crate::clock::{self, Instant};
use crate::error::{Error, Result};
use crate::keys::{KeySpace, Name};
use crate::tasks::Tasks;
use crate::watch::Batch;

impl Client {
    /// Follows a service: `client.discover::<Meta>("api").await`. Ready once the first listing is
    /// in. Needs no session.
    pub fn discover<M>(&self, service: impl Into<Name>) -> Discover<M> {
        Discover {
            client: self.clone(),
            space: service.into().space(super::KIND),
            protection: MassLoss::default(),
            meta: PhantomData,
        }
    }
}

/// Starts a [`Discovery`] when awaited.
#[must_use = "awaiting the builder starts the discovery"]
pub struct Discover<M> {
    client: Client,
    space: KeySpace,
    protection: MassLoss,
    meta: PhantomData<fn() -> M>,
}

impl<M> Discover<M> {
    /// When instances that vanished are kept for a while. Default: [`MassLoss::default`].
    pub fn mass_loss(mut self, protection: MassLoss) -> Self {
        self.protection = protection;
        self
    }
}

impl<M> IntoFuture for Discover<M>
where
    M: DeserializeOwned + Send + Sync + 'static,
{
    type Output = Result<Discovery<M>>;
    type IntoFuture = BoxFuture<'static, Result<Discovery<M>>>;

    /// Lists the instances and starts to follow them.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    fn into_future(self) -> Self::IntoFuture {
        Discovery::start(self).boxed()
    }
}

impl<M> fmt::Debug for Discover<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discover")
            .field("service", &self.space.prefix())
            .field("protection", &self.protection)
            .finish_non_exhaustive()
    }
}

/// A view of a service's instances that follows the store, with one watch. Every view is a state
/// that the store went through, suspects apart; views never go back, and intermediate ones may be
/// skipped. While the store is out of reach the last view stays, marked as stale.
///
/// Clones share the view; each waits for changes by itself. Dropping the last stops following.
pub struct Discovery<M> {
    view: watch::Receiver<Arc<ServiceView<M>>>,
    failed: watch::Receiver<Option<Error>>,
    following: Arc<Following>,
}

#[derive(Debug)]
struct Following(Tasks);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl<M> Discovery<M> {
    /// The newest view.
    #[must_use]
    pub fn view(&self) -> Arc<ServiceView<M>> {
        Arc::clone(&self.view.borrow())
    }

    /// Waits for a view that has not been waited for before, and returns it.
    ///
    /// # Errors
    /// The store's final refusal that ended the discovery.
    ///
    /// # Cancel safety
    /// No view is missed when the future is dropped; intermediate ones may be skipped.
    pub async fn changed(&mut self) -> Result<Arc<ServiceView<M>>> {
        match self.view.changed().await {
            Ok(()) => Ok(Arc::clone(&self.view.borrow_and_update())),
            Err(_) => Err(self.failed.borrow().clone().unwrap_or(Error::Closed)),
        }
    }

    /// Waits until a view satisfies `enough`, which may be the one now, and returns it.
    ///
    /// # Errors
    /// As [`Discovery::changed`].
    ///
    /// # Cancel safety
    /// As [`Discovery::changed`].
    pub async fn wait_for(
        &mut self,
        mut enough: impl FnMut(&ServiceView<M>) -> bool,
    ) -> Result<Arc<ServiceView<M>>> {
        match self.view.wait_for(|view| enough(view)).await {
            Ok(view) => Ok(Arc::clone(&view)),
            Err(_) => Err(self.failed.borrow().clone().unwrap_or(Error::Closed)),
        }
    }
}

impl<M: Send + Sync + 'static> Discovery<M> {
    /// What happens to the instances: first everyone who is there as joined, then each change. A
    /// slow reader gets the net difference of what it missed. Ends after a final refusal of the
    /// store, which it yields first.
    #[must_use]
    pub fn events(&self) -> BoxStream<'static, Result<Change<M>>> {
        let mut reader = self.clone();
        reader.view.mark_changed();
        Box::pin(events(reader))
    }
}

fn events<M: Send + Sync + 'static>(
    reader: Discovery<M>,
) -> impl Stream<Item = Result<Change<M>>> + Send {
    struct Reader<M> {
        discovery: Discovery<M>,
        known: Option<Arc<ServiceView<M>>>,
        ready: VecDeque<Change<M>>,
    }
    let reader = Reader {
        discovery: reader,
        known: None,
        ready: VecDeque::new(),
    };
    futures::stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        loop {
            if let Some(change) = reader.ready.pop_front() {
                return Some((Ok(change), Some(reader)));
            }
            match reader.discovery.changed().await {
                Ok(view) => {
                    reader.ready = difference(reader.known.as_deref(), &view);
                    reader.known = Some(view);
                }
                Err(error) => return Some((Err(error), None)),
            }
        }
    })
}

impl<M> Discovery<M>
where
    M: DeserializeOwned + Send + Sync + 'static,
{
    async fn start(options: Discover<M>) -> Result<Self> {
        let watcher = options.client.watch(options.space.range());
        let link = watcher.link();
        let mut batches = watcher.into_stream().boxed();
        let mut tracker = Tracker::new(options.space, options.protection);
        match batches.next().await {
            Some(first) => tracker.take(first?, clock::now()),
            None => return Err(Error::Closed),
        }
        let (publish, view) = watch::channel(Arc::new(tracker.view(None)));
        let (fail, failed) = watch::channel(None);
        let tasks = Tasks::current();
        let follower = Follower {
            tracker,
            batches,
            link,
            stale_since: None,
            publish,
        };
        tasks.spawn("discovery", async move {
            let error = follower.run().await;
            tracing::warn!(%error, "discovery stopped");
            fail.send_replace(Some(error));
        });
        Ok(Self {
            view,
            failed,
            following: Arc::new(Following(tasks)),
        })
    }
}

/// The task behind a discovery.
struct Follower<M> {
    tracker: Tracker<M>,
    batches: BoxStream<'static, Result<Batch>>,
    link: watch::Receiver<bool>,
    stale_since: Option<Instant>,
    publish: watch::Sender<Arc<ServiceView<M>>>,
}

impl<M: DeserializeOwned> Follower<M> {
    /// Runs until the store refuses for good, and returns why.
    async fn run(mut self) -> Error {
        loop {
            let deadline = self.tracker.next_deadline();
            let news = tokio::select! {
                batch = self.batches.next() => match self.take_all(batch) {
                    Ok(()) => true,
                    Err(error) => return error,
                },
                Ok(()) = self.link.changed() => self.note_link(),
                () = until(deadline) => self.tracker.forget_old(clock::now()),
            };
            if news {
                let view = Arc::new(self.tracker.view(self.stale_since));
                self.publish.send_replace(view);
            }
        }
    }

    /// Takes the batch and all that are ready behind it, so that they make one view.
    fn take_all(&mut self, mut batch: Option<Result<Batch>>) -> Result<()> {
        loop {
            match batch {
                Some(batch) => self.tracker.take(batch?, clock::now()),
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
            false => before.or_else(|| Some(clock::now())),
        };
        self.stale_since.is_some() != before.is_some()
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl<M> Clone for Discovery<M> {
    fn clone(&self) -> Self {
        Self {
            view: self.view.clone(),
            failed: self.failed.clone(),
            following: Arc::clone(&self.following),
        }
    }
}

impl<M> fmt::Debug for Discovery<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view();
        f.debug_struct("Discovery")
            .field("revision", &view.revision)
            .field("instances", &view.instances.len())
            .field("stale_since", &view.stale_since)
            .finish_non_exhaustive()
    }
}
