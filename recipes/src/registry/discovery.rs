//! Following a service: a view of its instances, kept up to date in the background.

use std::collections::VecDeque;
use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream};
use serde::de::DeserializeOwned;

use super::snapshot::{Raw, Snapshot};
use super::tracker::{MassLoss, Tracker};
use super::view::{Change, ServiceView, difference};
use crate::client::Client;
use crate::error::Result;
use crate::follow::Followed;
use crate::keys::{KeySpace, Name};
use crate::snapshot::PATIENCE;
use crate::tasks::Tasks;

impl Client {
    /// Follows a service: `client.discover::<Meta>("api").await`. Ready once the first listing is
    /// in. Needs no session.
    pub fn discover<M>(&self, service: impl Into<Name>) -> Discover<M> {
        Discover {
            client: self.clone(),
            space: service.into().space(super::KIND),
            protection: MassLoss::default(),
            snapshot: None,
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
    snapshot: Option<PathBuf>,
    meta: PhantomData<fn() -> M>,
}

impl<M> Discover<M> {
    /// When instances that vanished are kept for a while. Default: [`MassLoss::default`].
    pub fn mass_loss(mut self, protection: MassLoss) -> Self {
        self.protection = protection;
        self
    }

    /// A file to start from when the store does not answer within a second; it is written after changes, at most
    /// every 5 s. Its folder must be there. One discovery a file.
    ///
    /// What is from the file is [marked](ServiceView::is_from_snapshot) and stale until the store has answered;
    /// who is not in the store then is gone at once.
    pub fn snapshot(mut self, path: impl Into<PathBuf>) -> Self {
        self.snapshot = Some(path.into());
        self
    }
}

impl<M> Discover<M>
where
    M: DeserializeOwned + Send + Sync + 'static,
{
    async fn start(self) -> Result<Discovery<M>> {
        let (client, range) = (self.client, self.space.range());
        let mut tracker = Tracker::new(self.space.clone(), self.protection);
        let Some(path) = self.snapshot else {
            let followed = Followed::start(&client, range, tracker).await?;
            return Ok(Discovery(followed));
        };
        let (snapshot, raw) = (Snapshot::new(path, &self.space), Raw::default());
        tracker.share(raw.clone());
        let followed = match snapshot.load().await? {
            None => Followed::start(&client, range, tracker).await?,
            Some(saved) => {
                tracker.begin_with(saved, client.now());
                let mut followed = Followed::begin(&client, range, tracker);
                let answered = followed.wait_for(|view: &ServiceView<M>| !view.is_from_snapshot());
                match client.before(client.deadline(PATIENCE), answered).await {
                    Some(answered) => drop(answered?),
                    None => tracing::warn!("no answer of the store; starting from the snapshot"),
                }
                followed
            }
        };
        let keeping = snapshot.keep(client, raw, followed.views());
        Tasks::current().spawn("snapshot", keeping);
        Ok(Discovery(followed))
    }
}

impl<M> IntoFuture for Discover<M>
where
    M: DeserializeOwned + Send + Sync + 'static,
{
    type Output = Result<Discovery<M>>;
    type IntoFuture = BoxFuture<'static, Result<Discovery<M>>>;

    /// Lists the instances and starts to follow them; without an answer of the store for a second, from the
    /// snapshot file if there is one.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a snapshot file that is something else, or that of another
    /// service; the store's final refusals. Trouble with the store is waited out, and a damaged file is ignored
    /// with a warning.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    fn into_future(self) -> Self::IntoFuture {
        self.start().boxed()
    }
}

impl<M> fmt::Debug for Discover<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discover")
            .field("service", &self.space.prefix())
            .field("protection", &self.protection)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

/// A view of a service's instances that follows the store, with one watch. Every view is a state
/// that the store went through, suspects apart; views never go back, and intermediate ones may be
/// skipped. While the store is out of reach the last view stays, marked as stale.
///
/// Clones share the view; each waits for changes by itself. Dropping the last stops following.
pub struct Discovery<M>(Followed<ServiceView<M>>);

impl<M: Send + Sync + 'static> Discovery<M> {
    /// The newest view.
    #[must_use]
    pub fn view(&self) -> Arc<ServiceView<M>> {
        self.0.view()
    }

    /// Waits for a view that has not been waited for before, and returns it.
    ///
    /// # Errors
    /// The store's final refusal that ended the discovery.
    ///
    /// # Cancel safety
    /// No view is missed when the future is dropped; intermediate ones may be skipped.
    pub async fn changed(&mut self) -> Result<Arc<ServiceView<M>>> {
        self.0.changed().await
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
        enough: impl FnMut(&ServiceView<M>) -> bool,
    ) -> Result<Arc<ServiceView<M>>> {
        self.0.wait_for(enough).await
    }

    pub(crate) fn client(&self) -> &Client {
        self.0.client()
    }

    /// Whether there is a view that was not waited for or taken by this one.
    pub(crate) fn has_changed(&self) -> bool {
        self.0.has_changed()
    }

    /// The newest view, which then counts as waited for.
    pub(crate) fn take(&mut self) -> Arc<ServiceView<M>> {
        self.0.take()
    }

    /// What happens to the instances: first everyone who is there as joined, then each change. A
    /// slow reader gets the net difference of what it missed. Ends after a final refusal of the
    /// store, which it yields first.
    #[must_use]
    pub fn events(&self) -> BoxStream<'static, Result<Change<M>>> {
        let mut reader = self.clone();
        reader.0.mark_changed();
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

impl<M> Clone for Discovery<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Send + Sync + 'static> fmt::Debug for Discovery<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view();
        f.debug_struct("Discovery")
            .field("revision", &view.revision)
            .field("instances", &view.instances.len())
            .field("stale_since", &view.stale_since)
            .finish_non_exhaustive()
    }
}
