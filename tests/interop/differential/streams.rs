//! The streaming calls of one store: watch streams that stay open over a whole sequence, and one
//! stream of keep-alives.

#![expect(
    clippy::disallowed_methods,
    reason = "a test reads its streams while it goes on; the tasks end with their channels"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::channel::mpsc;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, WatchRequest, WatchResponse,
};
use quorate_proto::mvccpb::Event;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use super::world::mod_revision;

/// How long an answer that is due is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The id in answers that concern no watcher.
const NO_WATCHER: i64 = -1;

/// What a watcher was told: one event, or an answer without events.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    Event(Event),
    Control(WatchResponse),
}

/// The answers of a stream, up to its first error.
type Answers<A> = mpsc::UnboundedReceiver<Result<A, Status>>;

/// Opens a stream, and takes its answers as they come.
fn hear<A: Send + 'static>(
    call: impl Future<Output = Result<Response<Streaming<A>>, Status>> + Send + 'static,
) -> Answers<A> {
    let (heard, answers) = mpsc::unbounded();
    tokio::spawn(async move {
        let mut stream = match call.await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return drop(heard.unbounded_send(Err(status))),
        };
        while let Some(answer) = stream.message().await.transpose() {
            let failed = answer.is_err();
            if heard.unbounded_send(answer).is_err() || failed {
                return;
            }
        }
    });
    answers
}

/// One watch stream.
#[derive(Debug)]
pub(crate) struct WatchStream {
    requests: mpsc::UnboundedSender<WatchRequest>,
    answers: Answers<WatchResponse>,
    /// What watchers were told since it was last taken, by their ids.
    told: BTreeMap<i64, Vec<Told>>,
    /// The main revision that each watcher's last answer ended with, unless that was a fragment.
    ended_with: BTreeMap<i64, i64>,
    /// Whether a piece of an answer was cut off that did not ask for it; what was said of it.
    torn: Option<String>,
}

impl WatchStream {
    /// Opens one. The server first hears of it with the first request.
    pub(crate) fn open(mut client: WatchClient<Channel>) -> Self {
        let (requests, to_send) = mpsc::unbounded();
        let answers = hear(async move { client.watch(to_send).await });
        Self {
            requests,
            answers,
            told: BTreeMap::new(),
            ended_with: BTreeMap::new(),
            torn: None,
        }
    }

    /// Sends a request.
    pub(crate) fn ask(&self, request: RequestUnion) -> anyhow::Result<()> {
        let request = WatchRequest {
            request_union: Some(request),
        };
        Ok(self.requests.unbounded_send(request)?)
    }

    /// The next answer without events that `is_it`; what comes before it is kept.
    pub(crate) async fn control(
        &mut self,
        what: &str,
        is_it: impl Fn(&WatchResponse) -> bool,
    ) -> anyhow::Result<WatchResponse> {
        loop {
            let answer = self.next().await.with_context(|| what.to_owned())?;
            if answer.events.is_empty() && is_it(&answer) {
                // An id can be used again after a cancel.
                self.ended_with.remove(&answer.watch_id);
                return Ok(answer);
            }
            self.keep(answer);
        }
    }

    /// Waits until each of these watchers was told so many things.
    pub(crate) async fn wait_for(&mut self, due: &BTreeMap<i64, usize>) -> anyhow::Result<()> {
        let missing = |told: &BTreeMap<i64, Vec<Told>>| {
            let lacking = due.iter().find(|(id, due)| {
                let told = told.get(id).map_or(0, Vec::len);
                told < **due
            });
            lacking.map(|(id, due)| (*id, *due))
        };
        while let Some((id, due)) = missing(&self.told) {
            let answer = self.next().await.with_context(|| {
                let told = self.told.get(&id).map_or(&[][..], Vec::as_slice);
                let last = told.last();
                let told = told.len();
                format!("watcher {id} was told {told} things of {due}, last {last:?}")
            })?;
            self.keep(answer);
        }
        Ok(())
    }

    /// Waits until a watcher was told of a revision.
    pub(crate) async fn wait_for_revision(&mut self, id: i64, revision: i64) -> anyhow::Result<()> {
        let reached = |told: &BTreeMap<i64, Vec<Told>>| match told.get(&id)?.last()? {
            Told::Event(event) => Some(mod_revision(event)),
            Told::Control(_) => None,
        };
        while reached(&self.told) < Some(revision) {
            let last = reached(&self.told);
            let answer = self.next().await.with_context(|| {
                format!("watcher {id} was told up to {last:?}, not of {revision}")
            })?;
            self.keep(answer);
        }
        Ok(())
    }

    /// All that watchers were told since it was last taken, as far as it was read.
    pub(crate) fn take(&mut self) -> BTreeMap<i64, Vec<Told>> {
        while let Ok(answer) = self.answers.try_recv() {
            match answer {
                Ok(answer) => self.keep(answer),
                Err(status) => self.torn = Some(format!("the stream ended: {status}")),
            }
        }
        std::mem::take(&mut self.told)
    }

    /// What was wrong with the form of the answers, if anything.
    pub(crate) fn torn(&self) -> Option<&str> {
        self.torn.as_deref()
    }

    async fn next(&mut self) -> anyhow::Result<WatchResponse> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.next()).await?;
        Ok(answer.context("the watch stream ended")??)
    }

    fn keep(&mut self, answer: WatchResponse) {
        let id = answer.watch_id;
        if let (Some(first), Some(last)) = (answer.events.first(), answer.events.last()) {
            let header = answer.header.as_ref().map_or(0, |header| header.revision);
            if self.ended_with.get(&id) == Some(&mod_revision(first)) {
                let first = mod_revision(first);
                self.torn = Some(format!("watcher {id}: revision {first} in two answers"));
            }
            if header < mod_revision(last) {
                let last = mod_revision(last);
                self.torn = Some(format!("watcher {id}: event {last} under header {header}"));
            }
            if answer.fragment {
                self.ended_with.remove(&id);
            } else {
                self.ended_with.insert(id, mod_revision(last));
            }
        }
        let told = self.told.entry(id).or_default();
        let control = answer.events.is_empty() || answer.canceled || answer.created;
        if control {
            told.push(Told::Control(WatchResponse {
                events: Vec::new(),
                ..answer.clone()
            }));
        }
        if control && id == NO_WATCHER {
            return;
        }
        told.extend(answer.events.into_iter().map(Told::Event));
    }
}

/// One stream of keep-alives.
#[derive(Debug)]
pub(crate) struct KeepAlives {
    requests: mpsc::UnboundedSender<LeaseKeepAliveRequest>,
    answers: Answers<LeaseKeepAliveResponse>,
}

impl KeepAlives {
    /// Opens one. The server first hears of it with the first request.
    pub(crate) fn open(mut client: LeaseClient<Channel>) -> Self {
        let (requests, to_send) = mpsc::unbounded();
        let answers = hear(async move { client.lease_keep_alive(to_send).await });
        Self { requests, answers }
    }

    /// Renews a lease.
    pub(crate) async fn renew(
        &mut self,
        id: i64,
    ) -> anyhow::Result<Result<LeaseKeepAliveResponse, Status>> {
        self.requests.unbounded_send(LeaseKeepAliveRequest { id })?;
        let answer = tokio::time::timeout(PATIENCE, self.answers.next()).await?;
        answer.context("the stream of keep-alives ended")
    }
}
