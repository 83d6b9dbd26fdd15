//! The way of the cluster commands to their cluster: which endpoints, how long, and what is tried when
//! one does not answer.
//!
//! A call goes to the first endpoint that answers at all, which a probe finds out; so a write is never
//! sent twice to find one. A read goes on to the next endpoint when this one fails.

use std::future::Future;
use std::time::Duration;

use clap::Args;
use quorate::core::clock;
use quorate_proto::etcdserverpb::StatusResponse;
use quorate_proto::etcdserverpb::cluster_client::ClusterClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::{MemberListRequest, MemberListResponse, StatusRequest};
use quorate_proto::{Kind, Reason};
use tonic::transport::{Channel, Endpoint as Address};
use tonic::{Code, Status};

use super::environment;
use super::failure::{Exit, Failure, Why, told};

const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// The default for commands whose work grows with the store: they read or write all of it.
const LONG_COMMAND_TIMEOUT: Duration = Duration::from_secs(600);
/// What a probe gets at least, when a command is short of time.
const START: &str = "start one with `quorate dev`, or set --endpoints / QUORATE_ENDPOINTS";
const MAY_BE_DONE: &str =
    "it may have been done all the same: look with `quorate status` before trying again";

/// Where the cluster is and how long to wait for it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ConnectArgs {
    /// Where clients reach the cluster, comma-separated; tried in turn
    /// [env: QUORATE_ENDPOINTS, ETCDCTL_ENDPOINTS] [default: http://127.0.0.1:2379]
    #[arg(long, global = true, value_name = "URLS", value_delimiter = ',')]
    endpoints: Option<Vec<String>>,

    /// How long one endpoint may take to answer at all
    /// [env: QUORATE_DIAL_TIMEOUT, ETCDCTL_DIAL_TIMEOUT] [default: 2s]
    #[arg(long, global = true, value_name = "TIME", value_parser = time)]
    dial_timeout: Option<Duration>,

    /// How long the command may take
    /// [env: QUORATE_COMMAND_TIMEOUT, ETCDCTL_COMMAND_TIMEOUT] [default: 5s]
    #[arg(long, global = true, value_name = "TIME", value_parser = time)]
    command_timeout: Option<Duration>,
}

impl ConnectArgs {
    /// These, and `outer`'s where these say nothing.
    pub(crate) fn or(self, outer: Self) -> Self {
        Self {
            endpoints: self.endpoints.or(outer.endpoints),
            dial_timeout: self.dial_timeout.or(outer.dial_timeout),
            command_timeout: self.command_timeout.or(outer.command_timeout),
        }
    }

    /// Whether any of them was given.
    pub(crate) fn any(&self) -> bool {
        self.endpoints.is_some() || self.dial_timeout.is_some() || self.command_timeout.is_some()
    }

    /// The client these flags and the environment describe. Connects to nobody yet.
    ///
    /// # Errors
    /// When an endpoint or a time cannot be understood.
    pub(crate) fn client(self) -> Result<Client, Failure> {
        let given = self
            .endpoints
            .or_else(|| {
                environment("ENDPOINTS").map(|list| list.split(',').map(str::to_owned).collect())
            })
            .unwrap_or_else(|| vec![DEFAULT_ENDPOINT.to_owned()]);
        let given = given.iter().map(|endpoint| endpoint.trim());
        let endpoints = given
            .filter(|endpoint| !endpoint.is_empty())
            .map(|endpoint| Endpoint::parse(endpoint).map_err(|why| why.usage()))
            .collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(Failure::new(Exit::Usage, "--endpoints names none"));
        }
        let limit = |flag: Option<Duration>, name: &str| match (flag, environment(name)) {
            (Some(limit), _) => Ok(Some(limit)),
            (None, Some(text)) => time(&text).map(Some).map_err(|error| {
                Failure::new(Exit::Usage, format!("{name} in the environment: {error}"))
            }),
            (None, None) => Ok(None),
        };
        let dial_timeout = limit(self.dial_timeout, "DIAL_TIMEOUT")?;
        Ok(Client {
            endpoints,
            dial_timeout: dial_timeout.unwrap_or(DIAL_TIMEOUT),
            command_timeout: limit(self.command_timeout, "COMMAND_TIMEOUT")?,
        })
    }
}

