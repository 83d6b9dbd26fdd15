//! Who calls, as far as members tell callers apart: what clients share upstream they share only with
//! those who have the same rights and wishes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tonic::Request;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// What says who the caller is; the second is what the JSON gateway of etcd reads.
const TOKENS: [&str; 2] = ["token", "authorization"];
/// Asks for an error instead of silence while there is no leader.
const HAS_LEADER: &str = "hasleader";

/// The metadata of a call that its answer depends on.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Caller {
    tokens: [Option<MetadataValue<Ascii>>; 2],
    wants_leader: bool,
}

impl Caller {
    /// Whoever sent this metadata.
    pub(super) fn of(metadata: &MetadataMap) -> Self {
        Self {
            tokens: TOKENS.map(|name| metadata.get(name).cloned()),
            wants_leader: metadata.get(HAS_LEADER).is_some_and(|yes| yes == "true"),
        }
    }

    /// Whether it wants to be told that there is no leader.
    pub(super) fn wants_leader(&self) -> bool {
        self.wants_leader
    }

    /// The same caller, who can wait for a leader.
    pub(super) fn patient(&self) -> Self {
        Self {
            wants_leader: false,
            ..self.clone()
        }
    }

    /// A request in the caller's name.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        for (name, token) in TOKENS.into_iter().zip(&self.tokens) {
            if let Some(token) = token {
                metadata.insert(name, token.clone());
            }
        }
        if self.wants_leader {
            metadata.insert(HAS_LEADER, MetadataValue::from_static("true"));
        }
        request
    }
}

impl fmt::Debug for Caller {
    /// Without the tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("has_token", &self.tokens.iter().any(Option::is_some))
            .field("wants_leader", &self.wants_leader)
            .finish()
    }
}

/// What callers share, kept as long as somebody uses it.
#[derive(Debug)]
pub(super) struct ByCaller<T>(Mutex<HashMap<Caller, Weak<T>>>);

impl<T> Default for ByCaller<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> ByCaller<T> {
    /// What this caller shares with others, made if nobody uses it yet.
    pub(super) fn get(&self, caller: &Caller, make: impl FnOnce(&Caller) -> T) -> Arc<T> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = all.get(caller).and_then(Weak::upgrade) {
            return found;
        }
        all.retain(|_, shared| shared.strong_count() > 0);
        let made = Arc::new(make(caller));
        all.insert(caller.clone(), Arc::downgrade(&made));
        made
    }

    /// All that are in use.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_with_other_tokens_share_nothing() {
        let caller = |token: &'static str, leader: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("token", MetadataValue::from_static(token));
            metadata.insert("hasleader", MetadataValue::from_static(leader));
            metadata.insert("other", MetadataValue::from_static(token));
            Caller::of(&metadata)
        };
        let shared = ByCaller::default();
        let get = |caller: &Caller| shared.get(caller, |_| ());
        let one = get(&caller("a", "true"));
        assert!(Arc::ptr_eq(&one, &get(&caller("a", "true"))));
        assert!(!Arc::ptr_eq(&one, &get(&caller("b", "true"))));
        assert!(!Arc::ptr_eq(&one, &get(&caller("a", "false"))));
        assert_eq!(shared.all().len(), 1, "the others are not in use");
    }

    #[test]
    fn requests_carry_what_members_look_at_and_logs_do_not() {
        let mut metadata = MetadataMap::new();
        metadata.insert("token", MetadataValue::from_static("secret"));
        metadata.insert("hasleader", MetadataValue::from_static("true"));
        let caller = Caller::of(&metadata);
        let request = caller.request(());
        assert_eq!(request.metadata().get("token").unwrap(), "secret");
        assert_eq!(request.metadata().get("hasleader").unwrap(), "true");
        assert!(!format!("{caller:?}").contains("secret"));
        let patient = caller.patient().request(());
        assert!(patient.metadata().get("hasleader").is_none());
    }
}
