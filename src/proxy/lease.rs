//! The one method of the Lease service that clients share: keep-alives. Each caller has one stream
//! upstream, whatever the number of clients.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Request as HttpRequest, State};
use axum::response::Response as HttpResponse;
use futures::future::{BoxFuture, ready};
use futures::{Stream, StreamExt as _};
use quorate::core::api::grpc::in_etcds_words;
use quorate::core::clock;
use quorate::core::tasks::Tasks;
use quorate::proto::Reason;
use quorate::proto::etcdserverpb::lease_client::LeaseClient;
use quorate::proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use tokio::sync::{Notify, oneshot};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::caller::{ByCaller, Caller};
use super::endpoints::{Lane, Pool};
use super::pass::Passing;
use super::renew::Renewals;
use super::upstream::{Happened, Messages, Upstream};

/// Where the method is.
pub(super) const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
/// Keep-alives of one stream under way at once; further ones wait in the connection.
const KEEP_ALIVES_IN_FLIGHT: usize = 256;
/// How long a keep-alive waits for its answer, over all members: as long as a member waits for a
/// leader.
const RENEW_LIMIT: Duration = Duration::from_secs(7);
/// How long a member may be silent while keep-alives wait, before another one is asked: leases are short,
/// and asking twice does no harm.
const SILENCE_MAX: Duration = Duration::from_millis(1_500);

/// Keep-alives of all clients. Cheap to clone; all clones share.
#[derive(Debug, Clone)]
pub(super) struct KeepAlives(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Pool,
    passing: Passing,
    serving: Tasks,
    renewers: ByCaller<Renewer>,
    counts: Arc<Counts>,
}

/// Keep-alives since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Asked for by clients.
    pub(super) asked: AtomicU64,
    /// Asked for upstream.
    pub(super) sent: AtomicU64,
}

/// One caller's stream upstream. Dropping it ends it.
#[derive(Debug)]
struct Renewer {
    common: Arc<Common>,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Common {
    renewals: Mutex<Renewals>,
    wake: Notify,
}

type Answers = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

impl KeepAlives {
    /// The method; its calls end when `serving` is cancelled.
    pub(super) fn new(pool: Pool, passing: Passing, serving: Tasks) -> Self {
        Self(Arc::new(Inner {
            pool,
            passing,
            serving,
            renewers: ByCaller::default(),
            counts: Arc::default(),
        }))
    }

    /// Keep-alives since the start.
    pub(super) fn counts(&self) -> &Counts {
        &self.0.counts
    }

    fn answers(&self, request: Request<Streaming<LeaseKeepAliveRequest>>) -> Answers {
        let Inner {
            serving, counts, ..
        } = &*self.0;
        let renewer = self.renewer(&Caller::of(request.metadata()));
        let counts = Arc::clone(counts);
        let answers = request
            .into_inner()
            .map(move |asked| {
                let renewer = Arc::clone(&renewer);
                counts.asked.fetch_add(1, Relaxed);
                async move {
                    let asked = asked.map_err(in_etcds_words)?;
                    renewer.renew(asked.id).await
                }
            })
            .buffered(KEEP_ALIVES_IN_FLIGHT)
            .take_until(serving.cancelled());
        let serving = serving.clone();
        let stopped = async move { serving.is_cancelled().then(|| Err(Reason::Stopped.into())) };
        let answers = answers.chain(futures::stream::once(stopped).filter_map(ready));
        // A gRPC status ends a call.
        Box::pin(answers.scan(false, |is_over, answer| {
            let was_over = std::mem::replace(is_over, answer.is_err());
            ready((!was_over).then_some(answer))
        }))
    }

    fn renewer(&self, caller: &Caller) -> Arc<Renewer> {
        let Inner {
            pool,
            serving,
            renewers,
            counts,
            ..
        } = &*self.0;
        renewers.get(caller, |caller| {
            let (common, tasks) = (Arc::<Common>::default(), serving.child());
            let upstream = Upstream::new(pool.clone(), caller.clone(), Lane::Calls, begin);
            let run = run(Arc::clone(&common), upstream, Arc::clone(counts));
            tasks.spawn("keep-alives", run);
            Renewer { common, tasks }
        })
    }
}

/// Answers a call.
pub(super) async fn keep_alive(
    State(keep_alives): State<KeepAlives>,
    request: HttpRequest,
) -> HttpResponse {
    let codec = ProstCodec::<LeaseKeepAliveResponse, LeaseKeepAliveRequest>::default();
    let mut grpc = keep_alives.0.passing.grpc(codec);
    let service = service_fn(|request| ready(Ok(Response::new(keep_alives.answers(request)))));
    let answer = grpc.streaming(service, request).await;
    answer.map(axum::body::Body::new)
}

impl Renewer {
    async fn renew(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let (tell, told) = oneshot::channel();
        self.common.lock().ask(id, tell, clock::now());
        self.common.wake.notify_one();
        match tokio::time::timeout(RENEW_LIMIT, told).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Reason::Stopped.into()),
            Err(_) => Err(Reason::Timeout.into()),
        }
    }
}

impl Drop for Renewer {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl Common {
    fn lock(&self) -> MutexGuard<'_, Renewals> {
        self.renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn begin(
    channel: Channel,
    requests: Request<Messages<LeaseKeepAliveRequest>>,
) -> BoxFuture<'static, Result<Response<Streaming<LeaseKeepAliveResponse>>, Status>> {
    let mut client = LeaseClient::new(channel);
    Box::pin(async move { client.lease_keep_alive(requests).await })
}

/// Keeps the stream up as long as somebody waits for an answer.
async fn run(
    common: Arc<Common>,
    mut upstream: Upstream<LeaseKeepAliveRequest, LeaseKeepAliveResponse>,
    counts: Arc<Counts>,
) {
    // Since when the member owes an answer.
    let mut silent_since: Option<clock::Instant> = None;
    loop {
        let (is_idle, due) = {
            let mut renewals = common.lock();
            while upstream.has_room()
                && let Some(id) = renewals.take_due(clock::now())
            {
                counts.sent.fetch_add(1, Relaxed);
                silent_since.get_or_insert_with(clock::now);
                upstream.send(LeaseKeepAliveRequest { id });
            }
            // Without room it waits for that, not for the time.
            let due = renewals.next_due().filter(|_| upstream.has_room());
            (renewals.is_empty(), due)
        };
        if is_idle && upstream.is_opening() {
            upstream.close();
        }
        tokio::select! {
            happened = upstream.next(), if !is_idle || upstream.is_begun() => {
                let mut renewals = common.lock();
                match happened {
                    Happened::Opening | Happened::Broken => {
                        renewals.ask_again(clock::now());
                        silent_since = None;
                    }
                    Happened::HasRoom => {}
                    Happened::Answer(answer) => {
                        renewals.hear(&answer, clock::now());
                        silent_since = renewals.is_asked().then(clock::now);
                    }
                    Happened::Ended(status) => {
                        renewals.end(&status);
                        silent_since = None;
                    }
                }
            }
            () = sleep_until(silent_since.map(|since| since + SILENCE_MAX)) => {
                silent_since = None;
                upstream.give_up("no answer to a keep-alive in time");
                common.lock().ask_again(clock::now());
            }
            () = common.wake.notified() => {}
            () = sleep_until(due) => {}
        }
    }
}

async fn sleep_until(at: Option<clock::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
