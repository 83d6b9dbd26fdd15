//! What several users of a session have in common, so that there is one of it and not one for each.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Something that is kept for as long as somebody uses it.
type Kept = Weak<dyn Any + Send + Sync>;

/// What there is of that, by its type and its name.
#[derive(Debug, Default)]
pub(super) struct Commons {
    kept: Mutex<HashMap<(TypeId, String), Kept>>,
}

impl Commons {
    /// What is kept under this name if it is still used and of use; else what `make` makes, which is kept from
    /// then on.
    pub(super) fn get<T: Any + Send + Sync>(
        &self,
        name: String,
        of_use: impl FnOnce(&T) -> bool,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (TypeId::of::<T>(), name);
        let there = kept.get(&key).and_then(Weak::upgrade);
        let there = there.and_then(|there| there.downcast::<T>().ok());
        if let Some(there) = there.filter(|there| of_use(there)) {
            return there;
        }
        kept.retain(|_, kept| kept.strong_count() > 0);
        let made = Arc::new(make());
        let dynamic: Arc<dyn Any + Send + Sync> = Arc::<T>::clone(&made);
        kept.insert(key, Arc::downgrade(&dynamic));
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_made_for_all_who_use_it_at_a_time() {
        let commons = Commons::default();
        let get = |name: &str, made: u32| commons.get(name.to_owned(), |_| true, || made);
        let (one, same) = (get("a", 1), get("a", 2));
        assert_eq!((*one, *same), (1, 1));
        assert_eq!(*get("b", 3), 3);
        assert_eq!(
            *commons.get("a".to_owned(), |_| true, || "of another type"),
            "of another type"
        );
        drop((one, same));
        assert_eq!(*get("a", 4), 4);
        // Nobody has kept any of them.
        get("c", 5);
        assert_eq!(commons.kept.lock().unwrap().len(), 1);
    }

    #[test]
    fn one_that_is_of_no_use_is_made_anew() {
        let commons = Commons::default();
        let get =
            |wanted: u32, made: u32| commons.get(String::new(), |there| *there == wanted, || made);
        let (old, new) = (get(1, 1), get(2, 2));
        assert_eq!((*old, *new), (1, 2));
        drop(old);
        assert_eq!(*get(2, 3), 2);
    }
}
