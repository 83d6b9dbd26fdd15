//! Queues that take so many items and no more. Every push writes a key that says the limit, and compares that
//! nobody else has since the items were counted: then there are at most as many as were counted, since all
//! else takes items away or moves them.

use std::sync::Arc;

use quorate_proto::etcdserverpb::{RequestOp, ResponseOp, TxnRequest};
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::mvccpb::event::EventType;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::record::Layout;
use crate::error::{Error, Result, TxnError};
use crate::keys::{KeyRange, Revision};
use crate::kit::{Contender, Line};
use crate::lock::{ContenderRecord, Hold, Limit};
use crate::session::{Effect, Session};
use crate::store::ops::{self, Compare};
use crate::value::{Json, V1, Value, from_json};
use crate::wait::{self, Backoff};

/// Reads that a refused push does to learn why.
const READS: usize = 4;

/// Whether a push waits for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Wait,
    Now,
}

/// Lets pushes in: all of them, or as many as there is room for.
#[derive(Debug, Clone)]
pub(super) enum Bound {
    /// There is no limit, which every push makes sure of.
    None,
    Limited {
        limit: Limit,
        /// Held from the count to the answer: the pushes of a handle do not fight each other.
        known: Arc<Mutex<Option<Room>>>,
    },
}

/// How full the queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    limit: u32,
    /// When the key that says so was written; 0: it is not there.
    at: Revision,
    /// As long as nobody has written it since, there are at most so many.
    items: u64,
    /// Whether somebody waits for room.
    waited_for: bool,
}

/// The value of the key that every push writes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct BoundRecord {
    v: V1,
    limit: u32,
}

/// What lets one push in.
pub(super) struct Entry<'a> {
    layout: &'a Layout,
    effect: Effect,
    room: Option<OwnedMutexGuard<Option<Room>>>,
    limit: Option<Limit>,
    /// The place of the one who is first among those who wait, until the push is done.
    _first: Option<Hold>,
}

impl Room {
    fn left(&self) -> u64 {
        u64::from(self.limit).saturating_sub(self.items)
    }

    /// Whether it is for one who comes now, or is the first of those who wait: others stand behind those.
    fn is_open(&self, is_first: bool) -> bool {
        self.left() > 0 && (is_first || !self.waited_for)
    }
}

impl Bound {
    pub(super) fn limited(limit: Limit) -> Self {
        let known = Arc::default();
        Self::Limited { limit, known }
    }

    /// Lets an item in; `None` when there is no room and the caller does not wait.
    pub(super) async fn enter<'a>(
        &self,
        layout: &'a Layout,
        session: &Session,
        patience: Patience,
    ) -> Result<Option<Entry<'a>>> {
        session.belongs_to(&layout.client)?;
        let Self::Limited { limit, known } = self else {
            return Ok(Some(Entry::unlimited(layout)));
        };
        let mut pause = Backoff::between_attempts(&layout.client);
        let mut first: Option<Hold> = None;
        loop {
            let mut room = Arc::clone(known).lock_owned().await;
            let is_open = |room: Room| room.is_open(first.is_some());
            let mut counted = Revision(0);
            if !room.is_some_and(is_open) {
                let (fresh, revision) = count(layout, *limit, session).await?;
                *room = Some(fresh);
                counted = revision;
            }
            if room.is_some_and(is_open) {
                return Entry::limited(layout, *limit, room, first).map(Some);
            }
            drop(room);
            if patience == Patience::Now {
                return Ok(None);
            }
            if first.is_none() {
                first = Some(become_first(layout, session).await?);
                continue;
            }
            tokio::select! {
                biased;
                reason = session.lost() => return Err(Error::SessionLost(reason)),
                less = until_less(layout, counted, &mut pause) => less?,
            }
        }
    }
}

impl Bound {
    /// Changes the limit for everybody.
    pub(super) async fn resize(&mut self, layout: &Layout, to: u32) -> Result<()> {
        let key = layout.bound();
        let mut pause = Backoff::contended(&layout.client);
        loop {
            let kv = layout.client.get(&key).await?;
            let at = Revision(kv.map_or(0, |kv| kv.mod_revision));
            let record = BoundRecord { v: V1, limit: to };
            let change = layout.client.txn().when(Compare::mod_revision(&key, at));
            match change.put(&key, Json(record)).commit().await {
                Ok(_) => break,
                Err(TxnError::Conflict { .. }) => pause.pause().await,
                Err(error) => return Err(error.into()),
            }
        }
        if !matches!(
            self,
            Self::Limited {
                limit: Limit::Initially(_),
                ..
            }
        ) {
            *self = Self::limited(Limit::Exactly(to));
        }
        Ok(())
    }
}

/// Stands in the line of those who wait for room, until nobody is before.
async fn become_first(layout: &Layout, session: &Session) -> Result<Hold> {
    let line = Line::of(&layout.pushers());
    let record = ContenderRecord::of(session, "push");
    let contender = Contender::enter(session, line, Json(record)).await?;
    contender.wait_turn().await
}

/// Waits until something was taken away, or the limit changed. May return before.
async fn until_less(layout: &Layout, counted: Revision, pause: &mut Backoff) -> Result<()> {
    let bound = layout.bound();
    let ranges = [
        layout.log.range(0, None),
        layout.delayed().range(),
        KeyRange::one(&bound),
    ];
    let from = Revision(counted.0 + 1);
    let news = wait::until_event(&layout.client, &ranges, from, pause, |event| {
        let key = event.kv.as_ref().map(|kv| &kv.key);
        event.r#type() == EventType::Delete || key == Some(bound.as_bytes())
    });
    Ok(news.await?)
}

