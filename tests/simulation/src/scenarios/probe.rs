//! Probes: what an observer tells is what its checks came to, the newest and in order; a verdict is that of the
//! observers who were there at its revision; and in the calm it is the truth.

mod opinions;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::join;
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::probe::{Observation, Probe as Check, ProbeState, Verdict};
use quorate_recipes::{Error, Result, Session};

use opinions::Seen;
pub use opinions::{OPINIONS, Opinions};

use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// How many observers must say the same.
const QUORUM: usize = 2;

/// How often is asked, and how long an answer may take.
const EVERY: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_millis(200);

/// How long it may take in the calm until all who follow a verdict have the one that is true.
const TRUE_WITHIN: Duration = Duration::from_secs(60);

/// How often a verdict is looked at, beside each time that there is a new one.
const LOOK: Duration = Duration::from_millis(700);

/// When checks were made, and whether they passed.
type Answers = Arc<Mutex<Vec<(Instant, bool)>>>;

/// What there is to be asked.
#[derive(Debug, Default)]
struct Target {
    dead: AtomicBool,
    /// Clients whose way to it is broken.
    cut: [AtomicBool; 5],
    /// What fails gives no answer at all.
    silent: AtomicBool,
}

impl Target {
    fn answers(&self, client: usize) -> bool {
        !self.dead.load(Ordering::Relaxed) && !self.cut[client].load(Ordering::Relaxed)
    }
}

/// One observation, as its owner knows it.
#[derive(Debug, Clone)]
struct Watching {
    rise: usize,
    fall: usize,
    answers: Answers,
    /// Since when it is known to be over.
    over: Option<Instant>,
}

/// Clients that ask a target and tell what they see.
#[derive(Debug, Clone, Default)]
pub struct Probe(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    target: Arc<Target>,
    /// By number.
    watching: RefCell<BTreeMap<u64, Watching>>,
    /// Clients whose lasting observation has been told.
    living: Cell<usize>,
    seen: RefCell<BTreeMap<usize, Vec<Seen>>>,
    /// The clients have done their last step.
    ended: Cell<bool>,
    failed: RefCell<Option<String>>,
}

impl Probe {
    fn fails(&self, what: String) {
        self.0.failed.borrow_mut().get_or_insert(what);
    }

