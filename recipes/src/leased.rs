//! A key that is kept in place for as long as its owner lives, through lost sessions and whatever others
//! do to it: Curator's `PersistentNode`. For presence that is not an instance of a service.

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::client::Client;
use crate::error::{Error, Result};
pub use crate::keeper::KeptState;
use crate::keeper::{Keeper, Kept, Mark, Plan, Rivals};
use crate::keys::{Key, Revision};
use crate::value::Value;

impl Client {
    /// Keeps a key in place with this value, under a session of its own:
    /// `client.keep("nodes/7", "10.0.0.7:80").await`.
    pub fn keep(&self, key: impl Into<Key>, value: impl Into<Value>) -> Keep {
        Keep {
            client: self.clone(),
            key: key.into(),
            value: value.into(),
            ttl: None,
            rivals: Rivals::TakeBack,
        }
    }
}

/// Starts to keep a key when awaited.
#[must_use = "awaiting the builder starts to keep the key"]
pub struct Keep {
    client: Client,
    key: Key,
    value: Value,
    ttl: Option<Duration>,
    rivals: Rivals,
}

impl Keep {
    /// The time to live of the session, and so of the key once its owner is gone. Default: as for
    /// [`Client::session`].
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Yields when somebody else has the key or writes it: theirs stays, and this is put in place once
    /// they have deleted it. Default: the key is taken back, time and again, with pauses that grow
    /// up to 5 s.
    pub fn yielding(mut self) -> Self {
        self.rivals = Rivals::Yield;
        self
    }

    async fn start(self) -> Result<KeptKey> {
        let value = self.value.into_bytes(&self.key)?;
        let mut session = self.client.session();
        if let Some(ttl) = self.ttl {
            session = session.ttl(ttl);
        }
        let plan = Plan {
            key: self.key.clone(),
            mark: Mark::Leases(Vec::new()),
            entering: self.rivals,
            holding: self.rivals,
            own_session: true,
        };
        let kept = KeptKey {
            key: self.key,
            kept: Keeper::start(session.await?, plan, value, None),
        };
        match kept.wait_for(|state| state != KeptState::Entering).await {
            KeptState::Ended => Err(kept.ended().await),
            _ => Ok(kept),
        }
    }
}

impl IntoFuture for Keep {
    type Output = Result<KeptKey>;
    type IntoFuture = BoxFuture<'static, Result<KeptKey>>;

    /// Opens a session and puts the key in place. Ready once it is there, or has yielded.
    ///
    /// # Errors
    /// As when a session is opened; [`Error::Codec`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// When the future is dropped, the key is removed as soon as it turns out to be there.
    fn into_future(self) -> Self::IntoFuture {
        self.start().boxed()
    }
}

impl fmt::Debug for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keep")
            .field("key", &self.key)
            .field("ttl", &self.ttl)
            .field("rivals", &self.rivals)
            .finish_non_exhaustive()
    }
}

/// A key that is kept in place with its newest value: under a new session when the old one is lost, and
/// again when somebody deletes it or, unless [yielding](Keep::yielding), overwrites it.
///
/// Dropping it removes the key in the background. It is no guard: nothing is excluded by it, and writes
/// are not fenced.
#[must_use = "a dropped kept key is removed at once"]
pub struct KeptKey {
    key: Key,
    kept: Kept,
}

impl KeptKey {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> KeptState {
        self.kept.state()
    }

    /// Waits until it stands as asked for, or has ended, and says how it stands.
    ///
    /// # Cancel safety
    /// Nothing happens when the future is dropped.
    pub async fn wait_for(&self, asked: impl Fn(KeptState) -> bool) -> KeptState {
        self.kept.until(asked).await
    }

    /// Keeps another value from now on, and waits until it is in the store, which may be long when the
    /// key has yielded. Returns the revision. Of several values under way the store may see only the last.
    ///
    /// # Errors
    /// [`Error::Codec`], and then nothing is changed; else why it has ended, as [`KeptKey::ended`] says.
    ///
    /// # Cancel safety
    /// The value stands, and is written, when the future is dropped.
    pub async fn set(&self, value: impl Into<Value>) -> Result<Revision> {
        let value = value.into().into_bytes(&self.key)?;
        let sequence = self.kept.want(value, None);
        self.kept.written(sequence).await
    }

    /// Waits until it has ended without having been asked to, and says why: the store's final refusal.
    ///
    /// # Cancel safety
    /// Nothing happens when the future is dropped.
    pub async fn ended(&self) -> Error {
        match self.kept.ended().await {
            Err(error) => error,
            Ok(()) => Error::Closed,
        }
    }

    /// Removes the key, if it is this one's, and waits until that is done: until the store has said so, of
    /// the key and of every session under which it may still have been on its way.
    ///
    /// # Errors
    /// Why it had ended before; the store's final refusals.
    ///
    /// # Cancel safety
    /// Removing goes on when the future is dropped.
    pub async fn remove(self) -> Result<()> {
        self.kept.end().await
    }
}

