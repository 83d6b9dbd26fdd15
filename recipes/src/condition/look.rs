//! Looking whether a gate can open, opening it, and waiting for what may change that. Whoever joins looks once;
//! whoever waits, again when the condition may hold by the changes that it sees.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_proto::etcdserverpb::{RequestOp, ResponseOp, TxnRequest};
use quorate_proto::mvccpb::event::EventType;
use tokio::sync::watch;

use super::follow::Following;
use super::record::{Gate, GateRecord, Layout};
use super::rule::{Condition, Facts, Proof, Release, Rule};
use crate::clock::Instant;
use crate::error::{Error, Result};
use crate::keys::{KeyRange, Revision};
use crate::kit::{Head, Rolled};
use crate::session::Effect;
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value};
use crate::wait::{self, Backoff};

/// Epochs of a broadcast whose gates are kept, with those who passed them.
pub(super) const GATES_KEPT: u64 = 8;

/// Looks, for one handle and its clones.
#[derive(Debug, Clone)]
pub(super) struct Looker {
    pub(super) layout: Layout,
    pub(super) rule: Arc<Rule>,
    /// The last epoch in which a task was seen, and when that was first.
    seen: Arc<Mutex<Option<(u64, Instant)>>>,
}

/// What a look has found.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) revision: Revision,
    /// What is joined now.
    pub(super) head: Head,
    /// What was found of its epoch; `None` when no gate opens any more.
    facts: Option<Facts>,
    /// When time alone may open its gate.
    due: Option<Instant>,
}

/// What is read in one look, besides what the terms of the condition ask for.
const READS: usize = 5;

impl Looker {
    pub(super) fn new(layout: Layout, rule: Rule) -> Self {
        Self {
            layout,
            rule: Arc::new(rule),
            seen: Arc::default(),
        }
    }

    /// Looks, and opens the gate as often as it can be opened. Trouble with the store is waited out.
    ///
    /// # Errors
    /// The store's final refusals; [`Error::Codec`] for a head that cannot be read.
    pub(super) async fn look(&self) -> Result<Look> {
        let mut pause = Backoff::contended(&self.layout.client);
        loop {
            let head = self.layout.log.head(None).await?;
            let request = self.reads(head);
            let (answer, _) = wait::repeat(&self.layout.client, request).await?;
            let revision = Revision(answer.header.map_or(0, |header| header.revision));
            if !answer.succeeded {
                self.layout.log.forget();
                continue;
            }
            self.sweep(head, &answer.responses).await?;
            let mut look = Look {
                revision,
                head,
                facts: None,
                due: None,
            };
            if self.is_over(head) {
                return Ok(look);
            }
            let facts = self.facts(head, &answer.responses);
            let proof = match self.judge(&facts) {
                Ok(proof) => proof,
                Err(due) => {
                    (look.facts, look.due) = (Some(facts), due);
                    return Ok(look);
                }
            };
            match self.open(head, &facts, proof).await {
                // The next epoch may have tasks already.
                Ok(_) => {}
                Err(Error::Store(error)) if error.is_transient() => {}
                Err(error) => return Err(error),
            }
            pause.pause().await;
        }
    }

    /// Whether no gate opens any more.
    fn is_over(&self, head: Head) -> bool {
        self.rule.once && head.segment > 0
    }

    pub(super) fn reads(&self, head: Head) -> TxnRequest {
        let layout = &self.layout;
        let keys = |range: KeyRange, limit| {
            let mut read = ops::range(range);
            read.keys_only = true;
            read.limit = limit;
            read
        };
        let reads = [
            ops::get(layout.withdrawn()),
            ops::counting(layout.log.segment(head.segment)),
            keys(layout.signals(head.segment).range(), 0),
            keys(layout.all_done().range(), 0),
            keys(layout.gates().range(), 1),
        ];
        debug_assert_eq!(reads.len(), READS, "the terms' come behind them");
        let items = self.named().into_iter();
        let items = items.map(|id| keys(KeyRange::one(layout.item(head.segment, &id)), 0));
        TxnRequest {
            compare: vec![layout.log.is_head(head).into()],
            success: reads.into_iter().chain(items).map(ops::read).collect(),
            failure: Vec::new(),
        }
    }

