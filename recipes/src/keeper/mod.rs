//! Keeps one key as its owner wants it: opens a new session when the old one is lost, puts a deleted key
//! back, and takes it away at the end. All writes compare the revision of the one before, so no late
//! copy of an older one can take effect. Under the registry and kept keys.

mod kept;

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::watch;

pub use self::kept::KeptState;
pub(crate) use self::kept::{Kept, Wants};
use self::kept::{Standing, Wanted};
use crate::client::Client;
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, KeyRange, LeaseId, Revision};
use crate::session::{Actor, Claim, Claimed, Session};
use crate::store::ops::{self, Compare};
use crate::tasks::Tasks;
use crate::wait::Backoff;
use crate::watch::Watcher;

/// A key that was in place for this long is put back at once when it is lost.
const SETTLED: Duration = Duration::from_secs(60);

/// What is done about a key that somebody else has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rivals {
    /// It is left to them, for good.
    End,
    /// It is written over.
    TakeBack,
    /// It is left to them until they delete it.
    Yield,
}

/// How the owner's own writes are known from those of others.
#[derive(Debug)]
pub(crate) enum Mark {
    /// The value carries this nonce, and the function finds it.
    Nonce(String, fn(&[u8], &str) -> bool),
    /// It hangs on one of these leases, which have no other keys.
    Leases(Vec<LeaseId>),
}

impl Mark {
    /// Most leases that are remembered; the keys of older ones have gone with them.
    const LEASES_MOST: usize = 16;

    fn is_on(&self, kv: &KeyValue) -> bool {
        match self {
            Self::Nonce(nonce, find) => find(&kv.value, nonce),
            Self::Leases(leases) => leases.contains(&LeaseId(kv.lease)),
        }
    }

    /// Whether a write that came after our last one, and so is somebody else's, leaves the key ours.
    fn stays_on(&self, kv: &KeyValue) -> bool {
        matches!(self, Self::Nonce(..)) && self.is_on(kv)
    }

    fn add(&mut self, lease: LeaseId) {
        if let Self::Leases(leases) = self {
            if leases.len() == Self::LEASES_MOST {
                leases.remove(0);
            }
            leases.push(lease);
        }
    }
}

/// What is kept, and how.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) key: Key,
    pub(crate) mark: Mark,
    /// Who is found there at first.
    pub(crate) entering: Rivals,
    /// Who comes later.
    pub(crate) holding: Rivals,
    /// The session serves this key alone. Otherwise its closing is the owner's wish to leave, and its
    /// loss before the key was ever there is the owner's trouble.
    pub(crate) own_session: bool,
}

/// The task of one key.
pub(crate) struct Keeper {
    client: Client,
    session: Session,
    ttl: Duration,
    plan: Plan,
    wanted: watch::Receiver<Wanted>,
    standing: watch::Sender<Standing>,
    /// The sessions before, those that are not gone yet.
    lost: Vec<Actor>,
    /// The session whose close waits for the farewell.
    awaited_by: Option<LeaseId>,
}

/// Why the key is not kept under the present session any more.
enum Left {
    /// The owner wanted it.
    Asked,
    /// The key was deleted by somebody else.
    Deleted,
    /// The key was written by somebody else.
    Overwritten(KeyValue),
}

/// What became of a write.
enum Written {
    At(Revision),
    /// The key is not as expected but like this; nothing was written.
    Found(Option<KeyValue>),
}

impl Keeper {
    /// Starts to keep the key, with a first value that has the number 1.
    pub(crate) fn start(
        session: Session,
        plan: Plan,
        value: Bytes,
        farewell: Option<Bytes>,
    ) -> Kept {
        let (want, wanted) = watch::channel(Wanted {
            sequence: 1,
            value,
            farewell,
            leave: false,
        });
        let (tell, standing) = watch::channel(Standing {
            state: KeptState::Entering,
            written: 0,
            revision: Revision(0),
            ended: None,
        });
        let mut keeper = Self {
            ttl: session.ttl(),
            client: session.client().clone(),
            plan,
            session,
            wanted,
            standing: tell,
            lost: Vec::new(),
            awaited_by: None,
        };
        keeper.plan.mark.add(keeper.session.lease());
        Tasks::current().spawn("keeper", keeper.run());
        Kept::new(want, standing)
    }

