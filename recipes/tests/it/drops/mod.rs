//! Futures dropped at every call: for each call that an operation makes to the store, and for each
//! stage of it (not sent, on its way, applied but unanswered, answered), the operation's future is dropped just
//! there. When all is quiet, no key of it is left, and somebody else gets what it wanted.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quorate_recipes::clock::LateClock;
use quorate_recipes::store::MemStore;
use quorate_recipes::store::faulty::{Calls, Faulty, Held, Stage};
use quorate_recipes::{Client, Error, Session};

/// What an operation's calls end with.
type Outcome = Result<(), Error>;

/// Time in which everything that is on its way comes to its end, in virtual time.
const QUIET: Duration = Duration::from_secs(60);

/// How long the other one holds what it has got before.
const HOLD: Duration = Duration::from_secs(2);

/// More calls than any operation here makes.
const CALLS_MAX: usize = 200;

const STAGES: [Stage; 4] = [
    Stage::NotSent,
    Stage::OnItsWay,
    Stage::AppliedUnanswered,
    Stage::Answered,
];

/// Keys that belong to sessions, not to what they do.
const OF_SESSIONS: [&str; 2] = ["quorate/session/", "quorate/lane/"];

/// Where a future is dropped.
#[derive(Debug, Clone, Copy)]
struct Place {
    nth: usize,
    stage: Stage,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {}, {:?}", self.nth, self.stage)
    }
}

/// Visits every place, until `visit` says that the operation makes no more calls. Returns how many
/// there were.
async fn at_every_call(mut visit: impl AsyncFnMut(Place) -> bool) -> usize {
    let mut visited = 0;
    for stage in STAGES {
        for nth in 1.. {
            assert!(nth < CALLS_MAX, "it calls again and again");
            if !visit(Place { nth, stage }).await {
                break;
            }
            visited += 1;
        }
    }
    assert!(visited >= STAGES.len(), "it makes no call");
    visited
}

struct World {
    store: MemStore,
    faulty: Faulty<MemStore>,
    user: (Client, Session),
    other: (Client, Session),
}

/// What became of the user's operation.
struct Stopped {
    /// The call at which it was, as long as it is held.
    held: Held,
    /// It came to its end before.
    finished: bool,
}

impl World {
    async fn new() -> Self {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        // Their wall clocks show virtual time as well.
        let user = Client::builder(faulty.clone()).clock(Arc::new(LateClock::default()));
        let other = Client::builder(store.clone()).clock(Arc::new(LateClock::default()));
        let (user, other) = (user.seed(1).build(), other.seed(2).build());
        Self {
            user: (user.clone(), user.session().await.unwrap()),
            other: (other.clone(), other.session().await.unwrap()),
            store,
            faulty,
        }
    }

    /// Drops the user's operation at a call, which is held there.
    async fn stop(&self, at: Place, work: impl Future<Output = Outcome>) -> Stopped {
        let held = self.faulty.hold(at.nth, Calls::Any, at.stage);
        let finished = tokio::select! {
            biased;
            () = held.reached() => false,
            outcome = work => {
                outcome.unwrap_or_else(|error| panic!("{at}: {error}"));
                true
            }
        };
        Stopped { held, finished }
    }

    /// Keys that are left but for durable ones; sessions that are left but for those of the two.
    fn left(&self, durable: &[&str]) -> Vec<String> {
        let mut keys = self.store.keys("quorate/");
        keys.extend(self.store.keys("kept/"));
        keys.retain(|key| {
            let of = |prefix: &&str| key.starts_with(*prefix);
            !OF_SESSIONS.iter().any(of) && !durable.iter().any(of)
        });
        let own = [self.user.1.lease(), self.other.1.lease()];
        let leases = self.store.leases().into_iter();
        let leases = leases.filter(|lease| !own.contains(lease));
        keys.extend(leases.map(|lease| format!("lease {lease}")));
        keys
    }
}

/// What somebody else does must come to a good end in time.
async fn in_time<T>(at: Place, who: &str, work: impl Future<Output = Result<T, Error>>) -> T {
    let done = tokio::time::timeout(QUIET, work).await;
    let done = done.unwrap_or_else(|_| panic!("{at}: {who} does not end"));
    done.unwrap_or_else(|error| panic!("{at}: {who}: {error}"))
}

/// What a task of somebody else ends with.
async fn joined<T>(task: tokio::task::JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    task.await.unwrap()
}

/// `work` takes something, has it for a while, and gives it back. It is dropped everywhere, once while
/// nobody else is there, and once while somebody else has it before.
async fn everywhere<F, Fut>(durable: &[&str], work: F)
where
    F: Fn(Client, Session, Duration) -> Fut,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    for contended in [false, true] {
        let visited = at_every_call(async |at| dropped_at(durable, &work, contended, at).await);
        let visited = visited.await;
        assert!(visited >= 2 * STAGES.len(), "{visited} calls only");
    }
}

/// Returns whether the work makes so many calls.
async fn dropped_at<F, Fut>(durable: &[&str], work: &F, contended: bool, at: Place) -> bool
where
    F: Fn(Client, Session, Duration) -> Fut,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let world = World::new().await;
    let of_other = |hold| work(world.other.0.clone(), world.other.1.clone(), hold);
    let before = contended.then(|| tokio::spawn(of_other(HOLD)));
    if contended {
        tokio::time::sleep(HOLD / 4).await;
    }
    let of_user = work(world.user.0.clone(), world.user.1.clone(), Duration::ZERO);
    let Stopped { held, .. } = world.stop(at, of_user).await;
    let reached = held.is_reached();
    held.release();
    if let Some(before) = before {
        in_time(at, "the other one", joined(before)).await;
    }
    tokio::time::sleep(QUIET).await;
    assert_eq!(world.left(durable), [""; 0], "{at}, contended: {contended}");
    in_time(at, "the next one", of_other(Duration::ZERO)).await;
    reached
}

macro_rules! dropped_everywhere {
    ($($name:ident, $durable:expr, $work:expr;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            super::everywhere(&$durable, $work).await;
        }
    )*};
}

mod budgets;
mod collections;
mod conditions;
mod dispatches;
mod gatherings;
mod leaders;
mod locks;
mod members;
mod once;
#[macro_use]
mod outcomes;
mod progress;
mod queues;
mod requests;
mod topics;
mod writes;
