//! The conditions under which the store still accepts a write in the name of a hold. Every hold has a
//! [`Fence`], every transaction may stand under some.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use quorate_proto::epoch;
use quorate_proto::etcdserverpb::{RangeRequest, ResponseOp};
use quorate_proto::mvccpb::KeyValue;

use crate::client::Client;
use crate::error::{Error, LostReason, Result};
use crate::keys::{EPOCH_KEY, Key, KeyRange, LeaseId, Revision};
use crate::session::Actor;
use crate::store::ops::{self, Compare};

/// The value of the store's epoch key, as a session found it. Putting an older state back under a
/// running system must raise it (`quorate/epoch`, a decimal number); every fence compares it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Epoch {
    written: Option<Bytes>,
    number: u64,
}

impl Epoch {
    /// Reads the epoch key's value; an absent key is epoch 0.
    pub(crate) fn read(kv: Option<&KeyValue>) -> Result<Self> {
        let Some(kv) = kv else {
            return Ok(Self::default());
        };
        match epoch::parse(Some(&kv.value)) {
            Ok(number) => Ok(Self {
                written: Some(kv.value.clone()),
                number,
            }),
            Err(text) => Err(Error::Codec {
                key: EPOCH_KEY.into(),
                reason: format!("not a decimal number: {text:?}"),
            }),
        }
    }

    /// The epoch as a number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The condition that it is the same.
    pub(crate) fn compare(&self) -> Compare {
        match &self.written {
            Some(value) => Compare::value(EPOCH_KEY, value.clone()),
            None => Compare::absent(EPOCH_KEY),
        }
    }
}

/// A number that grows with every new holder of a lock: give it to services outside the store, and
/// let them refuse what comes with a smaller one than they have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken {
    /// The store's epoch; see [`Epoch`].
    pub epoch: u64,
    /// The revision at which the holder's key was created.
    pub revision: Revision,
}

impl FencingToken {
    /// The token as 16 bytes whose order is the order of tokens.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[8..].copy_from_slice(&self.revision.0.to_be_bytes());
        bytes
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

/// The conditions under which a hold still is one: its key exists, created by it, under its lease,
/// in its epoch. Only a guard has one, because while waiting in a queue they hold as well.
#[derive(Debug, Clone)]
pub struct Fence {
    /// Every key of the hold and the revision that created it; the first names the hold.
    pub(super) keys: Vec<(Key, Revision)>,
    pub(super) contenders: Vec<KeyRange>,
    pub(super) actor: Actor,
    pub(super) unsettled: Unsettled,
}

/// How many transactions under a fence have not been answered for certain.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unsettled(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    sent: AtomicUsize,
    /// The store has refused one: the hold is over.
    void: AtomicBool,
}

/// The count of a fence under which nothing may be sent any more.
const CLOSED: usize = usize::MAX;

impl Unsettled {
    /// Notes that one is sent.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the fence is closed.
    pub(crate) fn sent(&self) -> Result<()> {
        let one_more = |count| (count != CLOSED).then(|| count + 1);
        let noted = self
            .0
            .sent
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        noted.map_or(Err(Error::Fenced { owner: None }), |_| Ok(()))
    }

    /// Notes that one has been answered: nothing of it can take effect any more.
    pub(crate) fn settled(&self) {
        self.0.sent.fetch_sub(1, Ordering::AcqRel);
    }

    /// Notes that the store refused one because the hold is over.
    pub(super) fn refused(&self) {
        self.0.void.store(true, Ordering::Release);
    }

    pub(super) fn is_void(&self) -> bool {
        self.0.void.load(Ordering::Acquire)
    }

    /// Lets nothing more be sent, if nothing that was sent can still take effect. Returns whether
    /// that is so.
    pub(super) fn close(&self) -> bool {
        let closed = self
            .0
            .sent
            .compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire);
        closed.is_ok()
    }
}

impl Fence {
    /// The compares to put into a transaction that is not a [`Txn`](crate::Txn). Nobody else than its sender
    /// knows of it then: a [`CombinedMutex`](super::CombinedMutex) may hand the hold on while it is under way.
    #[must_use]
    pub fn compares(&self) -> Vec<Compare> {
        let mut compares = Vec::with_capacity(2 * self.keys.len() + 1);
        for (key, revision) in &self.keys {
            compares.push(Compare::create_revision(key, *revision));
            compares.push(Compare::lease(key, self.lease()));
        }
        compares.push(self.actor.epoch().compare());
        compares
    }

    /// The token that goes with it.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        FencingToken {
            epoch: self.actor.epoch().number(),
            revision: self.revision(),
        }
    }

    /// The hold's key; the first of several.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.keys[0].0
    }

    /// The revision at which the hold began: at which the last of its keys was created.
    #[must_use]
    pub fn revision(&self) -> Revision {
        let newest = self.keys.iter().map(|(_, revision)| *revision).max();
        newest.expect("a hold has a key")
    }

    /// The revision at which the first of its keys was created: what lists of holders show.
    pub(super) fn oldest(&self) -> Revision {
        let oldest = self.keys.iter().map(|(_, revision)| *revision).min();
        oldest.expect("a hold has a key")
    }

    /// The lease that the key is attached to.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.actor.lease()
    }

    /// The ranges that holders and waiters of the same thing live in; at least one.
    pub(crate) fn contenders(&self) -> &[KeyRange] {
        &self.contenders
    }

    pub(crate) fn unsettled(&self) -> &Unsettled {
        &self.unsettled
    }

    /// The reads by which [`Fence::judge`] tells who is at fault.
    pub(crate) fn reads(&self) -> Vec<RangeRequest> {
        let keys = self.keys.iter().map(|(key, _)| ops::get(key));
        let rest = [
            ops::get(EPOCH_KEY),
            ops::oldest(self.contenders[0].clone(), 1),
        ];
        keys.chain(rest).collect()
    }

    /// Fails once the session is lost, and for a client of another store than the session's, where the keys
    /// that it compares are other keys.
    pub(crate) fn check(&self, client: &Client) -> Result<()> {
        self.actor.belongs_to(client)?;
        self.actor.check()
    }

    /// Whether the conditions held for what [`Fence::reads`] found, which comes first in `found`;
    /// if not, who is first in line instead.
    pub(crate) fn judge(&self, found: &[ResponseOp]) -> Result<(), Option<KeyValue>> {
        let read = |index| ops::kvs(found, index).first();
        let held = self
            .keys
            .iter()
            .enumerate()
            .all(|(index, (key, revision))| {
                let kv = read(index);
                Compare::create_revision(key, *revision).holds_for(kv)
                    && Compare::lease(key, self.lease()).holds_for(kv)
            });
        let keys = self.keys.len();
        let same_epoch = self.actor.epoch().compare().holds_for(read(keys));
        if held && same_epoch {
            return Ok(());
        }
        if held {
            // Nothing under the session can be written any more, whatever it still has.
            self.actor.lose(LostReason::StoreReplaced);
        }
        self.unsettled.refused();
        let own = |kv: &&KeyValue| self.keys.iter().any(|(key, _)| kv.key == *key.as_bytes());
        Err(read(keys + 1).filter(|kv| !own(kv)).cloned())
    }
}

/// Anything that is held: a lock, a leadership, a claim.
pub trait Fenced {
    /// The conditions under which it is still held.
    fn fence(&self) -> &Fence;
}
