//! Keeps a [`Window`](super::window::Window) up to date: follows the head of the log, the segments at its front, who
//! takes what, and who else takes. One task for all of a session's consumers of a queue.

use std::collections::{BTreeSet, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::record::{About, Tried};
use super::seat::Shared;
use super::watches::Watches;
use crate::client::Client;
use crate::clock::{self, Instant};
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::kit::{Head, ItemId};
use crate::watch::{Batch, Change, Origin};

/// Most segments that are each followed by a watch of their own. Of items that cannot be taken there may be some in
/// many segments, which are followed by one watch then.
const WATCHES_MAX: usize = 16;

/// How much later than others a front looks for what comes after a full segment, at most, while nobody waits for
/// it: all hear of that at once.
const NOT_WAITING_PAUSE: Duration = Duration::from_secs(1);

/// Follows the front of a queue, until that fails or the future is dropped; then all who wait for news are told.
pub(super) fn follow(shared: Arc<Shared>) -> impl Future<Output = ()> {
    let following = Following(Arc::clone(&shared));
    Follower::new(shared).run(following)
}

/// The task that follows, which may end before all who wait for news do, or never begin.
struct Following(Arc<Shared>);

impl Drop for Following {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a queue is not followed any more: its task has panicked");
        }
        self.0.news.send_if_modified(|news| {
            let is_news = news.failed.is_none();
            news.failed.get_or_insert(Error::Closed);
            is_news
        });
    }
}

/// Where news comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Head,
    Tries,
    Consumers,
    Segment(u64),
    /// All segments of the run.
    Run,
}

struct Follower {
    shared: Arc<Shared>,
    watches: Watches<Source>,
    /// Those whose first listing has not come yet.
    unlisted: HashSet<u64>,
    head: Option<Head>,
    /// Those that are followed.
    segments: BTreeSet<u64>,
    /// Those of them that have not been listed, and are not being, since they were closed: of the others no item is
    /// missing.
    growing: BTreeSet<u64>,
    /// Those that have lost items, or were listed, since they were looked at.
    touched: BTreeSet<u64>,
    /// The segments that are followed by one watch: the first of all.
    run: Option<RangeInclusive<u64>>,
    /// Segments before this one are open, or have been, or have no items.
    next: u64,
    /// Until when nothing is done about segments that were closed, unless somebody waits.
    rests_until: Option<Instant>,
    look: Look,
}

/// A look at everything that the store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Done,
    /// The head is being read.
    Head(u64),
    /// What is open at the head is being read; and whether the tries have been.
    Rest(u64, bool),
}

impl Follower {
    fn new(shared: Arc<Shared>) -> Self {
        let mut follower = Self {
            shared,
            watches: Watches::new(),
            unlisted: HashSet::new(),
            head: None,
            segments: BTreeSet::new(),
            growing: BTreeSet::new(),
            touched: BTreeSet::new(),
            run: None,
            next: 0,
            rests_until: None,
            look: Look::Done,
        };
        follower.open(Source::Consumers);
        follower
    }

    async fn run(mut self, _following: Following) {
        let mut wanted = self.shared.wanted.subscribe();
        wanted.mark_changed();
        let error = loop {
            let taken = tokio::select! {
                biased;
                // One look after the other: who asks meanwhile has the next.
                changed = wanted.changed(), if self.look == Look::Done => {
                    if changed.is_err() {
                        return;
                    }
                    self.look = Look::Head(*wanted.borrow_and_update());
                    self.open(Source::Head);
                    Ok(())
                }
                (source, batch) = self.watches.next() => {
                    batch.and_then(|batch| self.take(source, batch))
                }
                () = self.shared.starved.notified() => Ok(()),
                () = at(&self.shared.layout.client, self.rests_until) => Ok(()),
            };
            let settled = match taken {
                Ok(()) => self.settle().await,
                Err(error) => Err(error),
            };
            if let Err(error) = settled {
                break error;
            }
            self.shared.tell();
        };
        tracing::warn!(%error, "a queue is not followed any more");
        self.shared
            .news
            .send_modify(|news| news.failed = Some(error));
    }

    /// Follows a source from a new listing on.
    fn open(&mut self, source: Source) {
        let layout = &self.shared.layout;
        let range = match source {
            Source::Head => KeyRange::one(layout.log.head_key()),
            Source::Tries => layout.tries().range(),
            Source::Consumers => layout.consumers().range(),
            Source::Segment(segment) => layout.log.segment(segment),
            Source::Run => {
                let Some(run) = &self.run else { return };
                layout.log.range(*run.start(), run.end().checked_add(1))
            }
        };
        let batches = layout.client.watch(range).into_stream();
        self.watches.open(source, batches);
        if let Source::Segment(segment) = source {
            self.unlisted.insert(segment);
            self.segments.insert(segment);
            if self.head.is_some_and(|head| segment < head.segment) {
                self.growing.remove(&segment);
            } else {
                self.growing.insert(segment);
            }
        }
    }

