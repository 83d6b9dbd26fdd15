//! Getting permits from the store: a grant is a key attached to a lease of its own that nobody renews,
//! so the store itself takes it away once its permits no longer count. One transaction adds a grant,
//! provided that no other was added since all of them were read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

use super::block::Block;
use super::pace::Pace;
use super::rule::Rule;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, LeaseId, Revision};
use crate::session::Actor;
use crate::store::ops::{self, Compare};
use crate::store::{Lease, StoreError};
use crate::value::{Json, V1, Value, from_json};
use crate::wait::Backoff;

/// What became of a request for permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// They were granted.
    Granted,
    /// At this revision there was no room for them.
    Full { seen: Revision },
}

/// The grants of a rate limiter, and its rule as this handle has it.
#[derive(Debug, Clone)]
pub(super) struct Grants {
    client: Client,
    space: KeySpace,
    rule: Rule,
    /// Shared by the handle's clones.
    pace: Arc<Pace>,
}

/// The value of a grant's key.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    v: V1,
    permits: u32,
}

/// What was read of the limiter at one revision.
struct Look {
    seen: Revision,
    /// The rule's mod revision.
    rule_at: Revision,
    /// The permits that count.
    counted: u64,
}

impl Grants {
    pub(super) fn new(client: Client, space: KeySpace, rule: Rule) -> Self {
        Self {
            client,
            space,
            rule,
            pace: Arc::default(),
        }
    }

