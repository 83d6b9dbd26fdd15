//! What a view of a service shows, decided from the changes of its keys and the time: who is there,
//! who left and how, and who is kept although its key is gone, because too many went at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;

use super::farewells::Farewells;
use super::instances::Instances;
use super::record::{self, Reading};
use super::snapshot::{Raw, Saved};
use super::vanished::Vanished;
use super::view::{Endpoint, ServiceView};
use crate::clock::Instant;
use crate::departure::Departure;
use crate::follow::Digest;
use crate::keys::{KeySpace, Revision};
use crate::watch::{Batch, Change, Origin};

/// When vanished instances are kept for a while. Instances that vanish without a word, many at
/// once, more likely tell of a network that keeps them from renewing than of as many deaths, and
/// an empty view would stop everybody who depends on it. Who deregisters is believed at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MassLoss {
    /// At least this many must vanish within the grace time.
    pub at_least: usize,
    /// More than this part of the instances must vanish within the grace time: 0.0 to 1.0.
    pub more_than: f64,
    /// How long they are kept, as suspects, counted from when each vanished. Zero: never.
    pub grace: Duration,
}

impl Default for MassLoss {
    /// At least 3 and more than half within 30 s, kept for as long.
    fn default() -> Self {
        Self {
            at_least: 3,
            more_than: 0.5,
            grace: Duration::from_secs(30),
        }
    }
}

impl MassLoss {
    fn is_met(&self, lost: usize, present: usize) -> bool {
        // Numbers of instances are far below 2^32; beyond that the part is as good as exact.
        let count = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        !self.grace.is_zero()
            && lost >= self.at_least
            && count(lost) > self.more_than * count(lost.saturating_add(present))
    }
}

/// The state behind the views of one service.
pub(super) struct Tracker<M> {
    space: KeySpace,
    protection: MassLoss,
    revision: Revision,
    present: BTreeMap<Bytes, Arc<Endpoint<M>>>,
    /// The present and the suspects.
    shown: Instances<M>,
    /// Gone without a word within the grace time.
    vanished: Vanished<M>,
    /// The vanished that are shown as suspects: none, or all that had vanished at some moment.
    suspects: BTreeMap<Bytes, Arc<Endpoint<M>>>,
    unreadable: BTreeSet<Bytes>,
    farewells: Farewells,
    /// The keys themselves, of all who are shown, if somebody wants them.
    raw: Option<Raw>,
    /// Since when all of it is from a file, and not from the store.
    unconfirmed_since: Option<Instant>,
}

impl<M: DeserializeOwned> Tracker<M> {
    pub(super) fn new(space: KeySpace, protection: MassLoss) -> Self {
        Self {
            shown: Instances::new(space.clone()),
            space,
            protection,
            revision: Revision(0),
            present: BTreeMap::new(),
            vanished: Vanished::new(),
            suspects: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            farewells: Farewells::default(),
            raw: None,
            unconfirmed_since: None,
        }
    }

    /// Puts the keys of the instances here.
    pub(super) fn share(&mut self, raw: Raw) {
        self.raw = Some(raw);
    }

    /// Shows the instances of a file until the store has answered.
    pub(super) fn begin_with(&mut self, saved: Saved, now: Instant) {
        self.revision = saved.revision();
        for kv in saved.into_kvs() {
            self.put(&kv, Origin::Listing);
        }
        self.unconfirmed_since = Some(now);
    }

    /// Takes the store's first listing in the place of what the file had.
    fn confirm(&mut self, batch: &Batch) {
        if batch.origin != Origin::Listing || self.unconfirmed_since.take().is_none() {
            return;
        }
        self.with_raw(|raw| raw.clear());
        self.unreadable.clear();
        self.shown.clear();
        let created = |change: &Change| match change {
            Change::Put { kv, .. } => Some((kv.key.clone(), kv.create_revision)),
            Change::Delete { .. } => None,
        };
        let there: BTreeMap<_, _> = batch.changes.iter().filter_map(created).collect();
        for (key, was) in std::mem::take(&mut self.present) {
            if there.get(&key) != Some(&was.created.0) {
                self.farewells.add(&was.id, was.created, Departure::Unseen);
            }
        }
    }

