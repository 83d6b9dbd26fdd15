//! An instance that is registered: what its owner holds.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::instance::{Instance, Status};
use super::record;
use crate::error::{Error, Result};
use crate::keeper::{Keeper, Kept, KeptState, Mark, Plan, Rivals};
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
    instance: Mutex<Instance<M>>,
    key: Key,
    nonce: String,
    kept: Kept,
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
    pub async fn register<M: Serialize>(
        &self,
        mut instance: Instance<M>,
    ) -> Result<Registration<M>> {
        let nonce = self.client().nonce();
        if instance.id.is_empty() {
            instance.id.clone_from(&nonce);
        }
        let key = instance.space().key(&encode(&instance.id));
        let value = record::write(&key, &instance, &nonce, false)?;
        let farewell = record::write(&key, &instance, &nonce, true)?;
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
        let registration = Registration {
            instance: Mutex::new(instance),
            key,
            nonce,
            kept: Keeper::start(self.clone(), plan, value, Some(farewell)),
        };
        registration.kept.written(1).await?;
        Ok(registration)
    }
}

impl<M> Registration<M> {
    /// The instance's name among the instances of its service.
    #[must_use]
    pub fn id(&self) -> String {
        self.lock().id.clone()
    }

    /// The key it is registered at.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The instance as its owner wants it.
    #[must_use]
    pub fn instance(&self) -> Instance<M>
    where
        M: Clone,
    {
        self.lock().clone()
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
        let sequence = self.want(change)?;
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

    fn lock(&self) -> MutexGuard<'_, Instance<M>> {
        self.instance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, change: impl FnOnce(&mut Instance<M>)) -> Result<u64>
    where
        M: Serialize + Clone,
    {
        let mut instance = self.lock();
        let mut changed = instance.clone();
        change(&mut changed);
        let value = record::write(&self.key, &changed, &self.nonce, false)?;
        let farewell = record::write(&self.key, &changed, &self.nonce, true)?;
        *instance = changed;
        Ok(self.kept.want(value, Some(farewell)))
    }
}

impl<M> fmt::Debug for Registration<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("key", &self.key)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
