//! The upstream stream that carries the shared watches of one caller, and what of it sessions see.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use quorate::core::tasks::Tasks;
use quorate::proto::etcdserverpb::watch_client::WatchClient;
use quorate::proto::etcdserverpb::{WatchRequest, WatchResponse};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::now::Clock;
use super::shared::{Counts, Shared};
use crate::proxy::ANSWER_BYTES_MAX;
use crate::proxy::caller::Caller;
use crate::proxy::endpoints::{Lane, Pool};
use crate::proxy::latest::Latest;
use crate::proxy::upstream::{Happened, Messages, Upstream};

/// After this long without an answer, progress is asked for again.
const TICK: Duration = Duration::from_secs(1);
/// How often the member is asked up to where everything was told, so that watches of keys that do not
/// change can be resumed after a compaction: every so many ticks.
const TICKS_OF_PROGRESS: u32 = 30;

/// What the sessions of one caller share.
#[derive(Debug)]
pub(super) struct Common {
    shared: Mutex<Shared>,
    wake: Notify,
    latest: Latest,
}

/// The shared watches of one caller. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Trunk {
    common: Arc<Common>,
    clock: Clock,
    tasks: Tasks,
}

impl Common {
    /// Without watches.
    pub(super) fn new(latest: Latest, counts: Arc<Counts>) -> Self {
        Self {
            shared: Mutex::new(Shared::new(latest.clone(), counts)),
            wake: Notify::new(),
            latest,
        }
    }

    /// Where the store stands, as far as was told.
    pub(super) fn latest(&self) -> &Latest {
        &self.latest
    }

    /// The shared watches. Whoever changes them calls [`Common::wake`] afterwards.
    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There may be something to send upstream.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }
}

impl Trunk {
    /// Begins without watches; a call is opened with the first.
    pub(super) fn new(
        pool: &Pool,
        caller: &Caller,
        (latest, counts): (&Latest, &Arc<Counts>),
        tasks: &Tasks,
    ) -> Self {
        let common = Common::new(latest.clone(), Arc::clone(counts));
        let (common, tasks) = (Arc::new(common), tasks.child());
        let upstream = Upstream::new(pool.clone(), caller.clone(), Lane::Calls, begin);
        tasks.spawn("shared watches", run(Arc::clone(&common), upstream));
        Self {
            common,
            clock: Clock::new(pool.clone(), caller, tasks.clone()),
            tasks,
        }
    }

    /// What sessions join.
    pub(super) fn common(&self) -> &Arc<Common> {
        &self.common
    }

    /// Finds out revisions for those who join.
    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

/// Opens a watch stream.
pub(super) fn begin(
    channel: Channel,
    requests: Request<Messages<WatchRequest>>,
) -> BoxFuture<'static, Result<Response<Streaming<WatchResponse>>, Status>> {
    let mut client = WatchClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    Box::pin(async move { client.watch(requests).await })
}

/// Keeps the stream up as long as there are watches.
async fn run(common: Arc<Common>, mut upstream: Upstream<WatchRequest, WatchResponse>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tick = 0_u32;
    loop {
        let is_idle = {
            let mut shared = common.lock();
            if shared.is_idle() && upstream.is_opening() {
                upstream.close();
                shared.close();
            }
            while upstream.has_room()
                && let Some(request) = shared.request()
            {
                upstream.send(request);
            }
            shared.is_idle()
        };
        tokio::select! {
            happened = upstream.next(), if !is_idle || upstream.is_begun() => {
                hear(&common, &mut upstream, happened);
            }
            () = common.wake.notified() => {}
            _ = ticks.tick() => {
                tick = tick.wrapping_add(1);
                let mut shared = common.lock();
                let is_due = tick.is_multiple_of(TICKS_OF_PROGRESS) && upstream.orders_progress();
                if is_due || shared.waits_for_progress() {
                    shared.ask_progress_again();
                }
            }
        }
    }
}

fn hear(
    common: &Common,
    upstream: &mut Upstream<WatchRequest, WatchResponse>,
    happened: Happened<WatchResponse>,
) {
    let mut shared = common.lock();
    match happened {
        Happened::Opening => shared.open(),
        Happened::HasRoom => {}
        Happened::Answer(answer) => {
            if let Err(confused) = shared.hear(answer, upstream.orders_progress()) {
                shared.close();
                upstream.give_up(&confused.to_string());
            }
        }
        Happened::Broken => shared.close(),
        Happened::Ended(status) => shared.end(&status),
    }
}