    /// Whether the gate can open by these facts; else when time alone may open it.
    pub(super) fn judge(&self, facts: &Facts) -> std::result::Result<Proof, Option<Instant>> {
        match facts.items {
            0 => Err(None),
            _ => self.rule.condition.judge(facts, &self.layout),
        }
    }

    /// Tasks that the condition wants to be there, or not.
    pub(super) fn named(&self) -> BTreeSet<String> {
        self.rule.condition.ids(|term| match term {
            Condition::Present(id) | Condition::Absent(id) | Condition::Left(id) => Some(id),
            _ => None,
        })
    }

    pub(super) fn facts(&self, head: Head, found: &[ResponseOp]) -> Facts {
        let (layout, epoch) = (&self.layout, head.segment);
        let items = usize::try_from(ops::count(found, 1)).unwrap_or(usize::MAX);
        let signals = ops::kvs(found, 2).iter();
        let started = layout.started(epoch);
        let named = self.named().into_iter().enumerate();
        let done = layout.all_done();
        let now = layout.client.now();
        Facts {
            epoch,
            items,
            withdrawn_at: Revision(ops::kvs(found, 0).first().map_or(0, |kv| kv.mod_revision)),
            started: signals.clone().any(|kv| kv.key == *started.as_bytes()),
            left: signals
                .filter_map(|kv| layout.left_id(epoch, &kv.key))
                .collect(),
            done: ops::kvs(found, 3)
                .iter()
                .filter_map(|kv| crate::keys::decode(done.suffix(&kv.key)?))
                .collect(),
            present: named
                .filter(|(index, _)| !ops::kvs(found, READS + index).is_empty())
                .map(|(_, id)| id)
                .collect(),
            since: self.seen(epoch, items > 0, now),
            now,
        }
    }