    /// Begins to ask, and to tell what that comes to. Gives the number, which is the observer's name.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn observe(&self, player: &Player, session: &Session) -> Result<(u64, Observation)> {
        let (rise, fall) = (1 + player.below(2), 1 + player.below(3));
        let answers = Answers::default();
        let number = {
            let mut watching = self.0.watching.borrow_mut();
            let number = u64::try_from(watching.len()).unwrap_or(u64::MAX);
            watching.insert(
                number,
                Watching {
                    rise: usize::try_from(rise).unwrap_or(1),
                    fall: usize::try_from(fall).unwrap_or(1),
                    answers: Arc::clone(&answers),
                    over: None,
                },
            );
            number
        };
        player.note(format!(
            "observes as {number}, up after {rise}, down after {fall}"
        ));
        let (target, client) = (Arc::clone(&self.0.target), player.index());
        let check = Check::of(move || {
            let passes = target.answers(client);
            let silent = !passes && target.silent.load(Ordering::Relaxed);
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.push((SystemClock.now(), passes));
            async move {
                match passes {
                    true => Ok(()),
                    false if silent => std::future::pending().await,
                    false => Err("it is dead"),
                }
            }
        });
        let check = check.every(EVERY).timeout(TIMEOUT);
        let (rise, fall) = (u32::try_from(rise), u32::try_from(fall));
        let check = check.rise(rise.unwrap_or(1)).fall(fall.unwrap_or(1));
        let check = check.damping(Duration::ZERO, Duration::ZERO);
        let prober = player.client().probe(check)?;
        let observed = session.observe("db", prober).observer(number.to_string());
        Ok((number, observed.await?))
    }

    /// Takes back what an observer says, and waits until that is done.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn withdraw(&self, player: &Player, number: u64, seen: Observation) -> Result<()> {
        seen.withdraw().await?;
        self.is_over(player, number);
        Ok(())
    }

    /// Notes that an owner was told that its opinion is gone for good.
    pub fn is_over(&self, player: &Player, number: u64) {
        player.note(format!("{number} is withdrawn"));
        let mut watching = self.0.watching.borrow_mut();
        let watching = watching.get_mut(&number).expect("it was begun");
        watching.over = Some(SystemClock.now());
    }

    /// The target dies or comes back, and the way to it.
    pub fn change(&self, player: &Player) {
        let target = &self.0.target;
        let flip = |what: &AtomicBool| what.fetch_xor(true, Ordering::Relaxed);
        match player.below(4) {
            0 => flip(&target.dead),
            1 | 2 => flip(&target.cut[player.index()]),
            _ => flip(&target.silent),
        };
        player.note(format!("{target:?}"));
    }

    /// Observes from the beginning to the end.
    pub async fn live(&self, player: &Player) {
        let (session, number, seen) = loop {
            player.pause(500).await;
            let ttl = Duration::from_secs(3 + player.below(4));
            let Ok(session) = player.client().session().ttl(ttl).await else {
                continue;
            };
            match self.observe(player, &session).await {
                Ok((number, seen)) => break (session, number, seen),
                Err(_) => drop(session.close().await),
            }
        };
        self.0.living.set(self.0.living.get() + 1);
        while !self.0.ended.get() {
            player.pause(1000).await;
        }
        if let Err(error) = self.withdraw(player, number, seen).await {
            self.fails(format!("{number} was not told any more: {error}"));
        }
        drop(session.close().await);
    }

    /// Notes a verdict that a client has.
    pub fn sees(&self, player: &Player, verdict: &Verdict) {
        let mut seen = self.0.seen.borrow_mut();
        let seen = seen.entry(player.index()).or_default();
        seen.push(Seen::of(verdict));
    }

    /// Follows the verdict for as long as the world lasts. `change` is done to each before it is noted.
    pub async fn follow(&self, player: &Player, quorum: usize, change: impl Fn(&mut Verdict)) {
        let followed = player.client().liveness("db").quorum(quorum).await;
        let error = match followed {
            Ok(mut liveness) => loop {
                let mut verdict = Verdict::clone(&liveness.verdict());
                change(&mut verdict);
                self.sees(player, &verdict);
                match tokio::time::timeout(LOOK, liveness.changed()).await {
                    Err(_) | Ok(Ok(_)) => {}
                    Ok(Err(error)) => break error,
                }
            },
            Err(error) => error,
        };
        self.fails(format!("a follower failed: {error}"));
    }

    /// Whatever the target does, the verdict says so.
    ///
    /// # Errors
    /// What is not so.
    pub async fn tell_the_truth(&self, players: &[Player]) -> std::result::Result<(), String> {
        let target = &self.0.target;
        let set = |what: &AtomicBool, to: bool| what.store(to, Ordering::Relaxed);
        set(&target.dead, false);
        target.cut.iter().for_each(|cut| set(cut, false));
        self.come_to(players, ProbeState::Up).await?;
        // One of them alone is wrong.
        set(&target.cut[0], true);
        tokio::time::sleep(EVERY * 10).await;
        self.come_to(players, ProbeState::Up).await?;
        set(&target.dead, true);
        self.come_to(players, ProbeState::Down).await?;
        set(&target.cut[0], false);
        set(&target.dead, false);
        self.come_to(players, ProbeState::Up).await
    }

    async fn come_to(
        &self,
        players: &[Player],
        state: ProbeState,
    ) -> std::result::Result<(), String> {
        let is_so = |player: &Player| {
            let seen = self.0.seen.borrow();
            let last = seen.get(&player.index()).and_then(|seen| seen.last());
            last.is_some_and(|last| last.is(state) && last.observers() == players.len())
        };
        let all = async {
            while !players.iter().all(is_so) || self.0.living.get() < players.len() {
                tokio::time::sleep(EVERY).await;
            }
        };
        let came = tokio::time::timeout(TRUE_WITHIN, all).await;
        came.map_err(|_| format!("not all come to say that it is {state:?}"))
    }
}

impl Scenario for Probe {
    const NAME: &'static str = "probe";

    fn new() -> Self {
        Self::default()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let (number, seen) = self.observe(player, session).await?;
        for _ in 0..=player.below(3) {
            player.pause(1500).await;
            self.change(player);
        }
        player.pause(1000).await;
        match player.one_in(3) {
            true => drop(seen),
            false => self.withdraw(player, number, seen).await?,
        }
        Ok(())
    }

    async fn attend(&self, player: &Player) {
        let follows = self.follow(player, QUORUM, |_| {});
        join!(follows, self.live(player));
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        self.tell_the_truth(players).await
    }

    fn end(&self) {
        self.0.ended.set(true);
    }

    fn may_meet(&self, error: &Error) -> bool {
        matches!(error, Error::Closed)
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(failed) = &*self.0.failed.borrow() {
            return Err(failed.clone());
        }
        let opinions = Opinions::of(history, &self.0.watching.borrow())?;
        for (player, seen) in &*self.0.seen.borrow() {
            let judged = opinions.judge(seen);
            judged.map_err(|broken| format!("player {player}: {broken}"))?;
        }
        Ok(())
    }
}
