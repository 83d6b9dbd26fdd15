//! Version and health, in etcd's shapes.
//!
//! `/health` and `/readyz` ask whether the member can serve a linearizable read now, and whether an
//! alarm stands; `/livez` only whether the process should be left running.

use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use quorate_proto::etcdserverpb::{AlarmType, RangeRequest};
use serde::{Deserialize, Serialize};

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

#[derive(Debug, Serialize)]
struct Health {
    health: &'static str,
    reason: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct HealthQuery {
    /// `true` checks this member alone, without a leader.
    #[serde(default)]
    serializable: bool,
    /// Alarms that do not count, by name, comma separated.
    #[serde(default)]
    exclude: String,
}

pub(super) async fn health(State(node): State<Node>, Query(query): Query<HealthQuery>) -> Response {
    let outcome = check(&node, query.serializable, &query.exclude).await;
    let status = match outcome {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = match outcome {
        Ok(()) => Health {
            health: "true",
            reason: String::new(),
        },
        Err(reason) => Health {
            health: "false",
            reason,
        },
    };
    (status, Json(body)).into_response()
}

/// Whether the member is able to go on at all; restarting it is the cure if not.
pub(super) async fn live(State(node): State<Node>) -> Response {
    match node.failure() {
        None => (StatusCode::OK, "ok\n").into_response(),
        Some(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// Whether to send requests here.
pub(super) async fn ready(State(node): State<Node>) -> Response {
    match check(&node, false, "NOSPACE").await {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn check(node: &Node, serializable: bool, exclude: &str) -> Result<(), String> {
    for alarm in node.alarms() {
        let name = match alarm.alarm() {
            AlarmType::None => continue,
            AlarmType::Nospace => "NOSPACE",
            AlarmType::Corrupt => "CORRUPT",
        };
        if !exclude.split(',').any(|excluded| excluded == name) {
            return Err(format!("ALARM {name}"));
        }
    }
    if !serializable && node.leadership().leader.is_none() {
        return Err("RAFT NO LEADER".to_owned());
    }
    let probe = RangeRequest {
        key: "health".into(),
        serializable,
        limit: 1,
        ..Default::default()
    };
    match tokio::time::timeout(CHECK_TIMEOUT, node.range(probe)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("RANGE ERROR:{error}")),
        Err(_) => Err("RANGE ERROR:no answer in time".to_owned()),
    }
}
