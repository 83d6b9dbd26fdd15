//! Checks of an instance by itself: probes beside it, whose findings go with its registration.

use std::collections::BTreeMap;
use std::fmt;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::probe::{Probe, ProbeReport, ProbeState, Prober};

/// What an instance is checked for, each by a name: `Checks::new().add("db", Probe::tcp("db:5432"))`.
#[derive(Debug, Clone, Default)]
#[must_use = "checks are handed over when an instance is registered"]
pub struct Checks(Vec<(String, Probe)>);

impl Checks {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// One check more.
    pub fn add(mut self, name: impl Into<String>, probe: Probe) -> Self {
        self.0.push((name.into(), probe));
        self
    }
}

/// What an instance's own checks have found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Health {
    /// Up when all checks are, down when one is. Unknown until all have come to something.
    pub state: ProbeState,
    /// The checks that are down, and why each was when this was written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failing: BTreeMap<String, String>,
}

impl Health {
    fn of<'a>(found: impl Iterator<Item = (&'a String, ProbeReport)>) -> Self {
        let mut health = Self {
            state: ProbeState::Up,
            failing: BTreeMap::new(),
        };
        for (name, report) in found {
            match report.state {
                ProbeState::Up => {}
                ProbeState::Down => {
                    let reason = report.reason.unwrap_or_default();
                    health.failing.insert(name.clone(), reason);
                    health.state = ProbeState::Down;
                }
                ProbeState::Unknown if health.state == ProbeState::Up => {
                    health.state = ProbeState::Unknown;
                }
                ProbeState::Unknown => {}
            }
        }
        health
    }

    /// Whether there is no need to write this one over the other: reasons alone change all the time.
    fn says_as(&self, other: &Self) -> bool {
        self.state == other.state && self.failing.keys().eq(other.failing.keys())
    }
}

/// The checks of one registration, at work. Dropping them stops them.
pub(super) struct Checking {
    probers: Vec<(String, Prober)>,
}

impl Checking {
    /// Starts them.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a probe that cannot be, two checks of one name, and none at all.
    pub(super) fn start(client: &Client, checks: Checks) -> Result<Self> {
        let mut probers: Vec<(String, Prober)> = Vec::with_capacity(checks.0.len());
        for (name, probe) in checks.0 {
            if probers.iter().any(|(known, _)| *known == name) {
                return Err(Error::Invalid(format!("two checks are called {name:?}")));
            }
            probers.push((name, client.probe(probe)?));
        }
        match probers.is_empty() {
            true => Err(Error::Invalid("no checks".to_owned())),
            false => Ok(Self { probers }),
        }
    }

    pub(super) fn health(&self) -> Health {
        Health::of(
            self.probers
                .iter()
                .map(|(name, prober)| (name, prober.report())),
        )
    }

    /// Tells what is found each time that it is something else, `told` at first, until dropped.
    pub(super) fn tell(&self, mut told: Health, tell: impl Fn(Health) + Send + 'static) {
        let mut found: Vec<_> = self
            .probers
            .iter()
            .map(|(name, prober)| (name.clone(), prober.watch()))
            .collect();
        let Some((_, first)) = self.probers.first() else {
            return;
        };
        first.spawn("checks", async move {
            loop {
                let now = Health::of(
                    found
                        .iter_mut()
                        .map(|(name, report)| (&*name, report.borrow_and_update().clone())),
                );
                if !now.says_as(&told) {
                    told = now.clone();
                    tell(now);
                }
                if !any_changed(&mut found).await {
                    return;
                }
            }
        });
    }
}

/// False when they have ended.
async fn any_changed(found: &mut [(String, watch::Receiver<ProbeReport>)]) -> bool {
    let mut changed: FuturesUnordered<_> = found
        .iter_mut()
        .map(|(_, report)| report.changed())
        .collect();
    changed.next().await.is_some_and(|changed| changed.is_ok())
}

impl fmt::Debug for Checking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.probers.iter().map(|(name, _)| name))
            .finish()
    }
}
