//! A client as etcd's own is: when a member does not serve it turns to another, and it repeats what
//! may write only if the first copy was certainly not proposed. What then still fails, a user sees.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::cluster_client::ClusterClient;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::{MemberListRequest, PutRequest, RangeRequest, RangeResponse};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Status};

/// How long one call is tried, at one member after the other.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// How long a read waits for one member before it asks another.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// How long an attempt to write waits for its answer: longer than a member's own request timeout.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How often the members are asked who they are.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// A call that failed for good, in the words of the last attempt.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Attempts made.
    pub attempts: usize,
    /// Time since the first.
    pub after: Duration,
    /// What the last one said, and through which endpoint.
    pub why: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            attempts,
            after,
            why,
        } = self;
        write!(f, "{why} (attempt {attempts}, after {after:?})")
    }
}

impl Error for Failed {}

/// One client. Every call goes to the member that served the last.
#[derive(Debug)]
pub struct Client {
    servers: Vec<(String, Channel)>,
    at: usize,
    synced: Instant,
}

impl Client {
    /// A client of `endpoints` that begins with the one at `first`, counted round.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "a client's own clock")]
    pub fn new(endpoints: &[String], first: usize) -> Self {
        Self {
            servers: endpoints
                .iter()
                .map(|url| (url.clone(), channel(url)))
                .collect(),
            at: first % endpoints.len(),
            synced: Instant::now(),
        }
    }

    /// Writes a key that nobody writes otherwise, and returns the revision.
    ///
    /// # Errors
    /// When it was not answered, and either may have been applied or no member took it in time.
    pub async fn put(&mut self, key: &str, value: &Bytes) -> Result<i64, Failed> {
        let put = PutRequest {
            key: key.to_owned().into(),
            value: value.clone(),
            ..PutRequest::default()
        };
        let answer = self.call(WRITE_LIMIT, false, |channel| {
            let put = put.clone();
            async move { KvClient::new(channel).put(put).await }
        });
        let header = answer.await?.into_inner().header;
        Ok(header.map_or(0, |header| header.revision))
    }

    /// Reads a key, linearizably.
    ///
    /// # Errors
    /// When no member answered in time.
    pub async fn get(&mut self, key: &str) -> Result<RangeResponse, Failed> {
        let range = RangeRequest {
            key: key.to_owned().into(),
            ..RangeRequest::default()
        };
        let answer = self.call(READ_LIMIT, true, |channel| {
            let range = range.clone();
            async move { KvClient::new(channel).range(range).await }
        });
        Ok(answer.await?.into_inner())
    }

    /// Turns to the next member.
    pub fn turn(&mut self) {
        self.at = (self.at + 1) % self.servers.len();
    }

    /// Learns who the members are, if it is time to; keeps what it knows when nobody says.
    #[expect(clippy::disallowed_methods, reason = "a client's own clock")]
    pub async fn sync(&mut self) {
        if self.synced.elapsed() < SYNC_INTERVAL {
            return;
        }
        self.synced = Instant::now();
        let asking = self.call(READ_LIMIT, true, |channel| async move {
            let request = MemberListRequest {
                linearizable: false,
            };
            ClusterClient::new(channel).member_list(request).await
        });
        let Ok(answer) = asking.await else {
            return;
        };
        let current = self.servers[self.at].0.clone();
        let members = answer.into_inner().members;
        let urls: Vec<String> = members
            .into_iter()
            .filter(|member| !member.name.is_empty() && !member.is_learner)
            .flat_map(|member| member.client_ur_ls)
            .collect();
        if urls.is_empty() {
            return;
        }
        let known = std::mem::take(&mut self.servers);
        let mut servers = Vec::new();
        for url in urls {
            let kept = known.iter().find(|(known, _)| *known == url);
            let channel = kept.map_or_else(|| channel(&url), |(_, channel)| channel.clone());
            servers.push((url, channel));
        }
        self.at = servers
            .iter()
            .position(|(url, _)| *url == current)
            .unwrap_or(self.at % servers.len());
        self.servers = servers;
    }

    #[expect(clippy::disallowed_methods, reason = "a client's own clock")]
    async fn call<T, F, Fut>(&mut self, limit: Duration, repeat: bool, call: F) -> Result<T, Failed>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let began = Instant::now();
        for attempts in 1.. {
            let (url, channel) = self.servers[self.at].clone();
            let (why, again) = match tokio::time::timeout(limit, call(channel)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => {
                    let again = was_refused(&status) || (repeat && may_pass(&status));
                    (describe(&status), again)
                }
                Err(_) => (format!("no answer within {limit:?}"), repeat),
            };
            self.turn();
            let after = began.elapsed();
            if !again || after > CALL_LIMIT {
                return Err(Failed {
                    attempts,
                    after,
                    why: format!("{url}: {why}"),
                });
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        unreachable!("it ends with an answer or a failure")
    }
}

/// Whether the call was certainly not proposed: it never left, or was refused before.
#[must_use]
pub fn was_refused(status: &Status) -> bool {
    never_sent(status) || Reason::from_status(status).is_some_and(Reason::is_retryable)
}

/// Whether another member, or a later attempt, may well answer.
fn may_pass(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Internal
    )
}

/// The types do not say it all: hyper gives a call back when its connection closed before the call was
/// begun, and fails one that the server, stopping in good order, says it has not looked at.
fn never_sent(status: &Status) -> bool {
    const NOT_LOOKED_AT: &str = "connection error received: not a result of an error";
    const GIVEN_BACK: [&str; 2] = ["operation was canceled", "connection closed"];
    let mut source = status.source();
    while let Some(error) = source {
        let told = [Some(error), error.source()].map(|error| error.map(ToString::to_string));
        if error.is::<ConnectError>()
            || told[0].as_deref() == Some(NOT_LOOKED_AT)
            || told == GIVEN_BACK.map(|text| Some(text.to_owned()))
        {
            return true;
        }
        source = error.source();
    }
    false
}

/// A status with all that it was caused by.
#[must_use]
pub fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = status.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// A connection that is made when it is needed.
///
/// # Panics
/// When the URL is none.
#[must_use]
pub fn channel(url: &str) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL of the harness");
    endpoint
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true)
        .connect_lazy()
}