/// A time with its unit, as etcd's flags have it: `500ms`, `5s`, `1m30s`.
fn time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.is_zero() => Err("no time at all".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("`{text}`: {error}; write 500ms, 5s or 1m30s")),
    }
}

/// One place where clients reach the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    given: String,
    address: Address,
}

impl Endpoint {
    /// An endpoint from `http://host:port` or `host:port`.
    ///
    /// # Errors
    /// When it is not one, or wants TLS.
    pub(crate) fn parse(given: &str) -> Result<Self, Why> {
        let wrong = |text: String| Why::new(given, text);
        let url = match given.split_once("://") {
            None => format!("http://{given}"),
            Some(("http", _)) => given.to_owned(),
            Some((scheme, _)) => return Err(wrong(format!("{scheme} is not supported yet"))),
        };
        let address = Address::from_shared(url).map_err(|error| wrong(error.to_string()))?;
        let uri = address.uri();
        if uri.host().is_none_or(str::is_empty) || uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("not of the form http://host:port".to_owned()));
        }
        Ok(Self {
            given: given.to_owned(),
            address,
        })
    }

    /// As it was given.
    pub(crate) fn given(&self) -> &str {
        &self.given
    }
}

impl Why {
    /// The failure of a command whose endpoints are wrong.
    fn usage(self) -> Failure {
        Failure::new(Exit::Usage, "an endpoint that cannot be used").because([self])
    }
}

/// An endpoint that has answered.
#[derive(Debug, Clone)]
pub(crate) struct Reached {
    pub(crate) endpoint: Endpoint,
    pub(crate) channel: Channel,
    /// What it said of itself, or why it would not.
    pub(crate) status: Result<StatusResponse, Status>,
    /// How long it took to say so.
    pub(crate) round_trip: Duration,
}

impl Reached {
    /// Whose endpoint it is, by its own word.
    pub(crate) fn member_id(&self) -> Option<u64> {
        let status = self.status.as_ref().ok()?;
        Some(status.header.as_ref()?.member_id)
    }
}

/// Whether a call may be made again at another endpoint when it is not known to have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// It changes nothing.
    Read,
    /// It changes something.
    Write,
}

/// Endpoints of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    endpoints: Vec<Endpoint>,
    dial_timeout: Duration,
    /// As given; the default depends on the command.
    command_timeout: Option<Duration>,
}

impl Client {
    /// The endpoints, as given.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// How long the command may take.
    pub(crate) fn command_timeout(&self) -> Duration {
        self.command_timeout.unwrap_or(COMMAND_TIMEOUT)
    }

    /// How long it may take when its work grows with the store.
    pub(crate) fn long_command_timeout(&self) -> Duration {
        self.command_timeout.unwrap_or(LONG_COMMAND_TIMEOUT)
    }

    /// Connects and asks for the status: an endpoint that does not answer within the dial timeout
    /// is none.
    pub(crate) async fn dial(&self, endpoint: &Endpoint) -> Result<Reached, Why> {
        let dialling = async {
            let address = endpoint.address.clone().tcp_nodelay(true);
            let connected = address.connect_timeout(self.dial_timeout).connect().await;
            let channel = connected.map_err(|error| deepest(&error))?;
            let asked = clock::now();
            let mut client = MaintenanceClient::new(channel.clone());
            let status = client.status(StatusRequest::default()).await;
            let round_trip = asked.elapsed();
            let status = status.map(tonic::Response::into_inner);
            match &status {
                Err(status) if std::error::Error::source(status).is_some() => {
                    return Err(deepest(status));
                }
                Err(status) if status.code() == Code::Unimplemented => {
                    return Err(format!("not an etcd v3 server ({})", told(status)));
                }
                _ => {}
            }
            Ok(Reached {
                endpoint: endpoint.clone(),
                channel,
                status,
                round_trip,
            })
        };
        let dialled = tokio::time::timeout(self.dial_timeout, dialling).await;
        let late = |_| Err("no answer".to_owned());
        let why = |text| Why::new(endpoint.given(), text);
        dialled.unwrap_or_else(late).map_err(why)
    }

