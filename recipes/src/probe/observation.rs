//! What one observer sees, told to everybody: a leased key, written when the state changes and not else.

use std::fmt;
use std::future::IntoFuture;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::judge::ProbeReport;
use super::{KIND, Prober, record};
use crate::error::{Error, Result};
use crate::keeper::{Keeper, Kept, Mark, Plan, Rivals};
use crate::keys::{Key, Name, encode};
use crate::session::Session;

impl Session {
    /// Tells everybody what this prober sees of a target, under this session's lease:
    /// `session.observe("db", prober).await`. See [`Client::liveness`](crate::Client::liveness).
    pub fn observe(&self, target: impl Into<Name>, prober: Prober) -> Observe {
        let who = self.who();
        let observer = match who.label.is_empty() {
            true => format!("{}-{}", who.host, who.pid),
            false => who.label.clone(),
        };
        Observe {
            session: self.clone(),
            target: target.into(),
            prober,
            observer,
        }
    }
}

/// Starts an [`Observation`] when awaited.
#[derive(Debug)]
#[must_use = "awaiting the builder starts the observation"]
pub struct Observe {
    session: Session,
    target: Name,
    prober: Prober,
    observer: String,
}

impl Observe {
    /// The name of the observer, which has one opinion of a target: of two with one name the one that came last
    /// is heard. Default: the session's label, else the host and the process id.
    pub fn observer(mut self, name: impl Into<String>) -> Self {
        self.observer = name.into();
        self
    }

    async fn start(self) -> Result<Observation> {
        let client = self.session.client().clone();
        let (nonce, by) = (client.nonce(), self.session.who().clone());
        let key = self.target.space(KIND).key(&encode(&self.observer));
        let plan = Plan {
            key: key.clone(),
            mark: Mark::Nonce(nonce.clone(), record::is_of),
            entering: Rivals::TakeBack,
            holding: Rivals::End,
            own_session: false,
        };
        let mut seen = self.prober.watch();
        let write = {
            let key = key.clone();
            move |seen: &ProbeReport| record::write(&client, &key, &nonce, &by, seen)
        };
        let first = write(&seen.borrow_and_update())?;
        let kept = Keeper::start(self.session.clone(), plan, first, None);
        let wants = kept.wants();
        self.prober.spawn("observe", async move {
            while let Some(now) = next(&mut seen).await {
                match write(&now) {
                    Ok(value) => drop(wants.want(value, None)),
                    Err(error) => tracing::warn!(%error, "what is seen cannot be told"),
                }
            }
        });
        let observation = Observation {
            key,
            prober: self.prober,
            kept,
        };
        observation.kept.written(1).await?;
        Ok(observation)
    }
}

async fn next(seen: &mut watch::Receiver<ProbeReport>) -> Option<ProbeReport> {
    seen.changed().await.ok()?;
    Some(seen.borrow_and_update().clone())
}

impl IntoFuture for Observe {
    type Output = Result<Observation>;
    type IntoFuture = BoxFuture<'static, Result<Observation>>;

    /// Ready once what the prober sees now is in the store.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; [`Error::Codec`]; the store's final refusals. Trouble with the store is waited
    /// out.
    ///
    /// # Cancel safety
    /// When the future is dropped the prober stops, and the key is removed as soon as it turns out to be there.
    fn into_future(self) -> Self::IntoFuture {
        self.start().boxed()
    }
}

/// A prober whose opinion everybody can read, until this is dropped or its session is *closed*; when the
/// session is lost otherwise, it is told again under a new one. It holds its session.
///
/// Dropping it stops the prober, and takes the opinion back in the background.
#[must_use = "a dropped observation is taken back at once"]
pub struct Observation {
    key: Key,
    prober: Prober,
    kept: Kept,
}

impl Observation {
    /// The observer's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The prober.
    pub fn prober(&self) -> &Prober {
        &self.prober
    }

    /// Waits until the observation has ended without having been asked to, and says why:
    /// [`Error::SessionLost`] when its session was closed, [`Error::Taken`] when another observer of its name
    /// has come, else the store's final refusal.
    ///
    /// # Cancel safety
    /// Nothing happens when the future is dropped.
    pub async fn ended(&self) -> Error {
        match self.kept.ended().await {
            Err(error) => error,
            Ok(()) => Error::Closed,
        }
    }

    /// Takes the opinion back, and waits until that is done.
    ///
    /// # Errors
    /// Why it had ended before; the store's final refusals.
    ///
    /// # Cancel safety
    /// Taking it back goes on when the future is dropped.
    pub async fn withdraw(self) -> Result<()> {
        self.kept.end().await
    }
}

impl fmt::Debug for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observation")
            .field("key", &self.key)
            .field("seen", &self.prober.report())
            .finish_non_exhaustive()
    }
}
