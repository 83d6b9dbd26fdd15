//! Version and health, in etcd's shapes: `/version`, `/health` as JSON, and `/livez` and `/readyz` as
//! lists of checks, each of which has a path of its own below.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{AlarmType, RangeRequest};
use serde::Serialize;

use crate::node::{ETCD_VERSION, Node};

/// A health check waits no longer than this for a leader: callers have deadlines of their own.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
pub(super) struct Version {
    etcdserver: &'static str,
    etcdcluster: &'static str,
    quorate: &'static str,
}

pub(super) async fn version() -> Json<Version> {
    Json(Version {
        etcdserver: ETCD_VERSION,
        etcdcluster: ETCD_VERSION,
        quorate: env!("CARGO_PKG_VERSION"),
    })
}

/// The values of a parameter in a query, in order; a bare name has an empty one.
fn values<'q>(query: &'q Option<String>, name: &'q str) -> impl Iterator<Item = &'q str> {
    let pairs = query.as_deref().unwrap_or_default().split('&');
    pairs.filter_map(move |pair| {
        let (named, value) = pair.split_once('=').unwrap_or((pair, ""));
        (named == name).then_some(value)
    })
}

#[derive(Debug, Serialize)]
struct Health {
    health: &'static str,
    reason: String,
}

/// `/health`: no alarm stands, and a read is answered; with `serializable=true` this member alone is
/// asked, without a leader; `exclude=NOSPACE` passes over an alarm.
pub(super) async fn health(State(node): State<Node>, RawQuery(query): RawQuery) -> Response {
    let serializable = values(&query, "serializable").next() == Some("true");
    // etcd takes the parameter several times; commas were taken here before.
    let excluded: Vec<&str> = values(&query, "exclude")
        .flat_map(|names| names.split(','))
        .collect();
    let (status, health, reason) = match whole(&node, serializable, &excluded).await {
        Ok(()) => (StatusCode::OK, "true", String::new()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, "false", reason),
    };
    let body = serde_json::to_string(&Health { health, reason }).unwrap_or_default();
    (status, body).into_response()
}

async fn whole(node: &Node, serializable: bool, excluded: &[&str]) -> Result<(), String> {
    for alarm in node.alarms() {
        let name = match alarm.alarm() {
            AlarmType::None => continue,
            AlarmType::Nospace => "NOSPACE",
            AlarmType::Corrupt => "CORRUPT",
        };
        if !excluded.contains(&name) {
            return Err(format!("ALARM {name}"));
        }
    }
    if !serializable && node.leadership().leader.is_none() {
        return Err("RAFT NO LEADER".to_owned());
    }
    let read = read(node, serializable).await;
    read.map_err(|cause| format!("RANGE ERROR:{cause}"))
}

async fn read(node: &Node, serializable: bool) -> Result<(), String> {
    if let Some(error) = node.failure() {
        return Err(error.to_string());
    }
    let probe = RangeRequest {
        key: "health".into(),
        serializable,
        limit: 1,
        ..Default::default()
    };
    match tokio::time::timeout(CHECK_TIMEOUT, node.range(probe)).await {
        Ok(Ok(_)) => Ok(()),
        // Told by a check of its own; starting the member again would cure nothing.
        Ok(Err(error)) if error.reason() == Reason::Corrupt => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// One thing that is looked at.
#[derive(Debug, Clone, Copy)]
enum Check {
    /// No member has found the data to differ.
    DataCorruption,
    /// This member can read its own state, and has not failed.
    SerializableRead,
    /// There is a leader, and this member follows it.
    LinearizableRead,
    /// This member votes.
    NonLearner,
}

/// Whether restarting the member would be the cure.
const LIVE: &[Check] = &[Check::SerializableRead];
/// Whether to send requests here.
const READY: &[Check] = &[
    Check::DataCorruption,
    Check::SerializableRead,
    Check::LinearizableRead,
    Check::NonLearner,
];

impl Check {
    /// etcd's name for it.
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run(self, node: &Node) -> Result<(), String> {
        match self {
            Self::DataCorruption => {
                let alarms = node.alarms();
                let stands = alarms.iter().any(|a| a.alarm() == AlarmType::Corrupt);
                (!stands)
                    .then_some(())
                    .ok_or_else(|| "alarm activated: CORRUPT".to_owned())
            }
            Self::SerializableRead => read(node, true).await,
            Self::LinearizableRead => read(node, false).await,
            Self::NonLearner => {
                let learner = node.is_learner();
                (!learner)
                    .then_some(())
                    .ok_or_else(|| "not supported for learner".to_owned())
            }
        }
    }
}

pub(super) async fn live(State(node): State<Node>, RawQuery(query): RawQuery) -> Response {
    checked(&node, LIVE, &query).await
}

pub(super) async fn ready(State(node): State<Node>, RawQuery(query): RawQuery) -> Response {
    checked(&node, READY, &query).await
}

pub(super) async fn one_of_live(
    State(node): State<Node>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    one_of(&node, LIVE, &name, &query).await
}

pub(super) async fn one_of_ready(
    State(node): State<Node>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    one_of(&node, READY, &name, &query).await
}

async fn one_of(node: &Node, checks: &[Check], name: &str, query: &Option<String>) -> Response {
    match checks.iter().find(|check| check.name() == name) {
        Some(check) => checked(node, &[*check], query).await,
        None => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
    }
}

/// Runs the checks that are not excluded. A failure is always told in full, success only when asked
/// with `verbose`.
async fn checked(node: &Node, checks: &[Check], query: &Option<String>) -> Response {
    let excluded: Vec<&str> = values(query, "exclude").collect();
    let (mut told, mut fine) = (String::new(), true);
    for check in checks {
        let name = check.name();
        if excluded.contains(&name) {
            continue;
        }
        match check.run(node).await {
            Ok(()) => told.push_str(&format!("[+]{name} ok\n")),
            Err(cause) => {
                fine = false;
                told.push_str(&format!("[-]{name} failed: {cause}\n"));
            }
        }
    }
    let status = match fine {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    if fine {
        if values(query, "verbose").next().is_none() {
            told.clear();
        }
        told.push_str("ok\n");
    } else {
        told.push('\n');
    }
    (status, told).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_bare_and_more_than_once() {
        let query = Some("verbose&exclude=a&exclude=b&verboser=1".to_owned());
        assert_eq!(values(&query, "exclude").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(values(&query, "verbose").collect::<Vec<_>>(), [""]);
        assert_eq!(values(&None, "verbose").count(), 0);
    }
}
