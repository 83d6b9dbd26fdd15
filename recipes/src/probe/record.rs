//! How an observer tells what it sees.

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

use super::judge::{ProbeReport, ProbeState};
use super::liveness::Opinion;
use crate::client::{Client, Identity};
use crate::error::Result;
use crate::keys::{Key, KeySpace, LeaseId, Revision, decode};
use crate::value::{Json, V1, Value, from_json};

/// The value of an observer's key.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    v: V1,
    /// Of the observation, so that it knows its own key again.
    nonce: String,
    state: ProbeState,
    /// Why the last check that failed did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    by: Identity,
    at_ms: u64,
}

pub(super) fn write(
    client: &Client,
    key: &Key,
    nonce: &str,
    by: &Identity,
    seen: &ProbeReport,
) -> Result<Bytes> {
    let record = Record {
        v: V1,
        nonce: nonce.to_owned(),
        state: seen.state,
        // Of what is up, an old failure is no news.
        reason: seen.reason.clone().filter(|_| seen.state != ProbeState::Up),
        by: by.clone(),
        at_ms: client.wall_millis(),
    };
    Value::from(Json(&record)).into_bytes(key)
}

/// Whether a value was written by the observation with this nonce.
pub(super) fn is_of(value: &[u8], nonce: &str) -> bool {
    serde_json::from_slice::<Record>(value).is_ok_and(|record| record.nonce == nonce)
}

/// Reads an observer's key; what is none is told, and counts for nobody.
pub(super) fn read(space: &KeySpace, kv: &KeyValue) -> Option<Opinion> {
    let opinion = opinion(space, kv)?;
    let opinion = opinion.inspect_err(|error| tracing::warn!(%error, "not an observer's"));
    opinion.ok()
}

/// What an observer's key says, or why that cannot be read; `None`: it is no observer's.
pub(crate) fn opinion(space: &KeySpace, kv: &KeyValue) -> Option<Result<Opinion>> {
    let observer = decode(space.suffix(&kv.key)?)?;
    let record = from_json::<Record>(&kv.key, &kv.value);
    Some(record.map(|record| Opinion {
        observer,
        state: record.state,
        reason: record.reason,
        by: record.by,
        at_ms: record.at_ms,
        revision: Revision(kv.mod_revision),
        lease: LeaseId(kv.lease),
    }))
}
