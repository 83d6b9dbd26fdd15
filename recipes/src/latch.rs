//! A count that others bring down to zero, and that anybody may wait for: "start when all five are
//! ready", "go on when every part is done".

use bytes::Bytes;
use quorate_proto::etcdserverpb::TxnRequest;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace};
use crate::register::{Register, Step};
use crate::session::Session;
use crate::store::{ops, ops::Compare};
use crate::value::{Json, V1, Value, from_json};
use crate::watch::{Change, Watcher};

/// A countdown latch. A handle: cheap to clone, holds nothing. It stays when everybody is gone: a
/// process that died after it counted down has counted.
///
/// Costs: `init` is one transaction; a `count_down` is one, and one more for each time that another
/// was faster, with a read before it; a wait is one read and one watch.
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
/// let session = client.session().await?;
/// let ready = client.latch("ready");
/// ready.init(&session, 5).await?; // all say the same
/// ready.count_down(&session).await?;
/// ready.wait().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct CountdownLatch {
    client: Client,
    key: Key,
    register: Register,
}

/// The value of a latch's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    v: V1,
    /// What it counts down from.
    count: u64,
    /// How many are still to come.
    left: u64,
    /// How often it has come to zero: tells who was cut off that it did, also after a reset.
    opened: u64,
}

impl State {
    fn new(count: u64) -> Self {
        Self {
            v: V1,
            count,
            left: count,
            opened: u64::from(count == 0),
        }
    }

    fn read(key: &Key, value: &Bytes) -> Result<Self> {
        from_json(key.as_bytes(), value)
    }

    fn write(self, key: &Key) -> Result<Bytes> {
        Value::from(Json(self)).into_bytes(key)
    }

    fn counted_down(self) -> Option<Self> {
        let left = self.left.checked_sub(1)?;
        Some(Self {
            left,
            opened: self.opened + u64::from(left == 0),
            ..self
        })
    }

    fn again(self) -> Self {
        Self {
            left: self.count,
            opened: self.opened + u64::from(self.count == 0),
            ..self
        }
    }
}

impl CountdownLatch {
    pub(crate) fn new(client: Client, name: &str) -> Self {
        Self {
            client,
            key: KeySpace::of("latch", name).key("state"),
            register: Register::default(),
        }
    }

    /// The key that has the count.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Sets the latch up to count down from `count`, unless that was done before: whoever comes first
    /// does it, and everybody may call it. Trouble with the store is waited out.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when it was set up with another count; [`Error::SessionLost`];
    /// [`Error::Codec`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// When the future is dropped, it may be set up or not.
    pub async fn init(&self, session: &Session, count: u64) -> Result<()> {
        session.belongs_to(&self.client)?;
        let value = State::new(count).write(&self.key)?;
        let request = TxnRequest {
            compare: vec![Compare::absent(&self.key).into()],
            success: vec![ops::put(&self.key, value, None)],
            failure: vec![ops::read(ops::get(&self.key))],
        };
        // Only made once and never deleted, so a late copy finds it there.
        let actor = session.actor();
        let answer = actor.run(|actor| async move { Ok(actor.repeat(request).await?.0) });
        let answer = answer.await?;
        let Some(kv) = ops::kvs(&answer.responses, 0).first() else {
            return Ok(());
        };
        let stored = State::read(&self.key, &kv.value)?.count;
        if stored == count {
            return Ok(());
        }
        Err(Error::Mismatch {
            key: self.key.clone(),
            wanted: count.to_string(),
            stored: stored.to_string(),
        })
    }

    /// Counts one down, exactly once, and returns how many are left. At zero it stays zero. Waits
    /// until the latch is set up.
    ///
    /// # Errors
    /// [`Error::SessionLost`], [`Error::Codec`] and the store's final refusals: not counted.
    /// [`Error::OutcomeUnknown`] when the session ended with an answer still to come.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: what is on its way counts once or not at all.
    pub async fn count_down(&self, session: &Session) -> Result<u64> {
        self.update(session, State::counted_down).await
    }

    /// Closes the latch again, with the count that it was set up with. Who waits for a round that has
    /// come to zero is let go; who waits for one that has not waits on. Waits until the latch is set
    /// up. Whether everybody has passed is for the caller to know.
    ///
    /// # Errors
    /// As [`CountdownLatch::count_down`].
    ///
    /// # Cancel safety
    /// As [`CountdownLatch::count_down`].
    pub async fn reset(&self, session: &Session) -> Result<()> {
        self.update(session, |state| Some(state.again())).await?;
        Ok(())
    }

    /// How many are left; `None`: not set up yet. Needs no session.
    ///
    /// # Errors
    /// [`Error::Codec`]; the store's.
    pub async fn count(&self) -> Result<Option<u64>> {
        let kv = self.client.get(&self.key).await?;
        let state = kv.map(|kv| State::read(&self.key, &kv.value)).transpose()?;
        Ok(state.map(|state| state.left))
    }

