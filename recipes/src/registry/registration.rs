//! An instance that is registered: what its owner holds.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::Serialize;

use super::checks::{Checking, Checks, Health};
use super::instance::{Instance, Status};
use super::record;
use crate::error::{Error, Result};
use crate::keeper::{Keeper, Kept, KeptState, Mark, Plan, Rivals, Wants};
use crate::keys::{Key, Revision, encode};
use crate::session::Session;

/// Where a registration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistrationState {
    /// On the way to the store for the first time.
    Registering,
    /// In the store, with a live lease.
    Registered,
    /// The session or the key was lost; it is being put back.
    Recovering,
    /// Over: deregistered, replaced by another, or its session was closed.
    Ended,
}

impl From<KeptState> for RegistrationState {
    fn from(state: KeptState) -> Self {
        match state {
            KeptState::Entering => Self::Registering,
            KeptState::Kept => Self::Registered,
            KeptState::Recovering | KeptState::Yielded => Self::Recovering,
            KeptState::Ended => Self::Ended,
        }
    }
}

/// A registered instance. It is kept registered until this is dropped or its session is *closed*:
/// when the session is lost otherwise, a new one is opened and the instance, as it is then, is put
/// back; when somebody deletes its key, it is put back too. It holds its session.
///
/// Dropping it deregisters in the background.
#[must_use = "a dropped registration deregisters at once"]
pub struct Registration<M> {
    // Dropped before the rest, so that nothing is found any more when it leaves.
    checking: Option<Checking>,
    writer: Writer<M>,
    kept: Kept,
}

/// What is written, by the owner and by the checks.
struct Writer<M> {
    said: Arc<Mutex<Said<M>>>,
    key: Key,
    nonce: String,
    wants: Wants,
}

impl<M> Clone for Writer<M> {
    fn clone(&self) -> Self {
        Self {
            said: Arc::clone(&self.said),
            key: self.key.clone(),
            nonce: self.nonce.clone(),
            wants: self.wants.clone(),
        }
    }
}

/// What an instance says.
#[derive(Clone)]
struct Said<M> {
    instance: Instance<M>,
    health: Option<Health>,
}

impl<M: Serialize> Said<M> {
    /// The value, and the last one before a clean leave.
    fn write(&self, key: &Key, nonce: &str) -> Result<(Bytes, Bytes)> {
        let write = |left| record::write(key, &self.instance, self.health.as_ref(), nonce, left);
        Ok((write(false)?, write(true)?))
    }
}

impl<M> Writer<M> {
    fn lock(&self) -> MutexGuard<'_, Said<M>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is said. Returns the number under which it is known when that is in the store.
    fn want(&self, change: impl FnOnce(&mut Said<M>)) -> Result<u64>
    where
        M: Serialize + Clone,
    {
        let mut said = self.lock();
        let mut changed = said.clone();
        change(&mut changed);
        let (value, farewell) = changed.write(&self.key, &self.nonce)?;
        *said = changed;
        Ok(self.wants.want(value, Some(farewell)))
    }
}

impl Session {
    /// Registers an instance of a service under this session's lease, and keeps it registered.
    ///
    /// # Errors
    /// [`Error::Taken`] when another living instance has the id, unless
    /// [`replace`](super::InstanceBuilder::replace) was asked for; [`Error::Codec`];
    /// [`Error::SessionLost`]; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, the instance is deregistered as soon as it turns out to be there.
    pub async fn register<M: Serialize>(&self, instance: Instance<M>) -> Result<Registration<M>> {
        self.register_as(instance, None).await
    }

    /// As [`Session::register`], and checks the instance for as long as it is registered. What the checks find
    /// goes with the instance, written when it is something else and not else: who looks for the service gives
    /// it work once all checks pass, and none while one fails. The owner's status is not touched.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a probe that cannot be, two checks of one name, and no checks; as
    /// [`Session::register`].
    ///
    /// # Cancel safety
    /// As [`Session::register`].
    pub async fn register_checked<M>(
        &self,
        instance: Instance<M>,
        checks: Checks,
    ) -> Result<Registration<M>>
    where
        M: Serialize + Clone + Send + 'static,
    {
        let checking = Checking::start(self.client(), checks)?;
        let health = checking.health();
        let mut registration = self.register_as(instance, Some(health.clone())).await?;
        let writer = registration.writer.clone();
        checking.tell(health, move |health| {
            if let Err(error) = writer.want(|said| said.health = Some(health)) {
                tracing::warn!(%error, "what checks have found cannot be told");
            }
        });
        registration.checking = Some(checking);
        Ok(registration)
    }

