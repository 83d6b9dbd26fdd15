//! Who may talk to whom: every call between members starts with a handshake that is checked here.
//!
//! A wrong address, a connection to oneself, another cluster, a removed member, and a member that
//! lost its data and came back under its old id are all refused before any message is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_proto::peer as pb;
use tokio::sync::Notify;
use tracing::{info, warn};
use uuid::Uuid;

use super::PeerError;

/// Version of the peer protocol this program speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// Ids of which contacts and refusals are remembered; more than any cluster has members.
const REMEMBERED_MAX: usize = 1024;

/// Who this member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Its cluster.
    pub cluster_id: u64,
    /// Its id in the cluster, never 0.
    pub member_id: u64,
    /// UUID of its data directory.
    pub incarnation: Uuid,
    /// UUID of this process start.
    pub boot: Uuid,
}

impl Local {
    /// What this member says first to the member `to`.
    pub(super) fn handshake(&self, to: u64) -> pb::Handshake {
        pb::Handshake {
            protocol_version: PROTOCOL_VERSION,
            cluster_id: self.cluster_id,
            from: self.member_id,
            to,
            incarnation: Bytes::copy_from_slice(self.incarnation.as_bytes()),
            boot_id: Bytes::copy_from_slice(self.boot.as_bytes()),
            to_incarnation: Bytes::new(),
        }
    }
}

/// What a peer showed of itself in its latest accepted handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contact {
    /// Its member id.
    pub(super) from: u64,
    /// Its data directory.
    pub(super) incarnation: Uuid,
    /// Its process start.
    pub(super) boot: Uuid,
}

#[derive(Debug, Default)]
struct State {
    /// Incarnations bound by the cluster.
    bound: BTreeMap<u64, Uuid>,
    /// Removed for good.
    removed: BTreeSet<u64>,
    contacts: BTreeMap<u64, Contact>,
    /// The refusal last logged for an id, so that each is logged once.
    refusals: BTreeMap<u64, String>,
}

/// Checks handshakes against what is known of the members.
#[derive(Debug)]
pub(super) struct Gate {
    local: Local,
    state: Mutex<State>,
    /// Told when a peer has opened a stream to this member: so it runs, and can be dialled.
    arrivals: Notify,
}

impl Gate {
    pub(super) fn new(local: Local) -> Self {
        Self {
            local,
            state: Mutex::default(),
            arrivals: Notify::new(),
        }
    }

    /// Tells whoever waits in [`Gate::arrival`].
    pub(super) fn announce_arrival(&self) {
        self.arrivals.notify_waiters();
    }

    /// Waits until some peer opens a stream to this member.
    pub(super) async fn arrival(&self) {
        self.arrivals.notified().await;
    }

    pub(super) const fn local(&self) -> &Local {
        &self.local
    }

    /// What this member says first to the member `to`, and which data it expects there.
    pub(super) fn handshake(&self, to: u64) -> pb::Handshake {
        let bound = self.bound(to);
        let expected = bound.map(|uuid| Bytes::copy_from_slice(uuid.as_bytes()));
        pb::Handshake {
            to_incarnation: expected.unwrap_or_default(),
            ..self.local.handshake(to)
        }
    }

    /// From now on `id` must show `incarnation`. Streams that are up are the caller's to end.
    pub(super) fn bind(&self, id: u64, incarnation: Uuid) {
        self.lock().bound.insert(id, incarnation);
    }

    /// What `id` must show, if that is known.
    pub(super) fn bound(&self, id: u64) -> Option<Uuid> {
        self.lock().bound.get(&id).copied()
    }

    /// Whether a peer that was admitted would be so still. Whoever puts up a stream asks once it can
    /// be found, since the rules may have changed after the handshake.
    pub(super) fn still_admits(&self, contact: &Contact) -> bool {
        let state = self.lock();
        let bound = state.bound.get(&contact.from);
        bound.is_none_or(|bound| *bound == contact.incarnation)
            && !state.removed.contains(&contact.from)
    }

    /// From now on `id` is refused.
    pub(super) fn refuse(&self, id: u64) {
        self.lock().removed.insert(id);
    }

    /// What `id` last showed of itself.
    pub(super) fn contact(&self, id: u64) -> Option<Contact> {
        self.lock().contacts.get(&id).copied()
    }

    /// Checks the handshake of a caller.
    ///
    /// # Errors
    /// What to refuse it with: [`PeerError::Refused`] or [`PeerError::Removed`].
    pub(super) fn admit(&self, shown: Option<&pb::Handshake>) -> Result<Contact, PeerError> {
        self.check(shown, None)
    }

    /// Checks the handshake of the peer that answered a call to `expected`.
    ///
    /// # Errors
    /// Why it is not the peer we want.
    pub(super) fn recognise(
        &self,
        shown: Option<&pb::Handshake>,
        expected: u64,
    ) -> Result<Contact, PeerError> {
        self.check(shown, Some(expected))
    }