    fn with_raw(&self, change: impl FnOnce(&mut BTreeMap<Bytes, KeyValue>)) {
        if let Some(raw) = &self.raw {
            raw.change(change);
        }
    }

    fn put(&mut self, kv: &KeyValue, origin: Origin) {
        self.unreadable.remove(&kv.key);
        let endpoint = match record::read(&self.space, kv) {
            Reading::There(endpoint) => Some(Arc::new(endpoint)),
            Reading::Leaving => None,
            Reading::Unreadable(why) => {
                tracing::warn!(key = %String::from_utf8_lossy(&kv.key), why, "not an instance");
                self.unreadable.insert(kv.key.clone());
                None
            }
        };
        // Whatever it says, it is alive: nothing of it has vanished.
        self.suspects.remove(&kv.key);
        self.vanished.remove(&kv.key);
        match endpoint {
            Some(endpoint) => {
                self.shown.insert(kv.key.clone(), Arc::clone(&endpoint));
                self.with_raw(|raw| drop(raw.insert(kv.key.clone(), kv.clone())));
                let before = self.present.insert(kv.key.clone(), endpoint);
                self.vanished.may_be(self.present.len());
                if origin == Origin::Resync
                    && let Some(was) = before
                    && was.created.0 != kv.create_revision
                {
                    self.farewells.add(&was.id, was.created, Departure::Unseen);
                }
            }
            None => {
                self.shown.remove(&kv.key);
                self.with_raw(|raw| drop(raw.remove(&kv.key)));
                if let Some(was) = self.present.remove(&kv.key) {
                    self.farewells.add(&was.id, was.created, Departure::Clean);
                }
            }
        }
    }

    fn delete(&mut self, key: &Bytes, origin: Origin, now: Instant) {
        self.unreadable.remove(key);
        if let Some(was) = self.present.remove(key) {
            self.shown.remove(key);
            if origin == Origin::Resync {
                self.farewells.add(&was.id, was.created, Departure::Unseen);
            }
            if let Some((_, oldest, _)) = self.vanished.add(now, key.clone(), was) {
                self.let_go(&oldest);
            }
        }
    }

    /// One that vanished is not remembered any more.
    fn let_go(&mut self, key: &Bytes) {
        if self.suspects.remove(key).is_some() {
            self.shown.remove(key);
        }
        self.with_raw(|raw| drop(raw.remove(key)));
    }

    fn suspect_vanished(&mut self) {
        let mut added = 0_usize;
        // Those of an earlier time are suspects already.
        for (since, key, endpoint) in self.vanished.news() {
            added += 1;
            let suspect = Arc::new(endpoint.suspected(*since));
            self.shown.insert(key.clone(), Arc::clone(&suspect));
            self.suspects.insert(key.clone(), suspect);
        }
        if added > 0 {
            let (service, present) = (self.space.prefix(), self.present.len());
            tracing::warn!(
                service,
                added,
                present,
                "many instances vanished; kept for a while"
            );
        }
    }

    /// Lets go of what vanished longer ago than the grace time. Returns whether a suspect went.
    fn forget_old(&mut self, now: Instant) -> bool {
        let before = self.suspects.len();
        while let Some(since) = self.vanished.oldest() {
            if now.saturating_duration_since(since) < self.protection.grace {
                break;
            }
            if let Some((_, key, _)) = self.vanished.pop_oldest() {
                self.let_go(&key);
            }
        }
        self.suspects.len() != before
    }
}