/// Reads the limit, and how many items there are.
fn reads(layout: &Layout) -> [RequestOp; READS] {
    let count = |range: KeyRange| ops::read(ops::counting(range));
    [
        ops::read(ops::get(layout.bound())),
        count(layout.log.range(0, None)),
        count(layout.delayed().range()),
        count(layout.pushers().range()),
    ]
}

async fn count(layout: &Layout, limit: Limit, session: &Session) -> Result<(Room, Revision)> {
    let request = TxnRequest {
        success: reads(layout).into(),
        ..TxnRequest::default()
    };
    let answer = session
        .actor()
        .run(|actor| async move { Ok(actor.repeat(request).await?.0) });
    let answer = answer.await?;
    let revision = Revision(answer.header.map_or(0, |header| header.revision));
    Ok((read(layout, limit, &answer.responses)?, revision))
}

/// What [`reads`] have found.
fn read(layout: &Layout, limit: Limit, found: &[ResponseOp]) -> Result<Room> {
    let bound = ops::kvs(found, 0).first();
    Ok(Room {
        limit: agreed(layout, limit, bound)?,
        at: Revision(bound.map_or(0, |kv| kv.mod_revision)),
        items: ops::count(found, 1).saturating_add(ops::count(found, 2)),
        waited_for: ops::count(found, 3) > 0,
    })
}

/// The limit that holds.
fn agreed(layout: &Layout, limit: Limit, bound: Option<&KeyValue>) -> Result<u32> {
    let stored = bound.map(limit_of).transpose()?;
    match (limit, stored) {
        (Limit::Exactly(wanted), Some(stored)) if wanted != stored => Err(Error::Mismatch {
            key: layout.bound(),
            wanted: format!("limited to {wanted} items"),
            stored: format!("limited to {stored} items"),
        }),
        (_, Some(stored)) => Ok(stored),
        (limit, None) => Ok(limit.number()),
    }
}

/// The limit that a queue's key says.
pub(super) fn limit_of(bound: &KeyValue) -> Result<u32> {
    let record: BoundRecord = from_json(&bound.key, &bound.value)?;
    Ok(record.limit)
}

impl<'a> Entry<'a> {
    /// Lets everything in, if there is no limit.
    pub(super) fn unlimited(layout: &'a Layout) -> Self {
        let bound = layout.bound();
        Self {
            layout,
            effect: Effect {
                when: vec![Compare::absent(&bound)],
                then: Vec::new(),
                otherwise: vec![ops::read(ops::get(&bound))],
            },
            room: None,
            limit: None,
            _first: None,
        }
    }

    fn limited(
        layout: &'a Layout,
        limit: Limit,
        known: OwnedMutexGuard<Option<Room>>,
        first: Option<Hold>,
    ) -> Result<Self> {
        let bound = layout.bound();
        let room = known.as_ref().expect("it was counted");
        let record = BoundRecord {
            v: V1,
            limit: room.limit,
        };
        let record = Value::from(Json(record)).into_bytes(&bound)?;
        Ok(Self {
            layout,
            effect: Effect {
                when: vec![Compare::mod_revision(&bound, room.at)],
                then: vec![ops::put(&bound, record, None)],
                otherwise: reads(layout).into(),
            },
            room: Some(known),
            limit: Some(limit),
            _first: first,
        })
    }

    /// How many items it lets in; at least one.
    pub(super) fn items(&self) -> usize {
        let room = self.room.as_ref().and_then(|room| **room);
        let left = room.map(|room| usize::try_from(room.left()));
        left.map_or(usize::MAX, |left| left.unwrap_or(usize::MAX).max(1))
    }

    /// What the push does, with what this takes behind it.
    pub(super) fn with(&self, besides: &Effect) -> Effect {
        let own = self.effect.clone();
        Effect {
            when: besides.when.iter().cloned().chain(own.when).collect(),
            then: besides.then.iter().cloned().chain(own.then).collect(),
            otherwise: besides
                .otherwise
                .iter()
                .cloned()
                .chain(own.otherwise)
                .collect(),
        }
    }

    /// So many items have come in at this revision.
    pub(super) fn done(mut self, revision: Revision, items: usize) {
        if let Some(room) = self.room.as_mut().and_then(|room| room.as_mut()) {
            room.at = revision;
            let items = u64::try_from(items).unwrap_or(u64::MAX);
            room.items = room.items.saturating_add(items);
        }
    }

    /// Whether nothing here has refused the push, so that a condition of its own has. `false`: it is to be
    /// tried again.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the queue has a limit, or another one.
    pub(super) fn let_in(mut self, responses: &[ResponseOp]) -> Result<bool> {
        let own = responses.len().saturating_sub(self.effect.otherwise.len());
        let found = &responses[own..];
        let Some(limit) = self.limit else {
            return match ops::kvs(found, 0).first() {
                None => Ok(true),
                Some(kv) => Err(Error::Mismatch {
                    key: self.layout.bound(),
                    wanted: "without a limit".to_owned(),
                    stored: format!("limited to {} items", limit_of(kv)?),
                }),
            };
        };
        let now = read(self.layout, limit, found)?;
        let room = self.room.as_mut().expect("there is a limit");
        let as_known = room.is_some_and(|known| known.at == now.at);
        **room = Some(now);
        Ok(as_known)
    }
}
