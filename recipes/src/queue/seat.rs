//! What the consumers of a session share of a queue's front, and what each of them does there: it wants an item,
//! chooses one, and keeps it from the others while it takes it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_proto::mvccpb::KeyValue;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use super::delay;
use super::follow;
use super::record::{AttemptsRecord, Layout, Order};
use super::window::{Candidate, Choice, Number, Turn, Window};
use crate::clock::{self, Instant};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::kit::{ItemId, Position};
use crate::session::Session;
use crate::tasks::Tasks;
use crate::value::from_json;

/// The front of a queue as the consumers of one session see it. Dropping the last seat stops following.
struct Front {
    shared: Arc<Shared>,
    tasks: Tasks,
}

/// One consumer's place at a front.
pub(super) struct Seat {
    front: Arc<Front>,
    me: Number,
}

/// Somebody who wants an item, until it is dropped.
pub(super) struct Want<'a> {
    shared: &'a Shared,
    /// It found none when it looked last.
    starves: bool,
}

impl Want<'_> {
    fn is_fed(&mut self, window: &mut Window) {
        if std::mem::take(&mut self.starves) {
            window.is_fed();
        }
    }
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        if self.starves {
            self.shared.window().is_fed();
        }
    }
}

/// Why there is nothing to take.
pub(super) struct Waits {
    /// From when on there may be something, if that is known.
    pub(super) until: Option<Instant>,
    /// What others of the session are about to take, if it is anybody's turn: it may be free in a moment.
    pub(super) unsettled: Vec<ItemId>,
}

/// What the task and those who take share.
pub(super) struct Shared {
    pub(super) layout: Layout,
    pub(super) window: Mutex<Window>,
    pub(super) news: watch::Sender<News>,
    /// The last look that was asked for.
    pub(super) wanted: watch::Sender<u64>,
    /// Somebody has begun to find nothing to take.
    pub(super) starved: Notify,
    /// It has come out what became of something that was being taken.
    settled: Notify,
}

/// What the task has come to.
#[derive(Debug, Clone, Default)]
pub(super) struct News {
    /// The last look that is done.
    pub(super) synced: u64,
    /// Why it has ended.
    pub(super) failed: Option<Error>,
}

/// An item that is being taken: nobody else in this session chooses it; or that is taken: its consumer does not choose
/// it again, whatever becomes of the claim. Dropping it ends that.
pub(super) struct Reserved {
    shared: Arc<Shared>,
    position: Position,
    by: Number,
    stage: Stage,
}

/// What the store has of an item.
pub(super) struct There<'a> {
    pub(super) item: Option<&'a KeyValue>,
    pub(super) claim: Option<&'a KeyValue>,
    pub(super) attempts: Option<&'a KeyValue>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    BeingTaken,
    Taken,
    /// Not to be taken by anybody in this session.
    LeftAlone,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let id = self.position.id();
        let is_news = match self.stage {
            Stage::BeingTaken => {
                self.shared.window().unreserve(id);
                true
            }
            Stage::Taken => self.shared.window().let_go(id, self.by),
            Stage::LeftAlone => {
                self.shared.window().leave_alone(&self.position);
                true
            }
        };
        self.shared.settled.notify_waiters();
        if is_news {
            self.shared.tell();
        }
    }
}

impl Reserved {
    /// The store says that the item is not there any more.
    pub(super) fn went(&self) {
        self.shared.window().went_from(&self.position);
    }

    /// Nobody in this session is to have it any more.
    pub(super) fn leave_alone(mut self) {
        self.stage = Stage::LeftAlone;
    }

    /// Its consumer has claimed it, at this revision.
    pub(super) fn taken(&mut self, revision: Revision) {
        let id = self.position.id().clone();
        let is_lost = self.shared.window().keep(id, self.by, revision);
        self.stage = Stage::Taken;
        self.shared.settled.notify_waiters();
        if is_lost {
            self.shared.tell();
        }
    }

    /// The store has refused to have it taken: this is what is there instead of what was expected.
    pub(super) fn refused(&self, there: &There<'_>) {
        let now = self.shared.now();
        let mut window = self.shared.window();
        let id = self.position.id();
        if let Some(claim) = there.claim {
            window.claimed_at(id.clone(), Revision(claim.create_revision));
        }
        let same = |item: &&KeyValue| item.create_revision == self.position.created().0;
        match (there.item.filter(same), there.attempts) {
            (None, _) => window.went_from(&self.position),
            (Some(_), Some(kv)) => self.shared.attempted(&mut window, id.clone(), kv, now),
            (Some(_), None) => window.not_attempted(id),
        }
    }
}

impl Shared {
    pub(super) fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Instant {
        self.layout.client.now()
    }

    /// Wakes those who wait for something to take.
    pub(super) fn tell(&self) {
        self.news.send_modify(|_| {});
    }

