//! Balancers over a store in memory, in time that the test decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt as _;
use tonic::body::Body;
use tower::discover::Change;
use tower::{Service as _, ServiceExt as _};

use super::call::Counted;
use super::{Balancer, Ejection, Load, Pick, Policy};
use crate::client::Client;
use crate::keys::Revision;
use crate::probe::Probe;
use crate::registry::{Checks, Discovery, Instance, InstanceBuilder, Registration, Status};
use crate::session::Session;
use crate::store::MemStore;

/// A service, and who follows it.
struct Fleet {
    session: Session,
    discovery: Discovery<()>,
    instances: BTreeMap<String, Registration<()>>,
}

fn instance(id: &str) -> InstanceBuilder<()> {
    Instance::builder("api").id(id).address(format!("{id}:80"))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Fleet {
    async fn of(ids: &str) -> Self {
        let client = Client::builder(MemStore::new()).seed(7).build();
        let mut fleet = Self {
            session: client.session().await.unwrap(),
            discovery: client.discover("api").await.unwrap(),
            instances: BTreeMap::new(),
        };
        for id in ids.split(' ') {
            fleet.join(instance(id)).await;
        }
        fleet
    }

    async fn join(&mut self, instance: InstanceBuilder<()>) {
        let registration = self.session.register(instance.build()).await.unwrap();
        let id = registration.id();
        self.see(|view| view.instance(&id).is_some()).await;
        self.instances.insert(id, registration);
    }

    async fn leave(&mut self, id: &str) {
        let registration = self.instances.remove(id).unwrap();
        registration.deregister().await.unwrap();
        self.see(|view| view.instance(id).is_none()).await;
    }

    async fn change(&mut self, id: &str, change: impl FnOnce(&mut Instance)) {
        let at = self.instances[id].update(change).await.unwrap();
        self.see(|view| view.revision >= at).await;
    }

    async fn status(&mut self, id: &str, status: Status) {
        self.change(id, |one| one.status = status).await;
    }

    async fn see(&mut self, enough: impl FnMut(&crate::registry::ServiceView<()>) -> bool) {
        self.discovery.wait_for(enough).await.unwrap();
    }

    fn created(&self, id: &str) -> Option<Revision> {
        Some(self.discovery.view().instance(id)?.created)
    }
}

/// Who is picked, one after the other.
fn picked(balancer: &Balancer<()>, count: usize) -> Vec<String> {
    (0..count)
        .map(|_| {
            let pick = balancer.pick().unwrap();
            assert!(!pick.in_panic());
            pick.id.clone()
        })
        .collect()
}

/// How often each is picked.
fn counts(balancer: &Balancer<()>, count: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for id in picked(balancer, count) {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

fn policies() -> Vec<Policy> {
    vec![
        Policy::least_outstanding(),
        Policy::peak_ewma(),
        Policy::round_robin(),
        Policy::weighted_round_robin(),
        Policy::random(),
        Policy::consistent_hash(),
        Policy::own(|among| among.cheapest(|one| one.outstanding())),
        Policy::round_robin().sticky(),
        Policy::default().near("a"),
        Policy::consistent_hash().near("a").sticky(),
    ]
}

async fn pass(length: Duration) {
    tokio::time::sleep(length).await;
}

/// Fails so many picks, until one is of `id`.
fn fail(balancer: &Balancer<()>, id: &str, times: u32) {
    let mut held: Vec<Pick<()>> = Vec::new();
    for _ in 0..times {
        loop {
            let pick = balancer.pick().unwrap();
            if pick.id == id {
                pick.failure();
                break;
            }
            held.push(pick);
            assert!(held.len() < 1_000, "{id} is not picked");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_takes_no_work_is_not_picked() {
    for policy in policies() {
        let mut fleet = Fleet::of("a b c d e").await;
        let balancer = fleet.discovery.balancer(policy.clone());
        fleet.change("a", |one| one.zone = "a".to_owned()).await;
        assert!(counts(&balancer, 50).values().sum::<usize>() == 50);
        fleet.status("b", Status::Draining).await;
        fleet.status("c", Status::Down).await;
        fleet.change("e", |one| one.weight = 0).await;
        for id in picked(&balancer, 200) {
            assert!(id == "a" || id == "d", "{id} by {policy:?}");
        }
        fleet.leave("a").await;
        for id in picked(&balancer, 200) {
            assert_eq!(id, "d", "{policy:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_fails_its_checks_is_picked_only_when_nobody_else_is_left() {
    let mut fleet = Fleet::of("a").await;
    let fails = Arc::new(AtomicBool::new(true));
    let check = {
        let fails = Arc::clone(&fails);
        move || {
            let passes = !fails.load(Ordering::SeqCst);
            async move { passes.then_some(()).ok_or("broken") }
        }
    };
    let probe = Probe::of(check).every(seconds(1)).rise(1).fall(1);
    let checks = Checks::new().add("disk", probe);
    let checked = fleet
        .session
        .register_checked(instance("b").build(), checks);
    let _checked = checked.await.unwrap();
    fleet.see(|view| view.instance("b").is_some()).await;
    let balancer = fleet.discovery.balancer(Policy::round_robin());
    assert!(picked(&balancer, 20).iter().all(|id| id == "a"));
    fails.store(false, Ordering::SeqCst);
    fleet.see(|view| view.up().count() == 2).await;
    assert_eq!(counts(&balancer, 20)["b"], 10);
    fails.store(true, Ordering::SeqCst);
    fleet.see(|view| view.up().count() == 1).await;
    assert!(picked(&balancer, 20).iter().all(|id| id == "a"));
    fleet.leave("a").await;
    let last = balancer.pick().unwrap();
    assert!(last.in_panic() && last.id == "b");
}

#[tokio::test(start_paused = true)]
async fn panic_picks_any_and_can_be_forbidden() {
    for policy in policies() {
        let mut fleet = Fleet::of("a b c").await;
        let balancer = fleet.discovery.balancer(policy.clone());
        let strict = Balancer::builder(&fleet.discovery, policy)
            .no_panic()
            .build();
        fleet.status("a", Status::Draining).await;
        fleet.status("b", Status::Down).await;
        fleet.status("c", Status::Draining).await;
        for _ in 0..100 {
            let pick = balancer.pick().unwrap();
            assert!(pick.in_panic() && pick.id != "b");
        }
        assert_eq!(strict.pick().unwrap_err().known, 3);
        fleet.status("c", Status::Up).await;
        assert!(!balancer.pick().unwrap().in_panic());
        for id in ["a", "b", "c"] {
            fleet.leave(id).await;
        }
        let none = balancer.pick().unwrap_err();
        assert_eq!(none.to_string(), "no instance takes work; 0 are known");
    }
}

#[tokio::test(start_paused = true)]
async fn turns_differ_by_one_at_most_while_others_come_and_go() {
    let mut fleet = Fleet::of("b d f h").await;
    let balancer = fleet.discovery.balancer(Policy::round_robin());
    let mut totals: BTreeMap<String, usize> = BTreeMap::new();
    for step in 0..60 {
        for id in picked(&balancer, step % 7) {
            *totals.entry(id).or_default() += 1;
        }
        // Those in "bdfh" stay; the others come, change and go.
        match step % 5 {
            0 => fleet.join(instance("a")).await,
            1 => fleet.join(instance("e")).await,
            2 => fleet.change("h", |one| one.weight += 1).await,
            3 => fleet.leave("a").await,
            _ => fleet.leave("e").await,
        }
        let staying = ["b", "d", "f", "h"].map(|id| totals.get(id).copied().unwrap_or(0));
        let (least, most) = (staying.iter().min().unwrap(), staying.iter().max().unwrap());
        assert!(most - least <= 1, "step {step}: {totals:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn weights_are_kept_exactly_and_followed() {
    let mut fleet = Fleet::of("a b c").await;
    let balancer = fleet.discovery.balancer(Policy::weighted_round_robin());
    fleet.change("a", |one| one.weight = 5).await;
    fleet.change("c", |one| one.weight = 2).await;
    for _ in 0..5 {
        let counts: Vec<_> = counts(&balancer, 8).into_values().collect();
        assert_eq!(counts, [5, 1, 2]);
        picked(&balancer, 3);
    }
    fleet.change("a", |one| one.weight = 1).await;
    let counts: Vec<_> = counts(&balancer, 8).into_values().collect();
    assert_eq!(counts, [2, 2, 4]);
}

#[tokio::test(start_paused = true)]
async fn the_less_loaded_are_preferred() {
    let fleet = Fleet::of("a b c d").await;
    let balancer = fleet.discovery.balancer(Policy::least_outstanding());
    // Held picks spread out: the fullest of so many has about as many as the emptiest.
    let held: Vec<_> = (0..400).map(|_| balancer.pick().unwrap()).collect();
    for load in balancer.loads() {
        assert!(load.outstanding.abs_diff(100) <= 4, "{}", load.outstanding);
    }
    // Those of one end: it gets the next ones until it has as many again.
    let (ended, held): (Vec<_>, Vec<_>) = held.into_iter().partition(|pick| pick.id == "b");
    assert!(ended.len() > 90);
    drop(ended);
    assert_eq!(balancer.loads()[1].outstanding, 0);
    let more: Vec<_> = (0..40).map(|_| balancer.pick().unwrap()).collect();
    let of_b = more.iter().filter(|pick| pick.id == "b").count();
    // It is one of the two drawn half of the time, and then always the better.
    assert!(of_b >= 14, "{of_b}");
    drop((held, more));
    assert!(balancer.loads().iter().all(|load| load.outstanding == 0));
}

#[tokio::test(start_paused = true)]
async fn the_slow_are_avoided_and_tried_again() {
    let fleet = Fleet::of("a b c").await;
    let balancer = fleet.discovery.balancer(Policy::peak_ewma());
    let mut slow = 0;
    for _ in 0..60 {
        let pick = balancer.pick().unwrap();
        let is_slow = pick.id == "b";
        slow += u32::from(is_slow);
        pass(Duration::from_millis(if is_slow { 500 } else { 5 })).await;
        pick.success();
    }
    assert!(slow <= 2, "{slow}");
    // What is long ago counts for little.
    pass(seconds(300)).await;
    let mut found = BTreeMap::new();
    for _ in 0..60 {
        let pick = balancer.pick().unwrap();
        *found.entry(pick.id.clone()).or_insert(0) += 1;
        pass(Duration::from_millis(5)).await;
        pick.success();
    }
    assert!(found["b"] > 8, "recovered: {found:?}");
}

#[tokio::test(start_paused = true)]
async fn keys_stay_in_place_and_loads_are_bounded() {
    let mut fleet = Fleet::of("a b c d e f g h i").await;
    let loose = fleet
        .discovery
        .balancer(Policy::consistent_hash_within(f64::INFINITY));
    let other = fleet.discovery.balancer(Policy::consistent_hash());
    let keys: Vec<_> = (0..3_000).map(|key| format!("user-{key}")).collect();
    let owners = |balancer: &Balancer<()>| -> Vec<String> {
        let owner = |key| balancer.pick_for(key).unwrap().id.clone();
        keys.iter().map(owner).collect()
    };
    let before = owners(&loose);
    assert_eq!(before, owners(&other), "by another client as well");
    fleet.join(instance("j")).await;
    let after = owners(&loose);
    let moved = before.iter().zip(&after).filter(|(was, is)| was != is);
    assert!(moved.clone().all(|(_, is)| is == "j"));
    assert!(moved.count().abs_diff(300) < 60);
    fleet.status("j", Status::Draining).await;
    assert_eq!(owners(&loose), before, "and back");
    let held: Vec<_> = (0..900).map(|_| other.pick_for("hot").unwrap()).collect();
    for load in other.loads() {
        assert!(
            load.outstanding <= 125,
            "{} at {}",
            load.outstanding,
            load.endpoint.id
        );
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn sticky_keys_move_only_when_they_must() {
    let mut fleet = Fleet::of("a b c d").await;
    let balancer = fleet.discovery.balancer(Policy::round_robin().sticky());
    let at = |key: u32| {
        let pick = balancer.pick_for(key.to_le_bytes()).unwrap();
        pick.id.clone()
    };
    let all = || (0..100).map(at).collect::<Vec<_>>();
    let before = all();
    fleet.join(instance("e")).await;
    fleet.change("a", |one| one.weight = 9).await;
    assert_eq!(all(), before, "no newcomer and no weight moves a key");
    fleet.leave("b").await;
    let after = all();
    for (was, is) in before.iter().zip(&after) {
        assert!(is == was || was == "b" && is != "b");
    }
    // Another incarnation under the same id is another instance.
    let created = fleet.created("c");
    fleet.leave("c").await;
    fleet.join(instance("c")).await;
    assert_ne!(fleet.created("c"), created);
    let restarted = all();
    let moved = after.iter().zip(&restarted).filter(|(was, is)| was != is);
    assert!(moved.clone().all(|(was, _)| was == "c") && moved.count() > 0);
    // Picks without a key are of one key.
    let one = picked(&balancer, 20);
    assert!(one.iter().all(|id| *id == one[0]));
    fleet.status(&one[0], Status::Draining).await;
    assert!(picked(&balancer, 20).iter().all(|id| *id != one[0]));
}

#[tokio::test(start_paused = true)]
async fn the_zone_is_preferred_while_it_can_take_more() {
    let mut fleet = Fleet::of("f1 f2").await;
    for id in ["n1", "n2"] {
        fleet.join(instance(id).zone("near")).await;
    }
    let balancer = fleet
        .discovery
        .balancer(Policy::default().near_until("near", 10));
    assert!(picked(&balancer, 100).iter().all(|id| id.starts_with('n')));
    // Full: the others take what is too much, as long as they have less.
    let held: Vec<_> = (0..60).map(|_| balancer.pick().unwrap()).collect();
    let near = held.iter().filter(|pick| pick.zone == "near").count();
    assert!((18..=34).contains(&near), "{near}");
    drop(held);
    assert!(picked(&balancer, 100).iter().all(|id| id.starts_with('n')));
    // Empty: the others take all.
    fleet.status("n1", Status::Draining).await;
    fleet.leave("n2").await;
    assert!(picked(&balancer, 100).iter().all(|id| id.starts_with('f')));
    fleet.status("n1", Status::Up).await;
    assert!(picked(&balancer, 100).iter().all(|id| id == "n1"));
    // All there are ejected: the same.
    fail(&balancer, "n1", 5);
    assert!(picked(&balancer, 100).iter().all(|id| id.starts_with('f')));
}

#[tokio::test(start_paused = true)]
async fn who_fails_is_ejected_and_comes_back() {
    for policy in policies() {
        let mut fleet = Fleet::of("a b c d").await;
        let balancer = fleet.discovery.balancer(policy);
        let one = balancer.pick().unwrap().id.clone();
        let one = one.as_str();
        fail(&balancer, one, 4);
        // A success in between: not in a row.
        while let Ok(pick) = balancer.pick() {
            if pick.id == one {
                pick.success();
                break;
            }
        }
        fail(&balancer, one, 4);
        assert!(
            balancer
                .loads()
                .iter()
                .all(|load| load.ejected_for.is_none())
        );
        fail(&balancer, one, 1);
        assert!(picked(&balancer, 200).iter().all(|id| id != one));
        let place = fleet.instances.keys().position(|id| id == one).unwrap();
        let left = || balancer.loads()[place].ejected_for;
        assert_eq!(left(), Some(seconds(30)));
        // The view changes: it is still ejected.
        fleet.join(instance("e")).await;
        fleet.change(one, |one| one.weight = 2).await;
        assert!(picked(&balancer, 200).iter().all(|id| id != one));
        pass(seconds(30)).await;
        assert_eq!(left(), None);
        // Back on probation: one failure is enough, and the time has grown.
        let mut held = Vec::new();
        for key in 0_u32.. {
            let pick = balancer.pick_for(key.to_le_bytes()).unwrap();
            if pick.id == one {
                pick.failure();
                break;
            }
            held.push(pick);
            assert!(key < 10_000, "{one} does not come back");
        }
        assert_eq!(left(), Some(seconds(60)));
        // Restarted: nothing is held against it.
        fleet.leave(one).await;
        fleet.join(instance(one)).await;
        assert_eq!(left(), None);
    }
}

/// What comes over the wire, until its end.
struct Wire(VecDeque<Frame<Bytes>>);

impl http_body::Body for Wire {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

/// By its status of gRPC's own, and by nothing else, is an answer known to be a server's.
#[tokio::test(start_paused = true)]
async fn an_answer_without_a_status_is_a_failure() {
    let status = |code: &'static str| HeaderMap::from_iter([("grpc-status", code)].map(header));
    let (none, ok) = (HeaderMap::new, || status("0"));
    for (code, head, data, trailers, fails) in [
        (200, none(), true, Some(ok()), false),
        (200, ok(), false, None, false),
        (200, status("5"), false, None, false),
        (200, status("14"), false, None, true),
        (200, none(), true, Some(status("13")), true),
        (200, none(), true, None, true),
        (200, none(), false, None, true),
        (200, none(), true, Some(none()), true),
        (404, none(), true, None, true),
        (502, none(), false, None, true),
        (503, none(), true, Some(none()), true),
        (503, ok(), false, None, false),
    ] {
        let frames = || {
            let data = data.then(|| Frame::data(Bytes::from_static(&[0; 5])));
            let trailers = trailers.clone().map(Frame::trailers);
            data.into_iter().chain(trailers).collect()
        };
        let fleet = Fleet::of("a b").await;
        let balancer = fleet.discovery.balancer(Policy::round_robin());
        for _ in 0..10 {
            let pick = balancer.pick().unwrap();
            let body = Body::new(Wire(frames()));
            let mut answer = Response::new(body);
            *answer.status_mut() = StatusCode::from_u16(code).unwrap();
            *answer.headers_mut() = head.clone();
            let mut answer = Counted::answer(answer, pick);
            while let Some(frame) = answer.body_mut().frame().await {
                frame.unwrap();
            }
        }
        let ejected = |load: &Load<()>| load.ejected_for.is_some();
        let told = format!("{code} {head:?} {data} {trailers:?}");
        assert_eq!(balancer.loads().iter().any(ejected), fails, "{told}");
    }
}

fn header((name, value): (&'static str, &'static str)) -> (HeaderName, HeaderValue) {
    let name = HeaderName::from_static(name);
    (name, HeaderValue::from_static(value))
}

#[tokio::test(start_paused = true)]
async fn no_more_than_a_part_is_ejected() {
    let mut fleet = Fleet::of("a b c d e f").await;
    let rule = Ejection {
        failures: 1,
        ..Ejection::default()
    };
    let builder = Balancer::builder(&fleet.discovery, Policy::round_robin());
    let balancer = builder.ejection(rule).build();
    for _ in 0..100 {
        balancer.pick().unwrap().failure();
    }
    let ejected = || {
        let loads = balancer.loads();
        loads
            .iter()
            .filter(|load| load.ejected_for.is_some())
            .count()
    };
    assert_eq!(ejected(), 3);
    // The others go: those that are ejected are picked in panic, and one that works is taken back.
    let loads = balancer.loads();
    for load in loads.iter().filter(|load| load.ejected_for.is_none()) {
        fleet.leave(&load.endpoint.id).await;
    }
    pass(seconds(1)).await;
    let pick = balancer.pick().unwrap();
    assert!(pick.in_panic());
    let taken = pick.id.clone();
    pick.success();
    assert_eq!(ejected(), 2);
    assert_eq!(picked(&balancer, 5), vec![taken; 5]);
    let builder = Balancer::builder(&fleet.discovery, Policy::default());
    let trusting = builder.no_ejection().build();
    for _ in 0..100 {
        trusting.pick().unwrap().failure();
    }
    assert!(
        trusting
            .loads()
            .iter()
            .all(|load| load.ejected_for.is_none())
    );
}

#[tokio::test(start_paused = true)]
async fn newcomers_get_their_share_slowly() {
    let by_share = [
        Policy::round_robin(),
        Policy::weighted_round_robin(),
        Policy::random(),
        Policy::least_outstanding(),
    ];
    for policy in by_share {
        let mut fleet = Fleet::of("a b c").await;
        let builder = Balancer::builder(&fleet.discovery, policy.clone());
        let balancer = builder.slow_start(seconds(100)).build();
        assert_eq!(counts(&balancer, 3_000).len(), 3);
        fleet.join(instance("new")).await;
        let share = || {
            let of_new = counts(&balancer, 8_000).remove("new").unwrap_or(0);
            u32::try_from(of_new).unwrap()
        };
        let first = share();
        pass(seconds(50)).await;
        let half = share();
        pass(seconds(50)).await;
        let whole = share();
        // A tenth of 3.1 shares, a half of 3.5, one of four.
        for (found, fair) in [(first, 258), (half, 1_143), (whole, 2_000)] {
            assert!(found.abs_diff(fair) < 150, "{found} {fair} {policy:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn subsets_are_small_stable_and_give_way_to_the_rest() {
    let ids: Vec<_> = (0..40).map(|n| format!("i{n:02}")).collect();
    let mut fleet = Fleet::of(&ids.join(" ")).await;
    let rule = Ejection {
        failures: 1,
        part_most: 1.0,
        ..Ejection::default()
    };
    let builder = Balancer::builder(&fleet.discovery, Policy::round_robin());
    let balancer = builder.subset(5, "me").ejection(rule).build();
    let used = || counts(&balancer, 100).into_keys().collect::<Vec<_>>();
    let before = used();
    assert_eq!(before.len(), 5);
    let stranger = ids.iter().find(|id| !before.contains(id)).unwrap();
    fleet.leave(stranger).await;
    assert_eq!(used(), before);
    fleet.status(&before[2], Status::Draining).await;
    let after = used();
    let kept = after.iter().filter(|id| before.contains(id)).count();
    assert_eq!((after.len(), kept), (5, 4));
    // All of them ejected: those that are not are better than none.
    for _ in 0..5 {
        balancer.pick().unwrap().failure();
    }
    assert!(picked(&balancer, 100).iter().all(|id| !after.contains(id)));
}

/// As if there were no others: also in panic, in subsets, and after changes.
#[tokio::test(start_paused = true)]
async fn only_those_wanted_are_picked() {
    for policy in policies() {
        let mut fleet = Fleet::of("a b").await;
        for id in ["c", "d", "e"] {
            fleet.join(instance(id).version("2").zone("z")).await;
        }
        let builder = || {
            let builder = Balancer::builder(&fleet.discovery, policy.clone());
            builder.only(|endpoint| endpoint.version == "2")
        };
        let (all, few) = (builder().build(), builder().subset(2, "me").build());
        assert_eq!(all.loads().len(), 3);
        let used = |balancer: &Balancer<()>| counts(balancer, 300).into_keys().collect::<Vec<_>>();
        let others = |ids: &[String]| ids.iter().any(|id| id == "a" || id == "b");
        assert!(!others(&used(&all)) && !others(&used(&few)));
        fleet.status("c", Status::Draining).await;
        fleet.status("d", Status::Draining).await;
        fleet.join(instance("f").version("1")).await;
        assert_eq!(
            (used(&all), used(&few)),
            (vec!["e".to_owned()], vec!["e".to_owned()])
        );
        fleet.status("e", Status::Draining).await;
        for _ in 0..100 {
            let pick = all.pick().unwrap();
            assert!(pick.in_panic() && pick.version == "2");
        }
        for id in ["c", "d", "e"] {
            fleet.leave(id).await;
        }
        assert_eq!(all.pick().unwrap_err().known, 0);
    }
}

/// Picks from many threads while the view changes: all counted, all ended, none of who left.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_pick_while_the_view_changes() {
    for policy in policies() {
        let mut fleet = Fleet::of("a b c d").await;
        let balancer = fleet.discovery.balancer(policy);
        let pickers: Vec<_> = (0..3_u32)
            .map(|seed| {
                let balancer = balancer.clone();
                std::thread::spawn(move || {
                    for n in 0..3_000_u32 {
                        let key = (n * 31 + seed) % 500;
                        let pick = balancer.pick_for(key.to_le_bytes()).unwrap();
                        match n % 9 {
                            0 => pick.failure(),
                            1 => drop(pick),
                            _ => pick.success(),
                        }
                    }
                })
            })
            .collect();
        for _ in 0..10 {
            fleet.join(instance("e")).await;
            fleet.status("b", Status::Draining).await;
            fleet.leave("e").await;
            fleet.status("b", Status::Up).await;
        }
        for picker in pickers {
            picker.join().unwrap();
        }
        assert!(balancer.loads().iter().all(|load| load.outstanding == 0));
    }
}

/// What a balancer of tower's is told, in one word each, without waiting.
fn told(changes: &mut BoxStream<'static, Result<Change<String, String>, Infallible>>) -> String {
    let mut words = Vec::new();
    while let Some(Some(Ok(change))) = changes.next().now_or_never() {
        words.push(match change {
            Change::Insert(id, address) => format!("+{id}={address}"),
            Change::Remove(id) => format!("-{id}"),
        });
    }
    words.join(" ")
}

#[tokio::test(start_paused = true)]
async fn towers_balancers_are_told_what_changed() {
    let mut fleet = Fleet::of("a b").await;
    let mut changes = fleet.discovery.to_tower(|one| one.address.clone());
    assert_eq!(told(&mut changes), "+a=a:80 +b=b:80");
    fleet.change("b", |one| one.weight = 7).await;
    assert_eq!(told(&mut changes), "", "not a matter of connections");
    fleet
        .change("b", |one| one.address = "h:81".to_owned())
        .await;
    assert_eq!(told(&mut changes), "+b=h:81");
    fleet.join(instance("c")).await;
    fleet.status("a", Status::Draining).await;
    assert_eq!(told(&mut changes), "-a +c=c:80", "removals first");
    fleet.leave("c").await;
    fleet.join(instance("c")).await;
    assert_eq!(told(&mut changes), "+c=c:80", "another incarnation");
    fleet.status("b", Status::Down).await;
    fleet.status("c", Status::Draining).await;
    assert_eq!(
        told(&mut changes),
        "-b +a=a:80",
        "there is none that does not drain"
    );
    fleet.leave("a").await;
    fleet.leave("c").await;
    assert_eq!(told(&mut changes), "-a -c");
}

#[tokio::test(start_paused = true)]
async fn towers_balancer_calls_who_is_there() {
    let mut fleet = Fleet::of("a b c").await;
    let services = fleet.discovery.to_tower(|one| {
        let id = one.id.clone();
        let service = tower::service_fn(move |(): ()| {
            let id = id.clone();
            async move { Ok::<_, Infallible>(id) }
        });
        tower::load::Constant::new(service, 0)
    });
    let mut balance = tower::balance::p2c::Balance::new(services);
    let mut called = async || {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..100 {
            let ready = balance.ready().await.unwrap();
            *counts.entry(ready.call(()).await.unwrap()).or_default() += 1;
        }
        counts.into_keys().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(called().await, "a b c");
    fleet.status("b", Status::Draining).await;
    assert_eq!(called().await, "a c");
    fleet.leave("a").await;
    fleet.join(instance("d")).await;
    assert_eq!(called().await, "c d");
}

/// A user's own policy chooses among those that may be picked, and others are made of it.
#[tokio::test(start_paused = true)]
async fn a_policy_can_be_ones_own() {
    let fill = || {
        Policy::own(|among| {
            let free = among.iter().find(|one| one.outstanding() < 2);
            free.unwrap_or_else(|| among.cheapest(|one| one.outstanding()))
        })
    };
    let mut fleet = Fleet::of("a b c").await;
    let balancer = fleet.discovery.balancer(fill());
    let mut held: Vec<_> = (0..8).map(|_| balancer.pick().unwrap()).collect();
    let ids: Vec<&str> = held.iter().map(|pick| pick.id.as_str()).collect();
    assert_eq!(ids, ["a", "a", "b", "b", "c", "c", "a", "b"]);
    held.drain(..6);
    assert_eq!(picked(&balancer, 1), ["a"]);
    held.clear();
    fleet.status("a", Status::Draining).await;
    assert_eq!(picked(&balancer, 1), ["b"]);
    fail(&balancer, "b", 5);
    assert_eq!(picked(&balancer, 1), ["c"]);
    // It is not asked when there is none to choose from.
    fleet.leave("c").await;
    let pick = balancer.pick().unwrap();
    assert!(pick.in_panic() && pick.id != "c");
    pick.success();

    fleet.status("a", Status::Up).await;
    fleet.join(instance("c").weight(3)).await;
    let by_key = Policy::own(|among| {
        let key = among.key().unwrap_or_else(|| among.random());
        let heaviest = among.cheapest(|one| std::cmp::Reverse((one.weight(), one.share())));
        assert_eq!(
            (heaviest.id(), heaviest.share()),
            ("c", 3 * among.first().share())
        );
        if key % 2 == 0 {
            among.first()
        } else {
            heaviest
        }
    });
    let balancer = fleet.discovery.balancer(by_key);
    let of = |key: u32| balancer.pick_for(key.to_le_bytes()).unwrap().id.clone();
    let both: BTreeSet<String> = (0..50).map(of).collect();
    assert_eq!(both, BTreeSet::from(["a".to_owned(), "c".to_owned()]));
    assert!((0..50).all(|key| of(key) == of(key)));
    assert_eq!(counts(&balancer, 50).len(), 2);

    let sticky = fleet.discovery.balancer(fill().sticky());
    let held: Vec<_> = (0..4).map(|_| sticky.pick_for("k").unwrap()).collect();
    assert!(held.iter().all(|pick| pick.id == "a"));
    assert_eq!(sticky.pick_for("other").unwrap().id, "b");
}
