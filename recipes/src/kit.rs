//! The one primitive under locks and elections: a contender is a key of one's own under a prefix,
//! bound to one's lease; its turn has come when all keys created before it are gone. Public, so
//! that other recipes can be built of it.

use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;

use crate::error::{Error, Result};
use crate::keys::{Key, KeySpace, LeaseId, Revision};
use crate::lock::Hold;
use crate::session::Session;
pub use crate::session::{Actor, Claim, Claimed, Owned};
use crate::store::ops::{self, Compare};
use crate::value::Value;
pub use crate::wait::Backoff;
use crate::wait::{Woken, deleted};
pub use crate::watch::{Mirror, Watcher};

/// A key in a queue. Dropping it leaves the queue, in the background.
#[derive(Debug)]
#[must_use = "a dropped contender leaves the queue"]
pub struct Contender {
    // Dropped before the session, so that leaving comes before a session's end.
    owned: Owned,
    space: KeySpace,
    standing: Option<Standing>,
    session: Session,
}

/// Where a contender stood at some revision.
#[derive(Debug, Clone)]
enum Standing {
    First,
    Behind { ahead: KeyValue, seen: Revision },
}

impl Standing {
    /// `ahead` is the last key created before the contender's, if there is one.
    fn behind(ahead: Option<&KeyValue>, seen: Revision) -> Self {
        match ahead {
            None => Self::First,
            Some(ahead) => Self::Behind {
                ahead: ahead.clone(),
                seen,
            },
        }
    }
}