    /// Dials them all at once.
    pub(crate) async fn dial_all(&self, endpoints: &[Endpoint]) -> Vec<Result<Reached, Why>> {
        futures::future::join_all(endpoints.iter().map(|endpoint| self.dial(endpoint))).await
    }

    /// Makes a call at the first endpoint that answers; `what` is what will not have happened when it
    /// fails, such as `the member was not added`.
    ///
    /// # Errors
    /// The refusal; that no endpoint answers; that none answered the call in time.
    pub(crate) async fn call<T>(
        &self,
        what: &str,
        kind: Call,
        call: impl AsyncFn(Channel) -> Result<T, Status>,
    ) -> Result<(T, Reached), Failure> {
        let deadline = clock::now() + self.command_timeout();
        let (mut why, mut last) = (Vec::new(), None);
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let reached = match self.dial(endpoint).await {
                Ok(reached) => reached,
                Err(unreachable) => {
                    why.push(unreachable);
                    continue;
                }
            };
            let left = deadline.saturating_duration_since(clock::now());
            let others = u32::try_from(self.endpoints.len() - i).unwrap_or(u32::MAX);
            let limit = match kind {
                Call::Read => left / others,
                Call::Write => left,
            };
            let status = match within(limit, call(reached.channel.clone())).await {
                Ok(answer) => return Ok((answer, reached)),
                Err(status) => status,
            };
            if !goes_on(&status, kind) {
                if has_no_answer(&status)
                    && let Some(failure) = self.quorum_lost(what).await
                {
                    return Err(failure);
                }
                let failure = Failure::refused(what, endpoint.given(), &status).because(why);
                let in_doubt = kind == Call::Write && is_in_doubt(&status);
                return Err(if in_doubt {
                    failure.hint(MAY_BE_DONE)
                } else {
                    failure
                });
            }
            why.push(Why::new(endpoint.given(), told(&status)));
            last = Some(status);
        }
        Err(match last {
            None => self.unreachable(why),
            Some(status) => match self.quorum_lost(what).await {
                Some(failure) => failure,
                None => Failure::refused_by_all(what, &status).because(why),
            },
        })
    }

    /// The members as the first endpoint that answers knows them. A member that has lost its cluster
    /// answers too.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub(crate) async fn members(&self) -> Result<(MemberListResponse, Reached), Failure> {
        let what = "the members could not be listed";
        self.call(what, Call::Read, async |channel| {
            let request = MemberListRequest {
                linearizable: false,
            };
            let answer = ClusterClient::new(channel).member_list(request).await;
            Ok(answer?.into_inner())
        })
        .await
    }

    /// The endpoints that the members of the cluster advertise.
    ///
    /// # Errors
    /// As [`Client::call`]; when one of them cannot be used.
    pub(crate) async fn advertised(&self) -> Result<Vec<Endpoint>, Failure> {
        let (list, _) = self.members().await?;
        let urls = list.members.iter().flat_map(|member| &member.client_ur_ls);
        urls.map(|url| Endpoint::parse(url).map_err(Why::usage))
            .collect()
    }

    /// That no endpoint answers.
    pub(crate) fn unreachable(&self, why: Vec<Why>) -> Failure {
        let limit = humantime::format_duration(self.dial_timeout);
        let what = format!("no endpoint answered within {limit}");
        Failure::new(Exit::Unavailable, what)
            .because(why)
            .hint(START)
    }

    /// The failure to tell when a call had no answer because there is no leader: when no endpoint
    /// that answers knows one.
    async fn quorum_lost(&self, what: &str) -> Option<Failure> {
        let dialled = self.dial_all(&self.endpoints).await;
        // One that does not say may know.
        let knows_leader = |reached: &Reached| {
            let status = reached.status.as_ref();
            status.map_or(true, |status| status.leader != 0)
        };
        if dialled.iter().flatten().any(knows_leader) {
            return None;
        }
        let why = dialled.into_iter().map(|dialled| match dialled {
            Ok(reached) => Why::new(reached.endpoint.given(), Reason::NoLeader.text()),
            Err(why) => why,
        });
        let failure = Failure::new(
            Exit::Unavailable,
            format!("{what}: the cluster has no quorum"),
        );
        let hint =
            "a majority of the members has to run and to reach each other; see `quorate status`";
        Some(failure.because(why).hint(hint))
    }
}

