//! A watcher as a user writes one: it remembers the last revision it has seen, and when its stream
//! breaks it goes on after that, at another member.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt, stream};
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::range::KeyRange;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;

use crate::client::channel;

const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long the last event may take to come.
const LAST_LIMIT: Duration = Duration::from_secs(30);

/// What a watcher saw.
#[derive(Debug, Default)]
pub struct Watched {
    /// Key, revision and version of each event, in the order they came.
    pub events: Vec<(Bytes, i64, i64)>,
    /// How often its stream ended.
    pub resumed: usize,
}

impl Watched {
    /// Whether it saw each of `pairs`, which are sorted by revision, once and in this order.
    ///
    /// # Errors
    /// Where it differs.
    pub fn verify(&self, pairs: &[KeyValue]) -> anyhow::Result<()> {
        let mut expected = pairs
            .iter()
            .map(|pair| (pair.key.clone(), pair.mod_revision, pair.version));
        for (i, event) in self.events.iter().enumerate() {
            let expected = expected.next();
            anyhow::ensure!(
                expected.as_ref() == Some(event),
                "event {i} is {event:?}, the store has {expected:?}"
            );
        }
        let rest = expected.count();
        anyhow::ensure!(rest == 0, "the last {rest} events are missing");
        Ok(())
    }
}

/// A watcher at work.
#[derive(Debug)]
pub struct Watcher {
    last: watch::Sender<Option<i64>>,
    task: JoinHandle<anyhow::Result<Watched>>,
}

impl Watcher {
    /// Watches all keys below `prefix` from the store's beginning, at the endpoint `first` first.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the harness owns and joins this task"
    )]
    pub fn start(endpoints: &[String], first: usize, prefix: &str) -> Self {
        let (last, until) = watch::channel(None);
        let mut endpoints = endpoints.to_vec();
        let first = first % endpoints.len();
        endpoints.rotate_left(first);
        let (key, range_end) =
            KeyRange::prefix(Bytes::copy_from_slice(prefix.as_bytes())).to_wire();
        let create = WatchCreateRequest {
            key,
            range_end,
            ..WatchCreateRequest::default()
        };
        let task = tokio::spawn(run(endpoints, create, until));
        Self { last, task }
    }

    /// What it has seen once it has come to `revision`.
    ///
    /// # Errors
    /// When it does not come there in time, or the store refuses it for good.
    pub async fn finish(self, revision: i64) -> anyhow::Result<Watched> {
        self.last.send_replace(Some(revision));
        let abort = self.task.abort_handle();
        match tokio::time::timeout(LAST_LIMIT, self.task).await {
            Ok(watched) => watched?,
            Err(_) => {
                abort.abort();
                anyhow::bail!("the watcher did not come to revision {revision}")
            }
        }
    }
}

async fn run(
    endpoints: Vec<String>,
    create: WatchCreateRequest,
    mut until: watch::Receiver<Option<i64>>,
) -> anyhow::Result<Watched> {
    let mut watched = Watched::default();
    for endpoint in endpoints.iter().cycle() {
        let seen = watched.events.last().map_or(0, |event| event.1);
        let create = WatchCreateRequest {
            start_revision: seen + 1,
            ..create.clone()
        };
        if follow(endpoint, create, &mut until, &mut watched).await? {
            return Ok(watched);
        }
        watched.resumed += 1;
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    anyhow::bail!("no endpoints")
}

/// Whether it came to the end; otherwise the stream has ended.
async fn follow(
    endpoint: &str,
    create: WatchCreateRequest,
    until: &mut watch::Receiver<Option<i64>>,
    watched: &mut Watched,
) -> anyhow::Result<bool> {
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let requests = stream::iter([create]).chain(stream::pending());
    let mut request = tonic::Request::new(requests);
    let yes = MetadataValue::from_static("true");
    request.metadata_mut().insert("hasleader", yes);
    let mut client = WatchClient::new(channel(endpoint)).max_decoding_message_size(usize::MAX);
    let Ok(answers) = client.watch(request).await else {
        return Ok(false);
    };
    let mut answers = answers.into_inner();
    loop {
        let seen = watched.events.last().map_or(0, |event| event.1);
        if until.borrow_and_update().is_some_and(|last| seen >= last) {
            return Ok(true);
        }
        let answer = tokio::select! {
            answer = answers.message() => answer,
            changed = until.changed() => {
                changed.context("nobody waits for it")?;
                continue;
            }
        };
        let Ok(Some(answer)) = answer else {
            return Ok(false);
        };
        anyhow::ensure!(
            answer.compact_revision == 0,
            "compacted, and nobody compacts"
        );
        if answer.canceled {
            return Ok(false);
        }
        for event in answer.events {
            let pair = event.kv.context("an event without a pair")?;
            let seen = (pair.key, pair.mod_revision, pair.version);
            watched.events.push(seen);
        }
    }
}