    /// When a task was first seen in an epoch.
    pub(super) fn seen(&self, epoch: u64, there: bool, now: Instant) -> Option<Instant> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if there && seen.is_none_or(|(known, _)| known != epoch) {
            *seen = Some((epoch, now));
        }
        seen.filter(|(known, _)| *known == epoch)
            .map(|(_, since)| since)
    }

    /// Opens the gate, if what the proof says still holds: in the transaction that has later tasks join the
    /// next epoch, so that exactly those pass that are there at its revision.
    async fn open(&self, head: Head, facts: &Facts, proof: Proof) -> Result<Rolled> {
        let layout = &self.layout;
        let gate = layout.gate(head.segment);
        let record = GateRecord::now(proof.why);
        let open = ops::put(&gate, Value::from(Json(record)).into_bytes(&gate)?, None);
        let used_up = self.rule.condition.ids(|term| match term {
            Condition::Done(id) => Some(id),
            _ => None,
        });
        let used_up = used_up.iter().map(|id| KeyRange::one(layout.done(id)));
        let used_up = used_up.chain([layout.signals(head.segment).range()]);
        let besides = Effect {
            when: proof
                .when
                .into_iter()
                .chain([Compare::mod_revision(
                    layout.withdrawn(),
                    facts.withdrawn_at,
                )])
                .collect(),
            then: [open]
                .into_iter()
                .chain(used_up.map(ops::delete))
                .chain(self.too_old(head))
                .collect(),
            otherwise: Vec::new(),
        };
        let rolled = layout.log.roll_with(head, besides).await?;
        if let Rolled::Done { head: now, .. } = &rolled {
            tracing::info!(gate = %gate, revision = %now.since, "a gate opened");
        }
        Ok(rolled)
    }

    /// What a broadcast does not keep any longer when this epoch ends.
    fn too_old(&self, head: Head) -> Vec<RequestOp> {
        match (head.segment + 1).checked_sub(GATES_KEPT) {
            Some(before) if self.rule.release == Release::Broadcast && before > 0 => vec![
                ops::delete(self.layout.gates_before(before)),
                ops::delete(self.layout.log.range(0, Some(before))),
            ],
            _ => Vec::new(),
        }
    }

    /// Removes the gates of a fan that all tasks have gone through. Nothing comes into their segments later,
    /// so a copy that comes late removes no other.
    async fn sweep(&self, head: Head, found: &[ResponseOp]) -> Result<()> {
        if self.rule.release != Release::Fan {
            return Ok(());
        }
        let gates = self.layout.gates();
        let oldest = ops::kvs(found, 4).first();
        let oldest = oldest.and_then(|kv| Layout::epoch_of(&gates, &kv.key));
        let Some(oldest) = oldest.filter(|oldest| *oldest < head.segment) else {
            return Ok(());
        };
        let log = &self.layout.log;
        let first = log.first_with_items(oldest, head.segment - 1).await?;
        let first = first.unwrap_or(head.segment);
        if oldest < first {
            let delete = TxnRequest {
                success: vec![ops::delete(self.layout.gates_before(first))],
                ..TxnRequest::default()
            };
            wait::repeat(&self.layout.client, delete).await?;
        }
        Ok(())
    }

    /// Waits until a gate has opened since a look, or a change of `also` was seen, or a look may find more than that
    /// one did.
    pub(super) async fn wait(
        &self,
        look: &Look,
        also: &[(KeyRange, EventType)],
        pause: &mut Backoff,
    ) -> Result<()> {
        let (layout, epoch) = (&self.layout, look.head.segment);
        let head = layout.log.head_key();
        let ranges: Vec<KeyRange> = [
            KeyRange::one(&head),
            layout.log.segment(epoch),
            layout.signals(epoch).range(),
            layout.all_done().range(),
        ]
        .into_iter()
        .chain(also.iter().map(|(range, _)| range.clone()))
        .collect();
        let facts = look.facts.clone();
        let following = facts.map(|facts| Mutex::new(Following::of(self, facts, look.due)));
        let due = watch::Sender::new(look.due);
        let mut dues = due.subscribe();
        let from = Revision(look.revision.0 + 1);
        let mut changed = pin!(wait::until_event(
            &layout.client,
            &ranges,
            from,
            pause,
            |event| {
                let key = event.kv.as_ref().map(|kv| &kv.key[..]).unwrap_or_default();
                let also = also.iter().find(|(range, _)| range.contains(key));
                if let Some((_, kind)) = also {
                    return *kind == event.r#type();
                }
                if key == &head.as_bytes()[..] {
                    return true;
                }
                if let Some(following) = &following {
                    let mut following = following.lock().unwrap_or_else(PoisonError::into_inner);
                    let now = following.sees(event);
                    due.send_if_modified(|due| std::mem::replace(due, now) != now);
                }
                false
            }
        ));
        loop {
            let until = *dues.borrow_and_update();
            let news = async {
                tokio::select! {
                    biased;
                    changed = &mut changed => Some(changed),
                    _ = dues.changed() => None,
                }
            };
            let news = match until {
                Some(until) => layout.client.before(until, news).await,
                None => Some(news.await),
            };
            match news {
                Some(Some(changed)) => return Ok(changed?),
                // It is due at another time now.
                Some(None) => {}
                None => return Ok(()),
            }
        }
    }

    /// Looks for ever.
    pub(super) async fn go_on(&self) -> Result<Infallible> {
        let mut pause = Backoff::between_attempts(&self.layout.client);
        loop {
            let look = self.look().await?;
            self.wait(&look, &[], &mut pause).await?;
        }
    }

    /// Waits until the gate of an epoch is open.
    ///
    /// # Errors
    /// [`Error::Removed`] when it was, and is not kept any more.
    pub(super) async fn opened(&self, epoch: u64) -> Result<Gate> {
        let mut pause = Backoff::between_attempts(&self.layout.client);
        loop {
            let look = self.look().await?;
            if look.head.segment > epoch {
                let key = self.layout.gate(epoch);
                let found = wait::read(&self.layout.client, ops::get(&key)).await?;
                let gate = found.kvs.first().map(|kv| Gate::of(epoch, kv));
                return gate.unwrap_or(Err(Error::Removed(key)));
            }
            self.wait(&look, &[], &mut pause).await?;
        }
    }
}
