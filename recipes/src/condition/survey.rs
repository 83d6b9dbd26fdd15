//! What there is in a condition queue as it was at one revision, for whoever looks on: of any rule, whatever its
//! tasks bring.

use std::collections::BTreeMap;

use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::{RequestOp, ResponseOp, TxnRequest};
use quorate_proto::mvccpb::KeyValue;
use serde::de::IgnoredAny;

use super::look::Looker;
use super::record::{Gate, Layout};
use super::rule::{Condition, Release, Rule};
use crate::client::Client;
use crate::error::Result;
use crate::keys::{Key, KeyRange, Revision, decode};
use crate::kit::{Head, ItemId};
use crate::queue::{Queue, read_item};
use crate::store::ops;
use crate::value::from_json;

/// Most gates that are told.
const GATES_MAX: i64 = 64;

/// A condition queue at one revision.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Condition, release, and whether the gate opens once only.
    pub(crate) rule: Option<(Condition, Release, bool)>,
    /// The epoch that gathers, if any does, and is known.
    pub(crate) epoch: Option<u64>,
    pub(crate) gathering: u64,
    /// Those who gather, in the order in which they joined.
    pub(crate) tasks: Vec<Gathered>,
    /// Each term of the condition, and whether it holds; `None`: only those who wait know, by their clocks.
    pub(crate) terms: Vec<(Condition, Option<bool>)>,
    /// The same of the whole.
    pub(crate) holds: Option<bool>,
    /// Tasks that have passed a gate.
    pub(crate) passed: u64,
    pub(crate) gates: Vec<Open>,
    /// Of a fan: what consumers have, and how much that is; what was put aside; consumers.
    pub(crate) claims: Vec<(ItemId, KeyValue)>,
    pub(crate) claimed: u64,
    pub(crate) dead: u64,
    pub(crate) consumers: u64,
    /// By what follows the queue's prefix in the key.
    pub(crate) unreadable: BTreeMap<String, String>,
}

/// A task that gathers.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) id: String,
    pub(crate) since_ms: Option<u64>,
    pub(crate) revision: Revision,
}

/// A gate that is open.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) epoch: u64,
    pub(crate) revision: Revision,
    /// `None` if that cannot be read.
    pub(crate) gate: Option<Gate>,
    /// How many tasks that have passed it are there.
    pub(crate) tasks: u64,
    /// Who has the batch.
    pub(crate) claim: Option<KeyValue>,
}

struct Reads<'a> {
    client: &'a Client,
    revision: Revision,
}

impl Reads<'_> {
    async fn all(&self, mut reads: Vec<RequestOp>) -> Result<Vec<ResponseOp>> {
        for read in &mut reads {
            if let Some(Request::RequestRange(range)) = &mut read.request {
                range.revision = self.revision.0;
            }
        }
        let request = TxnRequest {
            success: reads,
            ..TxnRequest::default()
        };
        Ok(self.client.store().txn(request).await?.responses)
    }
}

/// Looks at the queue of this name as it was at this revision, at `most` of its tasks and of what consumers have.
/// What cannot be read is told.
pub(crate) async fn survey(
    client: &Client,
    name: &str,
    revision: Revision,
    most: usize,
) -> Result<Survey> {
    let layout = Layout::new(client.clone(), name);
    let reads = Reads { client, revision };
    let mut survey = Survey::default();
    let queue: Queue<()> = Queue::new(client, layout.space.clone());
    let tasks = queue.survey(revision, most).await?;
    survey.claimed = tasks.status.claimed;
    survey.dead = tasks.status.dead;
    survey.consumers = tasks.status.consumers;
    survey.claims = tasks.claims;
    let mut gates = ops::range(layout.gates().range());
    gates.limit = GATES_MAX;
    let found = reads
        .all(vec![
            ops::read(ops::get(layout.rule())),
            ops::read(ops::get(layout.log.head_key())),
            ops::read(gates),
            ops::read(ops::range(layout.claims().range())),
        ])
        .await?;
    let rule = ops::kvs(&found, 0).first();
    let rule = rule.map(|kv| from_json::<Rule>(&kv.key, &kv.value));
    let rule = survey.known(&layout, &layout.rule(), rule.transpose());
    let head = layout.log.head_of(ops::kvs(&found, 1).first());
    let head = survey.known(&layout, &layout.log.head_key(), head.map(Some));
    survey.gates(&reads, &layout, &found).await?;
    if let Some(rule) = rule {
        survey.rule = Some((rule.condition.clone(), rule.release, rule.once));
        if let Some(head) = head.filter(|head| !rule.once || head.segment == 0) {
            let looker = Looker::new(layout.clone(), rule);
            survey.terms(&reads, &looker, head).await?;
        }
    }
    if let Some(head) = head {
        survey.gathering(&reads, &layout, head, most).await?;
    }
    // Of one that opens once only, none gathers any more.
    let over = matches!(survey.rule, Some((_, _, true)));
    survey.epoch = head
        .map(|head| head.segment)
        .filter(|epoch| !over || *epoch == 0);
    Ok(survey)
}

