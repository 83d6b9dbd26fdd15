//! How members come together, under double and cyclic barriers: each arrival creates a key of its own
//! and enters itself into the register in one transaction, and the last one opens the generation in
//! its own. Nobody is ever counted whose key is gone: a generation that loses a member breaks.

use std::collections::BTreeSet;
use std::iter;

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RangeRequest, RequestOp, ResponseOp, TxnRequest};
use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;

use super::generation::{Arrival, Fate, Register};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Revision};
use crate::lock::{ContenderRecord, Holder, queue_of};
use crate::session::{Actor, Claim, Claimed, Owned, Session};
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value};
use crate::wait::{Backoff, repeat, until_event};

/// How much of a transaction's compares an arrival needs besides one for each other member.
const COMPARES_RESERVED: usize = 8;

/// Where a double or cyclic barrier stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gathering {
    /// The generation that gathers: the first is 1.
    pub generation: u64,
    /// How many must come.
    pub parties: u32,
    /// How many have come.
    pub arrived: u32,
}

/// A place where a fixed number of members come together, again and again.
#[derive(Debug, Clone)]
pub(super) struct Assembly {
    client: Client,
    space: KeySpace,
    parties: u32,
    pub(super) info: String,
}

/// What was read of the register and the keys of one generation, at one revision.
struct Look {
    seen: Revision,
    /// The register's mod revision; 0 when there is none.
    at: Revision,
    register: Option<Register>,
    members: BTreeSet<Bytes>,
}

