//! Items under names of the caller's: each at most once in a segment, and taken out of it as long as it is the
//! head. Under condition queues.

use std::slice;

use bytes::Bytes;
use quorate_proto::etcdserverpb::{ResponseOp, TxnRequest};
use quorate_proto::mvccpb::KeyValue;

use super::{Head, ItemId, SegmentedLog};
use crate::error::Result;
use crate::keys::{KeyRange, Revision};
use crate::session::{Effect, Effected, Session};
use crate::store::ops::{self, Compare};
use crate::wait::{self, Backoff};

/// What became of an item with a name.
#[derive(Debug)]
pub enum Placed {
    /// It is in the log.
    Done {
        /// Where.
        id: ItemId,
        /// The revision at which it was committed.
        revision: Revision,
        /// How many items the segment had then; `None` when the answer was lost and the lane told.
        items: Option<u64>,
    },
    /// One of its name is in the segment; nothing was written.
    There(KeyValue),
    /// A condition besides did not hold; nothing was written.
    Refused {
        /// The answers to `besides.otherwise`.
        responses: Vec<ResponseOp>,
    },
}

impl SegmentedLog {
    /// Appends an item under a name, exactly once, unless the segment has one of that name, with what
    /// `besides` gives for the place. Costs one round trip; one more when the segment was full, or another than
    /// this handle knew.
    ///
    /// # Errors
    /// As [`SegmentedLog::append`].
    ///
    /// # Cancel safety
    /// As [`SegmentedLog::append`].
    pub async fn append_named(
        &self,
        session: &Session,
        name: &str,
        item: &Bytes,
        besides: impl Fn(&ItemId) -> Effect,
    ) -> Result<Placed> {
        session.belongs_to(&self.client)?;
        let mut pause = Backoff::contended(&self.client);
        loop {
            let head = self.head(Some(session)).await?;
            let id = ItemId::named(head.segment, name);
            let effect = self.placing(head, &id, item, besides(&id));
            match session.actor().apply(effect).await? {
                Effected::Applied {
                    revision,
                    responses,
                } => {
                    let items = responses.map(|found| ops::count(&found, 1));
                    let live = items.map(|items| usize::try_from(items).unwrap_or(usize::MAX));
                    self.appended(head, slice::from_ref(item), live).await;
                    return Ok(Placed::Done {
                        id,
                        revision,
                        items,
                    });
                }
                Effected::Refused { responses, .. } => {
                    if let Some(mut responses) = self.refused(head, responses)? {
                        let rest = responses.split_off(1);
                        return Ok(match ops::kvs(&responses, 0).first() {
                            Some(kv) => Placed::There(kv.clone()),
                            None => Placed::Refused { responses: rest },
                        });
                    }
                }
            }
            pause.pause().await;
        }
    }

    pub(crate) fn placing(&self, head: Head, id: &ItemId, item: &Bytes, besides: Effect) -> Effect {
        let key = self.key(id);
        let count = ops::counting(self.segment(head.segment));
        Effect {
            when: [self.is_head(head), Compare::absent(&key)]
                .into_iter()
                .chain(besides.when)
                .collect(),
            then: [ops::put(&key, item.clone(), None), ops::read(count)]
                .into_iter()
                .chain(besides.then)
                .collect(),
            otherwise: [ops::get(self.head_key()), ops::get(&key)]
                .map(ops::read)
                .into_iter()
                .chain(besides.otherwise)
                .collect(),
        }
    }

    /// Takes an item of this name out of the segment that is the head, exactly once, with what
    /// `besides` gives for the segment. `None`: there is none.
    ///
    /// # Errors
    /// As [`SegmentedLog::append`].
    ///
    /// # Cancel safety
    /// As [`SegmentedLog::append`].
    pub(crate) async fn take_out_named(
        &self,
        session: &Session,
        name: &str,
        besides: impl Fn(u64) -> Effect,
    ) -> Result<Option<ItemId>> {
        session.belongs_to(&self.client)?;
        let mut pause = Backoff::contended(&self.client);
        loop {
            let head = self.head(Some(session)).await?;
            let id = ItemId::named(head.segment, name);
            let key = self.key(&id);
            let reads = || [ops::get(self.head_key()), ops::get(&key)].map(ops::read);
            let look = TxnRequest {
                success: reads().into(),
                ..TxnRequest::default()
            };
            let (found, _) = wait::repeat(&self.client, look).await?;
            let item = ops::kvs(&found.responses, 1).first();
            let created = item.map(|kv| Revision(kv.create_revision));
            if self.refused(head, found.responses)?.is_none() {
                continue;
            }
            let Some(created) = created else {
                return Ok(None);
            };
            let besides = besides(head.segment);
            let effect = Effect {
                when: [self.is_head(head), Compare::create_revision(&key, created)]
                    .into_iter()
                    .chain(besides.when)
                    .collect(),
                then: [ops::delete(KeyRange::one(&key))]
                    .into_iter()
                    .chain(besides.then)
                    .collect(),
                otherwise: reads().into(),
            };
            if let Effected::Applied { .. } = session.actor().apply(effect).await? {
                return Ok(Some(id));
            }
            // What this handle knows of the head may be old.
            self.forget();
            pause.pause().await;
        }
    }

