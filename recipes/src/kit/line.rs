//! Where contenders stand: which keys each has, and whose keys it waits for. Locks and elections are
//! all a [`Contender`](super::Contender) in a line of one shape or another.

use quorate_proto::mvccpb::KeyValue;

use crate::keys::{Key, KeyRange, KeySpace, LeaseId};

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
        }
    }

    /// Readers share their turn: they wait for writers only.
    pub(crate) fn readers(space: &KeySpace) -> Self {
        Self {
            own: vec![space.child("read")],
            behind: vec![space.child("write")],
            contenders: vec![space.range()],
            handover: None,
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
        let name = format!("{lease}/{nonce}");
        self.own.iter().map(|space| space.key(&name)).collect()
    }

    /// Whether a key is what a contender leaves: `<lease>` (etcd's own clients) or `<lease>/<nonce>`
    /// below a prefix, attached to the lease it names. Anything else may stay for ever.
    pub(super) fn is_contender(&self, kv: &KeyValue) -> bool {
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
