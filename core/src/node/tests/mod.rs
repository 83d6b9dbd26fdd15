//! A member as its callers see it: alone in memory, over a restart, and three in one process.

mod cluster;
mod corruption;
mod cut;
mod force;
mod lone;
mod membership;
mod rebuild;
mod restart;
mod restore;
mod snapshot;
mod turmoil;
mod watching;

use std::time::Duration;

use quorate_proto::etcdserverpb::{
    LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse, WatchResponse,
};

use super::{Node, NodeBuilder, WatchSession};

/// Fast enough for a test, slow enough for a busy machine.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(500);
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(50);
/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A lone member in memory.
pub(super) async fn lone() -> Node {
    quick(Node::builder().in_memory()).start().await.unwrap()
}

fn quick(builder: NodeBuilder) -> NodeBuilder {
    builder
        .election_timeout(ELECTION_TIMEOUT)
        .heartbeat_interval(HEARTBEAT_INTERVAL)
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

fn get(key: &str) -> RangeRequest {
    RangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

/// The values of an answer, in its order.
fn values(answer: &RangeResponse) -> Vec<&str> {
    answer
        .kvs
        .iter()
        .map(|pair| std::str::from_utf8(&pair.value).unwrap())
        .collect()
}

fn grant(ttl: i64, id: i64) -> LeaseGrantRequest {
    LeaseGrantRequest { ttl, id }
}

/// The next answer of a watch, or a failed test.
async fn next(session: &mut WatchSession) -> WatchResponse {
    tokio::time::timeout(PATIENCE, session.next())
        .await
        .expect("an answer in time")
        .unwrap()
}

/// Waits until `holds`, or fails the test.
pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