    async fn register_as<M: Serialize>(
        &self,
        mut instance: Instance<M>,
        health: Option<Health>,
    ) -> Result<Registration<M>> {
        let nonce = self.client().nonce();
        if instance.id.is_empty() {
            instance.id.clone_from(&nonce);
        }
        let key = instance.space().key(&encode(&instance.id));
        let plan = Plan {
            key: key.clone(),
            mark: Mark::Nonce(nonce.clone(), record::is_of),
            entering: match instance.replace {
                true => Rivals::TakeBack,
                false => Rivals::End,
            },
            holding: Rivals::End,
            own_session: false,
        };
        let said = Said { instance, health };
        let (value, farewell) = said.write(&key, &nonce)?;
        let kept = Keeper::start(self.clone(), plan, value, Some(farewell));
        let registration = Registration {
            checking: None,
            writer: Writer {
                said: Arc::new(Mutex::new(said)),
                key,
                nonce,
                wants: kept.wants(),
            },
            kept,
        };
        registration.kept.written(1).await?;
        Ok(registration)
    }
}

impl<M> Registration<M> {
    /// The instance's name among the instances of its service.
    #[must_use]
    pub fn id(&self) -> String {
        self.writer.lock().instance.id.clone()
    }

    /// The key it is registered at.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.writer.key
    }

    /// The instance as its owner wants it.
    #[must_use]
    pub fn instance(&self) -> Instance<M>
    where
        M: Clone,
    {
        self.writer.lock().instance.clone()
    }

    /// What the instance's checks have found; `None` without checks.
    #[must_use]
    pub fn health(&self) -> Option<Health> {
        self.checking.as_ref().map(Checking::health)
    }

    /// Where the registration stands.
    #[must_use]
    pub fn state(&self) -> RegistrationState {
        self.kept.state().into()
    }

    /// Waits until the registration has ended without having been asked to, and says why:
    /// [`Error::SessionLost`] when its session was closed, [`Error::Taken`] when another instance
    /// has taken the id over, else the store's final refusal.
    ///
    /// # Cancel safety
    /// Nothing happens when the future is dropped.
    pub async fn ended(&self) -> Error {
        match self.kept.ended().await {
            Err(error) => error,
            Ok(()) => Error::Closed,
        }
    }

    /// Changes the instance and waits until that is in the store. Returns the revision. Of several
    /// changes under way the store may see only the last.
    ///
    /// # Errors
    /// [`Error::Codec`], and then nothing is changed; else why the registration has ended, as
    /// [`Registration::ended`] says. While the store is out of reach this waits.
    ///
    /// # Cancel safety
    /// The change stands, and is written, when the future is dropped.
    pub async fn update(&self, change: impl FnOnce(&mut Instance<M>)) -> Result<Revision>
    where
        M: Serialize + Clone,
    {
        let sequence = self.writer.want(|said| change(&mut said.instance))?;
        self.kept.written(sequence).await
    }

    /// Changes the status. As [`Registration::update`].
    ///
    /// # Errors
    /// As [`Registration::update`].
    ///
    /// # Cancel safety
    /// As [`Registration::update`].
    pub async fn set_status(&self, status: Status) -> Result<Revision>
    where
        M: Serialize + Clone,
    {
        self.update(|instance| instance.status = status).await
    }

    /// Takes the instance out of the service, saying that it leaves, and waits until that is done.
    ///
    /// # Errors
    /// Why the registration had ended before; the store's final refusals.
    ///
    /// # Cancel safety
    /// Deregistering goes on when the future is dropped.
    pub async fn deregister(self) -> Result<()> {
        self.kept.end().await
    }
}

impl<M> fmt::Debug for Registration<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("key", &self.writer.key)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