    /// Waits until the count comes to zero, or returns at once if it is zero. Waits for a latch that
    /// is not set up. Needs no session. The end of a watch opens nothing: it looks again.
    ///
    /// # Errors
    /// [`Error::Codec`]; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is left behind when the future is dropped.
    pub async fn wait(&self) -> Result<()> {
        let mut opened = None;
        self.until(|state| state.left == 0 || state.opened > *opened.get_or_insert(state.opened))
            .await
    }

    /// Changes the state as `change` says; `None` leaves it. Returns how many are left.
    async fn update(
        &self,
        session: &Session,
        change: impl Fn(State) -> Option<State>,
    ) -> Result<u64> {
        loop {
            let step = |value: Option<&Bytes>| {
                let Some(value) = value else {
                    return Ok(Step::Leave(None));
                };
                let state = State::read(&self.key, value)?;
                Ok(match change(state) {
                    Some(next) => Step::Write(next.write(&self.key)?, Some(next.left)),
                    None => Step::Leave(Some(state.left)),
                })
            };
            let left = self
                .register
                .update(&self.client, session, &self.key, step)
                .await?;
            if let Some(left) = left {
                return Ok(left);
            }
            tokio::select! {
                biased;
                reason = session.lost() => return Err(Error::SessionLost(reason)),
                there = self.until(|_| true) => there?,
            }
        }
    }

    /// Follows the state until `done` is satisfied.
    async fn until(&self, mut done: impl FnMut(&State) -> bool) -> Result<()> {
        let mut watcher: Watcher = self.client.watch(KeyRange::one(&self.key));
        loop {
            for change in watcher.next().await?.changes {
                if let Change::Put { kv, .. } = change
                    && done(&State::read(&self.key, &kv.value)?)
                {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::faulty::{Calls, Stage};
    use crate::store::{Faulty, MemStore, Rates};

    #[test]
    fn counts_down_to_zero_and_no_further() {
        let mut state = State::new(2);
        let mut seen = Vec::new();
        while let Some(next) = state.counted_down() {
            seen.push((next.left, next.opened));
            state = next;
        }
        assert_eq!(seen, [(1, 0), (0, 1)]);
        state = state.again();
        assert_eq!((state.left, state.opened), (2, 1));
        let none = State::new(0);
        assert_eq!((none.left, none.opened), (0, 1));
        assert_eq!(none.again().opened, 2);
    }

    #[test]
    fn the_state_is_what_the_documentation_says() {
        let key = Key::from("k");
        let value = State::new(5).write(&key).unwrap();
        assert_eq!(value, r#"{"v":1,"count":5,"left":5,"opened":0}"#);
        assert_eq!(State::read(&key, &value).unwrap(), State::new(5));
        assert!(State::read(&key, &"5".into()).is_err());
    }

    /// Calls fail at random, watches end, revisions are compacted: it opens when the last one has
    /// counted, and not before.
    #[tokio::test(start_paused = true)]
    async fn nobody_passes_early() {
        for seed in 0..40 {
            let store = MemStore::new();
            let party = |worker: u64| {
                let store = store.clone();
                async move {
                    let faulty = Faulty::new(store.clone());
                    let client = Client::builder(faulty.clone()).seed(seed * 10 + worker);
                    let client = client.build();
                    let session = client.session().ttl(Duration::from_secs(60));
                    let session = session.await.unwrap();
                    faulty.fail_at_random(seed * 10 + worker, Rates::evenly(0.3));
                    let latch = client.latch("l");
                    if worker != 1 {
                        latch.init(&session, 12).await.unwrap();
                    }
                    for _ in 0..4 {
                        latch.count_down(&session).await.unwrap();
                        drop(store.compact(store.revision()));
                    }
                    latch.wait().await.unwrap();
                    assert_eq!(latch.count().await.unwrap_or(Some(0)), Some(0));
                    faulty.fail_at_random(0, Rates::NONE);
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
            };
            tokio::join!(party(0), party(1), party(2));
            let kv = Client::new(store.clone())
                .get("quorate/latch/l/state")
                .await;
            let state = State::read(&"k".into(), &kv.unwrap().unwrap().value).unwrap();
            assert_eq!((state.left, state.opened), (0, 1), "seed {seed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_anywhere() {
        for stage in [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered] {
            for nth in 1.. {
                let store = MemStore::new();
                let faulty = Faulty::new(store.clone());
                let client = Client::builder(faulty.clone()).seed(1).build();
                let session = client.session().await.unwrap();
                let latch = client.latch("l");
                let held = faulty.hold(nth, Calls::Any, stage);
                let work = async {
                    latch.init(&session, 2).await.unwrap();
                    latch.count_down(&session).await.unwrap();
                };
                let finished = tokio::select! {
                    biased;
                    () = held.reached() => false,
                    () = work => true,
                };
                held.release();
                tokio::time::sleep(Duration::from_secs(20)).await;
                latch.init(&session, 2).await.unwrap();
                let left = latch.count_down(&session).await.unwrap();
                assert!(left <= 1, "{nth} {stage:?}");
                latch.count_down(&session).await.unwrap();
                latch.wait().await.unwrap();
                if finished {
                    assert_eq!(left, 0);
                    break;
                }
            }
        }
    }
}