    pub(super) fn attempted(&self, window: &mut Window, id: ItemId, kv: &KeyValue, now: Instant) {
        let record: Result<AttemptsRecord> = from_json(&kv.key, &kv.value);
        let record = record.unwrap_or_else(|error| {
            tracing::warn!(%error, "an unreadable count of attempts is taken for none");
            AttemptsRecord::new(0)
        });
        let left = record.pause_left(self.layout.client.wall_millis());
        let paused = left.map(|left| clock::after(now, left));
        window.attempted(id, Revision(kv.mod_revision), record.count, paused);
    }
}

impl Front {
    /// The front for one more consumer of the session; `most` is how often it takes an item.
    fn of(session: &Session, layout: &Layout, order: Order, most: Option<u32>) -> Arc<Self> {
        // Consumers that differ in one of these follow other things, or leave other items alone.
        let (head, items) = (layout.log.head_key(), layout.log.segment_items());
        let name = format!(
            "{head} {order:?} {items} {most:?} {}",
            layout.gated.is_some()
        );
        let follows = |front: &Self| front.shared.news.borrow().failed.is_none();
        let follow = |tasks| Self::follow(session, layout, order, tasks);
        session.actor().common(name, follows, follow)
    }

    fn follow(session: &Session, layout: &Layout, order: Order, tasks: Tasks) -> Self {
        let shared = Arc::new(Shared {
            layout: layout.clone(),
            window: Mutex::new(Window::new(order)),
            news: watch::Sender::new(News::default()),
            wanted: watch::Sender::new(1),
            starved: Notify::new(),
            settled: Notify::new(),
        });
        tasks.spawn("queue", follow::follow(Arc::clone(&shared)));
        if !layout.of_recipe {
            // It goes on for those who come later, whatever task of the program came first.
            delay::start(layout, &session.for_any_task(), &tasks);
        }
        Self { shared, tasks }
    }
}

impl Seat {
    /// One for a consumer with this name, which takes an item so often at most.
    pub(super) fn take(
        session: &Session,
        layout: &Layout,
        order: Order,
        most: Option<u32>,
        name: &str,
    ) -> Self {
        Self {
            front: Front::of(session, layout, order, most),
            me: Number::of(name.as_bytes()),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.front.shared
    }

    /// To be kept by who wants an item of this consumer, as long as it does.
    pub(super) fn want(&self) -> Want<'_> {
        Want {
            shared: self.shared(),
            starves: false,
        }
    }

    /// Something for this consumer to take, kept for it.
    pub(super) fn choose(
        &self,
        turn: Turn,
        want: &mut Want<'_>,
    ) -> Result<(Candidate, Reserved), Waits> {
        let now = self.shared().now();
        let mut window = self.shared().window();
        match window.choose(self.me, turn, now) {
            Choice::Take(candidate) => {
                want.is_fed(&mut window);
                window.reserve(candidate.position.id().clone());
                let reserved = Reserved {
                    shared: Arc::clone(self.shared()),
                    position: candidate.position.clone(),
                    by: self.me,
                    stage: Stage::BeingTaken,
                };
                Ok((*candidate, reserved))
            }
            Choice::Wait(until) => {
                if !std::mem::replace(&mut want.starves, true) && window.starves() {
                    self.shared().starved.notify_one();
                }
                let unsettled = match turn {
                    Turn::Ranked => Vec::new(),
                    Turn::Anybody => window.unsettled(),
                };
                Err(Waits { until, unsettled })
            }
        }
    }

    /// Whether there is something to take and it is this consumer's turn.
    pub(super) fn has_some(&self) -> bool {
        let now = self.shared().now();
        let choice = self.shared().window().choose(self.me, Turn::Ranked, now);
        matches!(choice, Choice::Take(_))
    }

    /// Completes when it has come out what became of something that was being taken, from this call on.
    pub(super) fn settled(&self) -> Notified<'_> {
        self.shared().settled.notified()
    }

    /// Tells of everything that may change what there is to take.
    pub(super) fn news(&self) -> watch::Receiver<News> {
        self.shared().news.subscribe()
    }

    /// Waits until everything that the store has now is known.
    ///
    /// # Errors
    /// As [`News::check`].
    pub(super) async fn sync(&self) -> Result<()> {
        let mut look = 0;
        self.shared().wanted.send_modify(|wanted| {
            *wanted += 1;
            look = *wanted;
        });
        let mut news = self.news();
        let done = news.wait_for(|news| news.synced >= look || news.failed.is_some());
        let done = done.await.map_err(|_| Error::Closed)?;
        done.check()
    }
}

impl News {
    /// Fails once the queue is not followed any more.
    ///
    /// # Errors
    /// The store's final refusal; [`Error::Codec`] for a head that cannot be read; [`Error::Closed`] when its task has
    /// ended with its runtime, or by a panic.
    pub(super) fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.tasks.cancel();
        // Deliveries may be kept for long.
        self.shared.window().forget_items();
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").finish_non_exhaustive()
    }
}

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserved")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