impl Contender {
    /// Enters the queue of `space` with the key `<prefix>/<lease>/<nonce>` and this value.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, the key is deleted as soon as it turns out to exist.
    pub async fn enter(
        session: &Session,
        space: &KeySpace,
        value: impl Into<Value>,
    ) -> Result<Self> {
        let key = fresh_key(session, space);
        let claim = Claim {
            value: value.into().into_bytes(&key)?,
            also: vec![ops::read(ops::newest(space.range(), 2))],
            ..Default::default()
        };
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(key, claim).await })
            .await?;
        let Claimed::Made {
            owned,
            revision,
            responses,
        } = claimed
        else {
            // The key has a fresh nonce, and the claim no other condition.
            return Err(Error::Conflict);
        };
        let standing = responses.map(|responses| {
            let newest = ops::kvs(&responses, 0).iter();
            let mut others = newest.filter(|kv| kv.key != *owned.key().as_bytes());
            Standing::behind(others.next(), revision)
        });
        Ok(Self {
            owned,
            space: space.clone(),
            standing,
            session: session.clone(),
        })
    }

    /// Enters the queue only if it is empty, and is first in it then. Writes nothing otherwise.
    ///
    /// # Errors
    /// As [`Contender::enter`].
    ///
    /// # Cancel safety
    /// As [`Contender::enter`].
    pub async fn try_enter(
        session: &Session,
        space: &KeySpace,
        value: impl Into<Value>,
    ) -> Result<Option<Hold>> {
        let key = fresh_key(session, space);
        let claim = Claim {
            value: value.into().into_bytes(&key)?,
            when: vec![Compare::empty(space.range())],
            ..Default::default()
        };
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(key, claim).await })
            .await?;
        Ok(match claimed {
            Claimed::Made { owned, .. } => Some(Hold::new(session.clone(), owned, space.range())),
            Claimed::Refused { .. } => None,
        })
    }

    /// The contender's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.owned.key()
    }

    /// The revision at which the key was created: its place in the queue.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.owned.revision()
    }

    /// Writes a new value to the contender's key. See [`Owned::write`].
    ///
    /// # Errors
    /// As [`Owned::write`].
    pub async fn set_value(&self, value: impl Into<Value>) -> Result<Revision> {
        self.owned.write(value.into().into_bytes(self.key())?).await
    }

    /// Waits until every key created before is gone. One more transaction confirms it at a single
    /// revision, own key included, so there is no moment between having waited and holding.
    ///
    /// # Errors
    /// [`Error::SessionLost`] at once when the session is lost; [`Error::Removed`] when somebody
    /// deleted the key; [`Error::ForeignKey`]; the store's final refusals. Trouble with the store
    /// is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue.
    pub async fn wait_turn(mut self) -> Result<Hold> {
        let standing = self.standing.take();
        let lost = self.session.lost();
        tokio::select! {
            biased;
            reason = lost => return Err(Error::SessionLost(reason)),
            turn = self.until_first(standing) => turn?,
        }
        let Self {
            owned,
            space,
            session,
            ..
        } = self;
        Ok(Hold::new(session, owned, space.range()))
    }

    /// Leaves the queue and waits until the store has confirmed.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// Leaving goes on when the future is dropped.
    pub async fn leave(self) -> Result<()> {
        let Self { owned, session, .. } = self;
        let outcome = owned.release().await;
        drop(session);
        outcome.map(drop)
    }

    async fn until_first(&self, mut known: Option<Standing>) -> Result<()> {
        let client = self.session.client();
        let mut pause = Backoff::new(client, Duration::from_millis(20), Duration::from_secs(1));
        loop {
            let standing = match known.take() {
                Some(standing) => standing,
                None => self.turn().await?,
            };
            let Standing::Behind { ahead, seen } = standing else {
                return Ok(());
            };
            if !is_contender(&self.space, &ahead) {
                return Err(Error::ForeignKey(ahead.key.into()));
            }
            let keys = [Key::from(ahead.key), self.key().clone()];
            match deleted(client, &keys, Revision(seen.0 + 1)).await {
                Ok(Woken::Deleted(key)) if key == keys[1] => return Err(self.gone().await),
                Ok(Woken::Deleted(_)) => pause.reset(),
                Ok(Woken::Interrupted) => pause.pause().await,
                Err(error) if error.is_transient() => pause.pause().await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where the contender stands now, provided that its key still is its own.
    async fn turn(&self) -> Result<Standing> {
        let before = self.revision().0 - 1;
        let mut ahead = ops::newest(self.space.range(), 1);
        ahead.max_create_revision = before;
        let request = TxnRequest {
            compare: vec![
                Compare::create_revision(self.key(), self.revision()).into(),
                Compare::lease(self.key(), self.session.lease()).into(),
            ],
            success: vec![ops::read(ahead)],
            failure: Vec::new(),
        };
        let (answer, _) = self.session.actor().repeat(request).await?;
        if !answer.succeeded {
            return Err(self.gone().await);
        }
        let seen = Revision(answer.header.map_or(0, |header| header.revision));
        Ok(Standing::behind(
            ops::kvs(&answer.responses, 0).first(),
            seen,
        ))
    }

    /// Why the contender's key is gone.
    async fn gone(&self) -> Error {
        match self.session.actor().verify().await {
            Err(error @ Error::SessionLost(_)) => error,
            _ => Error::Removed(self.key().clone()),
        }
    }
}

pub(crate) fn fresh_key(session: &Session, space: &KeySpace) -> Key {
    space.key(&format!("{}/{}", session.lease(), session.client().nonce()))
}

/// Whether a key is what a contender leaves: `<lease>` (etcd's own clients) or `<lease>/<nonce>`
/// below the prefix, attached to the lease it names. Anything else may stay for ever.
pub(crate) fn is_contender(space: &KeySpace, kv: &KeyValue) -> bool {
    let Some(suffix) = space.suffix(&kv.key) else {
        return false;
    };
    let (lease, nonce) = suffix.split_once('/').unwrap_or((suffix, "-"));
    kv.lease != 0
        && lease == LeaseId(kv.lease).to_string()
        && !nonce.is_empty()
        && !nonce.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_bound_to_the_lease_they_name_are_contenders() {
        let space = KeySpace::raw("jobs");
        let kv = |key: &str, lease| KeyValue {
            key: key.to_owned().into(),
            lease,
            ..Default::default()
        };
        assert!(is_contender(&space, &kv("jobs/ff", 0xff)));
        assert!(is_contender(&space, &kv("jobs/ff/1a", 0xff)));
        for (key, lease) in [
            ("jobs/ff", 0),
            ("jobs/ff", 0xfe),
            ("jobs/ff/", 0xff),
            ("jobs/ff/1/2", 0xff),
            ("jobs/x", 0xff),
            ("other/ff", 0xff),
        ] {
            assert!(!is_contender(&space, &kv(key, lease)), "{key} {lease}");
        }
    }
}
