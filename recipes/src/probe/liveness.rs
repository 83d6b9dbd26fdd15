//! What several observers agree on.

use std::collections::BTreeMap;
use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;

use super::judge::ProbeState;
use super::{KIND, record};
use crate::client::{Client, Identity};
use crate::clock::Instant;
use crate::error::{Error, Result};
use crate::follow::{Digest, Followed};
use crate::keys::{KeySpace, LeaseId, Name, Revision};
use crate::watch::{Batch, Change};

/// What one observer says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Opinion {
    /// The observer's name.
    pub observer: String,
    /// What it sees.
    pub state: ProbeState,
    /// Why the last check that failed did, unless it sees the target up.
    pub reason: Option<String>,
    /// Who that is.
    pub by: Identity,
    /// When it said so, in milliseconds since 1970 by its clock. For people only.
    pub at_ms: u64,
    /// The revision at which it said so.
    pub revision: Revision,
    /// The lease that its key hangs on.
    pub lease: LeaseId,
}

/// What the observers that live agree on, as they were at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// What they agree on; [`ProbeState::Unknown`] when fewer than the quorum say the same, or as many say up
    /// as down.
    pub state: ProbeState,
    /// Each of them, by name.
    pub opinions: Vec<Opinion>,
    /// The revision.
    pub revision: Revision,
    /// Since when the store has been out of reach: the verdict may be old.
    pub stale_since: Option<Instant>,
}

/// Of those who say up and those who say down the more, if they are enough.
pub(crate) fn judge(opinions: &[Opinion], quorum: usize) -> ProbeState {
    let say = |state| opinions.iter().filter(|one| one.state == state).count();
    let (up, down) = (say(ProbeState::Up), say(ProbeState::Down));
    match up.cmp(&down) {
        std::cmp::Ordering::Greater if up >= quorum => ProbeState::Up,
        std::cmp::Ordering::Less if down >= quorum => ProbeState::Down,
        _ => ProbeState::Unknown,
    }
}

impl Client {
    /// Follows what observers say of a target: `client.liveness("db").quorum(2).await`. Needs no session.
    pub fn liveness(&self, target: impl Into<Name>) -> FollowLiveness {
        FollowLiveness {
            client: self.clone(),
            space: target.into().space(KIND),
            quorum: 2,
        }
    }
}

/// Starts to follow a [`Liveness`] when awaited.
#[derive(Debug)]
#[must_use = "awaiting the builder starts to follow"]
pub struct FollowLiveness {
    client: Client,
    space: KeySpace,
    quorum: usize,
}

impl FollowLiveness {
    /// How many observers must say the same. Default: 2.
    pub fn quorum(mut self, observers: usize) -> Self {
        self.quorum = observers;
        self
    }

    async fn start(self) -> Result<Liveness> {
        if self.quorum == 0 {
            return Err(Error::Invalid("a verdict of nobody".to_owned()));
        }
        let range = self.space.range();
        let bench = Bench {
            space: self.space,
            quorum: self.quorum,
            revision: Revision(0),
            opinions: BTreeMap::new(),
        };
        Ok(Liveness(Followed::start(&self.client, range, bench).await?))
    }
}

impl IntoFuture for FollowLiveness {
    type Output = Result<Liveness>;
    type IntoFuture = BoxFuture<'static, Result<Liveness>>;

    /// Ready once the first listing is in.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a quorum of 0; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    fn into_future(self) -> Self::IntoFuture {
        self.start().boxed()
    }
}

/// The verdict of the observers that live, kept up to date with one watch. An observer that dies, or cannot
/// reach the store, is not counted any more once its lease has run out.
///
/// Clones share the verdict; each waits for changes by itself. Dropping the last stops following.
#[derive(Clone)]
pub struct Liveness(Followed<Verdict>);

impl Liveness {
    /// The verdict now.
    #[must_use]
    pub fn verdict(&self) -> Arc<Verdict> {
        self.0.view()
    }

    /// Waits for a verdict, or other opinions, that have not been waited for before.
    ///
    /// # Errors
    /// The store's final refusal that ended the following.
    ///
    /// # Cancel safety
    /// Nothing is missed when the future is dropped; intermediate ones may be skipped.
    pub async fn changed(&mut self) -> Result<Arc<Verdict>> {
        self.0.changed().await
    }

    /// Waits until the verdict is this one, which it may be now.
    ///
    /// # Errors
    /// As [`Liveness::changed`].
    ///
    /// # Cancel safety
    /// As [`Liveness::changed`].
    pub async fn wait_for(&mut self, state: ProbeState) -> Result<Arc<Verdict>> {
        self.0.wait_for(|verdict| verdict.state == state).await
    }
}

impl fmt::Debug for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Liveness").field(&self.verdict()).finish()
    }
}

/// The opinions as they stand.
struct Bench {
    space: KeySpace,
    quorum: usize,
    revision: Revision,
    opinions: BTreeMap<Bytes, Opinion>,
}

impl Digest for Bench {
    type View = Verdict;

    fn take(&mut self, batch: Batch, _now: Instant) {
        self.revision = batch.revision;
        for change in batch.changes {
            match change {
                Change::Put { kv, .. } => match record::read(&self.space, &kv) {
                    Some(opinion) => drop(self.opinions.insert(kv.key, opinion)),
                    None => drop(self.opinions.remove(&kv.key)),
                },
                Change::Delete { key, .. } => drop(self.opinions.remove(key.as_bytes())),
            }
        }
    }

    fn tick(&mut self, _now: Instant) -> bool {
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn view(&self, stale_since: Option<Instant>) -> Verdict {
        let mut opinions: Vec<_> = self.opinions.values().cloned().collect();
        opinions.sort_by(|a, b| a.observer.cmp(&b.observer));
        Verdict {
            state: judge(&opinions, self.quorum),
            opinions,
            revision: self.revision,
            stale_since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(said: &str, quorum: usize) -> ProbeState {
        let opinions = said.chars().enumerate().map(|(number, said)| Opinion {
            observer: number.to_string(),
            state: match said {
                'u' => ProbeState::Up,
                'd' => ProbeState::Down,
                _ => ProbeState::Unknown,
            },
            reason: None,
            by: Identity {
                host: String::new(),
                pid: 1,
                label: String::new(),
            },
            at_ms: 0,
            revision: Revision(1),
            lease: LeaseId(1),
        });
        judge(&opinions.collect::<Vec<_>>(), quorum)
    }

    #[test]
    fn so_many_must_agree() {
        use ProbeState::{Down, Unknown, Up};
        let cases = [
            ("", 1, Unknown),
            ("u", 1, Up),
            ("d", 1, Down),
            ("u", 2, Unknown),
            ("d?", 2, Unknown),
            ("uu", 2, Up),
            ("dud", 2, Down),
            ("dduu", 2, Unknown),
            ("dduuu", 2, Up),
            ("du", 1, Unknown),
            ("ddu", 3, Unknown),
        ];
        for (said, quorum, expected) in cases {
            assert_eq!(verdict(said, quorum), expected, "{said} of {quorum}");
        }
    }
}
