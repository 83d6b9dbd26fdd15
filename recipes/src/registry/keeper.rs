//! Keeps one instance registered: writes what its owner wants, opens a new session when the old one
//! is lost, puts a deleted key back, and says farewell at the end. All writes compare the revision
//! of the one before, so no late copy of an older one can take effect.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::watch;

use super::record;
use super::registration::{RegistrationState, Standing, Wanted};
use crate::client::Client;
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, KeyRange, LeaseId, Revision};
use crate::session::{Claim, Claimed, Session};
use crate::store::ops::{self, Compare};
use crate::tasks::Tasks;
use crate::wait::Backoff;
use crate::watch::{Batch, Change, Watcher};

/// The task of one registration.
pub(super) struct Keeper {
    client: Client,
    session: Session,
    ttl: Duration,
    key: Key,
    nonce: String,
    /// Whether the id may be taken from another instance; only until first registered.
    replace: bool,
    wanted: watch::Receiver<Wanted>,
    standing: watch::Sender<Standing>,
    /// The session whose close waits for the farewell.
    awaited_by: Option<LeaseId>,
}

/// Why the instance is not served under the present session any more.
enum Left {
    /// The owner wanted it.
    Deregistered,
    /// The key was deleted by somebody else.
    Deleted,
}

impl Keeper {
    pub(super) fn start(
        session: Session,
        key: Key,
        nonce: String,
        wanted: watch::Receiver<Wanted>,
        replace: bool,
    ) -> watch::Receiver<Standing> {
        let (standing, told) = watch::channel(Standing {
            state: RegistrationState::Registering,
            written: 0,
            revision: Revision(0),
            ended: None,
        });
        let client = session.client().clone();
        let keeper = Self {
            ttl: session.ttl(),
            client,
            session,
            key,
            nonce,
            replace,
            wanted,
            standing,
            awaited_by: None,
        };
        Tasks::current().spawn("registration", keeper.run());
        told
    }

