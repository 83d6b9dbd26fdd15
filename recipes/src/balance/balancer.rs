//! The balancer: picks from the newest view, and learns from how picks end.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use super::chooser::Plan;
use super::draw::Random;
use super::ejection::Ejection;
use super::group::Ask;
use super::grpc::BalanceKey;
use super::incarnation::{Incarnation, nanos};
use super::pick::{NoInstance, Outcome, Pick};
use super::policy::Policy;
use super::subset::Subset;
use super::table::{Table, Wanted};
use crate::client::Client;
use crate::clock::Instant;
use crate::registry::{Discovery, Endpoint};

impl<M: Send + Sync + 'static> Discovery<M> {
    /// Picks instances of the service by a policy, with everything else as by default.
    #[must_use]
    pub fn balancer(&self, policy: Policy) -> Balancer<M> {
        Balancer::builder(self, policy).build()
    }
}

/// Builds a [`Balancer`] that differs from the default.
#[derive(Debug)]
#[must_use = "nothing is balanced before `build`"]
pub struct BalancerBuilder<M: Send + Sync + 'static> {
    discovery: Discovery<M>,
    policy: Policy,
    wanted: Wanted<M>,
    ejection: Option<Ejection>,
    panics: bool,
    slow_start: Duration,
    subset: Option<Subset>,
}

impl<M: Send + Sync + 'static> BalancerBuilder<M> {
    /// Picks among these instances only, as if there were no others: those of a version, with a tag, or by their
    /// metadata. `wanted` is asked once an instance and view, so it must be quick and always say the same of the
    /// same instance.
    pub fn only(mut self, wanted: impl Fn(&Endpoint<M>) -> bool + Send + Sync + 'static) -> Self {
        self.wanted = Wanted::only(wanted);
        self
    }

    /// When instances whose picks fail are left alone. Default: [`Ejection::default`].
    pub fn ejection(mut self, rule: Ejection) -> Self {
        self.ejection = Some(rule);
        self
    }

    /// No instance is left alone, however often its picks fail.
    pub fn no_ejection(mut self) -> Self {
        self.ejection = None;
        self
    }

    /// When all are ejected or draining, there is none to pick. Default: then any of these is picked,
    /// since it is more likely that the reports are wrong, or that one of them works after all, than that
    /// it does harm to ask.
    pub fn no_panic(mut self) -> Self {
        self.panics = false;
        self
    }

    /// How long an instance that joins has less than its share: at first a tenth, then more and more,
    /// while there are others that are not new. Not for keys that are hashed. Default: not at all.
    pub fn slow_start(mut self, length: Duration) -> Self {
        self.slow_start = length;
        self
    }

    /// Uses so many of the instances only, at least one, so that in a large fleet not everybody connects
    /// to everybody. Which ones depends on `client`, the name of this one among the clients of the
    /// service. Where the policy prefers a zone, so many of the zone and so many of the others.
    /// [`Policy::consistent_hash`] goes on among all: its keys would fall otherwise for each client.
    pub fn subset(mut self, instances: usize, client: &str) -> Self {
        self.subset = Some(Subset::new(instances, client));
        self
    }

    /// The balancer.
    #[must_use]
    pub fn build(self) -> Balancer<M> {
        let client = self.discovery.client().clone();
        let decay = self.policy.0.decay();
        let plan = Plan {
            policy: self.policy.0,
            subset: self.subset,
            slow_start: self.slow_start,
        };
        Balancer(Arc::new(Shared {
            start: client.now(),
            random: Random::new(client.random()),
            client,
            table: ArcSwap::from_pointee(Table::first(self.discovery, &self.wanted, &plan)),
            wanted: self.wanted,
            plan,
            building: Mutex::new(()),
            decay,
            ejection: self.ejection,
            panics: self.panics,
            ejecting: Mutex::new(()),
            ejections_until: AtomicU64::new(0),
            outstanding: AtomicU32::new(0),
        }))
    }
}

/// Picks instances of a service. Clones are the same balancer. It needs no task of its own: every pick
/// looks whether the view has changed. Dropping it and its picks lets go of the discovery.
pub struct Balancer<M: Send + Sync + 'static>(pub(super) Arc<Shared<M>>);

/// What picks share. Nothing here is locked while one instance is chosen.
pub(super) struct Shared<M> {
    client: Client,
    start: Instant,
    random: Random,
    table: ArcSwap<Table<M>>,
    wanted: Wanted<M>,
    plan: Plan,
    /// Held by the one who makes the next table.
    building: Mutex<()>,
    /// Set where the policy goes by latency.
    decay: Option<Duration>,
    ejection: Option<Ejection>,
    panics: bool,
    /// Held while it is decided whether one more may be ejected.
    ejecting: Mutex<()>,
    /// When the last ejection up to now ends, in nanoseconds since the start.
    ejections_until: AtomicU64,
    outstanding: AtomicU32,
}

