//! The Watch service: carries one client's requests and answers between its session, the watches it
//! shares and those it has alone.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use quorate::core::api::grpc::in_etcds_words;
use quorate::core::clock::{self, Instant};
use quorate::core::tasks::Tasks;
use quorate::proto::Reason;
use quorate::proto::etcdserverpb::watch_server;
use quorate::proto::etcdserverpb::{ResponseHeader, WatchRequest, WatchResponse};
use tonic::{Request, Response, Status, Streaming};

use super::session::{Limits, Session};
use super::shared::Counts;
use super::trunk::{self, Trunk};
use crate::proxy::caller::{ByCaller, Caller};
use crate::proxy::endpoints::{Lane, Pool};
use crate::proxy::latest::Latest;
use crate::proxy::upstream::{Happened, Upstream};

/// Requests of one stream that wait for their answers; more wait in the connection.
const ASKED_MAX: usize = 256;
/// How soon a member is asked again whether watches that are not shared are in sync, while some are not
/// known to be; less and less often.
const DOUBT_FIRST: Duration = Duration::from_millis(250);
const DOUBT_MAX: Duration = Duration::from_secs(4);

/// etcd's Watch service, for all members behind the proxy. Cheap to clone; all clones share.
#[derive(Debug, Clone)]
pub(in crate::proxy) struct Watches(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Pool,
    latest: Latest,
    limits: Limits,
    serving: Tasks,
    trunks: ByCaller<Trunk>,
    counts: Arc<Counts>,
    last_session: AtomicU64,
}

/// The watches as metrics show them.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Seen {
    /// Watchers beyond the first of each shared watch.
    pub(in crate::proxy) coalesced: usize,
    /// Shared watches.
    pub(in crate::proxy) shared: usize,
    /// Events handed to a second and further watchers.
    pub(in crate::proxy) events: u64,
    /// Watchers that fell behind.
    pub(in crate::proxy) behind: u64,
}

/// What one call holds.
struct Call {
    /// Ended before the trunk, which it leaves.
    session: Session,
    trunk: Arc<Trunk>,
    /// `None` once the client asks no more.
    requests: Option<Streaming<WatchRequest>>,
    line: Upstream<WatchRequest, WatchResponse>,
    nows: FuturesUnordered<BoxFuture<'static, (u64, Option<ResponseHeader>)>>,
    /// When to ask whether the line is in sync, and how long after that again.
    doubt_at: Option<Instant>,
    doubt_pause: Duration,
    stopping: BoxFuture<'static, ()>,
}

impl Watches {
    /// The service; `latest` hears of the answers, and its calls end when `serving` is cancelled.
    pub(in crate::proxy) fn new(
        pool: Pool,
        latest: Latest,
        limits: Limits,
        serving: Tasks,
    ) -> Self {
        Self(Arc::new(Inner {
            pool,
            latest,
            limits,
            serving,
            trunks: ByCaller::default(),
            counts: Arc::default(),
            last_session: AtomicU64::new(0),
        }))
    }

    /// The watches now.
    pub(in crate::proxy) fn seen(&self) -> Seen {
        let mut seen = Seen {
            events: self.0.counts.events.load(Relaxed),
            behind: self.0.counts.behind.load(Relaxed),
            ..Seen::default()
        };
        for trunk in self.0.trunks.all() {
            let shared = trunk.common().lock();
            seen.coalesced += shared.coalesced();
            seen.shared += shared.watches();
        }
        seen
    }

    fn call(&self, caller: &Caller, requests: Streaming<WatchRequest>) -> Call {
        let Inner {
            pool,
            latest,
            limits,
            serving,
            trunks,
            counts,
            last_session,
        } = &*self.0;
        let trunk = trunks.get(caller, |caller| {
            Trunk::new(pool, caller, (latest, counts), serving)
        });
        let number = last_session.fetch_add(1, Relaxed) + 1;
        Call {
            session: Session::new(number, Arc::clone(trunk.common()), *limits),
            trunk,
            requests: Some(requests),
            line: Upstream::new(pool.clone(), caller.clone(), Lane::Streams, trunk::begin),
            nows: FuturesUnordered::new(),
            doubt_at: None,
            doubt_pause: DOUBT_FIRST,
            stopping: Box::pin(serving.cancelled()),
        }
    }
}

