//! A snapshot as frames of one call: taken apart by the sender, put together by the receiver. Used
//! by `pipeline` and `service`; what is in the chunks is not known here.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use quorate_proto::peer as pb;
use quorate_proto::peer::snapshot_frame::Kind;
use tokio::sync::watch;
use tonic::Streaming;

use super::PeerError;
use super::connector::call_error;
use super::handler::Chunks;
use crate::clock::{self, Instant};

/// How far the frames of a snapshot have been taken by the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This many chunks have been taken.
    Sent(u64),
    /// All of them have.
    Complete,
    /// A chunk could not be made; the frames ended without the end mark.
    Failed(PeerError),
}

/// Follows the frames of a snapshot.
#[derive(Debug)]
pub(super) struct Progress(watch::Receiver<Outcome>);

impl Progress {
    /// Where the frames are.
    pub(super) fn progress(&self) -> Outcome {
        self.0.borrow().clone()
    }

    /// Completes when that has changed; never once the frames have ended.
    pub(super) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The frames of a snapshot on their way out. A type without a lifetime, which the compiler needs
/// to see that a call with it is `Send`.
pub(super) struct SnapshotFrames(BoxStream<'static, pb::SnapshotFrame>);

impl Stream for SnapshotFrames {
    type Item = pb::SnapshotFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

/// The sending side of a snapshot.
pub(super) struct Outgoing {
    header: Option<pb::SnapshotHeader>,
    chunks: Chunks,
    sequence: u64,
    bytes: u64,
    /// Bytes a second, 0 for no limit.
    rate: u64,
    started: Instant,
    outcome: watch::Sender<Outcome>,
}

impl Outgoing {
    /// The frames of a snapshot, and how to follow them. Chunks are numbered here, from the one that the
    /// header names.
    pub(super) fn frames(
        header: pb::SnapshotHeader,
        chunks: Chunks,
        rate: u64,
    ) -> (SnapshotFrames, Progress) {
        let (outcome, progress) = watch::channel(Outcome::Sent(0));
        let outgoing = Self {
            sequence: header.first_chunk,
            header: Some(header),
            chunks,
            bytes: 0,
            rate,
            started: clock::now(),
            outcome,
        };
        let frames = futures::stream::unfold(Some(outgoing), |outgoing| async move {
            let mut outgoing = outgoing?;
            let kind = outgoing.next().await?;
            let last = matches!(kind, Kind::End(_));
            let frame = pb::SnapshotFrame { kind: Some(kind) };
            Some((frame, (!last).then_some(outgoing)))
        });
        (SnapshotFrames(frames.boxed()), Progress(progress))
    }

    async fn next(&mut self) -> Option<Kind> {
        if let Some(header) = self.header.take() {
            return Some(Kind::Header(header));
        }
        if let Some(due) = self.due() {
            tokio::time::sleep_until(due).await;
        }
        match self.chunks.next().await {
            Some(Ok(mut chunk)) => {
                chunk.sequence = self.sequence;
                self.sequence += 1;
                self.bytes += u64::try_from(chunk.payload.len()).unwrap_or(u64::MAX);
                self.outcome.send_replace(Outcome::Sent(self.sequence));
                Some(Kind::Chunk(chunk))
            }
            Some(Err(error)) => {
                self.outcome.send_replace(Outcome::Failed(error));
                None
            }
            None => {
                self.outcome.send_replace(Outcome::Complete);
                Some(Kind::End(pb::SnapshotEnd {
                    chunks: self.sequence,
                }))
            }
        }
    }

    /// When what was sent is due at the allowed rate.
    fn due(&self) -> Option<Instant> {
        let nanos = u128::from(self.bytes) * 1_000_000_000;
        let nanos = nanos.checked_div(u128::from(self.rate))?;
        Some(self.started + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

/// Reads a snapshot call: its header, and then its chunks, of which the last item is an error
/// unless the snapshot is complete.
///
/// # Errors
/// When the first frame is no header, or does not come within `stall`.
pub(super) async fn read_frames(
    mut frames: Streaming<pb::SnapshotFrame>,
    stall: Duration,
) -> Result<(pb::SnapshotHeader, Chunks), PeerError> {
    let Some(Kind::Header(header)) = frame(&mut frames, stall).await? else {
        return Err(PeerError::Protocol("no snapshot header".to_owned()));
    };
    let first = header.first_chunk;
    Ok((header, chunks(frames, first, stall).boxed()))
}

fn chunks(
    frames: Streaming<pb::SnapshotFrame>,
    first: u64,
    stall: Duration,
) -> impl Stream<Item = Result<pb::SnapshotChunk, PeerError>> + Send {
    let start = Some((frames, first));
    futures::stream::unfold(start, move |state| async move {
        let (mut frames, expected) = state?;
        let out_of_order = || PeerError::Protocol("snapshot frames out of order".to_owned());
        match frame(&mut frames, stall).await {
            Ok(Some(Kind::Chunk(chunk))) if chunk.sequence == expected => {
                Some((Ok(chunk), Some((frames, expected + 1))))
            }
            Ok(Some(Kind::End(end))) if end.chunks == expected => None,
            Ok(Some(_)) => Some((Err(out_of_order()), None)),
            Ok(None) => {
                let cut = PeerError::Protocol("incomplete snapshot".to_owned());
                Some((Err(cut), None))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// The next frame; `None` when the call has ended.
async fn frame(
    frames: &mut Streaming<pb::SnapshotFrame>,
    stall: Duration,
) -> Result<Option<Kind>, PeerError> {
    let frame = tokio::time::timeout(stall, frames.message())
        .await
        .map_err(|_| PeerError::Timeout {
            sent: true,
            after: stall,
        })?
        .map_err(|status| call_error(&status))?;
    Ok(frame.and_then(|frame| frame.kind))
}
