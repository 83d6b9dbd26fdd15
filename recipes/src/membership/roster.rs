//! Who is in a group, decided from the changes of its keys; and what has happened with each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;

use super::record::{self, Reading};
use super::view::{Member, MemberView};
use crate::clock::Instant;
use crate::departure::Departure;
use crate::follow::Digest;
use crate::keys::{KeySpace, Revision};
use crate::watch::{Batch, Change, Origin};

/// What happened to one member.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum MemberEvent<I> {
    /// It is there now.
    Joined(Arc<Member<I>>),
    /// It says something else.
    Updated {
        /// As it was.
        before: Arc<Member<I>>,
        /// As it is.
        now: Arc<Member<I>>,
    },
    /// It is gone.
    Left {
        /// As it was last seen.
        member: Arc<Member<I>>,
        /// How it went.
        departure: Departure,
    },
}

/// The state behind the views and events of one group.
pub(super) struct Roster<I> {
    space: KeySpace,
    revision: Revision,
    members: BTreeMap<Bytes, Arc<Member<I>>>,
    strangers: BTreeSet<Bytes>,
}

/// The events of one batch.
struct News<I> {
    left: Vec<MemberEvent<I>>,
    rest: Vec<(Revision, MemberEvent<I>)>,
    /// How somebody went who has not said so.
    silent: Departure,
}

impl<I> News<I> {
    fn left(&mut self, member: Option<Arc<Member<I>>>, departure: Departure) {
        let left = member.map(|member| MemberEvent::Left { member, departure });
        self.left.extend(left);
    }
}

impl<I: DeserializeOwned> Roster<I> {
    pub(super) fn new(space: KeySpace) -> Self {
        Self {
            space,
            revision: Revision(0),
            members: BTreeMap::new(),
            strangers: BTreeSet::new(),
        }
    }

    /// Takes in what changed, and tells what that means: departures first, then the others, those
    /// first who joined first.
    pub(super) fn apply(&mut self, batch: Batch) -> impl Iterator<Item = MemberEvent<I>> + use<I> {
        self.revision = batch.revision;
        let mut news = News {
            left: Vec::new(),
            rest: Vec::new(),
            silent: match batch.origin {
                Origin::Live => Departure::Expired,
                Origin::Listing | Origin::Resync => Departure::Unseen,
            },
        };
        for change in batch.changes {
            match change {
                Change::Put { kv, .. } => self.put(&kv, &mut news),
                Change::Delete { key, .. } => {
                    self.strangers.remove(key.as_bytes());
                    news.left(self.members.remove(key.as_bytes()), news.silent);
                }
            }
        }
        news.rest.sort_by_key(|(created, _)| *created);
        let rest = news.rest.into_iter().map(|(_, event)| event);
        news.left.into_iter().chain(rest)
    }

    fn put(&mut self, kv: &KeyValue, news: &mut News<I>) {
        self.strangers.remove(&kv.key);
        let before = self.members.remove(&kv.key);
        let (same, other) = match before {
            Some(was) if was.created.0 == kv.create_revision => (Some(was), None),
            other => (None, other),
        };
        news.left(other, news.silent);
        match record::read(&self.space, kv) {
            Reading::There(member) => {
                let now = Arc::new(member);
                self.members.insert(kv.key.clone(), Arc::clone(&now));
                let event = match same {
                    Some(before) if before.modified == now.modified => return,
                    Some(before) => MemberEvent::Updated {
                        before,
                        now: Arc::clone(&now),
                    },
                    None => MemberEvent::Joined(Arc::clone(&now)),
                };
                news.rest.push((now.created, event));
            }
            Reading::Leaving => news.left(same, Departure::Clean),
            Reading::Stranger => {
                tracing::warn!(key = %String::from_utf8_lossy(&kv.key), "not a member of the group");
                self.strangers.insert(kv.key.clone());
                news.left(same, news.silent);
            }
        }
    }
}

