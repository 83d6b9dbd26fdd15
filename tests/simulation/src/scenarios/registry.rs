//! The registry: instances are there with their newest value, and only while their owner wants it; who looks
//! for them sees states of the store in order, and knows when what it sees may be old.

mod instances;
mod views;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::join;
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::keys::{KeyRange, LeaseId};
use quorate_recipes::registry::{Discovery, Instance, MassLoss, Registration, ServiceView, Status};
use quorate_recipes::store::ops;
use quorate_recipes::{Error, Result, Session};

pub use instances::{INSTANCES, Instances};
use views::{Seen, Shown};

use crate::history::History;
use crate::player::Player;
use crate::scenario::Scenario;

/// How long it may take in the calm until the store is as the owners want it, and all who look see that.
const IN_PLACE_WITHIN: Duration = Duration::from_secs(60);

/// How often a view is looked at, beside each time that there is a new one.
const LOOK: Duration = Duration::from_millis(700);

/// What each instance has as its meta: the number of its registration, and that of its value.
pub type Said = (u64, u64);

/// What became of a registration, as its owner was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Outcome {
    /// Nothing.
    #[default]
    Open,
    /// It is there.
    There,
    /// Another instance has the id.
    Taken,
}

/// One registration, as its owner knows it.
#[derive(Debug, Clone)]
struct Owned {
    id: String,
    replaces: bool,
    begun: Instant,
    /// Since when it was said to be there.
    entered: Option<Instant>,
    outcome: Outcome,
    /// The status of each of its values.
    wanted: Vec<Status>,
    /// Values that were said to be there, and at which revision.
    told: Vec<(i64, u64)>,
    /// Since when it has been wanted to leave.
    leaving: Option<Instant>,
    /// Since when it is known to be over.
    over: Option<Instant>,
}

/// Clients that register instances of one service, and look for them.
#[derive(Debug, Clone, Default)]
pub struct Registry(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By number.
    owned: RefCell<BTreeMap<u64, Owned>>,
    /// The registrations that last, by client.
    living: RefCell<BTreeMap<usize, u64>>,
    /// Nobody changes what it says any more.
    quiet: Cell<bool>,
    /// The clients have done their last step.
    ended: Cell<bool>,
    seen: RefCell<BTreeMap<usize, Observer>>,
    failed: RefCell<Option<String>>,
}

#[derive(Debug)]
struct Observer {
    protection: MassLoss,
    seen: Vec<Seen>,
}

/// A registration that is given up when this is dropped, and known to be so before it takes effect.
#[derive(Debug)]
pub struct Held {
    leaves: Leaves,
    registration: Registration<Said>,
}

#[derive(Debug)]
struct Leaves {
    registry: Registry,
    number: u64,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        self.registry.change(self.number, |owned| {
            owned.leaving.get_or_insert(SystemClock.now());
        });
    }
}

impl Held {
    /// The number of the registration.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.leaves.number
    }
}

impl Registry {
    fn change<T>(&self, number: u64, change: impl FnOnce(&mut Owned) -> T) -> T {
        let mut owned = self.0.owned.borrow_mut();
        change(owned.get_mut(&number).expect("a number is given once"))
    }

    /// The number of a registration that begins now.
    pub fn begin(&self, player: &Player, id: &str, replaces: bool) -> u64 {
        let mut owned = self.0.owned.borrow_mut();
        let number = u64::try_from(owned.len()).unwrap_or(u64::MAX) + 1;
        player.note(format!("registers {id} as {number}, replaces: {replaces}"));
        let begun = Owned {
            id: id.to_owned(),
            replaces,
            begun: SystemClock.now(),
            entered: None,
            outcome: Outcome::Open,
            wanted: vec![Status::Up],
            told: Vec::new(),
            leaving: None,
            over: None,
        };
        owned.insert(number, begun);
        number
    }

    /// The instance of this number and value.
    fn instance(&self, number: u64) -> Instance<Said> {
        let (id, replaces) = self.change(number, |owned| (owned.id.clone(), owned.replaces));
        let instance = Instance::builder("s").id(id).address(address(number, 0));
        match replaces {
            true => instance.replace().meta((number, 0)).build(),
            false => instance.meta((number, 0)).build(),
        }
    }

