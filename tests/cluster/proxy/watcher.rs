//! A watch stream as a client sees it.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use quorate_proto::mvccpb::Event;
use quorate_proto::range::KeyRange;
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

const PATIENCE: Duration = Duration::from_secs(30);

/// One change: revision, key, value.
pub(super) type Change = (i64, Bytes, Bytes);

pub(super) struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

pub(super) fn of(key: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..WatchCreateRequest::default()
    }
}

pub(super) fn of_prefix(prefix: &str) -> WatchCreateRequest {
    let range = KeyRange::prefix(Bytes::copy_from_slice(prefix.as_bytes()));
    let (key, range_end) = range.to_wire();
    WatchCreateRequest {
        key,
        range_end,
        ..WatchCreateRequest::default()
    }
}

pub(super) fn changes(events: &[Event]) -> Vec<Change> {
    let changes = events.iter().map(|event| {
        let kv = event.kv.clone().unwrap_or_default();
        (kv.mod_revision, kv.key, kv.value)
    });
    changes.collect()
}

impl Stream {
    pub(super) async fn open(channel: &Channel) -> anyhow::Result<Self> {
        Self::open_as(channel, |_| {}).await
    }

    /// One that wants to be told when there is no leader.
    pub(super) async fn open_with_leader(channel: &Channel) -> anyhow::Result<Self> {
        Self::open_as(channel, |request| {
            let yes = MetadataValue::from_static("true");
            request.metadata_mut().insert("hasleader", yes);
        })
        .await
    }

    async fn open_as<F>(channel: &Channel, with: F) -> anyhow::Result<Self>
    where
        F: FnOnce(&mut Request<tokio_stream::wrappers::ReceiverStream<WatchRequest>>),
    {
        let (requests, sent) = mpsc::channel(1_000);
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(sent));
        with(&mut request);
        let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let answers = client.watch(request).await?.into_inner();
        Ok(Self { requests, answers })
    }

    pub(super) async fn create(&self, request: WatchCreateRequest) -> anyhow::Result<()> {
        self.ask(RequestUnion::CreateRequest(request)).await
    }

    pub(super) async fn cancel(&self, watch_id: i64) -> anyhow::Result<()> {
        let cancel = WatchCancelRequest { watch_id };
        self.ask(RequestUnion::CancelRequest(cancel)).await
    }

    pub(super) async fn progress(&self) -> anyhow::Result<()> {
        let progress = WatchProgressRequest {};
        self.ask(RequestUnion::ProgressRequest(progress)).await
    }

    async fn ask(&self, union: RequestUnion) -> anyhow::Result<()> {
        let request = WatchRequest {
            request_union: Some(union),
        };
        Ok(self.requests.send(request).await?)
    }

    /// The next answer.
    pub(super) async fn next(&mut self) -> anyhow::Result<WatchResponse> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        answer
            .context("no answer in time")??
            .context("the stream ended")
    }

    /// Creates a watcher; returns its id and the revision it begins after.
    pub(super) async fn created(
        &mut self,
        request: WatchCreateRequest,
    ) -> anyhow::Result<(i64, i64)> {
        self.create(request).await?;
        let answer = self.next().await?;
        ensure!(answer.created && !answer.canceled, "{answer:?}");
        Ok((answer.watch_id, answer.header.context("a header")?.revision))
    }

    /// The next events of the only watcher, at least one.
    pub(super) async fn events(&mut self) -> anyhow::Result<Vec<Change>> {
        loop {
            let answer = self.next().await?;
            if answer.canceled || answer.created {
                bail!("{answer:?}");
            }
            if !answer.events.is_empty() {
                return Ok(changes(&answer.events));
            }
        }
    }

    /// So many changes of the only watcher.
    pub(super) async fn take(&mut self, count: usize) -> anyhow::Result<Vec<Change>> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.events().await?);
        }
        Ok(all)
    }

    /// The changes of the only watcher up to one of `revision`.
    pub(super) async fn take_up_to(&mut self, revision: i64) -> anyhow::Result<Vec<Change>> {
        let mut all: Vec<Change> = Vec::new();
        while all.last().is_none_or(|(last, _, _)| *last < revision) {
            all.extend(self.events().await?);
        }
        Ok(all)
    }
}