    /// The segment is still the one that is appended to.
    pub(crate) fn is_head(&self, head: Head) -> Compare {
        Compare::mod_revision(self.head_key(), head.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::keys::KeySpace;
    use crate::kit::Rolled;
    use crate::store::faulty::Fault;
    use crate::store::{Faulty, MemStore};

    fn log(client: &Client) -> SegmentedLog {
        SegmentedLog::new(client.clone(), KeySpace::of("log", "l")).without_automatic_roll()
    }

    async fn place(log: &SegmentedLog, session: &Session, name: &str) -> Placed {
        let item = Bytes::from_static(b"x");
        let placed = log.append_named(session, name, &item, |_| Effect::default());
        placed.await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_once_in_a_segment() {
        let client = Client::new(MemStore::new());
        let session = client.session().await.unwrap();
        let (one, two) = (log(&client), log(&client));
        for (round, segment) in [(0, 0), (1, 1)] {
            let Placed::Done { id, items, .. } = place(&one, &session, "a/b").await else {
                panic!("round {round}");
            };
            assert_eq!((id.segment(), items), (segment, Some(1)));
            assert_eq!(id.to_string().parse::<ItemId>().unwrap(), id);
            assert!(matches!(
                place(&two, &session, "a/b").await,
                Placed::There(_)
            ));
            let head = two.head(None).await.unwrap();
            one.roll(head).await.unwrap();
        }
        // By a handle that knows an old head.
        let out = two.take_out_named(&session, "a/b", |_| Effect::default());
        assert_eq!(out.await.unwrap(), None, "its segment is closed");
        place(&one, &session, "c").await;
        let out = two.take_out_named(&session, "c", |_| Effect::default());
        assert_eq!(out.await.unwrap(), Some(ItemId::named(2, "c")));
    }

    /// Neither by their number nor by their size.
    #[tokio::test(start_paused = true)]
    async fn a_segment_without_an_automatic_roll_stays_open() {
        let client = Client::new(MemStore::new());
        let session = client.session().await.unwrap();
        let log = log(&client).with_segment_items(1);
        let item = Bytes::from(vec![b'x'; 1 << 20]);
        for n in 0..6 {
            let name = n.to_string();
            let placed = log.append_named(&session, &name, &item, |_| Effect::default());
            let placed = placed.await.unwrap();
            assert!(
                matches!(&placed, Placed::Done { id, .. } if id.segment() == 0),
                "{placed:?}"
            );
        }
        assert_eq!(log.head(None).await.unwrap().since, Revision(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_copy_takes_out_nothing_that_came_later() {
        let faulty = Faulty::new(MemStore::new());
        let client = Client::builder(faulty.clone()).seed(3).build();
        let session = client.session().await.unwrap();
        let log = log(&client);
        place(&log, &session, "a").await;
        faulty.plan("quorate/lane/", [Fault::Late]);
        let out = log.take_out_named(&session, "a", |_| Effect::default());
        assert!(out.await.unwrap().is_some());
        assert!(matches!(
            place(&log, &session, "a").await,
            Placed::Done { .. }
        ));
        faulty.deliver().await;
        assert!(matches!(place(&log, &session, "a").await, Placed::There(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_roll_has_its_conditions() {
        let client = Client::new(MemStore::new());
        let log = log(&client);
        let head = log.head(None).await.unwrap();
        let gate = || Effect {
            when: vec![Compare::present("ready")],
            then: vec![ops::put("gate", "open".into(), None)],
            otherwise: vec![ops::read(ops::get("ready"))],
        };
        let refused = log.roll_with(head, gate()).await.unwrap();
        assert!(matches!(refused, Rolled::Refused { .. }), "{refused:?}");
        client.put("ready", "").await.unwrap();
        let done = log.roll_with(head, gate()).await.unwrap();
        assert!(matches!(done, Rolled::Done { .. }), "{done:?}");
        client.delete("gate").await.unwrap();
        let moved = log.roll_with(head, gate()).await.unwrap();
        assert!(
            matches!(moved, Rolled::Moved(head) if head.segment == 1),
            "{moved:?}"
        );
        assert!(client.get("gate").await.unwrap().is_none());
    }
}
