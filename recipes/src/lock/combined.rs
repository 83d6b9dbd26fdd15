//! The queue-ordered lock for many tasks of one process: they queue here, and stand in the store's line
//! as one. A release that finds a task waiting hands the hold on without a word to the store.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::{Fence, Fenced, Hold, Mutex, MutexGuard};
use crate::error::Result;
use crate::session::Session;

/// How often a hold is handed on before others in the store's line get their turn.
const PASSES_MAX: u32 = 16;

/// A [`Mutex`] for the tasks that have clones of this value. They get it in the order of asking among
/// themselves; the store's line sees one contender. After a number of hand-overs the lock is released
/// and taken anew, at the end of the line.
///
/// Tasks that a hold is handed on to have the same fencing token. The hold is handed on only if every
/// transaction under the guard before has been answered for certain, so what a task sent can never
/// take effect in the time of the next one; otherwise, and when a task panics, the lock is released and
/// taken anew.
#[derive(Debug, Clone)]
pub struct CombinedMutex {
    inner: Arc<Inner>,
    passes_max: u32,
}

#[derive(Debug)]
struct Inner {
    mutex: Mutex,
    session: Session,
    waiting: AtomicUsize,
    place: Arc<tokio::sync::Mutex<Place>>,
}

/// What the tasks hand on. Whoever has it locked holds the lock, or is about to.
#[derive(Debug, Default)]
struct Place {
    held: Option<MutexGuard>,
    passes: u32,
}

impl CombinedMutex {
    pub(super) fn new(mutex: Mutex, session: Session) -> Self {
        Self {
            inner: Arc::new(Inner {
                mutex,
                session,
                waiting: AtomicUsize::new(0),
                place: Arc::default(),
            }),
            passes_max: PASSES_MAX,
        }
    }

    /// How often a hold has been handed on, by whomever, when a guard made by this value releases it
    /// instead. Clones made from now on do the same, those from before as they did. Default: 16.
    #[must_use]
    pub fn passes_max(mut self, passes: u32) -> Self {
        self.passes_max = passes;
        self
    }

    /// Waits until the lock is held.
    ///
    /// # Errors
    /// As [`Mutex::lock`].
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`].
    pub async fn lock(&self) -> Result<CombinedGuard> {
        let waiting = Waiting::new(&self.inner);
        let place = Arc::clone(&self.inner.place).lock_owned().await;
        drop(waiting);
        let mut guard = CombinedGuard::new(self, place);
        if !guard.has_hold() {
            guard.take(self.inner.mutex.lock(&self.inner.session).await?);
        }
        Ok(guard)
    }

    /// As [`CombinedMutex::lock`], for at most `limit`; `None` when the time was up before.
    ///
    /// # Errors
    /// As [`Mutex::lock`].
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`].
    pub async fn lock_within(&self, limit: Duration) -> Result<Option<CombinedGuard>> {
        let client = self.inner.session.client();
        let deadline = client.deadline(limit);
        client.before(deadline, self.lock()).await.transpose()
    }

    /// Takes the lock if nobody holds it or waits for it, neither of these tasks nor in the store.
    ///
    /// # Errors
    /// As [`Mutex::try_lock`].
    ///
    /// # Cancel safety
    /// As [`Mutex::try_lock`].
    pub async fn try_lock(&self) -> Result<Option<CombinedGuard>> {
        let Ok(place) = Arc::clone(&self.inner.place).try_lock_owned() else {
            return Ok(None);
        };
        let mut guard = CombinedGuard::new(self, place);
        if !guard.has_hold() {
            match self.inner.mutex.try_lock(&self.inner.session).await? {
                Some(hold) => guard.take(hold),
                None => return Ok(None),
            }
        }
        Ok(Some(guard))
    }
}

impl Inner {
    /// Releases a hold that was left for somebody who has gone. Called after each step that may have
    /// left one: by whoever gives the place up, and by whoever stops waiting for it.
    fn sweep(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return;
        }
        let Ok(mut place) = self.place.try_lock() else {
            return;
        };
        let Some(held) = place.held.take() else {
            return;
        };
        if std::thread::panicking() {
            // It is not the holder that panics: elsewhere, it leaves no mark.
            let actor = held.session().actor().clone();
            actor.spawn("sweep", async move { drop(held) });
        }
    }
}

/// Counts one who waits.
struct Waiting {
    inner: Arc<Inner>,
}

impl Waiting {
    fn new(inner: &Arc<Inner>) -> Self {
        inner.waiting.fetch_add(1, Ordering::SeqCst);
        Self {
            inner: Arc::clone(inner),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.inner.waiting.fetch_sub(1, Ordering::SeqCst);
        self.inner.sweep();
    }
}

/// A held [`CombinedMutex`]; everything a guard can do is in [`Hold`]. Dropping it hands the lock on,
/// or releases it in the background.
#[derive(Debug)]
#[must_use = "a dropped guard gives the lock up at once"]
pub struct CombinedGuard {
    inner: Arc<Inner>,
    passes_max: u32,
    /// `None` once it is given up.
    place: Option<OwnedMutexGuard<Place>>,
}

impl CombinedGuard {
    fn new(combined: &CombinedMutex, mut place: OwnedMutexGuard<Place>) -> Self {
        // One that was lost meanwhile is of no use.
        let is_lost = |held: &mut MutexGuard| held.remaining().is_zero();
        drop(place.held.take_if(is_lost));
        Self {
            inner: Arc::clone(&combined.inner),
            passes_max: combined.passes_max,
            place: Some(place),
        }
    }

