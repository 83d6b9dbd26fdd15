//! Which of the pairs of a range are returned: filters, order, limit.

use std::cmp::Ordering;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;

use super::RangeQuery;

/// Direction of sorting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they come: by key, ascending, whatever is to be sorted by.
    Unsorted,
    /// Lowest first.
    Ascending,
    /// Lowest first, but only among those that the limit lets through in key order, and one more:
    /// what etcd does when it is told what to sort by and a limit, but no order.
    AscendingWithinLimit,
    /// Highest first.
    Descending,
}

/// What pairs are sorted by; equal ones come in key order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortBy {
    /// The key.
    Key,
    /// The number of puts since creation.
    Version,
    /// The create revision.
    CreateRevision,
    /// The mod revision.
    ModRevision,
    /// The value.
    Value,
}

/// Bounds on revisions, both ends included; 0 is no bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filters {
    min_mod: i64,
    max_mod: i64,
    min_create: i64,
    max_create: i64,
}

impl Filters {
    fn pass(&self, kv: &KeyValue) -> bool {
        let above = |min: i64, revision: i64| min == 0 || revision >= min;
        let below = |max: i64, revision: i64| max == 0 || revision <= max;
        above(self.min_mod, kv.mod_revision)
            && below(self.max_mod, kv.mod_revision)
            && above(self.min_create, kv.create_revision)
            && below(self.max_create, kv.create_revision)
    }
}

/// Takes pairs in key order and keeps those to return; with a limit never many more than that.
#[derive(Debug)]
pub(super) struct Selection {
    count_only: bool,
    keys_only: bool,
    filters: Filters,
    /// `None` if there is no limit.
    limit: Option<usize>,
    order: Order,
    sort_by: SortBy,
    kept: Vec<KeyValue>,
    /// Pairs that passed the filters.
    passed: usize,
}

impl Selection {
    pub(super) fn new(query: &RangeQuery) -> Selection {
        let filters = Filters {
            min_mod: query.min_mod_revision,
            max_mod: query.max_mod_revision,
            min_create: query.min_create_revision,
            max_create: query.max_create_revision,
        };
        // A limit beyond what memory can address is none.
        let limit = usize::try_from(query.limit).ok().filter(|limit| *limit > 0);
        Selection {
            count_only: query.count_only,
            keys_only: query.keys_only,
            filters,
            limit,
            order: query.order,
            sort_by: query.sort_by,
            kept: Vec::new(),
            passed: 0,
        }
    }

    pub(super) fn offer(&mut self, mut kv: KeyValue) {
        if self.count_only || !self.filters.pass(&kv) {
            return;
        }
        self.passed += 1;
        let limit = self.limit.unwrap_or(usize::MAX);
        if self.in_final_order() && self.kept.len() >= limit {
            return;
        }
        if self.order == Order::AscendingWithinLimit && self.passed > limit.saturating_add(1) {
            return;
        }
        if self.keys_only && self.sort_by != SortBy::Value {
            kv.value = Bytes::new();
        }
        self.kept.push(kv);
        // Cutting only at twice the limit makes the cost of each cut small change.
        if self.kept.len() >= limit.saturating_mul(2) {
            self.cut();
        }
    }

    /// The pairs, and whether the limit left some out.
    pub(super) fn finish(mut self) -> (Vec<KeyValue>, bool) {
        self.cut();
        if self.keys_only {
            self.kept.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        let more = self.limit.is_some_and(|limit| self.passed > limit);
        (self.kept, more)
    }

    /// Whether pairs arrive in the order they are returned in.
    fn in_final_order(&self) -> bool {
        match self.order {
            Order::Unsorted => true,
            Order::Ascending => self.sort_by == SortBy::Key,
            Order::AscendingWithinLimit | Order::Descending => false,
        }
    }

    /// Sorts what is kept and drops what is beyond the limit. Stable, and what was kept by an
    /// earlier cut has the smaller keys, so equal pairs stay in key order.
    fn cut(&mut self) {
        if !self.in_final_order() {
            let (sort_by, descending) = (self.sort_by, self.order == Order::Descending);
            self.kept.sort_by(|a, b| {
                let order = compare(sort_by, a, b);
                if descending { order.reverse() } else { order }
            });
        }
        if let Some(limit) = self.limit {
            self.kept.truncate(limit);
        }
    }
}

fn compare(sort_by: SortBy, a: &KeyValue, b: &KeyValue) -> Ordering {
    match sort_by {
        SortBy::Key => a.key.cmp(&b.key),
        SortBy::Version => a.version.cmp(&b.version),
        SortBy::CreateRevision => a.create_revision.cmp(&b.create_revision),
        SortBy::ModRevision => a.mod_revision.cmp(&b.mod_revision),
        SortBy::Value => a.value.cmp(&b.value),
    }
}
