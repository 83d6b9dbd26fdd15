//! The logs of inboxes that were sent to, with what is known of their heads: kept by a dispatcher, so that sending
//! again needs no look, and a full segment is noticed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::record::Target;
use crate::kit::SegmentedLog;

/// Most inboxes of which that is kept; the one sent to longest ago goes, and costs a read when it is sent to again.
const LOGS_MAX: usize = 1_024;

/// What one dispatcher and its clones know.
#[derive(Debug, Clone, Default)]
pub(super) struct Logs(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// With when they were asked for last.
    logs: BTreeMap<Target, (u64, SegmentedLog)>,
    /// How often any was asked for.
    asked: u64,
}

impl Logs {
    /// The log of a target's inbox, made anew if it is not known.
    pub(super) fn of(&self, target: &Target, make: impl FnOnce() -> SegmentedLog) -> SegmentedLog {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.asked += 1;
        let now = known.asked;
        if let Some((asked, log)) = known.logs.get_mut(target) {
            *asked = now;
            return log.clone();
        }
        if known.logs.len() >= LOGS_MAX {
            let oldest = known.logs.iter().min_by_key(|(_, (asked, _))| *asked);
            let oldest = oldest.map(|(target, _)| target.clone());
            oldest.and_then(|target| known.logs.remove(&target));
        }
        let log = make();
        known.logs.insert(target.clone(), (now, log.clone()));
        log
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::keys::KeySpace;
    use crate::store::MemStore;

    #[test]
    fn the_one_asked_for_longest_ago_goes() {
        let logs = Logs::default();
        let client = Client::new(MemStore::new());
        let make = || SegmentedLog::new(client.clone(), KeySpace::of("log", "l"));
        let target = |n: usize| Target::Instance(n.to_string());
        for n in 0..LOGS_MAX {
            logs.of(&target(n), make);
        }
        logs.of(&target(0), || unreachable!("it is known"));
        logs.of(&target(LOGS_MAX), make);
        logs.of(&target(0), || unreachable!("it is known"));
        let mut made = false;
        logs.of(&target(1), || {
            made = true;
            make()
        });
        assert!(made);
        assert_eq!(logs.0.lock().unwrap().logs.len(), LOGS_MAX);
    }
}
