//! How a command that talks to a cluster fails: what could not be done, why for each endpoint, what to
//! try, and the exit code that scripts look at.

use std::fmt;
use std::process::ExitCode;

use quorate_proto::{Kind, Reason};
use tonic::{Code, Status};

/// The exit codes of these commands beside 0. clap ends with 2 by itself when it cannot read the
/// command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Refused, or not as it should be.
    Failed = 1,
    /// A flag, an argument or the environment says what cannot be understood.
    Usage = 2,
    /// The caller is unknown or lacks the right.
    Denied = 5,
    /// No endpoint answers, or the cluster has no quorum.
    Unavailable = 6,
    /// No answer in time; what was asked for may have been done.
    TimedOut = 124,
}

impl Exit {
    /// What a refusal ends with.
    fn of(status: &Status) -> Self {
        match Reason::from_status(status) {
            Some(Reason::UserEmpty) => return Self::Denied,
            Some(Reason::NoLeader) => return Self::Unavailable,
            _ => {}
        }
        match Kind::of(status) {
            Kind::Denied => Self::Denied,
            Kind::Timeout => Self::TimedOut,
            _ if status.code() == Code::DeadlineExceeded => Self::TimedOut,
            _ => Self::Failed,
        }
    }
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    what: String,
    why: Vec<Why>,
    hint: Option<&'static str>,
}

/// What went wrong at one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Why {
    /// The endpoint, as it was given.
    pub(crate) endpoint: String,
    /// In words.
    pub(crate) text: String,
}

impl Why {
    pub(crate) fn new(endpoint: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            text: text.into(),
        }
    }
}

impl Failure {
    /// A failure to do `what`, such as `the member was not added`.
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            why: Vec::new(),
            hint: None,
        }
    }

    /// The answer of an endpoint that refused.
    pub(crate) fn refused(what: impl Into<String>, endpoint: &str, status: &Status) -> Self {
        Self::refused_by_all(what, status).because([Why::new(endpoint, told(status))])
    }

    /// That no endpoint did it; `last` is what the last one said.
    pub(crate) fn refused_by_all(what: impl Into<String>, last: &Status) -> Self {
        Self {
            exit: Exit::of(last),
            what: what.into(),
            why: Vec::new(),
            hint: Reason::from_status(last).and_then(hint),
        }
    }

    /// Adds what went wrong at the endpoints.
    pub(crate) fn because(mut self, why: impl IntoIterator<Item = Why>) -> Self {
        self.why.extend(why);
        self
    }

    /// Adds what to try.
    pub(crate) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    /// Tells it on standard error.
    #[expect(clippy::print_stderr, reason = "the command's last word to its user")]
    pub(crate) fn print(&self) -> ExitCode {
        eprintln!("error: {self}");
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let width = self
            .why
            .iter()
            .map(|why| why.endpoint.chars().count())
            .max();
        let width = width.unwrap_or_default();
        for why in &self.why {
            write!(f, "\n  {:width$}  {}", why.endpoint, why.text)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// A status in words.
pub(crate) fn told(status: &Status) -> String {
    match status.message() {
        "" => format!("{:?}", status.code()),
        text => text.to_owned(),
    }
}

/// What to do about a refusal.
fn hint(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::MemberNotFound => Some("`quorate member list` shows the members and their ids"),
        Reason::PeerUrlExists => Some("`quorate member list` shows who has that peer URL"),
        Reason::MemberBadUrls => Some("peer URLs are of the form http://host:port"),
        Reason::NotEnoughStartedMembers => {
            Some("start the members that were added, or remove them; see `quorate member list`")
        }
        Reason::Unhealthy => {
            Some("bring the members back that cannot be reached; see `quorate status`")
        }
        Reason::LearnerNotReady => {
            Some("it has to run and to catch up first: see LAG in `quorate status`")
        }
        Reason::TooManyLearners => Some("promote or remove the learner there is"),
        Reason::BadLeaderTransferee => {
            Some("it has to be a member that votes and runs; see `quorate status`")
        }
        Reason::NoLeader => Some("a majority of the members has to run; see `quorate status`"),
        Reason::NoSpace => {
            Some("delete or compact, then `quorate defrag --cluster` and `quorate alarm disarm`")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_what_why_and_a_hint() {
        let failure = Failure::new(Exit::Unavailable, "no endpoint answered within 2s")
            .because([
                Why::new("127.0.0.1:1", "connection refused"),
                Why::new("10.0.0.17:2379", "no answer"),
            ])
            .hint("start one");
        let told = "no endpoint answered within 2s\n  127.0.0.1:1     connection refused\n  \
                    10.0.0.17:2379  no answer\n  hint: start one";
        assert_eq!(failure.to_string(), told);
        assert_eq!(failure.exit as u8, 6);
    }

    #[test]
    fn refusals_end_with_what_scripts_can_tell_apart() {
        let exit = |reason: Reason| Failure::refused("x", "e", &reason.into()).exit;
        assert_eq!(exit(Reason::MemberNotFound), Exit::Failed);
        assert_eq!(exit(Reason::PermissionDenied), Exit::Denied);
        assert_eq!(exit(Reason::UserEmpty), Exit::Denied);
        assert_eq!(exit(Reason::NoLeader), Exit::Unavailable);
        assert_eq!(exit(Reason::Timeout), Exit::TimedOut);
        let late = Status::deadline_exceeded("");
        assert_eq!(Exit::of(&late), Exit::TimedOut);
        assert_eq!(told(&late), "DeadlineExceeded");
    }
}
