//! The proxy as Prometheus sees it, beside the calls it carried and its process. Names are those of
//! etcd's gRPC proxy where it counts the same.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::endpoints::Pool;
use super::lease::KeepAlives;
use super::watch::Watches;

/// What a scrape looks at.
#[derive(Debug, Clone)]
pub(super) struct Scrape {
    pub(super) pool: Pool,
    pub(super) watches: Watches,
    pub(super) keep_alives: KeepAlives,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.of_the_watches(&mut encoder)?;
        self.of_the_keep_alives(&mut encoder)?;
        self.of_the_endpoints(&mut encoder)
    }
}

impl Scrape {
    fn of_the_watches(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let seen = self.watches.seen();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        // A gauge in spite of its name, as etcd's proxy has it.
        gauge(
            encoder,
            "etcd_grpc_proxy_watchers_coalescing_total",
            "Watchers that use the upstream watch of another",
            number(seen.coalesced),
        )?;
        counter(
            encoder,
            "etcd_grpc_proxy_events_coalescing",
            "Events handed to watchers that use the upstream watch of another",
            seen.events,
        )?;
        gauge(
            encoder,
            "quorate_proxy_shared_watches",
            "Upstream watches that clients may share",
            number(seen.shared),
        )?;
        counter(
            encoder,
            "quorate_proxy_watchers_behind",
            "Watchers whose client did not keep up, and that were given a watch of their own",
            seen.behind,
        )
    }

    fn of_the_keep_alives(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let counts = self.keep_alives.counts();
        counter(
            encoder,
            "quorate_proxy_keep_alives_asked",
            "Keep-alives that clients asked for",
            counts.asked.load(Relaxed),
        )?;
        counter(
            encoder,
            "quorate_proxy_keep_alives_sent",
            "Keep-alives that members were asked for",
            counts.sent.load(Relaxed),
        )
    }

    fn of_the_endpoints(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let endpoints = self.pool.seen();
        let mut family = encoder.encode_descriptor(
            "quorate_proxy_endpoint_up",
            "Whether the endpoint has answered lately",
            None,
            MetricType::Gauge,
        )?;
        for endpoint in &endpoints {
            let labels = [("endpoint", endpoint.url.as_str())];
            let is_live = ConstGauge::new(u64::from(endpoint.is_live));
            is_live.encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "quorate_proxy_upstream_calls",
            "Calls that were begun at the endpoint",
            None,
            MetricType::Counter,
        )?;
        for endpoint in &endpoints {
            let labels = [("endpoint", endpoint.url.as_str())];
            ConstCounter::new(endpoint.begun).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "quorate_proxy_upstream_failures",
            "Times that the endpoint could not be reached, broke a call or could not help",
            None,
            MetricType::Counter,
        )?;
        for endpoint in &endpoints {
            let labels = [("endpoint", endpoint.url.as_str())];
            ConstCounter::new(endpoint.failed).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let value = ConstGauge::new(value);
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}

/// A counter; the format adds `_total` to its name.
fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let value = ConstCounter::new(value);
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}