    async fn run(mut self) {
        let outcome = self.keep().await;
        if let Err(error) = &outcome {
            tracing::debug!(key = %self.key, %error, "registration ended");
        }
        self.standing.send_modify(|standing| {
            standing.state = RegistrationState::Ended;
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
        let mut watcher = self.client.watch(KeyRange::one(&self.key));
        loop {
            let registered_before = self.standing.borrow().written > 0;
            let ended = match self.serve(&mut watcher).await {
                Ok(Left::Deregistered) => return Ok(()),
                Ok(Left::Deleted) => None,
                Err(Error::SessionLost(reason)) => Some(reason),
                Err(error) => return Err(error),
            };
            let registered = self.standing.borrow().written > 0;
            match ended {
                Some(reason) if reason == LostReason::Closed || !registered => {
                    return Err(Error::SessionLost(reason));
                }
                _ => {}
            }
            self.standing
                .send_modify(|standing| standing.state = RegistrationState::Recovering);
            tracing::warn!(key = %self.key, reason = ?ended, "registration lost; putting it back");
            if registered_before && !self.pause_unless_leaving(&mut pause).await {
                return Ok(());
            }
            if ended.is_some() && !self.reopen(&mut pause).await? {
                return Ok(());
            }
        }
    }

    /// Registers under the present session, and stays until something ends it.
    async fn serve(&mut self, watcher: &mut Watcher) -> Result<Left> {
        let (mut at, sequence) = self.enter().await?;
        self.replace = false;
        self.farewell_on_close();
        self.publish(at, sequence);
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            if wanted.leave {
                self.leave(at, &wanted.farewell).await?;
                return Ok(Left::Deregistered);
            }
            if wanted.sequence > self.standing.borrow().written {
                at = match self.write_over(at, &wanted.value).await? {
                    Written::At(revision) => revision,
                    Written::Found(None) => return Ok(Left::Deleted),
                    Written::Found(Some(kv)) => return Err(self.taken(&kv)),
                };
                self.publish(at, wanted.sequence);
                continue;
            }
            tokio::select! {
                biased;
                reason = self.session.lost() => {
                    if reason == LostReason::Closed {
                        self.leave(at, &wanted.farewell).await?;
                    }
                    return Err(Error::SessionLost(reason));
                }
                // An error means that the owner is gone, after it has said that it leaves.
                changed = self.wanted.changed() => drop(changed),
                batch = watcher.next() => match self.judge(at, batch?).await? {
                    None => {}
                    Some(left) => return Ok(left),
                }
            }
        }
    }

    fn publish(&self, at: Revision, sequence: u64) {
        self.standing.send_modify(|standing| {
            standing.state = RegistrationState::Registered;
            standing.written = sequence;
            standing.revision = at;
        });
    }

    /// Puts the key in place under the present session. Returns the revision, and what was written.
    async fn enter(&mut self) -> Result<(Revision, u64)> {
        let mut pause = Backoff::between_attempts(&self.client);
        loop {
            let wanted = self.wanted.borrow().clone();
            let claim = Claim::of(self.key.clone(), wanted.value.clone());
            let actor = self.session.actor();
            match actor.claim(claim).await? {
                Claimed::Made { owned, .. } => {
                    let at = owned.revision();
                    owned.disarm();
                    return Ok((at, wanted.sequence));
                }
                Claimed::Refused { existing, .. } => {
                    let Some(kv) = existing.first() else { continue };
                    if !self.replace && !record::is_of(&kv.value, &self.nonce) {
                        return Err(self.taken(kv));
                    }
                    let before = Revision(kv.mod_revision);
                    if let Written::At(at) = self.write_over(before, &wanted.value).await? {
                        return Ok((at, wanted.sequence));
                    }
                }
            }
            pause.pause().await;
        }
    }

    /// Writes over the key as it was written at `at`.
    async fn write_over(&self, at: Revision, value: &Bytes) -> Result<Written> {
        let lease = self.session.lease();
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(&self.key, at).into()],
            success: vec![ops::put(&self.key, value.clone(), Some(lease))],
            failure: vec![ops::read(ops::get(&self.key))],
        };
        let (answer, _) = self.session.actor().repeat(request).await?;
        if answer.succeeded {
            let revision = answer.header.map_or(0, |header| header.revision);
            return Ok(Written::At(Revision(revision)));
        }
        // It carries our nonce, so a value that is equal is an earlier copy of this write.
        Ok(match ops::kvs(&answer.responses, 0).first() {
            Some(kv) if kv.value == *value && kv.lease == lease.0 => {
                Written::At(Revision(kv.mod_revision))
            }
            found => Written::Found(found.cloned()),
        })
    }

    /// Writes the farewell, then deletes the key, so that those who watch know it from a crash.
    async fn leave(&self, at: Revision, farewell: &Bytes) -> Result<()> {
        let Written::At(at) = self.write_over(at, farewell).await? else {
            return Ok(());
        };
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(&self.key, at).into()],
            success: vec![ops::delete(KeyRange::one(&self.key))],
            failure: Vec::new(),
        };
        self.session.actor().repeat(request).await?;
        Ok(())
    }

    /// What a change of the key, last written by us at `at`, means.
    async fn judge(&self, at: Revision, batch: Batch) -> Result<Option<Left>> {
        if batch.revision <= at {
            return Ok(None);
        }
        for change in batch.changes {
            match change {
                Change::Put { kv, .. } if record::is_of(&kv.value, &self.nonce) => {}
                Change::Put { kv, .. } => return Err(self.taken(&kv)),
                Change::Delete { .. } => {
                    // With the lease gone it is the session that is lost.
                    match self.session.actor().verify().await {
                        Err(Error::Store(error)) if error.is_transient() => {}
                        verified => verified?,
                    }
                    return Ok(Some(Left::Deleted));
                }
            }
        }
        Ok(None)
    }

    fn taken(&self, kv: &KeyValue) -> Error {
        Error::Taken {
            key: self.key.clone(),
            lease: LeaseId(kv.lease),
        }
    }

    /// Makes closing the session wait until the farewell is said.
    fn farewell_on_close(&mut self) {
        let lease = self.session.lease();
        if self.awaited_by.replace(lease) == Some(lease) {
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
                    self.session = session;
                    return Ok(true);
                }
                Err(Error::Store(error)) if error.is_transient() => {
                    tracing::debug!(key = %self.key, %error, "no new session yet");
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

/// What became of a write.
enum Written {
    At(Revision),
    /// The key is not as expected but like this; nothing was written.
    Found(Option<KeyValue>),
}

async fn leaving(mut wanted: watch::Receiver<Wanted>) {
    // An error means that the owner is gone, which is the same.
    drop(wanted.wait_for(|wanted| wanted.leave).await);
}
