//! Where contenders stand: which keys each has, and whose keys it waits for. Locks and elections are
//! all a [`Contender`](super::Contender) in a line of one shape or another.

use quorate_proto::mvccpb::KeyValue;

use crate::keys::{Key, KeyRange, KeySpace, LeaseId};
use crate::session::Session;

/// The shape of a line.
#[derive(Debug, Clone)]
pub struct Line {
    /// A contender has a key `<prefix>/<lease>/<nonce>` in each, all created in one transaction.
    own: Vec<KeySpace>,
    /// Its turn has come when no key here was created before its own.
    behind: Vec<KeySpace>,
    /// What all contenders' keys lie in.
    contenders: Vec<KeyRange>,
    /// Where a leader names the contender that is to come next.
    handover: Option<Key>,
    /// Written into a contender's key; 0: left out.
    priority: u32,
}

impl Line {
    /// One after the other, in the order of asking.
    #[must_use]
    pub fn of(space: &KeySpace) -> Self {
        Self::all(vec![space.clone()])
    }

    /// In all of these lines at once. Since the keys are created at one revision, two contenders stand
    /// in the same order in every line that they share: they cannot wait for each other.
    ///
    /// # Panics
    /// Without any line.
    #[must_use]
    pub fn all(spaces: Vec<KeySpace>) -> Self {
        assert!(!spaces.is_empty(), "a line of no lines");
        Self {
            contenders: spaces.iter().map(KeySpace::range).collect(),
            behind: spaces.clone(),
            own: spaces,
            handover: None,
            priority: 0,
        }
    }

    /// Readers share their turn: they wait for writers only.
    pub(crate) fn readers(space: &KeySpace) -> Self {
        Self {
            own: vec![space.child("read")],
            behind: vec![space.child("write")],
            contenders: vec![space.range()],
            handover: None,
            priority: 0,
        }
    }

    /// Writers wait for everybody: a writer stands among the readers too, so those are everybody.
    pub(crate) fn writers(space: &KeySpace) -> Self {
        Self {
            own: vec![space.child("write"), space.child("read")],
            behind: vec![space.child("read")],
            ..Self::readers(space)
        }
    }

    /// With a key in which a contender may be named that all others let pass.
    pub(crate) fn with_handover(mut self, key: Key) -> Self {
        self.handover = Some(key);
        self
    }

    /// With a priority that others read in the contenders' keys ([`priority_of`]).
    pub(crate) fn with_priority(mut self, priority: u32) -> Self {
        self.priority = priority;
        self
    }

    pub(super) fn handover(&self) -> Option<&Key> {
        self.handover.as_ref()
    }

    pub(super) fn behind(&self) -> &[KeySpace] {
        &self.behind
    }

    pub(crate) fn contenders(&self) -> &[KeyRange] {
        &self.contenders
    }

    /// The keys of a contender with this lease and nonce.
    pub(super) fn keys(&self, lease: LeaseId, nonce: &str) -> Vec<Key> {
        let name = match self.priority {
            0 => format!("{lease}/{nonce}"),
            priority => format!("{lease}/{nonce}.{priority}"),
        };
        self.own.iter().map(|space| space.key(&name)).collect()
    }

    /// Whether a key is what a contender leaves: `<lease>` (etcd's own clients) or `<lease>/<nonce>`
    /// below a prefix, attached to the lease it names. Anything else may stay for ever.
    pub(crate) fn is_contender(&self, kv: &KeyValue) -> bool {
        let mut suffixes = self.behind.iter().filter_map(|space| space.suffix(&kv.key));
        suffixes.any(|suffix| {
            let (lease, nonce) = suffix.split_once('/').unwrap_or((suffix, "-"));
            kv.lease != 0
                && lease == LeaseId(kv.lease).to_string()
                && !nonce.is_empty()
                && !nonce.contains('/')
        })
    }
}

/// A name for a key of the session that nobody has used: `<prefix>/<lease>/<nonce>`.
pub(crate) fn fresh_key(session: &Session, space: &KeySpace) -> Key {
    space.key(&format!("{}/{}", session.lease(), session.client().nonce()))
}

/// The priority in a contender's key; 0 where it has none.
pub(crate) fn priority_of(key: &Key) -> u32 {
    let name = std::str::from_utf8(key.as_bytes()).unwrap_or_default();
    let nonce = name.rsplit('/').next().unwrap_or_default();
    let priority = nonce.split_once('.').map(|(_, priority)| priority.parse());
    priority.and_then(Result::ok).unwrap_or(0)
}

/// Whether a contender's key is of the recipes here, not of etcd's own clients, which know nothing of
/// hand-overs.
pub(crate) fn is_of_recipes(space: &KeySpace, key: &Key) -> bool {
    let suffix = space.suffix(key.as_bytes());
    suffix.is_some_and(|suffix| suffix.contains('/'))
}

impl From<&KeySpace> for Line {
    fn from(space: &KeySpace) -> Self {
        Self::of(space)
    }
}

impl From<&Line> for Line {
    fn from(line: &Line) -> Self {
        line.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_read_from_keys_as_they_were_written() {
        let line = Line::of(&KeySpace::raw("jobs"));
        for priority in [0, 1, u32::MAX] {
            let keys = line
                .clone()
                .with_priority(priority)
                .keys(LeaseId(255), "1a");
            assert_eq!(priority_of(&keys[0]), priority, "{keys:?}");
        }
        assert_eq!(priority_of(&"jobs/ff".into()), 0);
        assert_eq!(priority_of(&"jobs/ff/1a.x".into()), 0);
    }

    #[test]
    fn only_keys_bound_to_the_lease_they_name_are_contenders() {
        let line = Line::of(&KeySpace::raw("jobs"));
        let kv = |key: &str, lease| KeyValue {
            key: key.to_owned().into(),
            lease,
            ..Default::default()
        };
        assert!(line.is_contender(&kv("jobs/ff", 0xff)));
        assert!(line.is_contender(&kv("jobs/ff/1a", 0xff)));
        for (key, lease) in [
            ("jobs/ff", 0),
            ("jobs/ff", 0xfe),
            ("jobs/ff/", 0xff),
            ("jobs/ff/1/2", 0xff),
            ("jobs/x", 0xff),
            ("other/ff", 0xff),
        ] {
            assert!(!line.is_contender(&kv(key, lease)), "{key} {lease}");
        }
    }
}