    async fn run(mut self) {
        let outcome = self.keep().await;
        if outcome.is_ok() {
            self.outlast_lost_sessions().await;
        }
        if let Err(error) = &outcome {
            tracing::debug!(key = %self.plan.key, %error, "key not kept any more");
        }
        self.standing.send_modify(|standing| {
            standing.state = KeptState::Ended;
            standing.ended = Some(outcome);
        });
    }

    async fn keep(&mut self) -> Result<()> {
        let mut pause = Backoff::new(
            &self.client,
            Duration::from_millis(100),
            Duration::from_secs(5),
        );
        // Follows the key, to see what others do to it.
        let mut watcher = self.client.watch(KeyRange::one(&self.plan.key));
        loop {
            let (entered_before, since) = (self.has_entered(), self.client.now());
            let ended = match self.serve(&mut watcher).await {
                Ok(Left::Asked) => return Ok(()),
                Ok(Left::Overwritten(kv)) if self.plan.holding == Rivals::End => {
                    return Err(self.taken(&kv));
                }
                Ok(Left::Deleted | Left::Overwritten(_)) => None,
                Err(Error::SessionLost(reason)) => Some(reason),
                Err(error) => return Err(error),
            };
            let gives_up = !self.plan.own_session && !self.has_entered();
            match ended {
                Some(reason) if reason == LostReason::Closed || gives_up => {
                    return Err(Error::SessionLost(reason));
                }
                _ => {}
            }
            self.tell(KeptState::Recovering);
            tracing::warn!(key = %self.plan.key, reason = ?ended, "key lost; putting it back");
            if self.client.now() - since > SETTLED {
                pause.reset();
            }
            // Only the first time at once.
            let again = entered_before || !self.has_entered();
            if again && !self.pause_unless_leaving(&mut pause).await
                || ended.is_some() && !self.reopen(&mut pause).await?
            {
                return Ok(());
            }
        }
    }

    fn has_entered(&self) -> bool {
        self.standing.borrow().written > 0
    }

    fn tell(&self, state: KeptState) {
        self.standing.send_modify(|standing| standing.state = state);
    }