    fn check(
        &self,
        shown: Option<&pb::Handshake>,
        expected: Option<u64>,
    ) -> Result<Contact, PeerError> {
        let Some(shown) = shown else {
            return Err(PeerError::Refused("no handshake".to_owned()));
        };
        let mut state = self.lock();
        let judged = self.judge(&state, shown, expected);
        let result = judged.map_err(PeerError::Refused).and_then(|contact| {
            if state.removed.contains(&contact.from) {
                let why = format!("member {:x} was removed from the cluster", contact.from);
                return Err(PeerError::Removed(why));
            }
            Ok(contact)
        });
        match &result {
            Ok(contact) => {
                if state.refusals.remove(&shown.from).is_some() {
                    info!(peer = shown.from, "peer accepted again");
                }
                if state.contacts.len() < REMEMBERED_MAX
                    || state.contacts.contains_key(&contact.from)
                {
                    state.contacts.insert(contact.from, *contact);
                }
            }
            Err(error) => {
                let why = error.to_string();
                if state.refusals.get(&shown.from) != Some(&why) {
                    if state.refusals.len() >= REMEMBERED_MAX {
                        state.refusals.clear();
                    }
                    warn!(peer = shown.from, why, "peer not admitted");
                    state.refusals.insert(shown.from, why);
                }
            }
        }
        result
    }

    fn judge(
        &self,
        state: &State,
        shown: &pb::Handshake,
        expected: Option<u64>,
    ) -> Result<Contact, String> {
        let local = &self.local;
        if shown.protocol_version != PROTOCOL_VERSION {
            return Err(format!(
                "peer protocol version {} is not {PROTOCOL_VERSION}",
                shown.protocol_version
            ));
        }
        let boot = uuid(&shown.boot_id).ok_or("malformed boot id")?;
        let incarnation = uuid(&shown.incarnation).ok_or("malformed incarnation")?;
        if boot == local.boot {
            return Err("a connection of this member to itself".to_owned());
        }
        if shown.cluster_id != local.cluster_id {
            return Err(format!(
                "cluster id mismatch: {:x} is not {:x}",
                shown.cluster_id, local.cluster_id
            ));
        }
        if shown.from == local.member_id {
            return Err(format!("another member uses this id: {:x}", shown.from));
        }
        if shown.to != local.member_id {
            return Err(format!(
                "wrong member: {:x} was meant, this is {:x}",
                shown.to, local.member_id
            ));
        }
        if !shown.to_incarnation.is_empty()
            && uuid(&shown.to_incarnation) != Some(local.incarnation)
        {
            return Err(format!(
                "this member, {:x}, came back without its data: {:x} knows it by another incarnation",
                local.member_id, shown.from
            ));
        }
        if expected.is_some_and(|id| id != shown.from) {
            return Err(format!("wrong member: {:x} answered", shown.from));
        }
        match state.bound.get(&shown.from) {
            Some(bound) if *bound != incarnation => Err(format!(
                "member {:x} came back without its data: incarnation {incarnation} is not {bound}; \
                 remove it from the cluster and add it as a new member",
                shown.from
            )),
            _ => Ok(Contact {
                from: shown.from,
                incarnation,
                boot,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every section leaves the maps whole, so a panic elsewhere does not spoil them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uuid(bytes: &Bytes) -> Option<Uuid> {
    Uuid::from_slice(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(cluster_id: u64, member_id: u64) -> Local {
        Local {
            cluster_id,
            member_id,
            incarnation: Uuid::from_u128(u128::from(member_id)),
            boot: Uuid::from_u128(u128::from(member_id) + 1000),
        }
    }

    #[test]
    fn a_member_of_the_cluster_is_admitted_and_remembered() {
        let gate = Gate::new(local(7, 1));
        let contact = gate.admit(Some(&local(7, 2).handshake(1))).unwrap();
        assert_eq!(contact.from, 2);
        assert_eq!(gate.contact(2), Some(contact));
    }

    #[test]
    fn strangers_are_refused_with_the_reason() {
        let gate = Gate::new(local(7, 1));
        gate.bind(2, Uuid::from_u128(2));
        gate.bind(3, Uuid::from_u128(99));
        gate.refuse(4);
        let mut twin = local(7, 1);
        twin.boot = Uuid::from_u128(5);
        let mut old = local(7, 2).handshake(1);
        old.protocol_version = 99;
        let knows_another = Gate::new(local(7, 2));
        knows_another.bind(1, Uuid::from_u128(77));
        for (shown, why) in [
            (local(8, 2).handshake(1), "cluster id mismatch"),
            (local(7, 2).handshake(3), "wrong member"),
            (local(7, 1).handshake(1), "to itself"),
            (twin.handshake(1), "uses this id"),
            (local(7, 3).handshake(1), "without its data"),
            (local(7, 4).handshake(1), "was removed"),
            (knows_another.handshake(1), "came back without its data"),
            (old, "version"),
        ] {
            let refusal = gate.admit(Some(&shown)).unwrap_err().to_string();
            assert!(refusal.contains(why), "{refusal} lacks {why}");
        }
        assert!(gate.admit(None).is_err());
        assert!(
            gate.recognise(Some(&local(7, 2).handshake(1)), 3).is_err(),
            "2 answers where 3 was called"
        );
        gate.admit(Some(&local(7, 2).handshake(1))).unwrap();
    }
}
