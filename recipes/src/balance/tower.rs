//! Instances for a balancer of tower's: a stream of what came and went, which is a `tower::discover::Discover`.

use std::collections::VecDeque;
use std::convert::Infallible;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tower::discover::Change;

use super::connected::{Connected, Step};
use crate::registry::{Discovery, Endpoint};

impl<M: Send + Sync + 'static> Discovery<M> {
    /// The instances as tower's balancers want them: by id, each with the service that `make` makes to
    /// reach it. It goes by instances that take work; those that drain stay only while there are no others.
    /// An instance that was restarted, or is somewhere else, is made anew. It never ends: when the
    /// discovery does, what was there last stays.
    ///
    /// ```no_run
    /// # use quorate_recipes::registry::Discovery;
    /// # fn connect(_: &str) {}
    /// # fn example(discovery: &Discovery<()>) {
    /// let services = discovery.to_tower(|instance| connect(&instance.address));
    /// // tower::balance::p2c::Balance::new(services)
    /// # }
    /// ```
    pub fn to_tower<S: Send + 'static>(
        &self,
        make: impl FnMut(&Endpoint<M>) -> S + Send + 'static,
    ) -> BoxStream<'static, Result<Change<String, S>, Infallible>> {
        struct Feed<M, F> {
            discovery: Discovery<M>,
            connected: Connected,
            ready: VecDeque<Step<M>>,
            make: F,
        }
        let mut discovery = self.clone();
        let mut connected = Connected::default();
        let ready = connected.follow(&discovery.take());
        let feed = Feed {
            discovery,
            connected,
            ready,
            make,
        };
        let changes = stream::unfold(feed, |mut feed| async move {
            loop {
                match feed.ready.pop_front() {
                    Some(Step::Remove(id)) => return Some((Ok(Change::Remove(id)), feed)),
                    Some(Step::Insert(one)) => {
                        let service = (feed.make)(&one);
                        return Some((Ok(Change::Insert(one.id.clone(), service)), feed));
                    }
                    None => match feed.discovery.changed().await {
                        Ok(view) => feed.ready = feed.connected.follow(&view),
                        // Its balancer would fail everything; the discovery itself has told why.
                        Err(_) => std::future::pending().await,
                    },
                }
            }
        });
        changes.boxed()
    }
}