impl Assembly {
    pub(super) fn new(client: Client, kind: &str, name: &str, parties: u32) -> Self {
        Self {
            client,
            space: KeySpace::of(kind, name),
            parties,
            info: String::new(),
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn prefix(&self) -> &str {
        self.space.prefix()
    }

    fn register_key(&self) -> Key {
        self.space.key("meta")
    }

    /// Where the keys of a generation's members lie.
    pub(super) fn members_of(&self, generation: u64) -> KeySpace {
        self.space.child("member").child(&generation.to_string())
    }

    pub(super) async fn gathering(&self) -> Result<Gathering> {
        let request = TxnRequest {
            success: vec![ops::read(ops::get(self.register_key()))],
            ..Default::default()
        };
        let (answer, _) = repeat(&self.client, request).await?;
        let kv = ops::kvs(&answer.responses, 0).first();
        let register = kv.map(Register::read).transpose()?;
        let register = register.unwrap_or_else(|| Register::first(self.parties));
        Ok(Gathering {
            generation: register.generation,
            parties: register.parties,
            arrived: u32::try_from(register.arrived.len()).unwrap_or(u32::MAX),
        })
    }

    pub(super) async fn members(&self, limit: usize) -> Result<Vec<Holder>> {
        queue_of(&self.client, self.space.child("member").range(), limit).await
    }

    /// Comes to the generation that gathers. What is returned withdraws when it is dropped.
    pub(super) async fn arrive(&self, session: &Session) -> Result<Arrived> {
        session.belongs_to(&self.client)?;
        let most = self.client.store().capabilities().max_txn_ops;
        let most = most.saturating_sub(COMPARES_RESERVED);
        if self.parties == 0 || self.parties as usize > most {
            return Err(Error::Invalid(format!(
                "a barrier of {} parties; there are at least 1 and at most {most}",
                self.parties
            )));
        }
        let assembly = self.clone();
        session
            .actor()
            .run(|actor| async move { assembly.try_until_arrived(actor).await })
            .await
    }

    async fn try_until_arrived(self, actor: Actor) -> Result<Arrived> {
        // Many may come at once, and only one of them at a time gets through.
        let mut pause = Backoff::contended(&self.client);
        let mut known = None;
        loop {
            let (at, register) = match known.take() {
                Some(known) => known,
                None => self.read_register(&actor).await?,
            };
            if register.parties != self.parties {
                return Err(Error::Mismatch {
                    key: self.register_key(),
                    wanted: parties(self.parties),
                    stored: parties(register.parties),
                });
            }
            match self.try_to_arrive(&actor, at, &register).await? {
                Tried::Arrived(arrived) => return Ok(arrived),
                Tried::Refused(look) if look.at != at => {
                    pause.pause().await;
                    let register = look.register;
                    known = register.map(|register| (look.at, register));
                }
                Tried::Refused(look) if self.is_complete(&register, &look) => {
                    // Nothing that the claim asks for was missing at this look.
                    pause.pause().await;
                }
                Tried::Refused(_) => self.break_generation(&actor, at, &register).await?,
            }
        }
    }

    /// The register and its mod revision; as it will be first when there is none.
    async fn read_register(&self, actor: &Actor) -> Result<(Revision, Register)> {
        let request = TxnRequest {
            success: vec![ops::read(ops::get(self.register_key()))],
            ..Default::default()
        };
        let (answer, _) = actor.repeat(request).await?;
        Ok(match ops::kvs(&answer.responses, 0).first() {
            Some(kv) => (Revision(kv.mod_revision), Register::read(kv)?),
            None => (Revision(0), Register::first(self.parties)),
        })
    }

    /// One attempt: provided that the register is as read, and that everybody in it is alive.
    async fn try_to_arrive(
        &self,
        actor: &Actor,
        at: Revision,
        register: &Register,
    ) -> Result<Tried> {
        let meta = self.register_key();
        let members = self.members_of(register.generation);
        let arrival = Arrival {
            place: register.free_place(),
            id: format!("{}/{}", actor.lease(), self.client.nonce()),
        };
        let key = members.key(&arrival.id);
        let (next, opens) = register.with(arrival.clone());
        let others = register.arrived.iter();
        let alive = others.map(|other| Compare::present(members.key(&other.id)));
        let record = ContenderRecord::now(&self.info);
        let value = Value::from(Json(record)).into_bytes(&key)?;
        let mut claim = Claim::of(key, value);
        claim.when = iter::once(Compare::mod_revision(&meta, at))
            .chain(alive)
            .collect();
        claim.also = vec![ops::put(&meta, next.write(&meta)?, None)];
        claim.otherwise = self.reads(register.generation);
        Ok(match actor.claim(claim).await? {
            Claimed::Made { owned, .. } => Tried::Arrived(Arrived {
                owned: Some(owned),
                assembly: self.clone(),
                actor: actor.clone(),
                generation: register.generation,
                place: arrival.place,
                id: arrival.id,
                opened: opens,
            }),
            Claimed::Refused {
                revision,
                responses,
                ..
            } => Tried::Refused(Look::of(revision, &responses)?),
        })
    }

    fn reads(&self, generation: u64) -> Vec<RequestOp> {
        let members = RangeRequest {
            keys_only: true,
            ..ops::range(self.members_of(generation).range())
        };
        [ops::get(self.register_key()), members]
            .into_iter()
            .map(ops::read)
            .collect()
    }

    async fn look(&self, actor: &Actor, generation: u64) -> Result<Look> {
        let request = TxnRequest {
            success: self.reads(generation),
            ..Default::default()
        };
        let (answer, _) = actor.repeat(request).await?;
        let seen = Revision(answer.header.map_or(0, |header| header.revision));
        Look::of(seen, &answer.responses)
    }

    /// Whether the keys of all who are in the register are there.
    fn is_complete(&self, register: &Register, look: &Look) -> bool {
        let members = self.members_of(register.generation);
        let mut all = register.arrived.iter();
        all.all(|member| look.members.contains(members.key(&member.id).as_bytes()))
    }

    /// Ends the generation for all who came to it, if the register still is as read.
    async fn break_generation(
        &self,
        actor: &Actor,
        at: Revision,
        register: &Register,
    ) -> Result<()> {
        let meta = self.register_key();
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(&meta, at).into()],
            success: vec![ops::put(&meta, register.broken().write(&meta)?, None)],
            failure: Vec::new(),
        };
        let (answer, _) = actor.repeat(request).await?;
        if answer.succeeded {
            let generation = register.generation;
            tracing::info!(barrier = %self.prefix(), generation, "a member ended; broken");
        }
        Ok(())
    }
}

enum Tried {
    Arrived(Arrived),
    Refused(Look),
}

fn parties(parties: u32) -> String {
    format!("a barrier of {parties} parties")
}

impl Look {
    fn of(seen: Revision, responses: &[ResponseOp]) -> Result<Self> {
        let kv = ops::kvs(responses, 0).first();
        let members = ops::kvs(responses, 1).iter();
        Ok(Self {
            seen,
            at: Revision(kv.map_or(0, |kv| kv.mod_revision)),
            register: kv.map(Register::read).transpose()?,
            members: members.map(|kv| kv.key.clone()).collect(),
        })
    }
}

/// A member that has come. Dropping it before it has passed withdraws it, in the background: its key
/// and its place in the register go in one transaction, or, if the generation has opened before,
/// nothing is withdrawn.
#[derive(Debug)]
pub(super) struct Arrived {
    owned: Option<Owned>,
    assembly: Assembly,
    actor: Actor,
    pub(super) generation: u64,
    pub(super) place: u32,
    id: String,
    opened: bool,
}