impl<I> Digest for Roster<I>
where
    I: DeserializeOwned + Send + Sync + 'static,
{
    type View = MemberView<I>;

    fn take(&mut self, batch: Batch, _now: Instant) {
        drop(self.apply(batch));
    }

    fn tick(&mut self, _now: Instant) -> bool {
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn view(&self, stale_since: Option<Instant>) -> MemberView<I> {
        let mut members: Vec<_> = self.members.values().cloned().collect();
        members.sort_by_key(|member| member.created);
        MemberView {
            revision: self.revision,
            members,
            strangers: self.strangers.len(),
            stale_since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Seen {
        roster: Roster<u32>,
        revision: i64,
    }

    impl Seen {
        fn new() -> Self {
            Self {
                roster: Roster::new(KeySpace::raw("g")),
                revision: 1,
            }
        }

        /// `+a` joined, `~a` updated, `-a` left, `!a` expired, `*a` unseen; then who is there.
        fn step(&mut self, origin: Origin, changes: Vec<Change>) -> String {
            let batch = Batch {
                revision: Revision(self.revision),
                origin,
                changes,
            };
            let word = |event: MemberEvent<u32>| match event {
                MemberEvent::Joined(m) => format!("+{}", m.id),
                MemberEvent::Updated { now, .. } => format!("~{}", now.id),
                MemberEvent::Left { member, departure } => match departure {
                    Departure::Clean => format!("-{}", member.id),
                    Departure::Expired => format!("!{}", member.id),
                    Departure::Unseen => format!("*{}", member.id),
                },
            };
            let mut words: Vec<_> = self.roster.apply(batch).map(word).collect();
            let view = self.roster.view(None);
            words.push("of".to_owned());
            words.extend(view.members.iter().map(|m| m.id.clone()));
            words.join(" ").replace("f/", "")
        }

        fn put(&mut self, id: &str, created: i64, value: &str) -> Change {
            self.revision += 1;
            Change::Put {
                kv: KeyValue {
                    key: format!("g/f/{id}").into(),
                    value: value.to_owned().into(),
                    create_revision: created,
                    mod_revision: self.revision,
                    lease: 0xf,
                    ..Default::default()
                },
                previous: None,
            }
        }
    }

    fn gone(id: &str) -> Change {
        Change::Delete {
            key: format!("g/f/{id}").into(),
            previous: None,
        }
    }

    const INFO: &str = r#"{"v":1,"info":7}"#;
    const LEFT: &str = r#"{"v":1,"left":true}"#;

    #[test]
    fn leaves_and_crashes_are_told_apart() {
        let mut seen = Seen::new();
        let here = vec![
            seen.put("a", 5, INFO),
            seen.put("b", 3, INFO),
            seen.put("c", 4, "?"),
        ];
        assert_eq!(seen.step(Origin::Listing, here), "+b +c +a of b c a");
        let update = seen.put("b", 3, INFO);
        assert_eq!(seen.step(Origin::Live, vec![update]), "~b of b c a");
        let left = seen.put("a", 5, LEFT);
        assert_eq!(seen.step(Origin::Live, vec![left]), "-a of b c");
        assert_eq!(seen.step(Origin::Live, vec![gone("a")]), "of b c");
        assert_eq!(seen.step(Origin::Live, vec![gone("b")]), "!b of c");
        assert_eq!(seen.step(Origin::Resync, vec![gone("c")]), "*c of");
    }

    #[test]
    fn a_listing_after_a_gap_tells_the_difference() {
        let mut seen = Seen::new();
        let here = vec![
            seen.put("a", 2, INFO),
            seen.put("b", 3, INFO),
            seen.put("c", 4, INFO),
        ];
        assert_eq!(seen.step(Origin::Listing, here), "+a +b +c of a b c");
        let missed = vec![
            seen.put("a", 9, INFO),
            seen.put("b", 3, LEFT),
            seen.put("c", 4, INFO),
            seen.put("d", 8, LEFT),
        ];
        assert_eq!(seen.step(Origin::Resync, missed), "*a -b ~c +a of c a");
    }

    #[test]
    fn strangers_are_counted_and_hide_nobody() {
        let mut seen = Seen::new();
        let mut stranger = seen.put("x", 2, INFO);
        if let Change::Put { kv, .. } = &mut stranger {
            kv.lease = 0;
        }
        let here = vec![stranger, seen.put("a", 3, INFO)];
        assert_eq!(seen.step(Origin::Listing, here), "+a of a");
        assert_eq!(seen.roster.view(None).strangers, 1);
        assert_eq!(seen.step(Origin::Live, vec![gone("x")]), "of a");
        assert_eq!(seen.roster.view(None).strangers, 0);
    }
}