    /// Puts the key in place under the present session, and stays until something ends it.
    async fn serve(&mut self, watcher: &mut Watcher) -> Result<Left> {
        let Some((mut at, sequence)) = self.enter(watcher).await? else {
            return Ok(Left::Asked);
        };
        self.farewell_on_close();
        self.publish(at, sequence);
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            if wanted.leave {
                self.leave(at, wanted.farewell.as_ref()).await?;
                return Ok(Left::Asked);
            }
            if wanted.sequence > self.standing.borrow().written {
                at = match self.write_over(at, &wanted.value).await? {
                    Written::At(revision) => revision,
                    Written::Found(None) => return Ok(Left::Deleted),
                    Written::Found(Some(kv)) => return Ok(Left::Overwritten(kv)),
                };
                self.publish(at, wanted.sequence);
                continue;
            }
            tokio::select! {
                biased;
                reason = self.session.lost() => {
                    if reason == LostReason::Closed {
                        self.leave(at, wanted.farewell.as_ref()).await?;
                    }
                    return Err(Error::SessionLost(reason));
                }
                // An error means that the owner is gone, after it has said that it leaves.
                changed = self.wanted.changed() => drop(changed),
                batch = watcher.next() => {
                    let now = self.known(watcher);
                    if let Some(left) = self.judge(at, batch?.revision, now).await? {
                        return Ok(left);
                    }
                }
            }
        }
    }

    fn publish(&self, at: Revision, sequence: u64) {
        self.standing.send_modify(|standing| {
            standing.state = KeptState::Kept;
            standing.written = sequence;
            standing.revision = at;
        });
    }

    /// Puts the key in place under the present session. Returns the revision, and the number of what was
    /// written; nothing when the owner has left meanwhile.
    async fn enter(&mut self, watcher: &mut Watcher) -> Result<Option<(Revision, u64)>> {
        let mut pause = Backoff::between_attempts(&self.client);
        loop {
            let wanted = self.wanted.borrow().clone();
            // With a farewell to say the key is put in place once more, to be seen to leave.
            if wanted.leave && wanted.farewell.is_none() {
                return Ok(None);
            }
            let claim = Claim::of(self.plan.key.clone(), wanted.value.clone());
            let actor = self.session.actor();
            match actor.claim(claim).await? {
                Claimed::Made { owned, .. } => {
                    let at = owned.revision();
                    owned.disarm();
                    return Ok(Some((at, wanted.sequence)));
                }
                Claimed::Refused {
                    existing, revision, ..
                } => {
                    let Some(kv) = existing.first() else {
                        pause.pause().await;
                        continue;
                    };
                    let rivals = match self.has_entered() {
                        true => self.plan.holding,
                        false => self.plan.entering,
                    };
                    match rivals {
                        _ if self.plan.mark.is_on(kv) => {}
                        Rivals::TakeBack => {}
                        Rivals::End => return Err(self.taken(kv)),
                        Rivals::Yield => {
                            if !self.until_changed(watcher, kv, revision).await? {
                                return Ok(None);
                            }
                            pause.pause().await;
                            continue;
                        }
                    }
                    let before = Revision(kv.mod_revision);
                    if let Written::At(at) = self.write_over(before, &wanted.value).await? {
                        return Ok(Some((at, wanted.sequence)));
                    }
                }
            }
            pause.pause().await;
        }
    }

    /// Waits while somebody else has the key, until it is no longer `kv`, as it was at `seen`. False when
    /// the owner leaves.
    async fn until_changed(
        &self,
        watcher: &mut Watcher,
        kv: &KeyValue,
        seen: Revision,
    ) -> Result<bool> {
        self.tell(KeptState::Yielded);
        loop {
            tokio::select! {
                biased;
                () = leaving(self.wanted.clone()) => return Ok(false),
                reason = self.session.lost() => return Err(Error::SessionLost(reason)),
                batch = watcher.next() => {
                    let now = self.known(watcher).map(|now| now.mod_revision);
                    if batch?.revision > seen && now != Some(kv.mod_revision) {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Writes over the key as it was written at `at`.
    async fn write_over(&self, at: Revision, value: &Bytes) -> Result<Written> {
        let (key, lease) = (&self.plan.key, self.session.lease());
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(key, at).into()],
            success: vec![ops::put(key, value.clone(), Some(lease))],
            failure: vec![ops::read(ops::get(key))],
        };
        let (answer, _) = self.session.actor().repeat(request).await?;
        if answer.succeeded {
            let revision = answer.header.map_or(0, |header| header.revision);
            return Ok(Written::At(Revision(revision)));
        }
        // It carries our mark, so a value that is equal is an earlier copy of this write.
        Ok(match ops::kvs(&answer.responses, 0).first() {
            Some(kv) if kv.value == *value && kv.lease == lease.0 => {
                Written::At(Revision(kv.mod_revision))
            }
            found => Written::Found(found.cloned()),
        })
    }

    /// Deletes the key, the farewell first if there is one, so that those who watch know it from a crash.
    async fn leave(&self, mut at: Revision, farewell: Option<&Bytes>) -> Result<()> {
        if let Some(farewell) = farewell {
            match self.write_over(at, farewell).await? {
                Written::At(revision) => at = revision,
                Written::Found(_) => return Ok(()),
            }
        }
        self.session.actor().repeat(self.deletion(at)).await?;
        Ok(())
    }

    fn deletion(&self, at: Revision) -> TxnRequest {
        TxnRequest {
            compare: vec![Compare::mod_revision(&self.plan.key, at).into()],
            success: vec![ops::delete(KeyRange::one(&self.plan.key))],
            failure: Vec::new(),
        }
    }

    /// Waits until the sessions that were lost are gone: until then a claim of theirs whose answer was lost
    /// may still put the key in place, or the key be there.
    async fn outlast_lost_sessions(&self) {
        for session in &self.lost {
            session.until_gone().await;
        }
        // Closing waits for this keeper, which has nothing on its way then.
        match self.session.check() {
            Ok(()) | Err(Error::SessionLost(LostReason::Closed)) => {}
            Err(_) => self.session.actor().until_gone().await,
        }
    }

    /// What is known of the key after a batch of this revision, when our last write of it was at `at`.
    /// Changes are not asked: what came and went between two listings shows in none.
    async fn judge(
        &self,
        at: Revision,
        seen: Revision,
        now: Option<KeyValue>,
    ) -> Result<Option<Left>> {
        if seen <= at {
            return Ok(None);
        }
        let Some(kv) = now else {
            // With the lease gone it is the session that is lost.
            match self.session.actor().verify().await {
                Err(Error::Store(error)) if error.is_transient() => {}
                verified => verified?,
            }
            return Ok(Some(Left::Deleted));
        };
        let ours = kv.mod_revision <= at.0 || self.plan.mark.stays_on(&kv);
        Ok((!ours).then_some(Left::Overwritten(kv)))
    }

    /// The key as the watcher knows it, at the revision of its last batch or later.
    fn known(&self, watcher: &Watcher) -> Option<KeyValue> {
        watcher.known().get(self.plan.key.as_bytes()).cloned()
    }

    fn taken(&self, kv: &KeyValue) -> Error {
        Error::Taken {
            key: self.plan.key.clone(),
            lease: LeaseId(kv.lease),
        }
    }

    /// Makes closing the session wait until the farewell is said.
    fn farewell_on_close(&mut self) {
        let lease = self.session.lease();
        if self.plan.own_session || self.awaited_by.replace(lease) == Some(lease) {
            return;
        }
        let mut standing = self.standing.subscribe();
        let lost = self.session.lost();
        self.session.actor().spawn("farewell", async move {
            let ended = async {
                drop(standing.wait_for(|standing| standing.ended.is_some()).await);
            };
            tokio::pin!(ended);
            tokio::select! {
                biased;
                () = &mut ended => {}
                reason = lost => {
                    if reason == LostReason::Closed {
                        ended.await;
                    }
                }
            }
        });
    }

    /// Opens a session in the place of the lost one. False when the owner left meanwhile.
    async fn reopen(&mut self, pause: &mut Backoff) -> Result<bool> {
        loop {
            if self.wanted.borrow().leave {
                return Ok(false);
            }
            let opened = tokio::select! {
                biased;
                opened = self.client.session().ttl(self.ttl) => opened,
                () = leaving(self.wanted.clone()) => return Ok(false),
            };
            match opened {
                Ok(session) => {
                    self.plan.mark.add(session.lease());
                    self.lost.retain(|before| before.gone().get().is_none());
                    self.lost.push(self.session.actor().clone());
                    self.session = session;
                    return Ok(true);
                }
                Err(Error::Store(error)) if error.is_transient() => {
                    tracing::debug!(key = %self.plan.key, %error, "no new session yet");
                }
                Err(error) => return Err(error),
            }
            if !self.pause_unless_leaving(pause).await {
                return Ok(false);
            }
        }
    }

    /// False when the owner wants to leave.
    async fn pause_unless_leaving(&self, pause: &mut Backoff) -> bool {
        tokio::select! {
            biased;
            () = pause.pause() => true,
            () = leaving(self.wanted.clone()) => false,
        }
    }
}

async fn leaving(mut wanted: watch::Receiver<Wanted>) {
    // An error means that the owner is gone, which is the same.
    drop(wanted.wait_for(|wanted| wanted.leave).await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Instance;
    use crate::store::faulty::{Calls, Stage};
    use crate::store::{Faulty, MemStore};

    #[tokio::test(start_paused = true)]
    async fn leaving_and_closing_do_not_wait_for_each_other() {
        let faulty = Faulty::new(MemStore::new());
        let client = Client::new(faulty.clone());
        let session = client.session().await.unwrap();
        let instance = Instance::builder("s").address("10.0.0.7:80").build();
        let registration = session.register(instance).await.unwrap();
        let leaving = faulty.hold(1, Calls::Txn, Stage::Answered);
        drop(registration);
        leaving.reached().await;
        let start = client.now();
        let later = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            leaving.release();
        };
        let (closed, ()) = tokio::join!(session.close(), later);
        closed.unwrap();
        assert!(client.now() - start < Duration::from_secs(1));
    }
}
