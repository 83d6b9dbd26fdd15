//! One world: it is built from its seed, goes through a storm and a calm, and is judged.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::keys::{Revision, session_key};
use quorate_recipes::store::{MemStore, Rates};
use quorate_recipes::{Error, Session};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Builder;
use tokio::task::{JoinHandle, LocalSet};

use crate::faults::{Faults, Trouble};
use crate::history::{History, Log, Losses};
use crate::nemesis::Nemesis;
use crate::panics;
use crate::player::Player;
use crate::scenario::Scenario;

/// Least uses of the recipe in the storm, by all clients together.
const OPERATIONS: u64 = 100;

/// Least strikes of the nemesis.
const TROUBLES: u64 = 5;

/// Uses of the recipe in the calm that each client must get done.
const CALM_STEPS: usize = 3;

/// How long the calm may take, and the end of all sessions, in virtual time.
const CALM_MAX: Duration = Duration::from_secs(240);

/// How long a storm may last, in virtual time, before clients are taken to be stuck.
const STORM_MAX: Duration = Duration::from_secs(3600);

/// How long what clients have left behind may take to be gone, by itself or with its lease.
const SETTLING: Duration = Duration::from_secs(10);

/// How long copies of calls can still be on their way when all is over, and leases live that nobody
/// renews.
const AFTERMATH: Duration = Duration::from_secs(40);

/// The time to live of the clients' leases, in seconds.
const TTL_SECONDS: std::ops::RangeInclusive<u64> = 3..=8;

/// How a world ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed it was made from.
    pub seed: u64,
    /// What was broken, if anything was.
    pub broken: Option<String>,
    /// How often the recipe was used.
    pub operations: u64,
    /// The faults it went through.
    pub faults: Faults,
    /// What happened, as text.
    pub log: String,
}

struct World<S> {
    scenario: S,
    store: MemStore,
    players: Vec<Player>,
    log: Log,
    faults: RefCell<Faults>,
    losses: RefCell<Losses>,
    /// The first error of a step that nothing explains.
    unexplained: RefCell<Option<String>>,
    operations: Cell<u64>,
    /// Since when it is calm, if the storm is over.
    calm: Cell<Option<Instant>>,
    /// What each client does its steps with, as long as it lives.
    sessions: RefCell<BTreeMap<usize, Session>>,
}

/// Runs the world of a seed, from its beginning to its judgement. The same seed gives the same.
#[must_use]
pub fn run<S: Scenario>(seed: u64) -> Outcome {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing");
    // Its time is the runtime's, from the first line of the log on.
    let _entered = runtime.enter();
    let (store, log) = (MemStore::with_capabilities(S::capabilities()), Log::new());
    let tasks = LocalSet::new();
    panics::watch();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        tasks.block_on(&runtime, life::<S>(seed, store.clone(), log.clone()))
    }));
    // Tasks that nobody waits for are part of the world as well, and so is their end.
    drop(tasks);
    let panicked = panics::seen();
    let mut outcome = ran.unwrap_or_else(|_| Outcome {
        seed,
        broken: None,
        operations: 0,
        faults: Faults::default(),
        log: log.text(&store.history(Revision(0))),
    });
    if let Some(panicked) = panicked {
        outcome.log.push_str(&panicked);
        outcome.log.push('\n');
        outcome.broken.get_or_insert(panicked);
    }
    outcome
}

async fn life<S: Scenario>(seed: u64, store: MemStore, log: Log) -> Outcome {
    let mut random = SmallRng::seed_from_u64(seed);
    let count = random.random_range(3..=5);
    let players = (0..count).map(|index| Player::new(index, random.random(), &store, &log));
    let world = Rc::new(World {
        scenario: S::new(),
        players: players.collect(),
        store,
        log,
        faults: RefCell::default(),
        losses: RefCell::default(),
        unexplained: RefCell::default(),
        operations: Cell::new(0),
        calm: Cell::default(),
        sessions: RefCell::default(),
    });
    let lived = world.live(&mut random).await;
    let history = History {
        commits: world.store.history(Revision(0)),
        losses: world.losses.borrow().clone(),
        calm: world.calm.get(),
    };
    let judged = match (lived, world.scenario.check(&history)) {
        (Err(lived), Err(judged)) => Err(format!("{lived}; and {judged}")),
        (lived, judged) => lived.and(judged),
    };
    let judged = judged.and_then(|()| world.unexplained.take().map_or(Ok(()), Err));
    if let Err(broken) = &judged {
        world.log.note(format!("BROKEN: {broken}"));
    }
    let mut faults = *world.faults.borrow();
    for player in &world.players {
        faults.calls = faults.calls + player.connection().counts();
        faults.compacted += player.connection().inner().compacted();
    }
    Outcome {
        seed,
        broken: judged.err(),
        operations: world.operations.get(),
        faults,
        log: world.log.text(&history.commits),
    }
}