    pub(super) fn with_rule(&self, rule: Rule) -> Self {
        Self {
            rule,
            ..self.clone()
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn prefix(&self) -> &str {
        self.space.prefix()
    }

    pub(super) fn rule(&self) -> Rule {
        self.rule
    }

    fn rule_key(&self) -> Key {
        self.space.key("rule")
    }

    fn grants(&self) -> KeySpace {
        self.space.child("grant")
    }

    pub(super) fn range(&self) -> KeyRange {
        self.grants().range()
    }

    /// Gets at least `least` permits, `most` where there is room, unless there is no room. The block is
    /// handed to `give` before this returns. To be called inside [`Actor::run`].
    pub(super) async fn ask(
        &self,
        actor: &Actor,
        least: u32,
        most: u32,
        give: impl Fn(Block),
    ) -> Result<Asked> {
        self.rule.check()?;
        let mut pause = Backoff::contended(&self.client);
        loop {
            let look = self.look(actor).await?;
            let room = u64::from(self.rule.limit).saturating_sub(look.counted);
            let room = u32::try_from(room).unwrap_or(u32::MAX);
            if room < least {
                return Ok(Asked::Full { seen: look.seen });
            }
            let usable = self.pace.usable(self.rule);
            let block = Block::asked_now(&self.client, most.min(room), usable);
            let lease = self.lease(actor, self.rule.per + usable).await?;
            let granted = self.add(actor, &look, lease, block.left()).await;
            match granted {
                Ok(true) if block.is_usable(&self.client) => {
                    self.pace.in_time(block.age(&self.client), usable);
                    give(block);
                    return Ok(Asked::Granted);
                }
                Ok(true) => {
                    // The next one is to be usable for longer than this one took.
                    self.pace.late(usable);
                    self.end(actor, lease).await?;
                }
                // Nobody uses it: it need not count.
                Ok(false) => self.end(actor, lease).await?,
                Err(error) => {
                    // What is on its way must not count for long, and cannot land any more.
                    drop(self.end(actor, lease).await);
                    return Err(error);
                }
            }
            pause.pause().await;
        }
    }

    /// The rule, made if there is none, and the permits that count.
    async fn look(&self, actor: &Actor) -> Result<Look> {
        let key = self.rule_key();
        loop {
            let (seen, rule, grants) = self.read(actor).await?;
            let Some(kv) = rule else {
                self.make_rule(actor).await?;
                continue;
            };
            let stored = Rule::read(&kv)?;
            if stored != self.rule {
                return Err(Error::Mismatch {
                    key,
                    wanted: self.rule.to_string(),
                    stored: stored.to_string(),
                });
            }
            let mut counted = 0;
            for kv in &grants {
                let record: Record = from_json(&kv.key, &kv.value)?;
                counted += u64::from(record.permits);
            }
            return Ok(Look {
                seen,
                rule_at: Revision(kv.mod_revision),
                counted,
            });
        }
    }

    /// The rule and all grants, as they were at one revision.
    async fn read(&self, actor: &Actor) -> Result<(Revision, Option<KeyValue>, Vec<KeyValue>)> {
        let request = TxnRequest {
            success: vec![
                ops::read(ops::get(self.rule_key())),
                ops::read(ops::range(self.range())),
            ],
            ..Default::default()
        };
        let (answer, _) = actor.repeat(request).await?;
        let seen = Revision(answer.header.map_or(0, |header| header.revision));
        let rule = ops::kvs(&answer.responses, 0).first().cloned();
        Ok((seen, rule, ops::kvs(&answer.responses, 1).to_vec()))
    }

    async fn make_rule(&self, actor: &Actor) -> Result<()> {
        let key = self.rule_key();
        let value = self.rule.write(&key, self.client.nonce())?;
        let request = TxnRequest {
            compare: vec![Compare::absent(&key).into()],
            success: vec![ops::put(&key, value, None)],
            failure: Vec::new(),
        };
        actor.repeat(request).await.map(drop)
    }

    /// A fresh lease of this time to live.
    async fn lease(&self, actor: &Actor, ttl: Duration) -> Result<LeaseId> {
        let Lease {
            id, ttl: granted, ..
        } = actor.grant_apart(ttl).await?;
        if granted < ttl {
            let why = format!("the store grants {granted:?} of {ttl:?}");
            return Err(Error::Invalid(why));
        }
        Ok(id)
    }

    /// Adds a grant on `lease` if nothing was added since the look. Returns whether it is there: false
    /// only when it is not and, unless the lease lives on, never will be.
    async fn add(&self, actor: &Actor, look: &Look, lease: LeaseId, permits: u32) -> Result<bool> {
        let key = self.grants().key(&lease.to_string());
        let record = Record { v: V1, permits };
        let value: Bytes = Value::from(Json(record)).into_bytes(&key)?;
        let request = TxnRequest {
            compare: vec![
                Compare::unwritten_since(self.range(), look.seen).into(),
                Compare::mod_revision(self.rule_key(), look.rule_at).into(),
            ],
            success: vec![ops::put(&key, value, Some(lease))],
            failure: vec![ops::read(ops::get(&key))],
        };
        let mut pause = Backoff::between_attempts(&self.client);
        loop {
            // Not through the actor: a lease that is gone would be taken for the session's.
            actor.check()?;
            let error = match self.client.store().txn(request.clone()).await {
                Ok(answer) if answer.succeeded => return Ok(true),
                // An earlier copy is what has been written since the look, or another process is.
                Ok(answer) => return Ok(!ops::kvs(&answer.responses, 0).is_empty()),
                Err(StoreError::LeaseNotFound) => return Ok(false),
                Err(error) => error,
            };
            if !error.is_transient() {
                return Err(error.into());
            }
            pause.pause().await;
        }
    }

    /// Ends a grant that nobody uses, together with its lease. The lease goes by itself if the store
    /// is out of reach.
    async fn end(&self, actor: &Actor, lease: LeaseId) -> Result<()> {
        let mut pause = Backoff::between_attempts(&self.client);
        loop {
            match self.client.store().lease_revoke(lease).await {
                Ok(()) | Err(StoreError::LeaseNotFound) => return Ok(()),
                Err(error) if error.is_transient() => {
                    actor.check()?;
                    pause.pause().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Puts this handle's rule in the place of the one stored.
    pub(super) async fn set_rule(&self, actor: &Actor) -> Result<()> {
        self.rule.check()?;
        let key = self.rule_key();
        let mut pause = Backoff::contended(&self.client);
        loop {
            let (_, stored, _) = self.read(actor).await?;
            let at = Revision(stored.as_ref().map_or(0, |kv| kv.mod_revision));
            if let Some(kv) = &stored
                && Rule::read(kv)? == self.rule
            {
                return Ok(());
            }
            let value = self.rule.write(&key, self.client.nonce())?;
            let request = TxnRequest {
                compare: vec![Compare::mod_revision(&key, at).into()],
                success: vec![ops::put(&key, value.clone(), None)],
                failure: vec![ops::read(ops::get(&key))],
            };
            let (answer, repeated) = actor.repeat(request).await?;
            let now = ops::kvs(&answer.responses, 0).first();
            if answer.succeeded || now.is_some_and(|kv| kv.value == value) {
                return Ok(());
            }
            if repeated {
                return Err(Error::OutcomeUnknown(format!(
                    "{key} may have been changed, and changed again since"
                )));
            }
            pause.pause().await;
        }
    }
}