    /// Whether the lock was handed on.
    fn has_hold(&self) -> bool {
        self.place
            .as_ref()
            .is_some_and(|place| place.held.is_some())
    }

    /// Puts a hold of the store's in place.
    fn take(&mut self, hold: MutexGuard) {
        let place = self.place.as_mut().expect("it has not been given up");
        place.passes = 0;
        place.held = Some(hold);
    }

    fn held(&self) -> &MutexGuard {
        let held = self.place.as_ref().and_then(|place| place.held.as_ref());
        held.expect("a guard holds until it is given up")
    }

    /// Hands the lock on, or releases it and waits until the store has confirmed.
    ///
    /// # Errors
    /// As [`MutexGuard::release`], when it is released.
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(mut self) -> Result<()> {
        match self.give_up() {
            Some(guard) => guard.release().await,
            None => Ok(()),
        }
    }

    /// Leaves the place, and the hold in it if a task waits for it. Otherwise returns the hold.
    fn give_up(&mut self) -> Option<MutexGuard> {
        let mut place = self.place.take()?;
        let passes_max = self.passes_max;
        let waited_for = self.inner.waiting.load(Ordering::SeqCst) > 0;
        let hand_on = |passes: u32, held: &mut MutexGuard| {
            waited_for
                && passes < passes_max
                && !std::thread::panicking()
                && !held.remaining().is_zero()
                && held.hold_mut().renew_fence()
        };
        let passes = place.passes;
        let released = place.held.take_if(|held| !hand_on(passes, held));
        place.passes += 1;
        drop(place);
        self.inner.sweep();
        released
    }
}

impl Drop for CombinedGuard {
    fn drop(&mut self) {
        drop(self.give_up());
    }
}

impl Deref for CombinedGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        self.held()
    }
}

impl Fenced for CombinedGuard {
    fn fence(&self) -> &Fence {
        self.deref().fence()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests start their own tasks")]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::store::MemStore;

    #[tokio::test(start_paused = true)]
    async fn the_next_task_hears_of_a_request_that_stands() {
        let client = Client::new(MemStore::new());
        let (a, b) = (
            client.session().await.unwrap(),
            client.session().await.unwrap(),
        );
        let mutex = client.mutex("m");
        let combined = mutex.combined(&a);
        let first = combined.lock().await.unwrap();
        let next = tokio::spawn({
            let combined = combined.clone();
            async move {
                let guard = combined.lock().await.unwrap();
                let heard = guard.release_requested().await.unwrap();
                guard.release().await.unwrap();
                heard.reason
            }
        });
        let request = mutex.request_release(&b, "please").await.unwrap().unwrap();
        assert_eq!(first.release_requested().await.unwrap().reason, "please");
        tokio::time::sleep(Duration::from_secs(1)).await;
        first.release().await.unwrap();
        request.granted().await.unwrap();
        assert_eq!(next.await.unwrap(), "please");
    }

    /// Whoever gives the lock up goes by its own number.
    #[tokio::test(start_paused = true)]
    async fn each_clone_has_its_own_number_of_hand_overs() {
        let client = Client::new(MemStore::new());
        let session = client.session().await.unwrap();
        let often = client.mutex("m").combined(&session);
        let never = often.clone().passes_max(0);
        for (giver, handed_on) in [(&often, true), (&never, false)] {
            let first = giver.lock().await.unwrap();
            let token = first.token();
            let next = tokio::spawn({
                let often = often.clone();
                async move { often.lock().await.unwrap().token() }
            });
            tokio::time::sleep(Duration::from_secs(1)).await;
            first.release().await.unwrap();
            assert_eq!(next.await.unwrap() == token, handed_on);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_panics_leaves_no_mark() {
        let client = Client::new(MemStore::new());
        let session = client.session().await.unwrap();
        let mutex = client.mutex("m").poison_on_panic();
        let combined = mutex.combined(&session);
        let first = combined.lock().await.unwrap();
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let waiter = tokio::spawn({
            let combined = combined.clone();
            async move {
                let panics = async {
                    drop(told.await);
                    panic!("on purpose");
                };
                futures::future::join(panics, combined.lock())
                    .await
                    .1
                    .map(drop)
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        // The hold is left for it, and it panics before it takes it.
        drop(tell);
        drop(first);
        assert!(waiter.await.unwrap_err().is_panic());
        let again = combined.lock().await.unwrap();
        assert_eq!(mutex.poison().await.unwrap(), None);
        again.release().await.unwrap();
    }
}
