//! One look: reads that all show the store as it was at one revision, and who has which lease.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;

use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;

use crate::client::{Client, Identity};
use crate::error::{Error, Result};
use crate::keys::{KeyRange, KeySpace, LeaseId, ROOT, Revision, decode};
use crate::lock::Holder;
use crate::session::SessionRecord;
use crate::store::{StoreError, ops};

/// How often a look begins anew because its revision was compacted meanwhile.
const ATTEMPTS: usize = 3;

/// Keys in one read, of which each may have a large value.
const PAGE: usize = 128;

/// What there is of one kind, as it was at one revision.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Listing<T> {
    /// The revision.
    pub revision: Revision,
    /// In the order of their names.
    pub entries: Vec<T>,
}

/// A session that is open, or whose lease has not run out yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its lease.
    pub lease: LeaseId,
    /// Host, process and label; `None` if that cannot be read.
    pub who: Option<Identity>,
    /// When it was opened, in milliseconds since the Unix epoch by its own wall clock.
    pub opened_ms: Option<u64>,
    /// The revision at which it was opened.
    pub revision: Revision,
}

/// The store at one revision.
#[derive(Debug)]
pub(super) struct Look {
    client: Client,
    at: Revision,
    pub(super) sessions: Vec<SessionInfo>,
    who: HashMap<LeaseId, Identity>,
}

impl Look {
    /// Looks at the latest revision.
    async fn begin(client: &Client) -> Result<Self> {
        let prefix = format!("{ROOT}/session/");
        let (at, kvs) = client.list(KeyRange::prefix(prefix)).await?;
        let sessions: Vec<SessionInfo> = kvs.iter().map(session).collect();
        let known = sessions.iter().filter_map(|session| {
            let who = session.who.clone()?;
            Some((session.lease, who))
        });
        Ok(Self {
            client: client.clone(),
            at,
            who: known.collect(),
            sessions,
        })
    }

    /// Has `read` look, anew when the revision was compacted under its eyes.
    pub(super) async fn at_one_revision<T, F, Fut>(client: &Client, read: F) -> Result<T>
    where
        F: Fn(Self) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            match read(Self::begin(client).await?).await {
                Err(Error::Store(StoreError::Compacted { .. })) if left > 0 => {}
                outcome => return outcome,
            }
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn revision(&self) -> Revision {
        self.at
    }

    pub(super) fn listing<T>(&self, entries: Vec<T>) -> Listing<T> {
        let revision = self.at;
        Listing { revision, entries }
    }

    pub(super) fn who(&self, lease: LeaseId) -> Option<&Identity> {
        self.who.get(&lease)
    }

    /// Who has put a key there.
    pub(super) fn holder(&self, kv: &KeyValue) -> Holder {
        let mut holder = Holder::of(kv);
        holder.who = self.who(holder.lease).cloned();
        holder
    }

    /// All keys of a range.
    pub(super) async fn list(&self, range: KeyRange) -> Result<Vec<KeyValue>> {
        Ok(self.client.list_at(range, self.at).await?.1)
    }

    /// The first keys of a range, so many at most.
    pub(super) async fn first(&self, range: KeyRange, most: usize) -> Result<Vec<KeyValue>> {
        let mut request = ops::range(range);
        request.revision = self.at.0;
        let mut all: Vec<KeyValue> = Vec::new();
        loop {
            let limit = most.saturating_sub(all.len()).min(PAGE);
            request.limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut answer = self.client.store().range(request.clone()).await?;
            all.append(&mut answer.kvs);
            match all.last() {
                Some(last) if answer.more && all.len() < most => {
                    request.key = [&last.key[..], &[0]].concat().into();
                }
                _ => return Ok(all),
            }
        }
    }

    /// All keys of one kind.
    pub(super) async fn list_kind(&self, kind: &str) -> Result<Vec<KeyValue>> {
        self.list(whole_kind(kind)).await
    }

