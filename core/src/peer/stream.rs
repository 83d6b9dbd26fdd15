//! Keeps the one outgoing stream to a peer: connects, shakes hands, probes, reads, and does it all
//! again when it breaks. One task a peer, started by `transport`.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use quorate_proto::peer as pb;
use quorate_proto::peer::stream_frame::Kind;
use tokio::sync::watch;
use tonic::Streaming;
use tracing::debug;

use super::PeerError;
use super::connector::{Connector, call_error};
use super::handshake::{Contact, Gate};
use super::lanes::{Frames, Lane, Lanes};
use super::link::Link;
use super::status::StatusCell;
use super::transport::Timings;
use crate::clock::{self, Instant};

/// Pause before the first attempt after a stream broke; doubles with each failure.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause between attempts, before jitter.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What the keeper of a stream works with.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) peer: u64,
    pub(super) urls: Vec<String>,
    pub(super) gate: Arc<Gate>,
    pub(super) connector: Connector,
    pub(super) timings: Timings,
    pub(super) status: Arc<StatusCell>,
    /// Where senders find the link while it is up.
    pub(super) link: Arc<ArcSwapOption<Link>>,
    /// Counts the streams that came up, of all keepers.
    pub(super) streams_up: watch::Sender<u64>,
    /// Set when a peer says that this member was removed.
    pub(super) removed: watch::Sender<bool>,
}

impl Keeper {
    /// Keeps the stream up for ever.
    pub(super) async fn run(self) {
        let mut failures: u32 = 0;
        let mut attempt: u64 = 0;
        loop {
            let url = self.url(attempt).to_owned();
            attempt += 1;
            let (error, came_up) = self.attempt(&url).await;
            if matches!(error, PeerError::Removed(_)) {
                self.removed.send_replace(true);
            }
            failures = if came_up {
                0
            } else {
                failures.saturating_add(1)
            };
            self.status.down(&error.to_string());
            tokio::select! {
                () = tokio::time::sleep(self.pause(failures, attempt)) => {}
                // Perhaps the peer is back, and waits to be caught up.
                () = self.gate.arrival() => {}
            }
        }
    }

    /// The addresses in turn.
    fn url(&self, attempt: u64) -> &str {
        let count = u64::try_from(self.urls.len()).unwrap_or(u64::MAX).max(1);
        let turn = usize::try_from(attempt % count).unwrap_or(0);
        self.urls.get(turn).map_or("", String::as_str)
    }

    /// One connection, from dialling to its end. Returns why it ended and whether it had been up.
    async fn attempt(&self, url: &str) -> (PeerError, bool) {
        let lanes = Lanes::new();
        let (contact, mut frames) = match self.open(url, &lanes).await {
            Ok(opened) => opened,
            Err(error) => return (error, false),
        };
        let link = Link::new(contact, Arc::clone(&lanes));
        self.link.store(Some(Arc::clone(&link)));
        // Also when this task is dropped at an await.
        let up = Up { keeper: self, link };
        if !self.gate.still_admits(&contact) {
            let refused = PeerError::Refused("bound to another incarnation meanwhile".to_owned());
            up.link.fail(&refused.to_string());
            return (refused, false);
        }
        self.status.up(url);
        self.streams_up.send_modify(|count| *count += 1);
        let error = self.read(&mut frames, &lanes, &up.link).await;
        up.link.fail(&error.to_string());
        (error, true)
    }

    /// Opens the call and shakes hands.
    async fn open(
        &self,
        url: &str,
        lanes: &Arc<Lanes>,
    ) -> Result<(Contact, Streaming<pb::StreamFrame>), PeerError> {
        let mut client = self.connector.connect(url).await?;
        let handshake = self.gate.handshake(self.peer);
        lanes.push(Lane::Urgent, Kind::Handshake(handshake), None)?;
        let limit = self.timings.election_timeout;
        let shaking = async {
            let answer = client.stream(Frames::of(lanes)).await;
            let mut frames = answer.map_err(|status| call_error(&status))?.into_inner();
            let first = frames.message().await;
            Ok((first.map_err(|status| call_error(&status))?, frames))
        };
        let (first, frames) = tokio::time::timeout(limit, shaking)
            .await
            .map_err(|_| PeerError::Unreachable(format!("no handshake within {limit:?}")))??;
        let shown = match first.and_then(|frame| frame.kind) {
            Some(Kind::Handshake(shown)) => Some(shown),
            _ => None,
        };
        let contact = self.gate.recognise(shown.as_ref(), self.peer)?;
        Ok((contact, frames))
    }

    /// Reads until the stream breaks, probing it meanwhile. Reading never blocks on anything else.
    async fn read(
        &self,
        frames: &mut Streaming<pb::StreamFrame>,
        lanes: &Arc<Lanes>,
        link: &Link,
    ) -> PeerError {
        let mut ticks = tokio::time::interval(self.timings.heartbeat_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut probe = Probe {
            sequence: 0,
            sent: clock::now(),
            heard: clock::now(),
        };
        loop {
            // Frames first: after a pause of this process what has arrived counts as heard.
            tokio::select! {
                biased;
                frame = frames.message() => {
                    let frame = match frame {
                        Ok(Some(frame)) => frame,
                        Ok(None) => return lost("the peer ended the stream"),
                        Err(status) => return call_error(&status),
                    };
                    probe.heard = clock::now();
                    let received = match frame.kind {
                        Some(Kind::Pong(pong)) => {
                            if pong.sequence == probe.sequence {
                                self.status.round_trip(probe.heard - probe.sent);
                            }
                            Ok(())
                        }
                        Some(kind) => link.receive(kind),
                        // A kind of a later version.
                        None => Ok(()),
                    };
                    if let Err(error) = received {
                        return error;
                    }
                }
                _ = ticks.tick() => {
                    let silent = clock::now() - probe.heard;
                    if silent > self.timings.election_timeout {
                        return lost(&format!("silent for {silent:?}"));
                    }
                    probe.sequence += 1;
                    probe.sent = clock::now();
                    let ping = Kind::Ping(pb::Ping { sequence: probe.sequence });
                    if let Err(error) = lanes.push(Lane::Urgent, ping, None) {
                        debug!(peer = self.peer, %error, "ping not sent");
                    }
                }
            }
        }
    }

    /// Exponential, plus up to a half more so that members do not move in step.
    fn pause(&self, failures: u32, attempt: u64) -> Duration {
        let doubled = BACKOFF_MIN.saturating_mul(1 << failures.min(8));
        let base = doubled.min(BACKOFF_MAX);
        let (seed, _) = self.gate.local().boot.as_u64_pair();
        let share = scramble(seed ^ self.peer.rotate_left(32) ^ attempt) % 512;
        base + base.mul_f64(f64::from(u16::try_from(share).unwrap_or(0)) / 1024.0)
    }
}

/// The latest ping.
struct Probe {
    sequence: u64,
    sent: Instant,
    /// When the latest frame came.
    heard: Instant,
}

/// A link that is up; taken down on the way out, whichever it is.
struct Up<'a> {
    keeper: &'a Keeper,
    link: Arc<Link>,
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.keeper.link.store(None);
        self.link.fail("this member ended the stream");
    }
}

fn lost(why: &str) -> PeerError {
    PeerError::Lost {
        sent: true,
        detail: why.to_owned(),
    }
}

/// Bits that look random (the output function of SplitMix64), from a seed of this process start.
fn scramble(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
