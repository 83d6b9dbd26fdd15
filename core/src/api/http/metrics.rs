//! `/metrics`: the member as Prometheus sees it. Names are etcd's where the thing is the same, so
//! that its dashboards and alerts go on working. Read off the member at each scrape; nothing is
//! counted here.

mod calls;
mod peers;
mod process;

use std::fmt;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use self::process::Process;
use crate::api::grpc::Traffic;
use crate::node::{ETCD_VERSION, Node, Observed};

/// What the format is called.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// And the older one, which is etcd's, and what a client gets that does not ask for the other.
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a scrape looks at.
#[derive(Debug, Clone)]
pub(super) struct Scraped {
    node: Node,
    traffic: Traffic,
}

impl Scraped {
    /// This member, and what its gRPC services have carried.
    pub(super) fn new(node: Node, traffic: Traffic) -> Self {
        Self { node, traffic }
    }
}

/// Answers a scrape.
pub(super) async fn metrics(State(scraped): State<Scraped>, asked: HeaderMap) -> Response {
    let seen = match scraped.node.observe().await {
        Ok(seen) => seen,
        Err(error) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
    };
    let member = Box::new(Member { seen });
    told(&asked, member, scraped.traffic).await
}

/// A route that answers scrapes of what is no member: what `look` finds, the calls in `traffic`, and
/// the process.
pub(crate) fn of_others<L>(look: L, traffic: Traffic) -> MethodRouter
where
    L: Fn() -> Box<dyn Collector> + Clone + Send + Sync + 'static,
{
    get(async move |asked: HeaderMap| told(&asked, look(), traffic).await)
}

/// What one thing has to say, with the calls it carried and its process.
async fn told(asked: &HeaderMap, thing: Box<dyn Collector>, traffic: Traffic) -> Response {
    let process = process::look().await;
    let mut registry = Registry::default();
    registry.register_collector(thing);
    registry.register_collector(Box::new(Server { traffic, process }));
    let mut body = String::new();
    match text::encode(&mut body, &registry) {
        Ok(()) if takes_open_metrics(asked) => {
            ([(header::CONTENT_TYPE, OPEN_METRICS)], body).into_response()
        }
        Ok(()) => ([(header::CONTENT_TYPE, PLAIN)], plain(&body)).into_response(),
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn takes_open_metrics(asked: &HeaderMap) -> bool {
    let accepted = asked.get_all(header::ACCEPT).iter();
    let mut accepted = accepted.filter_map(|kinds| kinds.to_str().ok());
    accepted.any(|kinds| kinds.contains("application/openmetrics-text"))
}

/// The same in the older format: there a counter is described under the name of its value, and no
/// line says that it was the last.
fn plain(open: &str) -> String {
    let mut plain = String::with_capacity(open.len());
    // The line that says what a metric is about comes before the one that says of what kind it is.
    let mut help = "";
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        match [(); 4].map(|()| words.next().unwrap_or_default()) {
            ["#", "EOF", ..] => {}
            ["#", "HELP", _, text] => help = text,
            ["#", "TYPE", name, kind] => {
                let suffix = if kind == "counter" { "_total" } else { "" };
                plain += &format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
            }
            _ => plain += &format!("{line}\n"),
        }
    }
    plain
}

/// What is a member's own.
#[derive(Debug)]
struct Member {
    seen: Observed,
}

/// What every server has.
#[derive(Debug)]
struct Server {
    traffic: Traffic,
    process: Option<Process>,
}

impl Collector for Server {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        calls::encode(&mut encoder, &self.traffic)?;
        match &self.process {
            Some(process) => process.encode(&mut encoder),
            None => Ok(()),
        }
    }
}

impl Collector for Member {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        of_the_member(&mut encoder, &self.seen)?;
        of_the_store(&mut encoder, &self.seen)?;
        peers::encode(&mut encoder, &self.seen)?;
        let version = [("server_version", ETCD_VERSION)];
        let info = encoder.encode_descriptor(
            "etcd_server_version",
            "Which version is running, 1 for its label",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        labelled(info, &version, 1)
    }
}