    /// How many keys a range has.
    pub(super) async fn count(&self, range: KeyRange) -> Result<u64> {
        let mut request = ops::counting(range);
        request.revision = self.at.0;
        let answer = self.client.store().range(request).await?;
        Ok(u64::try_from(answer.count).unwrap_or(0))
    }

    /// The kinds of recipes that have keys.
    pub(super) async fn kinds(&self) -> Result<Vec<String>> {
        self.segments(&format!("{ROOT}/")).await
    }

    /// The names of one kind that have keys.
    pub(super) async fn names(&self, kind: &str) -> Result<Vec<String>> {
        let segments = self.segments(&format!("{ROOT}/{kind}/")).await?;
        Ok(segments.iter().filter_map(|name| decode(name)).collect())
    }

    /// The names directly below a space that have keys.
    pub(super) async fn below(&self, space: &KeySpace) -> Result<Vec<String>> {
        let segments = self.segments(&format!("{}/", space.prefix())).await?;
        Ok(segments.iter().filter_map(|name| decode(name)).collect())
    }

    /// What follows `root` in keys, up to the next slash: one read each, whatever lies below them.
    async fn segments(&self, root: &str) -> Result<Vec<String>> {
        let whole = KeyRange::prefix(root);
        let mut range = whole.clone();
        // The same one comes twice where others sort between the key and what lies below it.
        let mut found: BTreeSet<String> = BTreeSet::new();
        loop {
            let mut request = ops::range(range.clone());
            request.limit = 1;
            request.keys_only = true;
            request.revision = self.at.0;
            let answer = self.client.store().range(request).await?;
            let Some(kv) = answer.kvs.first() else {
                return Ok(found.into_iter().collect());
            };
            let rest = kv.key.strip_prefix(root.as_bytes()).unwrap_or_default();
            let (segment, below) = match rest.iter().position(|byte| *byte == b'/') {
                Some(slash) => (&rest[..slash], true),
                None => (rest, false),
            };
            if let Ok(segment) = std::str::from_utf8(segment) {
                found.insert(segment.to_owned());
            }
            range.start = match below {
                true => {
                    let below = [root.as_bytes(), segment, b"/"].concat();
                    KeyRange::prefix(below).end
                }
                false => [&kv.key[..], &[0]].concat().into(),
            };
            range.end.clone_from(&whole.end);
        }
    }
}

fn session(kv: &KeyValue) -> SessionInfo {
    let record: Option<SessionRecord> = serde_json::from_slice(&kv.value).ok();
    SessionInfo {
        lease: LeaseId(kv.lease),
        opened_ms: record.as_ref().map(|record| record.opened_ms),
        who: record.map(|record| record.who),
        revision: Revision(kv.create_revision),
    }
}

/// The keys of a whole kind.
pub(super) fn whole_kind(kind: &str) -> KeyRange {
    KeyRange::prefix(format!("{ROOT}/{kind}/"))
}

/// Keys by the name that follows `<root>/<kind>/`, each with what follows the name; those of names that cannot be
/// read, and of others, are left out. In the order of names, then of keys.
pub(super) fn by_name(kind: &str, kvs: Vec<KeyValue>) -> Vec<(String, Vec<(String, KeyValue)>)> {
    by_first_part(&whole_kind(kind).start, kvs)
}

/// As [`by_name`], by the name that follows `root`.
pub(super) fn by_first_part(
    root: &[u8],
    kvs: Vec<KeyValue>,
) -> Vec<(String, Vec<(String, KeyValue)>)> {
    let mut groups: Vec<(String, Vec<(String, KeyValue)>)> = Vec::new();
    for kv in kvs {
        let rest = kv.key.strip_prefix(root);
        let rest = rest.and_then(|rest| std::str::from_utf8(rest).ok());
        let Some((segment, rest)) = rest.and_then(|rest| rest.split_once('/')) else {
            continue;
        };
        let (Some(name), rest) = (decode(segment), rest.to_owned()) else {
            continue;
        };
        match groups.last_mut() {
            Some((last, group)) if *last == name => group.push((rest, kv)),
            _ => groups.push((name, vec![(rest, kv)])),
        }
    }
    groups
}
