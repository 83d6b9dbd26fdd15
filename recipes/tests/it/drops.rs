//! Futures dropped at every call: for each call that an operation makes to the store, and for each
//! stage of it (not sent, applied but unanswered, answered), the operation's future is dropped just
//! there. When all is quiet, no key of it is left, and somebody else gets what it wanted.

use std::num::NonZeroU32;
use std::time::Duration;

use quorate_recipes::election::Succession;
use quorate_recipes::kit::Contender;
use quorate_recipes::lock::Upgraded;
use quorate_recipes::store::faulty::{Calls, Faulty, Stage};
use quorate_recipes::store::{Counting, MemStore};
use quorate_recipes::{Client, Error, KeySpace, OnceError, Revision, Session};

/// What an operation's calls end with.
type Outcome = Result<(), Error>;

/// Time in which everything that is on its way comes to its end, in virtual time.
const QUIET: Duration = Duration::from_secs(60);

/// How long the other one holds what it has got before.
const HOLD: Duration = Duration::from_secs(2);

/// More calls than any operation here makes.
const CALLS_MAX: usize = 200;

const STAGES: [Stage; 3] = [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered];

/// Keys that belong to sessions, not to what they do.
const OF_SESSIONS: [&str; 2] = ["quorate/session/", "quorate/lane/"];

struct World {
    store: MemStore,
    faulty: Faulty<MemStore>,
    user: (Client, Session),
    other: (Client, Session),
}

impl World {
    async fn new() -> Self {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let user = Client::builder(faulty.clone()).seed(1).build();
        let other = Client::builder(store.clone()).seed(2).build();
        Self {
            user: (user.clone(), user.session().await.unwrap()),
            other: (other.clone(), other.session().await.unwrap()),
            store,
            faulty,
        }
    }

    fn left(&self, durable: &[&str]) -> Vec<String> {
        let mut keys = self.store.keys("quorate/");
        keys.extend(self.store.keys("kept/"));
        keys.retain(|key| {
            let of = |prefix: &&str| key.starts_with(*prefix);
            !OF_SESSIONS.iter().any(of) && !durable.iter().any(of)
        });
        keys
    }
}

/// `work` takes something, has it for a while, and gives it back. It is dropped everywhere, once while
/// nobody else is there, and once while somebody else has it before.
async fn everywhere<F, Fut>(durable: &[&str], work: F)
where
    F: Fn(Client, Session, Duration) -> Fut,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    for contended in [false, true] {
        let mut dropped = 0;
        for stage in STAGES {
            for nth in 1..CALLS_MAX {
                if !dropped_at(durable, &work, contended, nth, stage).await {
                    break;
                }
                dropped += 1;
            }
        }
        assert!(dropped >= 2 * STAGES.len(), "{dropped} calls only");
    }
}

/// Returns whether the work makes so many calls.
async fn dropped_at<F, Fut>(
    durable: &[&str],
    work: &F,
    contended: bool,
    nth: usize,
    stage: Stage,
) -> bool
where
    F: Fn(Client, Session, Duration) -> Fut,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let at = format!("call {nth}, {stage:?}, contended: {contended}");
    let world = World::new().await;
    let of_other = |hold| work(world.other.0.clone(), world.other.1.clone(), hold);
    let before = contended.then(|| tokio::spawn(of_other(HOLD)));
    if contended {
        tokio::time::sleep(HOLD / 4).await;
    }
    let held = world.faulty.hold(nth, Calls::Any, stage);
    let of_user = work(world.user.0.clone(), world.user.1.clone(), Duration::ZERO);
    let reached = tokio::select! {
        biased;
        () = held.reached() => true,
        outcome = of_user => {
            outcome.unwrap_or_else(|error| panic!("{at}: {error}"));
            held.is_reached()
        }
    };
    held.release();
    if let Some(before) = before {
        let done = tokio::time::timeout(QUIET, before).await;
        let done = done.unwrap_or_else(|_| panic!("{at}: the other one does not end"));
        done.unwrap()
            .unwrap_or_else(|error| panic!("{at}: the other one: {error}"));
    }
    tokio::time::sleep(QUIET).await;
    assert_eq!(world.left(durable), [""; 0], "{at}");
    let next = tokio::time::timeout(QUIET, of_other(Duration::ZERO)).await;
    let next = next.unwrap_or_else(|_| panic!("{at}: the next one is blocked"));
    next.unwrap_or_else(|error| panic!("{at}: the next one: {error}"));
    reached
}

macro_rules! dropped_everywhere {
    ($($name:ident, $durable:expr, $work:expr;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            everywhere(&$durable, $work).await;
        }
    )*};
}