    fn take(&mut self, source: Source, batch: Batch) -> Result<()> {
        let listing = batch.origin == Origin::Listing;
        match source {
            Source::Head => self.take_head(batch)?,
            Source::Consumers => self.take_consumers(batch),
            // What came and went meanwhile is not among the differences, and answers may have told of it.
            Source::Tries if batch.origin == Origin::Resync => self.open(Source::Tries),
            Source::Tries => {
                self.take_tries(batch);
                if let Look::Rest(_, tries) = &mut self.look {
                    *tries |= listing;
                }
            }
            Source::Segment(segment) => {
                self.take_items(segment..=segment, batch);
                if listing {
                    self.unlisted.remove(&segment);
                    self.touched.insert(segment);
                }
            }
            Source::Run => {
                if let Some(run) = self.run.clone() {
                    if listing {
                        self.touched.extend(self.segments.range(run.clone()));
                    }
                    self.take_items(run, batch);
                }
            }
        }
        Ok(())
    }

    fn take_head(&mut self, batch: Batch) -> Result<()> {
        let log = &self.shared.layout.log;
        let mut head = self.head;
        if batch.origin == Origin::Listing {
            head = Some(log.head_of(None)?);
        }
        for change in batch.changes {
            head = Some(match change {
                Change::Put { kv, .. } => log.head_of(Some(&kv))?,
                Change::Delete { .. } => log.head_of(None)?,
            });
        }
        let before = self.head.map_or(Revision(0), |head| head.since);
        if head.is_some_and(|head| head.since < before) {
            tracing::warn!(key = %log.head_key(), "the head of a queue went back; beginning again");
            self.begin_again();
        }
        self.head = head;
        if let (Look::Head(look), Origin::Listing) = (self.look, batch.origin) {
            self.look = Look::Rest(look, false);
            self.open(Source::Tries);
            for segment in self.growing.clone() {
                self.open(Source::Segment(segment));
            }
        }
        Ok(())
    }

    /// Knows no segment any more.
    fn begin_again(&mut self) {
        self.watches
            .close_all(|source| matches!(source, Source::Segment(_) | Source::Run));
        self.segments.clear();
        self.growing.clear();
        self.touched.clear();
        self.run = None;
        self.next = 0;
        self.unlisted.clear();
        self.shared.window().forget_items();
    }

    fn take_consumers(&self, batch: Batch) {
        let consumers = self.shared.layout.consumers();
        let name = |key: &[u8]| consumers.suffix(key).map(|name| name.to_owned().into());
        let mut window = self.shared.window();
        if batch.origin == Origin::Listing {
            window.forget_consumers();
        }
        for change in batch.changes {
            match change {
                Change::Put { kv, .. } => {
                    if let Some(name) = name(&kv.key) {
                        window.joined(name);
                    }
                }
                Change::Delete { key, .. } => {
                    if let Some(name) = consumers.suffix(key.as_bytes()) {
                        window.left(name.as_bytes());
                    }
                }
            }
        }
    }

    fn take_tries(&self, batch: Batch) {
        let (layout, now) = (&self.shared.layout, self.shared.now());
        let mut window = self.shared.window();
        if batch.origin == Origin::Listing {
            let counted = batch.changes.iter().filter_map(|change| match change {
                Change::Put { kv, .. } => layout.tried(&kv.key),
                Change::Delete { .. } => None,
            });
            let counted = counted.filter(|(_, tried)| *tried == Tried::Attempts);
            window.tries_listed(batch.revision, &counted.map(|(id, _)| id).collect());
        }
        for change in batch.changes {
            match change {
                Change::Put { kv, .. } => match layout.tried(&kv.key) {
                    Some((id, Tried::Claim)) => {
                        window.claimed(id, Revision(kv.create_revision));
                    }
                    Some((id, Tried::Attempts)) => {
                        self.shared.attempted(&mut window, id, &kv, now);
                    }
                    None => {}
                },
                Change::Delete { key, .. } => match layout.tried(key.as_bytes()) {
                    Some((id, Tried::Claim)) => window.unclaimed(&id, now),
                    Some((id, Tried::Attempts)) => window.not_attempted(&id),
                    None => {}
                },
            }
        }
        window.tries_until(batch.revision);
    }