    /// Registers an instance.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn register(
        &self,
        player: &Player,
        session: &Session,
        id: &str,
        replaces: bool,
    ) -> Result<Held> {
        let number = self.begin(player, id, replaces);
        // When this is dropped in the middle, the instance is to leave.
        let leaves = Leaves {
            registry: self.clone(),
            number,
        };
        match session.register(self.instance(number)).await {
            Ok(registration) => {
                self.change(number, |owned| {
                    owned.outcome = Outcome::There;
                    owned.entered = Some(SystemClock.now());
                });
                player.note(format!("{number} is registered"));
                Ok(Held {
                    leaves,
                    registration,
                })
            }
            Err(error) => {
                self.hears(player, number, &error);
                Err(error)
            }
        }
    }

    fn hears(&self, player: &Player, number: u64, error: &Error) {
        player.note(format!("{number}: {error}"));
        if matches!(error, Error::Taken { .. }) {
            self.change(number, |owned| {
                owned.outcome = Outcome::Taken;
                owned.over = Some(SystemClock.now());
            });
        }
    }

    /// Wants another status, and perhaps waits until that is there.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn update(&self, player: &Player, held: &Held, waits: bool) -> Result<()> {
        let number = held.number();
        let statuses = [Status::Up, Status::Draining, Status::Down];
        let status = statuses[usize::try_from(player.below(3)).unwrap_or(0)];
        let value = self.change(number, |owned| {
            owned.wanted.push(status);
            u64::try_from(owned.wanted.len() - 1).unwrap_or(u64::MAX)
        });
        let update = held.registration.update(|instance| {
            instance.status = status;
            instance.address = address(number, value);
            instance.meta = (number, value);
        });
        let limit = match waits {
            true => Duration::MAX,
            false => Duration::from_millis(player.below(1500)),
        };
        let Ok(updated) = tokio::time::timeout(limit, update).await else {
            return Ok(());
        };
        match updated {
            Ok(at) => {
                player.note(format!("{number} is at value {value} at {at}"));
                self.change(number, |owned| owned.told.push((at.0, value)));
                Ok(())
            }
            Err(error) => {
                self.hears(player, number, &error);
                Err(error)
            }
        }
    }

    /// Takes an instance out and waits until that is done.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn deregister(&self, player: &Player, held: Held) -> Result<()> {
        let number = held.number();
        let Held {
            leaves,
            registration,
        } = held;
        drop(leaves);
        let outcome = registration.deregister().await;
        match &outcome {
            Ok(()) => self.is_over(player, number),
            Err(error) => self.hears(player, number, error),
        }
        outcome
    }

    /// Notes that an owner was told that its instance is gone for good.
    pub fn is_over(&self, player: &Player, number: u64) {
        player.note(format!("{number} is deregistered"));
        self.change(number, |owned| owned.over = Some(SystemClock.now()));
    }

    /// Registers an instance or two, changes them, and lets them go.
    ///
    /// # Errors
    /// What the client was told.
    pub async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        if player.one_in(8) {
            // Of one of the first three clients, of which there are always as many.
            let victim = format!("{INSTANCES}living-{}", player.below(3));
            player.note(format!("deletes {victim}"));
            player.client().delete(&victim).await?;
        }
        let mut held = Vec::new();
        for _ in 0..=player.below(3) {
            let (id, replaces) = match player.one_in(2) {
                true => (format!("all-{}", player.below(2)), player.one_in(3)),
                false => {
                    let id = format!("own-{}-{}", player.index(), player.below(2));
                    (id, player.one_in(2))
                }
            };
            held.push(self.register(player, session, &id, replaces).await?);
        }
        for _ in 0..player.below(5) {
            let one = usize::try_from(player.below(held.len() as u64)).unwrap_or(0);
            let waits = !player.one_in(3);
            self.update(player, &held[one], waits).await?;
            player.pause(1000).await;
        }
        player.pause(2000).await;
        for held in held {
            match player.one_in(3) {
                true => drop(held),
                false => self.deregister(player, held).await?,
            }
        }
        Ok(())
    }

    /// Keeps an instance registered from the beginning to the end.
    pub async fn live(&self, player: &Player) {
        let id = format!("living-{}", player.index());
        let mut pause = Duration::ZERO;
        let (session, held) = loop {
            tokio::time::sleep(pause).await;
            pause = Duration::from_millis(500);
            let ttl = Duration::from_secs(3 + player.below(4));
            let Ok(session) = player.client().session().ttl(ttl).await else {
                continue;
            };
            match self.register(player, &session, &id, true).await {
                Ok(held) => break (session, held),
                Err(_) => drop(session.close().await),
            }
        };
        let number = held.number();
        self.0.living.borrow_mut().insert(player.index(), number);
        while !self.0.ended.get() {
            player.pause(4000).await;
            if !self.0.quiet.get()
                && let Err(error) = self.update(player, &held, false).await
            {
                self.fails(format!("{id} is not registered any more: {error}"));
                return;
            }
        }
        if let Err(error) = self.deregister(player, held).await {
            self.fails(format!("{id} was not registered any more: {error}"));
        }
        drop(session.close().await);
    }

    fn fails(&self, what: String) {
        self.0.failed.borrow_mut().get_or_insert(what);
    }

    /// Notes what a client sees that has asked for this protection.
    pub fn sees(&self, player: &Player, protection: MassLoss, view: &ServiceView<Said>) {
        let mut observers = self.0.seen.borrow_mut();
        let observer = observers.entry(player.index()).or_insert_with(|| Observer {
            protection,
            seen: Vec::new(),
        });
        observer.seen.push(Seen {
            at: SystemClock.now(),
            by_clock: player.client().clock().now(),
            revision: view.revision.0,
            stale_since: view.stale_since,
            unreadable: view.unreadable,
            shown: Rc::new(view.instances.iter().map(|one| Shown::of(one)).collect()),
        });
    }

    /// Follows the service for as long as the world lasts. `change` is done to every view before it is noted.
    pub async fn observe(
        &self,
        player: &Player,
        asked: MassLoss,
        noted: MassLoss,
        mut change: impl FnMut(&mut ServiceView<Said>),
    ) {
        let error = match player.client().discover::<Said>("s").mass_loss(asked).await {
            Ok(mut discovery) => {
                let see = |view: &ServiceView<Said>| {
                    let mut view = view.clone();
                    change(&mut view);
                    self.sees(player, noted, &view);
                };
                follow(&mut discovery, see).await
            }
            Err(error) => error,
        };
        self.fails(format!("an observer failed: {error}"));
    }

    /// What the living instances are to be, by id.
    fn wanted(&self) -> BTreeMap<String, Said> {
        let living = self.0.living.borrow();
        let owned = self.0.owned.borrow();
        let newest = living.values().map(|number| {
            let owned = &owned[number];
            let value = u64::try_from(owned.wanted.len() - 1).unwrap_or(u64::MAX);
            (owned.id.clone(), (*number, value))
        });
        newest.collect()
    }

    /// All that is to be there comes to be there, and all who look see it.
    ///
    /// # Errors
    /// What did not come.
    pub async fn come_to_rest(&self, players: &[Player]) -> std::result::Result<(), String> {
        self.0.quiet.set(true);
        self.all_is_in_place(players).await?;
        let there = there(&players[0]).await?;
        let store = players[0].client().store();
        // One that loses its session and one that is deleted are there again, as they are by then.
        if let Some((_, (lease, _))) = there.iter().next() {
            let revoked = store.lease_revoke(*lease).await;
            revoked.map_err(|error| error.to_string())?;
        }
        if let Some((id, _)) = there.iter().nth(1) {
            let deleted = players[1].client().delete(format!("{INSTANCES}{id}")).await;
            deleted.map_err(|error| error.to_string())?;
        }
        self.all_is_in_place(players).await?;
        let replaced = self.replaced_ends(&players[0], &players[1]).await;
        replaced.map_err(|error| error.to_string())
    }

    /// Who is replaced is told so.
    async fn replaced_ends(&self, player: &Player, other: &Player) -> Result<()> {
        let session = player.client().session().await?;
        let others = other.client().session().await?;
        let replaced = self.register(player, &session, "all-0", true).await?;
        let replacing = self.register(other, &others, "all-0", true).await?;
        match tokio::time::timeout(IN_PLACE_WITHIN, replaced.registration.ended()).await {
            Ok(error @ Error::Taken { .. }) => self.hears(player, replaced.number(), &error),
            ended => return Err(Error::Invalid(format!("one was replaced, and {ended:?}"))),
        }
        drop(replaced);
        self.deregister(other, replacing).await?;
        session.close().await?;
        others.close().await
    }

    async fn all_is_in_place(&self, players: &[Player]) -> std::result::Result<(), String> {
        let mut found = String::new();
        let waited = tokio::time::timeout(IN_PLACE_WITHIN, async {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let there = there(&players[0]).await?;
                let said = there.iter().map(|(id, (_, said))| (id.clone(), *said));
                let said: BTreeMap<String, Said> = said.collect();
                let seen = self.0.seen.borrow();
                let all = players.iter().all(|player| {
                    let last = seen.get(&player.index()).and_then(|seen| seen.seen.last());
                    last.is_some_and(|last| last.is_fresh() && last.said() == said)
                });
                let living = self.0.living.borrow().len() == players.len();
                if all && living && said == self.wanted() {
                    return Ok(());
                }
                found = format!("there are {said:?}, and seen: {all}");
            }
        });
        match waited.await {
            Ok(done) => done,
            Err(_) => Err(format!("wanted are {:?}; {found}", self.wanted())),
        }
    }
}