impl fmt::Debug for KeptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptKey")
            .field("key", &self.key)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::LeaseId;
    use crate::store::faulty::{Calls, Fault, Outage, Stage};
    use crate::store::{Counting, Faulty, MemStore};

    fn value(store: &MemStore) -> Option<(String, LeaseId)> {
        let kv = store.dump(&crate::keys::KeyRange::one("k")).pop()?;
        Some((
            String::from_utf8(kv.value.to_vec()).unwrap(),
            LeaseId(kv.lease),
        ))
    }

    #[tokio::test(start_paused = true)]
    async fn comes_back_as_it_is_wanted_then() {
        let store = MemStore::new();
        let client = Client::builder(store.clone()).seed(1).build();
        let kept = client.keep("k", "0").await.unwrap();
        for round in 1..20 {
            let (_, lease) = value(&store).unwrap();
            assert!(store.expire(lease));
            let wanted = round.to_string();
            kept.set(wanted.as_str()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(10)).await;
            let (now, next) = value(&store).unwrap();
            assert_eq!(now, wanted);
            assert_ne!(next, lease);
            assert_eq!(kept.state(), KeptState::Kept);
        }
        // Removed at the very moment at which it is being put back.
        for pause in [0, 1, 50, 150] {
            let kept = client.keep("k", "x").yielding().await.unwrap();
            if let Some((_, lease)) = value(&store) {
                assert!(store.expire(lease));
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            drop(kept);
        }
        kept.remove().await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(value(&store), None);
        assert_eq!(store.leases(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn two_that_take_back_do_not_run_hot() {
        let store = MemStore::new();
        let client = Client::new(store.clone());
        let one = client.keep("k", "one").await.unwrap();
        let two = client.keep("k", "two").await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let before = store.revision().0;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let writes = store.revision().0 - before;
        assert!((10..60).contains(&writes), "{writes} writes in a minute");
        one.remove().await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(value(&store).unwrap().0, "two");
        two.remove().await.unwrap();
        assert_eq!(value(&store), None);
    }

    /// Revisions of the key's writes, by anybody.
    fn writes(store: &MemStore) -> usize {
        let history = store.history(Revision(0)).into_iter();
        let of_key = history.filter(|commit| {
            let kvs = commit.changes.iter().filter_map(|event| event.kv.as_ref());
            kvs.into_iter().any(|kv| kv.key == "k" && kv.version > 0)
        });
        of_key.count()
    }

    /// Somebody writes between the claim and the watcher's first listing, which is then of a later
    /// revision than the key's.
    #[tokio::test(start_paused = true)]
    async fn a_listing_later_than_the_claim_is_no_loss() {
        for deleted in [false, true] {
            let store = MemStore::new();
            let faulty = Faulty::new(store.clone());
            let counting = Counting::new(faulty.clone());
            let client = Client::new(counting.clone());
            let other = Client::new(store.clone());
            // The second: the first opens the session.
            let claim = faulty.hold(2, Calls::Txn, Stage::Answered);
            let meanwhile = async {
                claim.reached().await;
                assert!(value(&store).is_some());
                match deleted {
                    true => drop(other.delete("k").await.unwrap()),
                    false => drop(other.put("x", "y").await.unwrap()),
                }
                claim.release();
            };
            let (kept, ()) = tokio::join!(client.keep("k", "v"), meanwhile);
            let kept = kept.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(kept.state(), KeptState::Kept);
            assert_eq!(value(&store).unwrap().0, "v");
            assert_eq!(writes(&store), 1 + usize::from(deleted));
            if !deleted {
                // Opened and claimed: not taken for lost, and claimed again.
                assert_eq!(counting.counts().txn, 2);
            }
            kept.remove().await.unwrap();
        }
    }

    /// The watch was cut after the old key's deletion, and all that happened to the new one is compacted:
    /// the next listing is as the last one was.
    #[tokio::test(start_paused = true)]
    async fn what_came_and_went_between_two_listings_is_seen() {
        for foreign in [false, true] {
            let store = MemStore::new();
            let faulty = Faulty::new(store.clone());
            let client = Client::new(faulty.clone());
            let other = Client::new(store.clone());
            let keep = client.keep("k", "v");
            let kept = match foreign {
                true => keep.yielding().await.unwrap(),
                false => keep.await.unwrap(),
            };
            tokio::time::sleep(Duration::from_secs(1)).await;
            // The first asks whether the session is alive.
            let opening = faulty.hold(2, Calls::Txn, Stage::Answered);
            assert!(store.expire(value(&store).unwrap().1));
            opening.reached().await;
            if foreign {
                other.put("k", "theirs").await.unwrap();
            }
            let claim = faulty.hold(1, Calls::Txn, Stage::Answered);
            opening.release();
            claim.reached().await;
            faulty.cut_watches();
            assert!(other.delete("k").await.unwrap());
            store.compact(store.revision()).unwrap();
            claim.release();
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(kept.state(), KeptState::Kept, "foreign: {foreign}");
            assert_eq!(value(&store).unwrap().0, "v");
        }
    }

    /// The new session expires, for want of answers, with its claim of the key still on the way.
    #[tokio::test(start_paused = true)]
    async fn nothing_on_its_way_puts_a_removed_key_back() {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::new(faulty.clone());
        let kept = client.keep("k", "v").await.unwrap();
        faulty.plan("k", [Fault::Late]);
        assert!(store.expire(value(&store).unwrap().1));
        while faulty.left() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        faulty.disconnect(Outage::Refused);
        let mut remove = Box::pin(kept.remove());
        tokio::select! {
            biased;
            told = &mut remove => panic!("nobody can know: {told:?}"),
            () = tokio::time::sleep(Duration::from_secs(60)) => faulty.reconnect(),
        }
        remove.await.unwrap();
        assert_eq!(faulty.deliver().await, (1, 0));
        assert_eq!(value(&store), None);
    }
}