dropped_everywhere! {
    mutex, [], async |client: Client, session: Session, hold| {
        let guard = client.mutex("x").lock(&session).await?;
        tokio::time::sleep(hold).await;
        guard.put("x", "held").await?;
        guard.release().await
    };
    mutex_with_a_delay, [], async |client: Client, session: Session, hold| {
        let mutex = client.mutex("x").with_delay(Duration::from_secs(5));
        let guard = mutex.lock(&session).await?;
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    mutex_tried_with_a_delay, [], async |client: Client, session: Session, hold| {
        let mutex = client.mutex("x").with_delay(Duration::from_secs(5));
        let guard = loop {
            match mutex.try_lock(&session).await? {
                Some(guard) => break guard,
                None => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        };
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    combined_mutex, [], async |client: Client, session: Session, hold| {
        let combined = client.mutex("x").combined(&session);
        let (one, other) = tokio::join!(
            async {
                let guard = combined.lock().await?;
                tokio::time::sleep(hold).await;
                guard.put("x", "held").await?;
                guard.release().await
            },
            async { combined.lock().await?.release().await }
        );
        one.and(other)
    };
    shared_mutex, [], async |client: Client, session: Session, hold| {
        let shared = client.mutex("x").shared(&session);
        let outer = shared.lock().await?;
        let inner = shared.lock().await?;
        tokio::time::sleep(hold).await;
        outer.release().await?;
        inner.release().await
    };
    exclusive_lock, [], async |client: Client, session: Session, hold| {
        let guard = client.exclusive("x").lock(&session).await?;
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    reader, [], async |client: Client, session: Session, hold| {
        let guard = client.rw_lock("x").read(&session).await?;
        tokio::time::sleep(hold).await;
        let guard = match guard.try_upgrade().await? {
            Upgraded::Write(writer) => writer.downgrade().await?,
            Upgraded::Read(reader) => reader,
        };
        guard.release().await
    };
    writer, [], async |client: Client, session: Session, hold| {
        let guard = client.rw_lock("x").write(&session).await?;
        tokio::time::sleep(hold).await;
        guard.downgrade().await?.release().await
    };
    semaphore, ["quorate/semaphore/x/limit"], async |client: Client, session: Session, hold| {
        let both = NonZeroU32::new(2).expect("not zero");
        let permit = client.semaphore("x", 2).acquire_many(&session, both).await?;
        tokio::time::sleep(hold).await;
        permit.release().await
    };
    several_locks, [], async |client: Client, session: Session, hold| {
        let guard = client.multi_lock(["x", "y", "z"]).lock(&session).await?;
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    leader, [], async |client: Client, session: Session, hold| {
        let election = client.election("x").with_priority(3);
        let leadership = election.campaign(&session, 1_u32).await?;
        tokio::time::sleep(hold).await;
        leadership.proclaim(2).await?;
        leadership.resign().await
    };
    membership, [], async |client: Client, session: Session, hold| {
        let membership = client.group::<u32>("x").join(&session, 1).await?;
        tokio::time::sleep(hold).await;
        membership.update(2).await?;
        membership.leave().await
    };
    partitions, [], async |client: Client, session: Session, hold| {
        let mut partitions = client.partitions("x", 3).join(&session).await?;
        let partition = partitions.next().await?;
        tokio::time::sleep(hold).await;
        partition.release().await?;
        partitions.leave().await
    };
    kept_key, [], async |client: Client, session: Session, hold| {
        let kept = client.keep(format!("kept/{}", session.lease()), "a").await?;
        tokio::time::sleep(hold).await;
        kept.set("b").await?;
        kept.remove().await
    };
    computing_once, ["quorate/once/x/manifest", "quorate/once/x/chunk/", "quorate/once/x/attempts"], async |client: Client, session: Session, hold| {
        let cell = client.once::<u32>("x").max_attempts(9);
        let cell = cell.cache_failures(Duration::from_secs(3));
        let init = || async move {
            tokio::time::sleep(hold).await;
            Ok::<_, Error>(1)
        };
        match cell.get_or_try_init(&session, init).await {
            Ok(_) => {}
            Err(OnceError::Failed(error) | OnceError::Init(error)) => return Err(error),
            Err(other) => panic!("{other}"),
        }
        let (published, _) = cell.changed(Revision(0)).await?;
        match cell.refresh(&session, published.revision, init).await {
            Ok(_) => {}
            // The other one took it back.
            Err(OnceError::Failed(Error::Conflict)) => {}
            Err(OnceError::Failed(error) | OnceError::Init(error)) => return Err(error),
            Err(other) => panic!("{other}"),
        }
        cell.wait().await?;
        cell.invalidate(published.revision).await?;
        cell.forget_failures().await
    };
    request_to_release, [], async |client: Client, session: Session, hold| {
        let mutex = client.mutex("x");
        let guard = mutex.lock(&session).await?;
        let request = mutex.request_release(&session, "why").await?;
        tokio::time::sleep(hold).await;
        guard.release().await?;
        if let Some(request) = request {
            request.granted().await?;
        }
        Ok(())
    };
}

/// A leader that hands over, dropped everywhere: the line goes on, and nobody is named for ever.
#[tokio::test(start_paused = true)]
async fn handing_over() {
    let handover = "quorate/election-meta/x/handover";
    everywhere(
        &[handover],
        async |client: Client, session: Session, hold| {
            let election = client.election::<u32>("x");
            let leadership = election.campaign(&session, 1).await?;
            tokio::time::sleep(hold).await;
            // A candidate of the same session, which leads after it.
            let (second, third) = (session.clone(), session.clone());
            let waits = tokio::join!(
                async { election.campaign(&second, 2).await?.resign().await },
                async { election.campaign(&third, 3).await?.resign().await },
                async {
                    let candidates = loop {
                        let candidates = election.candidates(9).await?;
                        if candidates.len() >= 3 {
                            break candidates;
                        }
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    };
                    match leadership.hand_over(&candidates[2]).await? {
                        Succession::Gone(leadership) => leadership.resign().await,
                        _ => Ok(()),
                    }
                }
            );
            waits.0.and(waits.1).and(waits.2)
        },
    )
    .await;
}

/// What a round trip costs, and who is woken, counted call by call.
#[tokio::test(start_paused = true)]
async fn budgets() {
    let store = MemStore::new();
    let counting = Counting::new(store.clone());
    let client = Client::new(counting.clone());
    let session = client
        .session()
        .ttl(Duration::from_secs(600))
        .await
        .unwrap();
    let count = async |work: &mut dyn FnMut() -> futures::future::BoxFuture<'static, ()>| {
        let before = counting.counts();
        work().await;
        counting.counts() - before
    };
    let mutex = client.mutex("budget");
    let calls = count(&mut || {
        let (mutex, session) = (mutex.clone(), session.clone());
        Box::pin(async move { std::mem::forget(mutex.lock(&session).await.unwrap()) })
    })
    .await;
    assert_eq!((calls.calls(), calls.txn), (1, 1), "an uncontended lock");
    let calls = count(&mut || {
        let (mutex, session) = (mutex.clone(), session.clone());
        Box::pin(async move { assert!(mutex.try_lock(&session).await.unwrap().is_none()) })
    })
    .await;
    assert_eq!(calls.calls(), 1, "a try that loses");
    let revision = store.revision();
    assert!(mutex.try_lock(&session).await.unwrap().is_none());
    assert_eq!(
        store.revision(),
        revision,
        "a try that loses writes nothing"
    );
    let guard = client.mutex("other").lock(&session).await.unwrap();
    let before = counting.counts();
    guard.release().await.unwrap();
    let calls = counting.counts() - before;
    assert_eq!((calls.calls(), calls.txn), (1, 1), "a release");
    let before = counting.counts();
    let writer = client.rw_lock("budget").write(&session).await.unwrap();
    writer.release().await.unwrap();
    let several = client
        .multi_lock(["m1", "m2", "m3"])
        .lock(&session)
        .await
        .unwrap();
    several.release().await.unwrap();
    let permit = client
        .semaphore("budget", 3)
        .acquire(&session)
        .await
        .unwrap();
    permit.release().await.unwrap();
    let calls = counting.counts() - before;
    assert_eq!((calls.calls(), calls.txn), (7, 7), "2 + 2 + 3");
}

/// A release among a thousand waiters wakes one of them, and costs it one transaction.
#[tokio::test(start_paused = true)]
async fn a_release_wakes_one_of_a_thousand() {
    let counting = Counting::new(MemStore::new());
    let client = Client::new(counting.clone());
    let session = client
        .session()
        .ttl(Duration::from_secs(600))
        .await
        .unwrap();
    let space = KeySpace::of("lock", "crowd");
    let first = client.mutex("crowd").lock(&session).await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let contender = Contender::enter(&session, &space, "").await.unwrap();
        waiting.spawn(contender.wait_turn());
    }
    // All of them have opened their watches by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = counting.counts();
    first.release().await.unwrap();
    let next = waiting.join_next().await.unwrap().unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calls = counting.counts() - before;
    assert_eq!((calls.watches_woken, calls.txn), (1, 2), "{calls:?}");
    assert_eq!(waiting.len(), 999);
    drop(next);
}