    fn take_items(&mut self, segments: RangeInclusive<u64>, batch: Batch) {
        let (log, now) = (&self.shared.layout.log, self.shared.now());
        // Read before anybody has to wait for it.
        let changes = batch.changes.into_iter().filter_map(|change| match change {
            Change::Put { kv, .. } => {
                let position = log.position(&kv)?;
                let about = About::read(&Key::from(kv.key), &kv.value);
                // It is given out, found to be unreadable there, and put aside.
                let about = about.unwrap_or_else(|_| About::unknown());
                Some(Ok((position, kv.value, about)))
            }
            Change::Delete { key, .. } => Some(Err(log.item(key.as_bytes())?)),
        });
        let changes: Vec<Result<_, ItemId>> = changes.collect();
        let mut window = self.shared.window();
        if batch.origin == Origin::Listing {
            let there = changes.iter().filter_map(|change| match change {
                Ok((position, ..)) => Some(position.id().clone()),
                Err(_) => None,
            });
            window.only(segments, &there.collect());
        }
        for change in changes {
            match change {
                Ok((position, value, about)) => window.came(position, value, about, now),
                Err(gone) => {
                    window.went(&gone);
                    self.touched.insert(gone.segment());
                }
            }
        }
    }

    /// Moves the front on: away from segments that are done, into the next one when little is left.
    async fn settle(&mut self) -> Result<()> {
        let Some(head) = self.head else { return Ok(()) };
        // What was listed before its segment was closed may lack the last items of it.
        let closed = self.growing.range(..head.segment);
        let closed = closed.filter(|segment| !self.unlisted.contains(segment));
        let closed: Vec<u64> = closed.copied().collect();
        if !self.puts_off(&closed) {
            for segment in closed {
                self.open(Source::Segment(segment));
            }
        }
        self.leave_empty();
        // Only from where nothing is missing, so that no item comes to be known after one behind it.
        let whole = self.unlisted.is_empty() && self.growing.is_empty();
        let end = self.end(head);
        if whole && self.next < end && (self.segments.is_empty() || self.has_little_left()) {
            self.gather();
            let log = &self.shared.layout.log;
            let next = log.first_with_items(self.next, end - 1).await?;
            let next = next.unwrap_or(head.segment).max(self.next);
            if next < end {
                self.open(Source::Segment(next));
            }
            self.next = end.min(next.saturating_add(1));
        }
        if let Look::Rest(look, true) = self.look
            && self.unlisted.is_empty()
            && (self.next > 0 || end == 0)
        {
            self.look = Look::Done;
            self.shared.news.send_modify(|news| news.synced = look);
        }
        Ok(())
    }

    /// Whether these segments are not listed yet, so that those who wait for items are first to ask the store.
    fn puts_off(&mut self, closed: &[u64]) -> bool {
        let is_waited_for = self.look != Look::Done || self.shared.window().is_starved();
        if closed.is_empty() || is_waited_for {
            self.rests_until = None;
            return false;
        }
        let client = &self.shared.layout.client;
        let now = client.now();
        let later = || clock::after(now, client.jitter(NOT_WAITING_PAUSE));
        let rests = now < *self.rests_until.get_or_insert_with(later);
        if !rests {
            self.rests_until = None;
        }
        rests
    }

    /// Leaves the segments that are done.
    fn leave_empty(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        for segment in touched {
            let may_grow = self.growing.contains(&segment) || self.unlisted.contains(&segment);
            if !may_grow && self.shared.window().is_empty(segment) {
                self.segments.remove(&segment);
                self.watches.close(Source::Segment(segment));
            }
        }
        let ran_out = |run: &RangeInclusive<u64>| self.segments.range(run.clone()).next().is_none();
        if self.run.as_ref().is_some_and(ran_out) {
            self.run = None;
            self.watches.close(Source::Run);
        }
    }

    /// Follows all segments that there are with one watch, when there are many; nothing of them is missing.
    fn gather(&mut self) {
        let is_single = |source: &Source| matches!(source, Source::Segment(_));
        if self.watches.count(is_single) < WATCHES_MAX {
            return;
        }
        self.watches.close_all(is_single);
        let ends = self.segments.first().zip(self.segments.last());
        self.run = ends.map(|(first, last)| *first..=*last);
        self.open(Source::Run);
    }

    /// Segments before this one are given out.
    fn end(&self, head: Head) -> u64 {
        match &self.shared.layout.gated {
            Some(_) => head.segment,
            None => head.segment.saturating_add(1),
        }
    }

    fn has_little_left(&self) -> bool {
        let segment_items = self.shared.layout.log.segment_items();
        let now = self.shared.now();
        self.shared.window().wants_more(segment_items, now)
    }
}

async fn at(client: &Client, moment: Option<Instant>) {
    match moment {
        Some(moment) => client.clock().sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