impl<S: Scenario> World<S> {
    async fn live(self: &Rc<Self>, random: &mut SmallRng) -> Result<(), String> {
        let nemesis = Nemesis {
            store: &self.store,
            players: &self.players,
            log: &self.log,
            faults: &self.faults,
            losses: &self.losses,
            ttl: Duration::from_secs(*TTL_SECONDS.end()),
        };
        let rate = [0.02, 0.08, 0.25][random.random_range(0..3)];
        for player in &self.players {
            let rates = Rates::evenly(rate);
            player.connection().fail_at_random(random.random(), rates);
        }
        let attending: Vec<JoinHandle<()>> = (self.players.iter().cloned())
            .map(|player| {
                let world = Rc::clone(self);
                tokio::task::spawn_local(async move { world.scenario.attend(&player).await })
            })
            .collect();
        let mut playing: Vec<JoinHandle<()>> = (self.players.iter().cloned())
            .map(|player| {
                let world = Rc::clone(self);
                tokio::task::spawn_local(async move { world.play(&player).await })
            })
            .collect();

        let (first, second) = (random.random(), random.random());
        tokio::select! {
            biased;
            () = nemesis.rage(SmallRng::seed_from_u64(first)) => {}
            () = nemesis.rage(SmallRng::seed_from_u64(second)) => {}
            () = self.enough() => {}
            () = tokio::time::sleep(STORM_MAX) => {
                let done = self.operations.get();
                return Err(format!("stuck in the storm after {done} operations"));
            }
        }
        nemesis.heal();
        for player in &self.players {
            player.connection().fail_at_random(0, Rates::NONE);
        }
        self.calm.set(Some(SystemClock.now()));
        self.log.note("calm");

        let ended = tokio::time::timeout(CALM_MAX, async {
            for player in &mut playing {
                player.await.expect("a player's panic is the world's");
            }
        });
        if ended.await.is_err() {
            return Err(self.stuck(&playing).await);
        }
        // What was dropped is withdrawn, and lost sessions are over.
        tokio::time::sleep(SETTLING).await;
        let finished = tokio::time::timeout(CALM_MAX, self.scenario.finish(&self.players));
        match finished.await {
            Ok(finished) => finished?,
            Err(_) => return Err("all together did not come to an end in the calm".to_owned()),
        }
        self.all_is_let_go().await?;
        self.close_sessions().await;
        tokio::time::sleep(SETTLING + S::outlives()).await;
        for attendant in attending {
            attendant.abort();
            if let Err(error) = attendant.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        self.nothing_is_left()
    }

    fn is_stormy(&self) -> bool {
        self.calm.get().is_none()
    }

    /// Completes when the storm has lasted long enough.
    async fn enough(&self) {
        let step = Duration::from_millis(50);
        while self.operations.get() < OPERATIONS || self.faults.borrow().strikes() < TROUBLES {
            tokio::time::sleep(step).await;
        }
    }

    /// What kept those from their end who did not come to it: they are stopped, and their sessions live on.
    async fn stuck(&self, playing: &[JoinHandle<()>]) -> String {
        for player in playing {
            player.abort();
        }
        let stuck = "not everybody came to an end in the calm";
        match self.all_is_let_go().await {
            Ok(()) => format!("{stuck}, and nothing was in the way"),
            Err(left) => format!("{stuck}; {left}"),
        }
    }

    /// Clients let go of what they hold and wait for, while their sessions live: nothing may be left then
    /// that somebody else could wait for until they end.
    async fn all_is_let_go(&self) -> Result<(), String> {
        self.scenario.end();
        tokio::time::sleep(AFTERMATH).await;
        let mut left = self.left();
        for session in self.sessions.borrow().values() {
            let lease = session.lease();
            let (own, lanes) = (session_key(lease), format!("quorate/lane/{lease}/"));
            left.retain(|key| key.as_bytes() != own.as_bytes() && !key.starts_with(&lanes));
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(format!("nobody holds or waits for keys {left:?}"))
    }

    async fn close_sessions(&self) {
        for (index, session) in self.sessions.take() {
            self.players[index].note(format!("closing {}", session.lease()));
            drop(session.close().await);
        }
    }

    /// The keys of the recipes that are there and should not.
    fn left(&self) -> Vec<String> {
        let mut left = self.store.keys("quorate/");
        left.retain(|key| !self.scenario.may_remain(key));
        left
    }

    fn nothing_is_left(&self) -> Result<(), String> {
        let left = self.left();
        let leases = self.store.leases().len();
        if left.is_empty() && leases == 0 {
            return Ok(());
        }
        Err(format!("left behind: {leases} leases, keys {left:?}"))
    }

    /// What one client does from beginning to end.
    async fn play(&self, player: &Player) {
        let mut calm_steps = 0;
        while self.is_stormy() || calm_steps < CALM_STEPS {
            player.pause(400).await;
            let Some(session) = self.session(player).await else {
                continue;
            };
            let calm = !self.is_stormy();
            let done = self.step(player, &session, calm).await;
            calm_steps += usize::from(calm && done);
            self.keep(player, session).await;
        }
    }

    /// The client's session, or else a new one.
    async fn session(&self, player: &Player) -> Option<Session> {
        let known = self.sessions.borrow().get(&player.index()).cloned();
        if known.is_some() {
            return known;
        }
        let opened = self.open(player).await?;
        let mut sessions = self.sessions.borrow_mut();
        sessions.insert(player.index(), opened.clone());
        Some(opened)
    }

    async fn open(&self, player: &Player) -> Option<Session> {
        let seconds =
            TTL_SECONDS.start() + player.below(TTL_SECONDS.end() - TTL_SECONDS.start() + 1);
        let builder = player.client().session().ttl(Duration::from_secs(seconds));
        let opened = match self.is_stormy() && player.one_in(10) {
            true => {
                let limit = Duration::from_millis(player.below(500));
                let opened = tokio::time::timeout(limit, builder).await;
                if opened.is_err() {
                    self.faults.borrow_mut().count(Trouble::DroppedFuture);
                }
                opened.ok()?
            }
            false => builder.await,
        };
        match opened {
            Ok(session) => {
                player.note(format!("session {} for {seconds} s", session.lease()));
                Some(session)
            }
            Err(error) => {
                player.note(format!("no session: {error}"));
                None
            }
        }
    }

    /// One step, in a storm perhaps dropped in the middle. Returns whether it was done.
    async fn step(&self, player: &Player, session: &Session, calm: bool) -> bool {
        self.operations.set(self.operations.get() + 1);
        let step = self.scenario.step(player, session);
        let outcome = match !calm && player.one_in(5) {
            true => {
                let limit = Duration::from_millis(player.below(1500));
                match tokio::time::timeout(limit, step).await {
                    Ok(outcome) => outcome,
                    Err(_) => {
                        self.faults.borrow_mut().count(Trouble::DroppedFuture);
                        player.note("dropped it");
                        return false;
                    }
                }
            }
            false => step.await,
        };
        if let Err(error) = &outcome {
            player.note(format!("failed: {error}"));
            if !is_of_a_storm(error) && !self.scenario.may_meet(error) {
                let unexplained = format!("player {}: failed: {error:?}", player.index());
                self.unexplained.borrow_mut().get_or_insert(unexplained);
            }
        }
        outcome.is_ok()
    }

    /// Keeps the session for the next step, unless it is lost, or given up.
    async fn keep(&self, player: &Player, session: Session) {
        let lost = session.check();
        let chance = player.below(12);
        if lost.is_ok() && chance > 1 {
            return;
        }
        self.sessions.borrow_mut().remove(&player.index());
        if let Err(Error::SessionLost(reason)) = lost {
            player.note(format!("session lost: {reason}"));
        } else if chance == 0 {
            player.note("closes its session");
            drop(session.close().await);
        } else {
            player.note("drops its session");
        }
    }
}

/// Whether an error is one that anybody may meet who uses a store in trouble under a session that may be
/// lost.
fn is_of_a_storm(error: &Error) -> bool {
    match error {
        Error::Store(error) => error.is_transient(),
        // A key that went with its lease is told of as removed where that is not looked into.
        Error::SessionLost(_)
        | Error::Fenced { .. }
        | Error::Removed(_)
        | Error::OutcomeUnknown(_) => true,
        _ => false,
    }
}