impl Arrived {
    /// Waits until the generation opens; gives the member's key then.
    ///
    /// # Errors
    /// [`Error::Broken`]; [`Error::SessionLost`] at once when the session is lost;
    /// [`Error::OutcomeUnknown`] when the generation was over too long ago; [`Error::Removed`] when
    /// somebody deleted the register or the member's key.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws.
    pub(super) async fn until_open(mut self) -> Result<Owned> {
        if !self.opened {
            let lost = self.actor.lost();
            tokio::select! {
                biased;
                reason = lost => return Err(Error::SessionLost(reason)),
                opened = self.follow() => opened?,
            }
        }
        Ok(self.owned.take().expect("only this and drop take it"))
    }

    async fn follow(&self) -> Result<()> {
        let assembly = &self.assembly;
        let mut pause = Backoff::between_attempts(&assembly.client);
        let meta = assembly.register_key();
        let ranges = [
            KeyRange::one(&meta),
            assembly.members_of(self.generation).range(),
        ];
        // Others who come are no news.
        let news = |event: &Event| match &event.kv {
            _ if event.r#type() == EventType::Delete => true,
            Some(kv) if kv.key == *meta.as_bytes() => Register::read(kv).map_or(true, |register| {
                register.fate(self.generation) != Fate::Gathers
            }),
            _ => false,
        };
        loop {
            let look = assembly.look(&self.actor, self.generation).await?;
            let Some(register) = &look.register else {
                return Err(Error::Removed(meta));
            };
            match register.fate(self.generation) {
                Fate::Opened => return Ok(()),
                Fate::Broken => return Err(self.why_broken(&look).await),
                Fate::Forgotten => {
                    let generation = self.generation;
                    return Err(Error::OutcomeUnknown(format!(
                        "generation {generation} of {meta} was over too long ago"
                    )));
                }
                Fate::Gathers if assembly.is_complete(register, &look) => {
                    let from = Revision(look.seen.0 + 1);
                    until_event(&assembly.client, &ranges, from, &mut pause, news).await?;
                }
                Fate::Gathers => {
                    let (actor, at) = (&self.actor, look.at);
                    assembly.break_generation(actor, at, register).await?;
                }
            }
        }
    }

    /// The error of a broken generation: whose key is gone had its own part in it.
    async fn why_broken(&self, look: &Look) -> Error {
        let members = self.assembly.members_of(self.generation);
        let key = members.key(&self.id);
        if look.members.contains(key.as_bytes()) {
            return Error::Broken {
                key: self.assembly.register_key(),
                generation: self.generation,
            };
        }
        self.actor.why_gone(&key).await
    }

    /// Takes the member out of the register and its key away, as long as the generation gathers.
    async fn withdraw(
        assembly: &Assembly,
        actor: &Actor,
        generation: u64,
        id: &str,
        owned: Owned,
    ) -> Result<()> {
        let meta = assembly.register_key();
        // A member that ends may be one of many, as when a process with all of them ends.
        let mut pause = Backoff::contended(&assembly.client);
        loop {
            let (at, register) = assembly.read_register(actor).await?;
            if register.generation != generation || !register.has(id) {
                // It is over, or an earlier copy has been here. Dropped, `owned` deletes the key.
                return Ok(());
            }
            let key = owned.key();
            let request = TxnRequest {
                compare: vec![
                    Compare::mod_revision(&meta, at).into(),
                    Compare::create_revision(key, owned.revision()).into(),
                ],
                success: vec![
                    ops::put(&meta, register.without(id).write(&meta)?, None),
                    ops::delete(KeyRange::one(key)),
                ],
                failure: vec![ops::read(ops::get(key))],
            };
            let (answer, _) = actor.repeat(request).await?;
            if answer.succeeded {
                owned.disarm();
                return Ok(());
            }
            let kv = ops::kvs(&answer.responses, 0).first();
            if kv.is_none_or(|kv| kv.create_revision != owned.revision().0) {
                // The key is gone already: the generation breaks, or is over.
                return Ok(());
            }
            pause.pause().await;
        }
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        let Some(owned) = self.owned.take() else {
            return;
        };
        let (assembly, actor) = (self.assembly.clone(), self.actor.clone());
        let (generation, id) = (self.generation, self.id.clone());
        self.actor.spawn("withdraw", async move {
            let done = Self::withdraw(&assembly, &actor, generation, &id, owned).await;
            if let Err(error) = done {
                tracing::debug!(barrier = %assembly.prefix(), %error, "a member was left to its lease");
            }
        });
    }
}