impl Survey {
    fn known<T>(&mut self, layout: &Layout, key: &Key, read: Result<Option<T>>) -> Option<T> {
        read.unwrap_or_else(|error| {
            let rest = layout.space.suffix(key.as_bytes());
            let rest = rest.unwrap_or_default().to_owned();
            self.unreadable.insert(rest, error.to_string());
            None
        })
    }

    async fn gates(
        &mut self,
        reads: &Reads<'_>,
        layout: &Layout,
        found: &[ResponseOp],
    ) -> Result<()> {
        let (gates, claims) = (layout.gates(), layout.claims());
        let claim_of = |epoch| {
            let mut claims_found = ops::kvs(found, 3).iter();
            let claim = claims_found.find(|kv| Layout::epoch_of(&claims, &kv.key) == Some(epoch));
            claim.cloned()
        };
        for kv in ops::kvs(found, 2) {
            let Some(epoch) = Layout::epoch_of(&gates, &kv.key) else {
                continue;
            };
            let gate = Gate::of(epoch, kv).map(Some);
            let gate = self.known(layout, &layout.gate(epoch), gate);
            self.gates.push(Open {
                epoch,
                revision: Revision(kv.create_revision),
                gate,
                tasks: 0,
                claim: claim_of(epoch),
            });
        }
        let most = reads.client.store().capabilities().max_txn_ops.max(1);
        for gates in self.gates.chunks_mut(most) {
            let counts = gates.iter();
            let counts =
                counts.map(|open| ops::read(ops::counting(layout.log.segment(open.epoch))));
            let counted = reads.all(counts.collect()).await?;
            for (index, open) in gates.iter_mut().enumerate() {
                open.tasks = ops::count(&counted, index);
            }
        }
        Ok(())
    }

    /// What the terms of the condition come to, by what those who wait would read.
    async fn terms(&mut self, reads: &Reads<'_>, looker: &Looker, head: Head) -> Result<()> {
        let found = reads.all(looker.reads(head).success).await?;
        let facts = looker.facts(head, &found);
        let mut terms = Vec::new();
        looker.rule.condition.walk(&mut |term| {
            if !matches!(term, Condition::All(_) | Condition::Any(_)) {
                terms.push(term.clone());
            }
        });
        let holds = |judged: std::result::Result<_, Option<_>>| match judged {
            Ok(_) => Some(true),
            Err(None) => Some(false),
            Err(Some(_)) => None,
        };
        let each = terms.into_iter().map(|term| {
            let holds = holds(term.judge(&facts, &looker.layout));
            (term, holds)
        });
        self.terms = each.collect();
        self.holds = holds(looker.judge(&facts));
        Ok(())
    }

    async fn gathering(
        &mut self,
        reads: &Reads<'_>,
        layout: &Layout,
        head: Head,
        most: usize,
    ) -> Result<()> {
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let segment = layout.log.segment(head.segment);
        let passed: KeyRange = layout.log.range(0, Some(head.segment));
        let found = reads
            .all(vec![
                ops::read(ops::counting(passed)),
                ops::read(ops::oldest(segment, limit)),
            ])
            .await?;
        self.passed = ops::count(&found, 0);
        self.gathering = ops::count(&found, 1);
        let tasks = ops::kvs(&found, 1).iter().filter_map(|kv| {
            let item = layout.log.item(&kv.key)?;
            let (value, since_ms) = read_item::<IgnoredAny>(kv);
            Some(Gathered {
                id: decode(item.name())?,
                since_ms: value.is_ok().then_some(since_ms),
                revision: Revision(kv.create_revision),
            })
        });
        self.tasks = tasks.collect();
        Ok(())
    }
}