/// Waits for a call no longer than `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => {
            let limit = humantime::format_duration(Duration::from_millis(
                u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            ));
            Err(Status::deadline_exceeded(format!(
                "no answer within {limit}"
            )))
        }
    }
}

/// Whether the next endpoint may do better.
fn goes_on(status: &Status, kind: Call) -> bool {
    match kind {
        Call::Read => has_no_answer(status) || is_refused_for_now(status),
        Call::Write => is_refused_for_now(status),
    }
}

/// Certainly not done, for reasons that pass.
fn is_refused_for_now(status: &Status) -> bool {
    Reason::from_status(status).is_some_and(Reason::is_retryable)
}

/// Whether nothing came back in time, or the connection was lost.
fn has_no_answer(status: &Status) -> bool {
    Reason::from_status(status) == Some(Reason::NoLeader)
        || matches!(Kind::of(status), Kind::Timeout | Kind::Stopped)
        || matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable)
        || std::error::Error::source(status).is_some()
}

/// Whether what was asked for may have been done.
fn is_in_doubt(status: &Status) -> bool {
    has_no_answer(status) && !is_refused_for_now(status)
}

/// The innermost cause, in words: those around it only say that there was one.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let text = deepest.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_given_with_or_without_a_scheme() {
        for given in [
            "127.0.0.1:2379",
            "http://127.0.0.1:2379",
            "http://host:1/",
            "[::1]:2379",
        ] {
            let endpoint = Endpoint::parse(given);
            assert_eq!(
                endpoint
                    .map(|found| found.given().to_owned())
                    .ok()
                    .as_deref(),
                Some(given)
            );
        }
        for (given, part) in [
            ("https://host:1", "https is not supported"),
            ("unix:///run/etcd", "unix is not supported"),
            ("http://host:1/path", "http://host:port"),
            ("http://", "invalid"),
            ("a b", "invalid"),
        ] {
            let why = Endpoint::parse(given).unwrap_err();
            assert_eq!(why.endpoint, given);
            assert!(why.text.contains(part), "{given}: {}", why.text);
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert!(time("5").is_err() && time("").is_err() && time("0s").is_err());
    }

    #[test]
    fn a_write_goes_on_only_when_it_was_certainly_not_done() {
        for reason in [
            Reason::NoLeader,
            Reason::LeaderChanged,
            Reason::TooManyRequests,
        ] {
            assert!(goes_on(&reason.into(), Call::Write), "{reason:?}");
            assert!(!is_in_doubt(&reason.into()), "{reason:?}");
        }
        for status in [
            Reason::Timeout.into(),
            Reason::Stopped.into(),
            Status::deadline_exceeded("no answer within 5s"),
            Status::unavailable("connection reset"),
        ] {
            assert!(!goes_on(&status, Call::Write), "{status:?}");
            assert!(goes_on(&status, Call::Read), "{status:?}");
            assert!(is_in_doubt(&status), "{status:?}");
        }
        let refused = Reason::MemberNotFound.into();
        assert!(!goes_on(&refused, Call::Read) && !is_in_doubt(&refused));
    }

    #[test]
    fn causes_are_told_once_and_without_numbers() {
        let error = std::io::Error::from_raw_os_error(111);
        assert_eq!(deepest(&error), "connection refused");
    }
}