fn of_the_member(encoder: &mut DescriptorEncoder, seen: &Observed) -> fmt::Result {
    let flag = u64::from;
    let own = peers::name(seen.member_id);
    let id = encoder.encode_descriptor(
        "etcd_server_id",
        "This member's id, 1 for its label",
        None,
        prometheus_client::metrics::MetricType::Gauge,
    )?;
    labelled(id, &[("server_id", own.as_str())], 1)?;
    gauge(
        encoder,
        "etcd_server_is_learner",
        "Whether this member has no vote",
        flag(seen.is_learner),
    )?;
    gauge(
        encoder,
        "etcd_server_has_leader",
        "Whether a leader is known",
        flag(seen.leader.is_some()),
    )?;
    gauge(
        encoder,
        "etcd_server_is_leader",
        "Whether this member leads",
        flag(seen.is_leader),
    )?;
    counter(
        encoder,
        "etcd_server_leader_changes_seen",
        "Leaders known since the start",
        seen.leaders_seen,
    )?;
    gauge(encoder, "quorate_raft_term", "The current term", seen.term)?;
    gauge(
        encoder,
        "etcd_server_proposals_committed_total",
        "Last index known to be committed",
        seen.committed_index,
    )?;
    gauge(
        encoder,
        "etcd_server_proposals_applied_total",
        "Last index applied here",
        seen.applied_index,
    )?;
    gauge(
        encoder,
        "etcd_server_proposals_pending",
        "Writes sent that wait for their outcome",
        number(seen.pending_proposals),
    )?;
    counter(
        encoder,
        "etcd_server_proposals_failed",
        "Writes that were not decided, as far as could be told",
        seen.failed_proposals,
    )?;
    gauge(
        encoder,
        "quorate_alarms",
        "Alarms that stand",
        number(seen.alarms),
    )
}

fn of_the_store(encoder: &mut DescriptorEncoder, seen: &Observed) -> fmt::Result {
    let revision = |revision: i64| u64::try_from(revision).unwrap_or(0);
    gauge(
        encoder,
        "etcd_debugging_mvcc_current_revision",
        "The current revision",
        revision(seen.revision),
    )?;
    gauge(
        encoder,
        "etcd_debugging_mvcc_compact_revision",
        "The compact revision",
        revision(seen.compact_revision),
    )?;
    gauge(
        encoder,
        "etcd_debugging_mvcc_watcher_total",
        "Watchers on all streams",
        number(seen.watchers),
    )?;
    gauge(
        encoder,
        "etcd_debugging_mvcc_slow_watcher_total",
        "Watchers that have to be caught up with the present",
        number(seen.watchers_behind),
    )?;
    counter(
        encoder,
        "etcd_mvcc_put",
        "Keys put, as applied by this member since its start",
        seen.puts,
    )?;
    counter(
        encoder,
        "etcd_mvcc_delete",
        "Keys deleted, as applied by this member since its start",
        seen.deletes,
    )?;
    gauge(
        encoder,
        "quorate_lease_count",
        "Leases granted",
        number(seen.leases),
    )?;
    gauge(
        encoder,
        "etcd_mvcc_db_total_size_in_bytes",
        "Size of the store",
        seen.disk_bytes,
    )?;
    // The storage engine does not know how much of what it holds it could give back.
    gauge(
        encoder,
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Size of the store without what could be given back",
        seen.disk_bytes,
    )?;
    gauge(
        encoder,
        "etcd_server_quota_backend_bytes",
        "Size above which writes are refused",
        seen.quota_bytes,
    )
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

fn labelled(
    mut encoder: prometheus_client::encoding::MetricEncoder,
    labels: &[(&str, &str); 1],
    value: u64,
) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_family(labels)?)
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_counters_by_their_values() {
        let open = "# HELP puts Keys put.\n# TYPE puts counter\nputs_total 3\n# HELP up Is up.\n\
                    # TYPE up gauge\nup{To=\"a b\"} 1\n# EOF\n";
        let told = "# HELP puts_total Keys put.\n# TYPE puts_total counter\nputs_total 3\n\
                    # HELP up Is up.\n# TYPE up gauge\nup{To=\"a b\"} 1\n";
        assert_eq!(plain(open), told);
    }
}
