//! What an instance runs, told to everybody: a leased key with the publications that it uses, and what it
//! rejected and why.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::publish::Publisher;
use super::record;
use super::view::{Part, Rejection, Source, View};
use crate::client::Identity;
use crate::clock;
use crate::error::Result;
use crate::keeper::{Keeper, Kept, Mark, Plan, Rivals};
use crate::keys::{Key, LeaseId};
use crate::session::Session;
use crate::tasks::Tasks;
use crate::value::{V1, from_json};

/// As it is in the store.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    v: V1,
    /// Of the follower, so that it knows its own key again.
    nonce: String,
    #[serde(flatten)]
    told: Told,
    by: Identity,
    at_ms: u64,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Told {
    source: Source,
    running: BTreeMap<String, Part>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<Rejection>,
}

impl Told {
    fn of<T>(view: &View<T>) -> Self {
        Self {
            source: view.source,
            running: (*view.parts).clone(),
            rejected: view.rejected.clone(),
        }
    }
}

/// Why an instance does not run what is published, if it says so.
pub(crate) fn rejection(kv: &KeyValue) -> Option<String> {
    let record: Record = from_json(&kv.key, &kv.value).ok()?;
    record.told.rejected.map(|rejected| rejected.reason)
}

/// What one instance says that it runs. It goes with the instance: at the latest when its lease has run
/// out.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Acknowledgement {
    /// The instance's id.
    pub instance: String,
    /// Where its value comes from.
    pub source: Source,
    /// Which publication of each key it uses.
    pub running: BTreeMap<String, Part>,
    /// What it could not use, if that was published last.
    pub rejected: Option<Rejection>,
    /// Who that is.
    pub by: Identity,
    /// When it said so, in milliseconds since 1970 by its clock. For people only.
    pub at_ms: u64,
    /// The lease that it hangs on.
    pub lease: LeaseId,
}

/// Those of a key, or of a group, whose key is empty.
pub(super) async fn list(publisher: &Publisher, key: &str) -> Result<Vec<Acknowledgement>> {
    let layout = &publisher.layout;
    let range = layout.acknowledgements(key);
    let (_, kvs) = publisher.client.list(range).await?;
    let read = |kv: &KeyValue| {
        let record = from_json::<Record>(&kv.key, &kv.value);
        let record = record.inspect_err(|error| tracing::warn!(%error, "no acknowledgement"));
        let (instance, record) = (layout.instance(&kv.key)?, record.ok()?);
        Some(Acknowledgement {
            instance,
            source: record.told.source,
            running: record.told.running,
            rejected: record.told.rejected,
            by: record.by,
            at_ms: record.at_ms,
            lease: LeaseId(kv.lease),
        })
    };
    let mut all: Vec<_> = kvs.iter().filter_map(read).collect();
    all.sort_by(|a, b| a.instance.cmp(&b.instance));
    Ok(all)
}

fn is_of(value: &[u8], nonce: &str) -> bool {
    serde_json::from_slice::<Record>(value).is_ok_and(|record| record.nonce == nonce)
}

fn write(key: &Key, nonce: &str, by: &Identity, told: Told) -> Result<Bytes> {
    let record = Record {
        v: V1,
        nonce: nonce.to_owned(),
        told,
        by: by.clone(),
        at_ms: clock::wall_millis(),
    };
    record::write(key, &record)
}

/// Says what the views show, at this key, until there are no more views or the session is closed. A new
/// session is opened when that one is lost. Of two followers with one key the one that came last has it.
pub(super) fn start<T: Send + Sync + 'static>(
    session: &Session,
    key: Key,
    views: watch::Receiver<Arc<View<T>>>,
) -> Result<()> {
    let (nonce, by) = (session.client().nonce(), session.who().clone());
    let told = Told::of(&views.borrow());
    let plan = Plan {
        key: key.clone(),
        mark: Mark::Nonce(nonce.clone(), is_of),
        entering: Rivals::TakeBack,
        holding: Rivals::Yield,
        own_session: true,
    };
    let first = write(&key, &nonce, &by, told.clone())?;
    let kept = Keeper::start(session.clone(), plan, first, None);
    let write = move |told| write(&key, &nonce, &by, told);
    Tasks::current().spawn("acknowledge", tell(kept, told, views, write));
    Ok(())
}

/// Dropping what is kept removes the key.
async fn tell<T: Send + Sync + 'static>(
    kept: Kept,
    mut told: Told,
    mut views: watch::Receiver<Arc<View<T>>>,
    write: impl Fn(Told) -> Result<Bytes>,
) {
    loop {
        tokio::select! {
            biased;
            ended = kept.ended() => {
                tracing::warn!(?ended, "a setting is not acknowledged any more");
                return;
            }
            changed = views.changed() => if changed.is_err() { return },
        }
        let now = Told::of(&views.borrow_and_update());
        if now == told {
            continue;
        }
        told = now.clone();
        match write(now) {
            Ok(value) => drop(kept.want(value, None)),
            Err(error) => tracing::warn!(%error, "a setting cannot be acknowledged"),
        }
    }
}
