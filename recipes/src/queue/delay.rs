//! Items that are to be taken later: they wait under keys in the order of their time, and enter the queue at
//! its end when that has come. The consumers of one session at a time see to it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::mvccpb::event::EventType;

use super::record::Layout;
use crate::clock::Instant;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::kit::{Append, Contender, Line};
use crate::lock::ContenderRecord;
use crate::session::{Effect, Session};
use crate::store::StoreError;
use crate::store::ops::{self, Compare};
use crate::tasks::Tasks;
use crate::value::Json;
use crate::wait::{self, Backoff};

/// How many of those that are due first are looked at.
const PAGE: i64 = 64;

/// The pause before the next ones are looked at.
const PAGE_PAUSE: Duration = Duration::from_millis(1);

/// Contends for seeing to delayed items, and does it, until the session is lost or the tasks are cancelled.
pub(super) fn start(layout: &Layout, session: &Session, tasks: &Tasks) {
    let mover = Mover {
        layout: layout.clone(),
        due: HashMap::new(),
    };
    tasks.spawn("delayed items", mover.run(session.clone()));
}

struct Mover {
    layout: Layout,
    /// When those that have been seen are due, by this machine's monotonic clock: the wall clock is asked
    /// once.
    due: HashMap<Bytes, Instant>,
}

impl Mover {
    async fn run(mut self, session: Session) {
        let mut pause = Backoff::between_attempts(&self.layout.client);
        loop {
            let Err(error) = self.move_while_in_charge(&session).await;
            if matches!(error, Error::SessionLost(_) | Error::Closed) {
                return;
            }
            tracing::warn!(%error, "delayed items wait on");
            pause.pause().await;
        }
    }

    async fn move_while_in_charge(&mut self, session: &Session) -> Result<Infallible> {
        let line = Line::of(&self.layout.movers());
        let record = ContenderRecord::of(session, "delayed items");
        let contender = Contender::enter(session, line, Json(record)).await?;
        let charge = contender.wait_turn().await?;
        // Somebody else may have moved some meanwhile, which does no harm: each is moved once.
        charge.scope(self.see_to_it(session)).await?
    }

    async fn see_to_it(&mut self, session: &Session) -> Result<Infallible> {
        let client = self.layout.client.clone();
        let mut pause = Backoff::between_attempts(&client);
        loop {
            let mut page = ops::range(self.layout.delayed().range());
            page.limit = PAGE;
            let found = wait::read(&client, page).await?;
            let seen = Revision(found.header.map_or(0, |header| header.revision));
            let next = self.enter_due(session, &found.kvs).await?;
            if next.is_some_and(|next| next <= client.now()) {
                continue;
            }
            let range = [self.layout.delayed().range()];
            let news =
                wait::until_event(&client, &range, Revision(seen.0 + 1), &mut pause, |event| {
                    event.r#type() == EventType::Put
                });
            match next {
                Some(next) => client.before(next, news).await.unwrap_or(Ok(()))?,
                None => news.await?,
            }
        }
    }

    /// Has those enter that are due; tells when the next one is.
    async fn enter_due(&mut self, session: &Session, page: &[KeyValue]) -> Result<Option<Instant>> {
        let client = self.layout.client.clone();
        let known: HashMap<Bytes, Instant> = page
            .iter()
            .map(|kv| {
                let due = self.due.get(&kv.key).copied();
                (kv.key.clone(), due.unwrap_or_else(|| self.due_at(kv)))
            })
            .collect();
        self.due = known;
        for kv in page {
            let due = self.due[&kv.key];
            if due > client.now() {
                return Ok(Some(due));
            }
            match self.enter(session, kv).await {
                Err(Error::Store(StoreError::Invalid(why))) => {
                    let key = Key::from(kv.key.clone());
                    tracing::error!(%key, %why, "an item that cannot enter the queue waits on");
                }
                entered => entered?,
            }
        }
        let full = i64::try_from(page.len()).is_ok_and(|count| count == PAGE);
        Ok(full.then(|| client.deadline(PAGE_PAUSE)))
    }

    fn due_at(&self, kv: &KeyValue) -> Instant {
        let due_ms = self.layout.due_ms(&kv.key).unwrap_or(0);
        let left = due_ms.saturating_sub(self.layout.client.wall_millis());
        self.layout.client.deadline(Duration::from_millis(left))
    }

    /// Puts one at the end of the queue, in the transaction that takes it from where it waited.
    async fn enter(&self, session: &Session, kv: &KeyValue) -> Result<()> {
        let key = Key::from(kv.key.clone());
        let append = Append {
            items: vec![kv.value.clone()],
            besides: Effect {
                when: vec![Compare::mod_revision(&key, Revision(kv.mod_revision))],
                then: vec![ops::delete(KeyRange::one(&key))],
                otherwise: Vec::new(),
            },
        };
        // Refused: it has been moved, or removed.
        self.layout.log.append(session, &append).await.map(drop)
    }
}
