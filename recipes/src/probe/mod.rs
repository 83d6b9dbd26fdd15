//! Probes: whether something answers, asked again and again. A [`Prober`] asks for itself; observers that
//! [tell](crate::Session::observe) what they see let [`Liveness`] say what several of them agree on, so that
//! one observer's broken network is not taken for a death.
//!
//! `check` is one question, `judge` decides from the answers, `prober` asks on and on; `observation` and
//! `record` tell others, `liveness` listens to them.

mod check;
mod command;
mod grpc;
mod http;
mod judge;
mod liveness;
mod observation;
mod prober;
mod record;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use futures::FutureExt;

use self::check::Check;
use self::command::Program;
use self::judge::Rule;
pub use self::judge::{ProbeReport, ProbeState};
pub(crate) use self::liveness::judge;
pub use self::liveness::{FollowLiveness, Liveness, Opinion, Verdict};
pub use self::observation::{Observation, Observe};
pub use self::prober::Prober;
pub(crate) use self::record::opinion;
use crate::client::Client;
use crate::error::{Error, Result};

/// The kind of key space that observers tell what they see in.
pub(crate) const KIND: &str = "probe";

/// What is asked, how often, and how many answers decide:
/// `Probe::tcp("10.0.0.7:5432").every(Duration::from_secs(2)).rise(2).fall(3)`.
///
/// A check begins when the one before has ended, and so much later that from beginning to beginning it is
/// the interval, up to a tenth more or less: many probers that begin together do not stay together.
#[derive(Clone)]
#[must_use = "a probe asks nothing before it is started"]
pub struct Probe {
    check: Check,
    rule: Rule,
}

impl Probe {
    fn new(check: Check) -> Self {
        Self {
            check,
            rule: Rule::default(),
        }
    }

    /// Passes when a connection to `address`, such as `10.0.0.7:5432` or `db.example:5432`, is accepted.
    pub fn tcp(address: impl Into<String>) -> Self {
        Self::new(Check::Tcp(address.into()))
    }

    /// Passes when a GET of this `http://` URL is answered with a status of 200 to 299. Redirections are not
    /// followed, the body is not read, and each check is a connection of its own.
    pub fn http(url: impl Into<String>) -> Self {
        Self::new(Check::Http(url.into()))
    }

    /// Passes when the gRPC health service (`grpc.health.v1.Health/Check`) at `endpoint`, such as
    /// `http://10.0.0.7:50051`, says that `service` is serving. The empty service is the server as a whole.
    pub fn grpc(endpoint: impl Into<String>, service: impl Into<String>) -> Self {
        Self::new(Check::Grpc {
            endpoint: endpoint.into(),
            service: service.into(),
        })
    }

    /// Passes when this program ends with exit code 0. It runs without input and output, in a process group of
    /// its own, which is killed when the time is up or the prober is dropped.
    pub fn command<A: Into<OsString>>(
        program: impl Into<OsString>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self::new(Check::Command(Program {
            path: program.into(),
            args: args.into_iter().map(Into::into).collect(),
        }))
    }

    /// Passes when the future that this makes gives `Ok`. It is dropped when the time is up, so it must not
    /// block; a panic of it is a failure.
    pub fn of<F, Fut, E>(check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = std::result::Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let check = move || {
            let answer = check();
            async move { answer.await.map_err(|error| error.to_string()) }.boxed()
        };
        Self::new(Check::Call(std::sync::Arc::new(check)))
    }

    /// The time from one check to the next. Default: 5 s.
    pub fn every(mut self, interval: Duration) -> Self {
        self.rule.every = interval;
        self
    }

    /// How long a check may take before it counts as failed. Default: 2 s.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.rule.timeout = limit;
        self
    }

    /// How many checks in a row must pass before it is up. Default: 2.
    pub fn rise(mut self, checks: u32) -> Self {
        self.rule.rise = checks;
        self
    }

    /// How many checks in a row must fail before it is down. Default: 3.
    pub fn fall(mut self, checks: u32) -> Self {
        self.rule.fall = checks;
        self
    }

    /// How flapping is damped. What goes down once is up again as soon as enough checks pass; what goes down
    /// again stays down for at least `first`, then twice as long each time, up to `longest`. Each `longest`
    /// without going down forgives one time. A `first` of zero: never. Default: 10 s and 5 minutes.
    pub fn damping(mut self, first: Duration, longest: Duration) -> Self {
        self.rule.hold_first = first;
        self.rule.hold_longest = longest;
        self
    }

    fn validate(&self) -> Result<()> {
        self.check.validate().map_err(Error::Invalid)?;
        self.rule.validate().map_err(Error::Invalid)
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("check", &self.check)
            .field("rule", &self.rule)
            .finish()
    }
}

impl Client {
    /// Starts to probe, by this client's clock: `client.probe(Probe::tcp("10.0.0.7:5432"))`. The first check is
    /// made at once. The store is not asked.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address that is none, a scheme other than `http`, an interval or a time limit
    /// of zero, and thresholds of zero.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn probe(&self, probe: Probe) -> Result<Prober> {
        probe.validate()?;
        Ok(Prober::start(self, probe))
    }
}