fn address(number: u64, value: u64) -> String {
    format!("{number}:{value}")
}

/// The instances that the store has now, with their leases.
async fn there(player: &Player) -> std::result::Result<BTreeMap<String, (LeaseId, Said)>, String> {
    let all = ops::range(KeyRange::prefix(INSTANCES));
    let found = player.client().store().range(all).await;
    let found = found.map_err(|error| error.to_string())?.kvs;
    let read = found.iter().map(|kv| {
        let known = instances::Known::of(kv).ok_or("an instance that cannot be read")?;
        Ok((known.id, (LeaseId(kv.lease), known.said)))
    });
    read.collect()
}

/// Shows each view, and the newest one again and again.
async fn follow(discovery: &mut Discovery<Said>, mut see: impl FnMut(&ServiceView<Said>)) -> Error {
    loop {
        see(&discovery.view());
        match tokio::time::timeout(LOOK, discovery.changed()).await {
            Err(_) | Ok(Ok(_)) => {}
            Ok(Err(error)) => return error,
        }
    }
}

/// How the views of a client are protected from many losses at once.
#[must_use]
pub fn protection(player: &Player) -> MassLoss {
    let small = MassLoss {
        at_least: 2,
        more_than: 0.3,
        grace: Duration::from_secs(5),
    };
    let none = MassLoss {
        grace: Duration::ZERO,
        ..MassLoss::default()
    };
    [small, MassLoss::default(), none][player.index() % 3]
}

impl Scenario for Registry {
    const NAME: &'static str = "registry";

    fn new() -> Self {
        Self::default()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        match self.step(player, session).await {
            // Which is judged.
            Err(Error::Taken { .. }) => Ok(()),
            done => done,
        }
    }

    async fn attend(&self, player: &Player) {
        let protection = protection(player);
        let observes = self.observe(player, protection, protection, |_| {});
        join!(observes, self.live(player));
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        self.come_to_rest(players).await
    }

    fn end(&self) {
        self.0.ended.set(true);
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        if let Some(failed) = &*self.0.failed.borrow() {
            return Err(failed.clone());
        }
        let instances = Instances::of(history, &self.0.owned.borrow())?;
        for (index, observer) in &*self.0.seen.borrow() {
            let judged = views::judge(&instances, &observer.protection, &observer.seen);
            judged.map_err(|broken| format!("observer {index}: {broken}"))?;
        }
        Ok(())
    }
}
