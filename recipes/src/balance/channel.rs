//! A channel of tonic's that follows a service, balanced by tonic.

use std::time::Duration;

use tonic::transport::channel::Change;
use tonic::transport::{self, Channel};

use super::connected::{Connected, Step};
use crate::registry::{Discovery, Endpoint};
use crate::tasks::Tasks;

/// Changes that wait until the channel is next used.
const CHANGES_MOST: usize = 1_024;

/// How an instance is connected to.
pub(super) type Dial<M> =
    dyn Fn(&Endpoint<M>) -> Result<transport::Endpoint, transport::Error> + Send + Sync;

/// Limit on making a connection, unless told otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects to the instance's address, in plain text unless it says otherwise.
pub(super) fn plain<M>(instance: &Endpoint<M>) -> Result<transport::Endpoint, transport::Error> {
    let address = &instance.address;
    let endpoint = match address.contains("://") {
        true => transport::Endpoint::from_shared(address.clone()),
        false => transport::Endpoint::from_shared(format!("http://{address}")),
    };
    Ok(endpoint?.connect_timeout(CONNECT_TIMEOUT))
}

impl<M: Send + Sync + 'static> Discovery<M> {
    /// A channel of tonic's own over the instances that take work. An instance is taken out as soon as it
    /// drains; calls on their way to it go on. tonic balances among them at random, and knows nothing of
    /// failures: see [`BalancerBuilder::channel`](super::BalancerBuilder::channel) for more than that.
    ///
    /// Addresses are `host:port`, in plain text, or whole URLs. An instance with neither is left out, with a
    /// warning. Connecting takes at most 2 s. The service is followed until the last clone of the channel is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel_with(plain)
    }

    /// As [`Discovery::channel`], to instances connected as `dial` says: with timeouts, keep-alives or
    /// encryption.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn channel_with(
        &self,
        dial: impl Fn(&Endpoint<M>) -> Result<transport::Endpoint, transport::Error>
        + Send
        + Sync
        + 'static,
    ) -> Channel {
        let (channel, changes) = Channel::balance_channel::<String>(CHANGES_MOST);
        let mut discovery = self.clone();
        let feed = async move {
            let mut connected = Connected::default();
            let mut view = discovery.take();
            loop {
                for step in connected.follow(&view) {
                    let change = match step {
                        Step::Remove(id) => Change::Remove(id),
                        Step::Insert(one) => match dial(&one) {
                            Ok(endpoint) => Change::Insert(one.id.clone(), endpoint),
                            Err(error) => {
                                tracing::warn!(id = one.id, %error, "an instance has no address");
                                // What was there under its id is somewhere else now.
                                Change::Remove(one.id.clone())
                            }
                        },
                    };
                    if changes.send(change).await.is_err() {
                        return;
                    }
                }
                view = tokio::select! {
                    biased;
                    () = changes.closed() => return,
                    next = discovery.changed() => match next {
                        Ok(next) => next,
                        // What was there last stays; the discovery itself has told why.
                        Err(_) => return changes.closed().await,
                    },
                };
            }
        };
        Tasks::current().spawn("feed a channel", feed);
        channel
    }
}
