//! The connections to the other members, one line a peer. Labels are member ids, and etcd's.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{gauge, number};
use crate::clock;
use crate::node::Observed;
use crate::peer::{Activity, PeerStatus};

pub(super) fn encode(encoder: &mut DescriptorEncoder, seen: &Observed) -> fmt::Result {
    let mut peers = Peers { encoder, seen };
    peers.streams()?;
    peers.messages()?;
    peers.round_trips()?;
    peers.snapshots()
}

struct Peers<'a, 'e> {
    encoder: &'a mut DescriptorEncoder<'e>,
    seen: &'a Observed,
}

impl Peers<'_, '_> {
    fn streams(&mut self) -> fmt::Result {
        self.pairs(
            MetricType::Gauge,
            "etcd_network_active_peers",
            "Whether the stream to a peer is up",
            |peer| u64::from(is_up(peer)),
        )?;
        self.pairs(
            MetricType::Counter,
            "etcd_network_disconnected_peers",
            "How often the stream to a peer went down",
            |peer| peer.disconnects,
        )?;
        self.gauges(
            "quorate_peer_stream_up",
            "Whether the stream to a peer is up",
            "To",
            |peer| u64::from(is_up(peer)),
        )?;
        self.gauges(
            "quorate_peer_incoming_stream_up",
            "Whether a peer's own stream to this member is up",
            "From",
            |peer| u64::from(peer.incoming),
        )?;
        let now = clock::now();
        self.reals(
            "quorate_peer_stream_unchanged_seconds",
            "For how long the stream to a peer has been up, or down",
            |peer| {
                let (Activity::Active(since) | Activity::Inactive(since)) = peer.activity;
                Some(now.saturating_duration_since(since).as_secs_f64())
            },
        )?;
        self.counters(
            "quorate_peer_connects",
            "How often the stream to a peer came up",
            |peer| peer.connects,
        )
    }

    fn messages(&mut self) -> fmt::Result {
        self.gauges(
            "quorate_peer_in_flight",
            "Appends and requests sent to a peer that wait for their answer",
            "To",
            |peer| number(peer.in_flight),
        )?;
        self.counters(
            "etcd_network_peer_sent_failures",
            "Messages to a peer that were refused because a buffer was full",
            |peer| peer.dropped,
        )
    }

    fn round_trips(&mut self) -> fmt::Result {
        self.reals(
            "quorate_peer_round_trip_seconds",
            "Round trip of the latest probe of a peer, while the stream is up",
            |peer| Some(peer.rtt?.as_secs_f64()),
        )?;
        let mut family = self.encoder.encode_descriptor(
            "etcd_network_peer_round_trip_time_seconds",
            "Round trips of probes of a peer",
            None,
            MetricType::Histogram,
        )?;
        for peer in &self.seen.peers {
            let (labels, trips) = ([("To", name(peer.id))], &peer.round_trips);
            let mut encoder = family.encode_family(&labels)?;
            let sum = trips.sum().as_secs_f64();
            encoder.encode_histogram::<NoLabelSet>(sum, trips.count(), &trips.buckets(), None)?;
        }
        Ok(())
    }

    /// etcd's counters of snapshots have names that a counter may not have here, without `_total`.
    fn snapshots(&mut self) -> fmt::Result {
        self.gauges(
            "etcd_network_snapshot_send_inflights_total",
            "Snapshots on their way to a peer",
            "To",
            |peer| peer.snapshots.under_way,
        )?;
        self.gauges(
            "etcd_network_snapshot_send_success",
            "Snapshots sent to a peer that it installed",
            "To",
            |peer| peer.snapshots.succeeded,
        )?;
        self.gauges(
            "etcd_network_snapshot_send_failures",
            "Snapshots to a peer that were given up",
            "To",
            |peer| peer.snapshots.failed,
        )?;
        // Only a leader sends any: by whom they came is not kept.
        let received = self.seen.snapshots_received;
        gauge(
            self.encoder,
            "etcd_network_snapshot_receive_inflights_total",
            "Snapshots on their way to this member",
            received.under_way,
        )?;
        gauge(
            self.encoder,
            "etcd_network_snapshot_receive_success",
            "Snapshots received and installed",
            received.succeeded,
        )?;
        gauge(
            self.encoder,
            "etcd_network_snapshot_receive_failures",
            "Snapshots to this member that were given up",
            received.failed,
        )?;
        gauge(
            self.encoder,
            "etcd_server_snapshot_apply_in_progress_total",
            "Whether the state is being replaced by a snapshot",
            u64::from(self.seen.is_installing),
        )
    }

    /// One value a peer, with etcd's labels for pairs of members.
    fn pairs(
        &mut self,
        kind: MetricType,
        metric: &str,
        help: &str,
        value: impl Fn(&PeerStatus) -> u64,
    ) -> fmt::Result {
        let own = name(self.seen.member_id);
        let mut family = self.encoder.encode_descriptor(metric, help, None, kind)?;
        for peer in &self.seen.peers {
            let labels = [("Local", own.clone()), ("Remote", name(peer.id))];
            let encoder = family.encode_family(&labels)?;
            match kind {
                MetricType::Counter => ConstCounter::new(value(peer)).encode(encoder)?,
                _ => ConstGauge::new(value(peer)).encode(encoder)?,
            }
        }
        Ok(())
    }

    fn gauges(
        &mut self,
        metric: &str,
        help: &str,
        label: &'static str,
        value: impl Fn(&PeerStatus) -> u64,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(metric, help, None, MetricType::Gauge)?;
        for peer in &self.seen.peers {
            let labels = [(label, name(peer.id))];
            ConstGauge::new(value(peer)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counters(
        &mut self,
        metric: &str,
        help: &str,
        value: impl Fn(&PeerStatus) -> u64,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(metric, help, None, MetricType::Counter)?;
        for peer in &self.seen.peers {
            let labels = [("To", name(peer.id))];
            ConstCounter::new(value(peer)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn reals(
        &mut self,
        metric: &str,
        help: &str,
        value: impl Fn(&PeerStatus) -> Option<f64>,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(metric, help, None, MetricType::Gauge)?;
        for peer in &self.seen.peers {
            let Some(value) = value(peer) else {
                continue;
            };
            let labels = [("To", name(peer.id))];
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn is_up(peer: &PeerStatus) -> bool {
    matches!(peer.activity, Activity::Active(_))
}

/// A member as etcd's labels name it.
pub(super) fn name(id: u64) -> String {
    format!("{id:x}")
}