impl<M: Send + Sync + 'static> Balancer<M> {
    /// A balancer over a service, to be configured.
    pub fn builder(discovery: &Discovery<M>, policy: Policy) -> BalancerBuilder<M> {
        BalancerBuilder {
            discovery: discovery.clone(),
            policy,
            wanted: Wanted::all(),
            ejection: Some(Ejection::default()),
            panics: true,
            slow_start: Duration::ZERO,
            subset: None,
        }
    }

    /// Picks an instance. Costs no call, no allocation and no wait, except that the first pick after the
    /// view has changed prepares the new one; picks beside it go by the view before. Of each view, the first pick
    /// that finds none by the policy prepares what is picked from then; picks beside it that find none either wait
    /// for that.
    ///
    /// # Errors
    /// When no instance takes work, and none is left that is only ejected or draining.
    pub fn pick(&self) -> Result<Pick<M>, NoInstance> {
        self.choose(None)
    }

    /// Picks an instance for a key: a session, a user, whatever is to meet the same instance again. It
    /// matters to [`Policy::consistent_hash`], [`Policy::sticky`] and those that are [one's own](Policy::own);
    /// otherwise as [`Balancer::pick`].
    ///
    /// # Errors
    /// As [`Balancer::pick`].
    pub fn pick_for(&self, key: impl AsRef<[u8]>) -> Result<Pick<M>, NoInstance> {
        self.choose(Some(BalanceKey::of(key)))
    }

    /// What this balancer knows of each instance, by id.
    #[must_use]
    pub fn loads(&self) -> Vec<Load<M>> {
        let (table, now) = (self.0.table(), self.0.now());
        let load = |entry: &super::table::Entry<M>| Load {
            endpoint: Arc::clone(&entry.endpoint),
            outstanding: entry.incarnation.outstanding(),
            ejected_for: entry.incarnation.ejected_for(now),
        };
        table.entries.iter().map(load).collect()
    }

    pub(super) fn choose(&self, key: Option<BalanceKey>) -> Result<Pick<M>, NoInstance> {
        let shared = &self.0;
        let table = shared.table();
        let now = shared.now();
        let ask = Ask {
            now,
            key: key.map(|key| key.0),
            random: &shared.random,
            outstanding: shared.outstanding.load(Ordering::Relaxed),
            any_ejected: nanos(now) < shared.ejections_until.load(Ordering::Relaxed),
            slow_start: shared.plan.slow_start,
            decay: shared.decay.unwrap_or_default(),
        };
        let by_policy = table.choose(&ask);
        let in_panic = by_policy.is_none();
        let any = || shared.panics.then(|| table.choose_any(&ask)).flatten();
        let Some(chosen) = by_policy.or_else(any) else {
            return Err(NoInstance {
                known: table.entries.len(),
            });
        };
        chosen.incarnation.begin();
        shared.outstanding.fetch_add(1, Ordering::Relaxed);
        Ok(Pick {
            shared: Arc::clone(shared),
            endpoint: Arc::clone(&chosen.endpoint),
            incarnation: Arc::clone(&chosen.incarnation),
            at: now,
            in_panic,
            outcome: Outcome::Open,
        })
    }
}

/// What a balancer knows of one instance.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Load<M> {
    /// The instance.
    pub endpoint: Arc<Endpoint<M>>,
    /// This balancer's picks of it that have not ended.
    pub outstanding: u32,
    /// For how long it is ejected yet.
    pub ejected_for: Option<Duration>,
}

impl<M: Send + Sync + 'static> Shared<M> {
    fn now(&self) -> Duration {
        self.client.now().saturating_duration_since(self.start)
    }

    /// The table of the newest view, or of the one before while another pick prepares that.
    fn table(&self) -> Guard<Arc<Table<M>>> {
        let table = self.table.load();
        if !table.is_outdated() {
            return table;
        }
        let _building = match self.building.try_lock() {
            Ok(building) => building,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return table,
        };
        let table = self.table.load();
        if table.is_outdated() {
            let next = table.next(&self.wanted, &self.plan, self.now());
            self.table.store(Arc::new(next));
        }
        self.table.load()
    }

    /// Takes in how a pick ended.
    pub(super) fn ended(&self, one: &Incarnation, picked: Duration, outcome: Outcome) {
        one.end();
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
        let now = self.now();
        if let Some(decay) = self.decay {
            let length = now.saturating_sub(picked);
            match outcome {
                Outcome::Success => one.latency().observe(length, now, decay),
                // A failure may be fast, and what was given up would have taken longer.
                Outcome::Failure | Outcome::Open => {
                    one.latency().observe_least(length, now, decay);
                }
            }
        }
        let Some(rule) = &self.ejection else { return };
        match outcome {
            Outcome::Success => {
                // Held over the next line, so that no ejection comes in between and is taken back.
                let mut health = one.health();
                if health.success(picked, now) {
                    one.set_ejected_until(Duration::ZERO);
                }
            }
            Outcome::Failure => {
                let is_due = one.health().failure(rule, picked);
                if is_due {
                    self.eject(one, rule, now);
                }
            }
            Outcome::Open => {}
        }
    }

    /// Ejects an instance, if not too many are.
    fn eject(&self, one: &Incarnation, rule: &Ejection, now: Duration) {
        let _ejecting = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let (working, ejected) = self.table.load().working(now);
        let mut health = one.health();
        // Another failure may have done it meanwhile, or a success put an end to it.
        if ejected >= rule.most_of(working) || !health.is_due(rule) {
            return;
        }
        let until = health.eject(rule, now);
        one.set_ejected_until(until);
        self.ejections_until
            .fetch_max(nanos(until), Ordering::Relaxed);
        let seconds = until.saturating_sub(now).as_secs_f64();
        tracing::warn!(id = one.id, seconds, "an instance fails and is left alone");
    }
}

impl<M: Send + Sync + 'static> Clone for Balancer<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Send + Sync + 'static> fmt::Debug for Balancer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer")
            .field("policy", &self.0.plan.policy)
            .field("instances", &self.0.table().entries.len())
            .finish_non_exhaustive()
    }
}
