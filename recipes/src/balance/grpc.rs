//! A channel for gRPC clients in which every call is a pick of a balancer.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::OnceCell;
use tonic::body::Body;
use tonic::transport::{self, Channel};
use tower::{Service, ServiceExt};

use super::balancer::{Balancer, BalancerBuilder};
use super::call::{self, Counted};
use super::channel::{Dial, plain};
use super::pick::{Outcome, Pick};
use crate::hash::fnv1a;
use crate::registry::Endpoint;

/// Most instances that are tried for one call before it is sent to any.
const CONNECTS_MOST: usize = 3;

/// What a call over a [`BalancedChannel`] is picked for: its session, its user, its shard. It goes with the request, as
/// an extension, and matters to policies that go by keys.
///
/// ```
/// use quorate_recipes::balance::BalanceKey;
///
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(BalanceKey::of("user-42"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BalanceKey(pub(super) u64);

impl BalanceKey {
    /// The key of these bytes, as [`Balancer::pick_for`] takes them.
    #[must_use]
    pub fn of(key: impl AsRef<[u8]>) -> Self {
        Self(fnv1a(key.as_ref()))
    }
}

/// The connection to one incarnation of an instance, made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Line {
    address: String,
    channel: Arc<OnceCell<Channel>>,
}

impl<M: Send + Sync + 'static> BalancerBuilder<M> {
    /// A channel for gRPC clients that picks an instance for every call. A call is outstanding until its
    /// answer has come to an end, and failed if the instance was not reached or answered with a status that
    /// speaks of the server rather than of the request: unavailable, internal, unknown, data loss, deadline
    /// exceeded; or without any status of gRPC's, as a proxy does, or a stream that is cut off. A server that
    /// never answers is noticed by calls with a deadline of gRPC's own
    /// ([`Request::set_timeout`](tonic::Request::set_timeout)); a call whose future is dropped tells nothing.
    ///
    /// By a policy that goes by keys, calls of the same [`BalanceKey`] meet the same instance. Without one,
    /// [`Policy::consistent_hash`](super::Policy::consistent_hash) draws a key for each call, and all calls of
    /// [`Policy::sticky`](super::Policy::sticky) are of one.
    ///
    /// Addresses are as for [`Discovery::channel`](crate::registry::Discovery::channel). Connecting takes at
    /// most 2 s.
    #[must_use]
    pub fn channel(self) -> BalancedChannel<M> {
        self.channel_with(plain)
    }

    /// As [`BalancerBuilder::channel`], to instances connected as `dial` says. A limit on the time that
    /// connecting may take should be among that.
    #[must_use]
    pub fn channel_with(
        self,
        dial: impl Fn(&Endpoint<M>) -> Result<transport::Endpoint, transport::Error>
        + Send
        + Sync
        + 'static,
    ) -> BalancedChannel<M> {
        BalancedChannel {
            balancer: self.build(),
            dial: Arc::new(dial),
        }
    }
}

/// A channel that picks an instance for every call. Give a clone to any client that tonic generates.
///
/// A call is not repeated once it may have been sent. Before that, while no connection to the picked
/// instance can be made for the first time, up to three are tried.
pub struct BalancedChannel<M: Send + Sync + 'static> {
    balancer: Balancer<M>,
    dial: Arc<Dial<M>>,
}

impl<M: Send + Sync + 'static> BalancedChannel<M> {
    /// The balancer.
    #[must_use]
    pub fn balancer(&self) -> &Balancer<M> {
        &self.balancer
    }

    /// Picks an instance that there is a connection to.
    async fn connect(&self, key: Option<BalanceKey>) -> Result<(Pick<M>, Channel), tonic::Status> {
        // Outstanding until it is over, so that a policy that goes by that looks elsewhere.
        let mut failed = Vec::new();
        loop {
            let pick = self.balancer.choose(key);
            let mut pick = pick.map_err(|none| tonic::Status::unavailable(none.to_string()))?;
            let cell = self.line(&pick);
            let connected = cell.get_or_try_init(|| async {
                let endpoint = (self.dial)(pick.endpoint())?;
                endpoint.connect().await
            });
            match connected.await {
                Ok(channel) => return Ok((pick, channel.clone())),
                Err(error) => {
                    let text = format!("instance {}: {}", pick.id, call::chain(&error));
                    pick.outcome = Outcome::Failure;
                    failed.push(pick);
                    if failed.len() == CONNECTS_MOST {
                        return Err(tonic::Status::unavailable(text));
                    }
                }
            }
        }
    }

    /// The connection to what was picked; another one when its address is another.
    fn line(&self, pick: &Pick<M>) -> Arc<OnceCell<Channel>> {
        let mut line = pick.incarnation.line();
        match &*line {
            Some(line) if line.address == pick.address => Arc::clone(&line.channel),
            _ => {
                let new = line.insert(Line {
                    address: pick.address.clone(),
                    channel: Arc::default(),
                });
                Arc::clone(&new.channel)
            }
        }
    }
}

impl<M: Send + Sync + 'static> Service<Request<Body>> for BalancedChannel<M> {
    type Response = Response<Body>;
    type Error = tonic::Status;
    type Future = BoxFuture<'static, Result<Response<Body>, tonic::Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        async move {
            let key = request.extensions().get().copied();
            let (pick, mut channel) = this.connect(key).await?;
            let answer = match channel.ready().await {
                Ok(ready) => ready.call(request).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(response) => Ok(Counted::answer(response, pick)),
                Err(error) => {
                    pick.failure();
                    Err(tonic::Status::from_error(Box::new(error)))
                }
            }
        }
        .boxed()
    }
}

impl<M: Send + Sync + 'static> Clone for BalancedChannel<M> {
    fn clone(&self) -> Self {
        Self {
            balancer: self.balancer.clone(),
            dial: Arc::clone(&self.dial),
        }
    }
}

impl<M: Send + Sync + 'static> fmt::Debug for BalancedChannel<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalancedChannel")
            .field("balancer", &self.balancer)
            .finish_non_exhaustive()
    }
}