impl<M> Digest for Tracker<M>
where
    M: DeserializeOwned + Send + Sync + 'static,
{
    type View = ServiceView<M>;

    fn take(&mut self, batch: Batch, now: Instant) {
        self.confirm(&batch);
        self.revision = batch.revision;
        for change in batch.changes {
            match change {
                Change::Put { kv, .. } => self.put(&kv, batch.origin),
                Change::Delete { key, .. } => self.delete(key.as_bytes(), batch.origin, now),
            }
        }
        self.forget_old(now);
        if self
            .protection
            .is_met(self.vanished.len(), self.present.len())
        {
            self.suspect_vanished();
        }
    }

    fn tick(&mut self, now: Instant) -> bool {
        self.forget_old(now)
    }

    fn next_deadline(&self) -> Option<Instant> {
        Some(self.vanished.oldest()? + self.protection.grace)
    }

    fn view(&self, stale_since: Option<Instant>) -> ServiceView<M> {
        ServiceView {
            revision: self.revision,
            instances: self.shown.clone(),
            stale_since: stale_since.or(self.unconfirmed_since),
            from_snapshot: self.unconfirmed_since.is_some(),
            unreadable: self.unreadable.len(),
            farewells: self.farewells.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::{Change as Event, difference};
    use super::*;
    use crate::clock;

    struct Service {
        tracker: Tracker<()>,
        known: ServiceView<()>,
        revision: i64,
        now: Instant,
    }

    impl Service {
        fn new() -> Self {
            let tracker = Tracker::new(KeySpace::raw("s"), MassLoss::default());
            let known = tracker.view(None);
            Self {
                tracker,
                known,
                revision: 1,
                now: clock::now(),
            }
        }

        fn step(&mut self, changes: Vec<Change>) -> String {
            self.take(Origin::Live, changes)
        }

        fn take(&mut self, origin: Origin, changes: Vec<Change>) -> String {
            let batch = Batch {
                revision: Revision(self.revision),
                origin,
                changes,
            };
            self.tracker.take(batch, self.now);
            self.news()
        }

        /// Takes one change, and nobody looks at what becomes of it.
        fn take_unseen(&mut self, change: Change) {
            let batch = Batch {
                revision: Revision(self.revision),
                origin: Origin::Live,
                changes: vec![change],
            };
            self.tracker.take(batch, self.now);
        }

        fn wait(&mut self, seconds: u64) -> String {
            self.now += Duration::from_secs(seconds);
            self.tracker.forget_old(self.now);
            self.news()
        }

        /// `+a` joined, `~a` updated, `?a` suspected, `-a` deregistered, `!a` expired, `*a` unseen.
        fn news(&mut self) -> String {
            let view = self.tracker.view(None);
            let news = difference(Some(&self.known), &view);
            self.known = view;
            let word = |change: &Event<()>| match change {
                Event::Joined(e) => format!("+{}", e.id),
                Event::Updated { now, .. } => format!("~{}", now.id),
                Event::Suspected(e) => format!("?{}", e.id),
                Event::Left {
                    instance,
                    departure,
                } => match departure {
                    Departure::Clean => format!("-{}", instance.id),
                    Departure::Expired => format!("!{}", instance.id),
                    Departure::Unseen => format!("*{}", instance.id),
                },
            };
            news.iter().map(word).collect::<Vec<_>>().join(" ")
        }

        fn write(&mut self, id: &str, created: i64, metadata: &str) -> Change {
            self.revision += 1;
            Change::Put {
                kv: KeyValue {
                    key: format!("s/{id}").into(),
                    value: format!(r#"{{"Op":0,"Addr":"x","Metadata":{metadata}}}"#).into(),
                    create_revision: created,
                    mod_revision: self.revision,
                    ..Default::default()
                },
                previous: None,
            }
        }

        fn gone(&mut self, id: &str) -> Change {
            self.revision += 1;
            Change::Delete {
                key: format!("s/{id}").into(),
                previous: None,
            }
        }

        fn with(ids: &str) -> Self {
            let mut service = Self::new();
            for id in ids.split(' ') {
                let put = service.write(id, 1, "null");
                assert_eq!(service.step(vec![put]), format!("+{id}"));
            }
            service
        }
    }

    const LEFT: &str = r#"{"quorate":1,"nonce":"n","left":true,"meta":null}"#;

    #[test]
    fn crashes_farewells_and_restarts_are_told_apart() {
        let mut service = Service::with("a b c d");
        let again = service.write("a", 1, "null");
        assert_eq!(service.step(vec![again]), "~a");
        let gone = service.gone("b");
        assert_eq!(service.step(vec![gone]), "!b");
        let (farewell, gone) = (service.write("c", 1, LEFT), service.gone("c"));
        assert_eq!(service.step(vec![farewell]), "-c");
        assert_eq!(service.step(vec![gone]), "");
        let restarted = service.write("d", 9, "null");
        assert_eq!(service.step(vec![restarted]), "!d +d");
        let missed = service.gone("a");
        assert_eq!(service.take(Origin::Resync, vec![missed]), "*a");
    }

    #[test]
    fn many_losses_at_once_are_suspects_for_a_while_and_come_back() {
        let mut service = Service::with("a b c d e");
        let gone = service.gone("a");
        assert_eq!(service.step(vec![gone]), "!a");
        let gone = service.gone("b");
        assert_eq!(service.step(vec![gone]), "!b");
        service.wait(5);
        let gone = service.gone("c");
        assert_eq!(service.step(vec![gone]), "?a ?b ?c", "three of five");
        assert_eq!(service.known.instances.len(), 5);
        let back = service.write("b", 30, "null");
        assert_eq!(service.step(vec![back]), "!b +b", "it is a new incarnation");
        assert_eq!(service.wait(25), "!a", "30 s after it vanished");
        assert_eq!(service.wait(5), "!c");
    }

    #[test]
    fn a_service_that_says_farewell_may_become_empty() {
        let mut service = Service::with("a b c d");
        let all: Vec<_> = ["a", "b", "c", "d"]
            .map(|id| service.write(id, 1, LEFT))
            .into();
        assert_eq!(service.step(all), "-a -b -c -d");
        let mut small = Service::with("a b");
        let all = vec![small.gone("a"), small.gone("b")];
        assert_eq!(small.step(all), "!a !b", "two are not many");
    }

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("i{n:05}")).collect()
    }

    impl Service {
        fn of_many(ids: &[String]) -> Self {
            let mut service = Self::new();
            let all = ids.iter().map(|id| service.write(id, 1, "null")).collect();
            service.step(all);
            service
        }
    }

    /// However many there are between two views.
    #[test]
    fn all_who_deregister_at_once_have_left_cleanly() {
        let all = ids(300);
        let mut service = Service::of_many(&all);
        let crashed = service.gone(&all[0]);
        let mut leave = vec![crashed];
        for id in &all[1..] {
            leave.push(service.write(id, 1, LEFT));
            leave.push(service.gone(id));
        }
        let told = service.step(leave);
        let clean: Vec<_> = all[1..].iter().map(|id| format!("-{id}")).collect();
        assert_eq!(told, format!("!{} {}", all[0], clean.join(" ")));
    }

    /// Of so many that not all are remembered, nobody is said to have crashed.
    #[test]
    fn how_one_went_who_is_forgotten_is_not_known() {
        let all = ids(10_003);
        let mut service = Service::of_many(&all);
        let leave = all.iter().map(|id| service.write(id, 1, LEFT)).collect();
        let told = service.step(leave);
        assert!(
            told.starts_with("*i00000 *i00001 *i00002 -i00003 "),
            "{}",
            &told[..50]
        );
        assert_eq!(told.matches(['*', '!']).count(), 3);
        // What went before the last view is no doubt about who goes after it.
        let join = service.write("late", 1, "null");
        service.step(vec![join]);
        let gone = service.gone("late");
        assert_eq!(service.step(vec![gone]), "!late");
    }

    /// Each loss and each return is a batch of its own, as leases end and instances come back.
    #[test]
    fn a_large_service_vanishes_and_comes_back() {
        const ALL: usize = 12_000;
        let all = ids(ALL);
        let mut service = Service::of_many(&all);
        for id in &all {
            let gone = service.gone(id);
            service.take_unseen(gone);
        }
        let told = service.news();
        let (left, suspects) = (told.matches('!').count(), told.matches('?').count());
        assert_eq!(
            (left, suspects),
            (0, ALL),
            "all of them within the grace time"
        );
        for id in &all[..ALL - 1] {
            let back = service.write(id, 50_000, "null");
            service.take_unseen(back);
        }
        service.news();
        let suspects = service
            .known
            .instances
            .iter()
            .filter(|one| one.is_suspect());
        assert_eq!(suspects.count(), 1);
        assert_eq!(service.wait(30), format!("!{}", all[ALL - 1]));
    }
}