#[tonic::async_trait]
impl watch_server::Watch for Watches {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(request.metadata());
        let call = self.call(&caller, request.into_inner());
        let answers = futures::stream::unfold(Some(call), |call| async move {
            let mut call = call?;
            match call.answer().await {
                Ok(answer) => Some((Ok(answer), Some(call))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Call {
    /// The next answer, or the end of the call.
    ///
    /// # Cancel safety
    /// Cancel safe: what has come is in the session.
    async fn answer(&mut self) -> Result<WatchResponse, Status> {
        loop {
            self.look_around();
            let is_filled = self.session.is_filled();
            let hears_line = self.session.hears_line()
                && (self.line.is_begun() || !self.session.line().is_empty());
            let takes_requests = self.session.asked() < ASKED_MAX;
            let outbox = Arc::clone(self.session.outbox());
            // In any order: neither may a client that never pauses keep its answers from getting their
            // turn, nor the answers its requests.
            tokio::select! {
                () = std::future::ready(()), if is_filled => {
                    if let Some(answer) = self.session.take()? {
                        return Ok(answer);
                    }
                }
                request = next_request(&mut self.requests), if takes_requests => {
                    self.session.ask(request?);
                    tokio::task::coop::consume_budget().await;
                }
                Some((number, header)) = self.nows.next(), if !self.nows.is_empty() => {
                    self.session.now_is(number, header);
                }
                happened = self.line.next(), if hears_line => self.hear(happened)?,
                () = outbox.filled(), if !is_filled => {}
                () = sleep_until(self.doubt_at) => {
                    self.doubt_at = Some(clock::now() + self.doubt_pause);
                    self.doubt_pause = DOUBT_MAX.min(2 * self.doubt_pause);
                    self.session.ask_line();
                }
                () = &mut self.stopping => return Err(Reason::Stopped.into()),
            }
        }
    }

    /// Brings what the session wants to where it goes.
    fn look_around(&mut self) {
        for doubt in self.session.doubts() {
            let (clock, key) = (self.trunk.clock().clone(), doubt.spec.first_key());
            let number = doubt.number;
            self.nows
                .push(Box::pin(async move { (number, clock.now(key).await) }));
        }
        if self.session.line().is_empty() {
            if self.line.is_begun() {
                self.session.line().close();
                self.line.close();
            }
            self.doubt_at = None;
            return;
        }
        while self.line.has_room()
            && let Some(request) = self.session.line().request()
        {
            self.line.send(request);
        }
        if !(self.line.orders_progress() && self.session.is_in_doubt()) {
            self.doubt_at = None;
        } else if self.doubt_at.is_none() {
            (self.doubt_at, self.doubt_pause) = (Some(clock::now()), DOUBT_FIRST);
        }
    }

    fn hear(&mut self, happened: Happened<WatchResponse>) -> Result<(), Status> {
        match happened {
            Happened::Opening => self.session.reopen_line(),
            Happened::HasRoom => {}
            Happened::Answer(answer) => {
                let heard = self.session.hear(answer, self.line.orders_progress());
                if let Err(confused) = heard {
                    self.session.line().close();
                    self.line.give_up(&confused.to_string());
                }
            }
            Happened::Broken => self.session.line().close(),
            Happened::Ended(status) => return Err(status),
        }
        Ok(())
    }
}

/// The client's next request. As on etcd, a client that has no more of them still gets answers: this
/// fails only when the call breaks. Cancel safe.
async fn next_request(
    requests: &mut Option<Streaming<WatchRequest>>,
) -> Result<WatchRequest, Status> {
    if let Some(open) = requests {
        match open.message().await.map_err(in_etcds_words)? {
            Some(request) => return Ok(request),
            None => *requests = None,
        }
    }
    std::future::pending().await
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
