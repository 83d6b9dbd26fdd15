use std::collections::BTreeMap;

use super::*;
use crate::condition::{self, Condition, Joined, Release};
use crate::config::Expect;
use crate::cron::Outcome;
use crate::dispatch::Target;
use crate::probe::{Probe, ProbeState};
use crate::queue::Nack;
use crate::registry::{Checks, Instance, Status};
use crate::session::Session;
use crate::store::MemStore;
use crate::topic::{Retention, Start};

async fn set_up() -> (MemStore, Client, Session) {
    let store = MemStore::new();
    let client = Client::builder(store.clone()).seed(1).build();
    let session = client.session().label("worker 1").await.unwrap();
    (store, client, session)
}

/// Has a future stand where it waits.
async fn waits<T>(work: impl Future<Output = T>) {
    let done = tokio::time::timeout(Duration::from_secs(1), work).await;
    assert!(done.is_err(), "it waits");
}

#[tokio::test(start_paused = true)]
async fn locks_tell_who_has_them_and_who_waits() {
    let (_, client, session) = set_up().await;
    let other = client.session().label("worker 2").await.unwrap();
    let mutex = client.mutex("a/b").with_info("import");
    let held = mutex.lock(&session).await.unwrap();
    let mut waiting = Box::pin(mutex.lock(&other));
    waits(&mut waiting).await;
    client.put("quorate/lock/a%2Fb/stranger", "").await.unwrap();
    let rw = client.rw_lock("rw");
    let readers = (
        rw.read(&session).await.unwrap(),
        rw.read(&other).await.unwrap(),
    );
    let mut writer = Box::pin(rw.write(&other));
    waits(&mut writer).await;
    let semaphore = client.semaphore("s", 3);
    let two = std::num::NonZeroU32::new(2).unwrap();
    let permits = semaphore.acquire_many(&session, two).await.unwrap();
    let mut more = Box::pin(semaphore.acquire_many(&other, two));
    waits(&mut more).await;
    let exclusive = client.exclusive("x").lock(&other).await.unwrap();

    let found = client.inspect().locks().await.unwrap();
    let told: BTreeMap<String, &LockInfo> = found
        .entries
        .iter()
        .map(|lock| (lock.lock.to_string(), lock))
        .collect();
    assert_eq!(told.len(), 4, "{told:#?}");
    let lock = told["lock a/b"];
    let holder = &lock.holders[0];
    assert_eq!(holder.by.revision, held.token().revision);
    assert_eq!(holder.by.info, "import");
    assert_eq!(holder.by.who.as_ref().unwrap().label, "worker 1");
    assert_eq!(lock.waiters[0].by.lease, other.lease());
    assert_eq!((lock.holders.len(), lock.waiters.len()), (1, 1));
    assert_eq!(lock.foreign, ["quorate/lock/a%2Fb/stranger".into()]);
    let lock = told["rwlock rw"];
    assert_eq!((lock.holders.len(), lock.waiters.len()), (2, 1));
    assert!(lock.holders.iter().all(|reader| reader.shared));
    assert!(!lock.waiters[0].shared);
    let lock = told["semaphore s"];
    assert_eq!((lock.limit, lock.taken()), (Some(3), 2));
    assert_eq!(lock.waiters[0].permits, 2);
    assert_eq!(lock.of_session(session.lease()).count(), 1);
    assert_eq!(told["exclusive x"].holders[0].by.lease, other.lease());

    drop((waiting, writer, more));
    drop((held, readers, permits, exclusive));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left = client.inspect().locks().await.unwrap().entries;
    assert_eq!(left.len(), 1, "only the stranger is left: {left:#?}");
}

#[tokio::test(start_paused = true)]
async fn everything_is_told_at_one_revision() {
    let (store, client, session) = set_up().await;
    let election = client.election::<String>("e");
    let leads = election
        .campaign(&session, "first".to_owned())
        .await
        .unwrap();
    let instance = Instance::builder("api")
        .id("i-1")
        .address("10.0.0.1:80")
        .meta(7);
    let registration = session.register(instance.build()).await.unwrap();
    client
        .put("quorate/service/api/broken", "no JSON")
        .await
        .unwrap();
    let member = client.group("g").join(&session, "info").await.unwrap();
    let queue = client.queue::<u32>("q");
    queue.push_all(&session, &[1, 2, 3]).await.unwrap();
    let consumer = queue.consumer(&session).await.unwrap();
    let delivery = consumer.pop().await.unwrap();
    let lanes = client.priority_queue::<u32>("lanes", 2).await.unwrap();
    lanes.lane(1).unwrap().push(&session, &9).await.unwrap();
    let config = client.config::<u32>("shop/limit");
    config.publish(&session, &5, Expect::Any).await.unwrap();
    let reporter = session
        .reporter("import/day 1")
        .total(10)
        .start()
        .await
        .unwrap();
    reporter.inc(3);
    client.counter("hits").add(&session, 1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;

    let all = client.inspect().overview().await.unwrap();
    assert_eq!(all.revision, store.revision());
    assert_eq!(all.sessions.len(), 1);
    assert_eq!(all.sessions[0].who.as_ref().unwrap().label, "worker 1");
    let leader = &all.elections[0].candidates[0];
    assert_eq!(leader.by.revision, leads.token().revision);
    assert_eq!(leader.value, "\"first\"");
    let service = &all.services[0];
    assert_eq!(service.instances[0].address, "10.0.0.1:80");
    assert_eq!(service.instances[0].lease, session.lease());
    assert!(service.unreadable.contains_key("broken"), "{service:?}");
    assert_eq!(all.groups[0].members[0].lease, session.lease());
    let names = all
        .queues
        .iter()
        .map(|queue| (queue.name.as_str(), queue.lane));
    assert!(
        names.eq([("lanes", Some(0)), ("lanes", Some(1)), ("q", None)]),
        "{:?}",
        all.queues
    );
    let queue = &all.queues[2];
    assert_eq!((queue.status.items, queue.status.claimed), (3, 1));
    assert_eq!(queue.taken[0].item, *delivery.id());
    assert_eq!(queue.taken[0].by.who.as_ref().unwrap().label, "worker 1");
    assert!(queue.oldest_ms.is_some());
    let setting = &all.configs[0].settings["limit"];
    assert_eq!(
        (setting.version, &setting.value),
        (1, &serde_json::json!(5))
    );
    let task = &all.jobs[0].tasks[0];
    assert_eq!((task.name.as_str(), task.done), ("day 1", 3));
    assert_eq!(task.state, TaskStanding::Running);
    let others = all
        .others
        .iter()
        .map(|other| (other.kind.as_str(), other.keys));
    assert!(others.eq([("counter", 1)]), "{:?}", all.others);
    // The same as JSON, for whoever shows it.
    let json = serde_json::to_value(&all).unwrap();
    assert_eq!(json["queues"][2]["status"]["items"], 3);
    assert_eq!(json["elections"][0]["candidates"][0]["value"], "\"first\"");

    let lease = session.lease();
    assert!(client.inspect().time_left(lease).await.unwrap().is_some());
    drop((leads, registration, member, consumer, delivery));
    assert!(store.expire(lease));
    let task = &client.inspect().jobs().await.unwrap().entries[0].tasks[0];
    assert_eq!((task.state, task.lease), (TaskStanding::Lost, None));
    assert_eq!(client.inspect().time_left(lease).await.unwrap(), None);
    drop(reporter);
}

/// The keys of a segment are in no order.
#[tokio::test(start_paused = true)]
async fn a_queue_is_as_old_as_the_item_that_came_first() {
    let (_, client, _) = set_up().await;
    for (name, since_ms) in [("2/b", 3), ("1/c", 7), ("1/a", 9), ("1/b", 8)] {
        let (segment, name) = name.split_once('/').unwrap();
        let key = format!("quorate/queue/q/segment/{segment:0>16}/{name}.0000");
        let item = format!(r#"{{"v":1,"since_ms":{since_ms},"value":1}}"#);
        client.put(key, item).await.unwrap();
    }
    let queues = client.inspect().queues().await.unwrap().entries;
    assert_eq!((queues[0].status.items, queues[0].oldest_ms), (4, Some(7)));
}

#[tokio::test(start_paused = true)]
async fn names_are_found_whatever_lies_below_them() {
    let (_, client, _session) = set_up().await;
    for key in [
        "quorate/counter/a",
        "quorate/counter/a!/value",
        "quorate/counter/a/value",
        "quorate/counter/a/value/2",
        "quorate/counter/b%2Fc/value",
        "quorate/counterx/z/value",
    ] {
        client.put(key, "").await.unwrap();
    }
    let others = client.inspect().overview().await.unwrap().others;
    let told = others
        .iter()
        .map(|other| (other.kind.as_str(), other.name.as_str(), other.keys));
    let expected = [
        ("counter", "a", 3),
        ("counter", "a!", 1),
        ("counter", "b/c", 1),
        ("counterx", "z", 1),
    ];
    assert!(told.eq(expected), "{others:?}");
}

#[tokio::test(start_paused = true)]
async fn what_moves_is_counted() {
    let (_, client, session) = set_up().await;
    let queue = client.queue::<u32>("q");
    queue.push(&session, &0).await.unwrap();
    let consumer = queue.consumer(&session).await.unwrap();
    let inspect = client.inspect();
    let work = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        queue.push_all(&session, &[1, 2, 3]).await.unwrap();
        for _ in 0..2 {
            consumer.pop().await.unwrap().ack().await.unwrap();
        }
    };
    let (rates, ()) = tokio::join!(inspect.rates(Duration::from_secs(10)), work);
    let rates = rates.unwrap();
    let of = rates.queues["q"];
    assert_eq!((of.entered, of.taken, of.went), (3, 2, 2));
    assert!((rates.per_second(of.went) - 0.2).abs() < 1e-6, "{rates:?}");
}

#[tokio::test(start_paused = true)]
async fn topics_tell_what_is_kept_and_how_far_groups_are() {
    let (store, client, session) = set_up().await;
    let tick = Duration::from_millis(100);
    let retention = Retention::default().max_messages(4).look_every(tick);
    let topic = client.topic::<u32>("a/b").with_segment_items(4);
    let topic = topic.partitions(2);
    let mut positions = Vec::new();
    for value in 0..9 {
        let published = topic.publish_keyed(&session, "k", &value).await;
        positions.push(published.unwrap());
    }
    let used = positions[0].partition();
    let group = topic.group(&session, "g/1").start(Start::Earliest);
    let mut consumer = group.await.unwrap();
    for _ in 0..2 {
        let message = consumer.next().await.unwrap();
        consumer.commit(&message).await.unwrap();
    }
    let before = store.revision();
    let retainer = topic.retain(retention).retainer(&session).unwrap();
    tokio::time::sleep(20 * tick).await;
    client
        .put("quorate/topic/broken/meta", "no JSON")
        .await
        .unwrap();
    client
        .live_topic::<u32>("news")
        .publish(&session, &1)
        .await
        .unwrap();

    let all = client.inspect().overview().await.unwrap();
    assert_eq!(client.inspect().topics().await.unwrap().entries, all.topics);
    assert_eq!(all.revision, store.revision());
    let [topic, broken] = &all.topics[..] else {
        panic!("{:?}", all.topics);
    };
    assert_eq!((topic.name.as_str(), &topic.unreadable), ("a/b", &None));
    let partition = &topic.partitions[used as usize];
    assert_eq!((partition.removed, partition.messages), (4, 5));
    assert_eq!(topic.partitions[1 - used as usize].published(), 0);
    let group = &topic.groups["g/1"];
    let lag = group.partitions[used as usize];
    assert_eq!((lag.committed, lag.lag), (Some(2), Some(7)));
    assert_eq!(group.members[0].lease, session.lease());
    let owner = &group.owners[&used];
    assert_eq!(owner.who.as_ref().unwrap().label, "worker 1");
    assert_eq!(group.owners.len(), 2);
    assert!(broken.unreadable.is_some(), "{broken:?}");
    let others = all.others.iter().map(|other| other.kind.as_str());
    assert!(others.eq(["live-topic"]), "{:?}", all.others);
    let json = serde_json::to_value(&all).unwrap();
    assert_eq!(
        json["topics"][0]["groups"]["g/1"]["partitions"][used as usize]["lag"],
        7
    );
    // All of it as of one revision, also when more happens meanwhile.
    let then = crate::topic::survey(&client, "a/b", before).await.unwrap();
    let partition = &then.partitions[used as usize];
    assert_eq!((partition.removed, partition.messages), (0, 9));
    drop((retainer, consumer));
}

#[tokio::test(start_paused = true)]
async fn what_moves_in_topics_is_counted() {
    let (_, client, session) = set_up().await;
    let topic = client.topic::<u32>("t").partitions(2);
    topic.publish(&session, &0).await.unwrap();
    let inspect = client.inspect();
    let work = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let group = topic.group(&session, "g").start(Start::Earliest);
        let mut consumer = group.await.unwrap();
        for value in 1..5 {
            topic.publish(&session, &value).await.unwrap();
        }
        for _ in 0..4 {
            let message = consumer.next().await.unwrap();
            consumer.commit(&message).await.unwrap();
        }
        drop(topic.group(&session, "idle").await.unwrap());
    };
    let (rates, ()) = tokio::join!(inspect.rates(Duration::from_secs(10)), work);
    let rates = rates.unwrap();
    let of = &rates.topics["t"];
    assert_eq!((of.published, of.committed.get("g")), (4, Some(&4)));
    assert_eq!(of.committed.len(), 1, "{of:?}");
    assert!(rates.queues.is_empty(), "{rates:?}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_checks_fail_takes_no_work() {
    let (_, client, session) = set_up().await;
    let probe = Probe::of(|| async { Err("it is full") });
    let probe = probe.every(Duration::from_secs(1)).rise(1).fall(1);
    let instance = Instance::builder("api").id("i-1").address("10.0.0.1:80");
    let checks = Checks::new().add("disk", probe);
    let checked = session.register_checked(instance.meta(7).build(), checks);
    let _checked = checked.await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let services = client.inspect().services().await.unwrap().entries;
    let instance = &services[0].instances[0];
    assert_eq!((instance.status, instance.takes_work), (Status::Up, false));
    let health = instance.health.as_ref().unwrap();
    assert_eq!(health.failing["disk"], "it is full");
}

#[tokio::test(start_paused = true)]
async fn condition_queues_tell_who_gathers_and_what_is_missing() {
    let (store, client, session) = set_up().await;
    let when = Condition::len(2).and(Condition::started());
    let when = when.or_after(Duration::from_secs(3_600));
    let queue = client.condition_queue::<u32>("c/1", when);
    for (id, value) in [("b", 1), ("a", 2)] {
        queue.join(&session, id, &value).await.unwrap();
    }
    let look = async || client.inspect().conditions().await.unwrap().entries;
    let info = look().await.remove(0);
    assert_eq!((info.name.as_str(), info.epoch), ("c/1", Some(0)));
    let rule = info.rule.clone().unwrap();
    assert_eq!(rule.condition, "((len(2) and started) or after(3600s))");
    assert_eq!((rule.release, rule.once), (Release::Batch, false));
    let terms = |info: &ConditionInfo| -> Vec<(String, Option<bool>)> {
        let each = info.terms.iter();
        each.map(|term| (term.term.clone(), term.holds)).collect()
    };
    let expected = [
        ("len(2)", Some(true)),
        ("started", Some(false)),
        ("after(3600s)", None),
    ];
    let expected = expected.map(|(term, holds)| (term.to_owned(), holds));
    assert_eq!((terms(&info), info.holds), (expected.to_vec(), None));
    let ids = info.tasks.iter().map(|task| task.id.as_str());
    assert!(ids.eq(["b", "a"]), "in the order of joining: {info:?}");
    assert!(info.tasks.iter().all(|task| task.since_ms.is_some()));
    assert!(info.tasks[0].revision < info.tasks[1].revision);
    assert_eq!((info.gathering, info.passed, info.gates.len()), (2, 0, 0));

    queue.start(&session).await.unwrap();
    let batch = queue.take(&session).await.unwrap();
    queue.join(&session, "c", &3).await.unwrap();
    let before = store.revision();
    for damaged in ["gate/0000000000000009", "segment/0000000000000001/broken"] {
        let key = format!("quorate/condition/c%2F1/{damaged}");
        client.put(key, "no JSON").await.unwrap();
    }
    let info = look().await.remove(0);
    assert_eq!((info.epoch, info.gathering, info.passed), (Some(1), 2, 2));
    assert_eq!(info.tasks[1].since_ms, None, "{info:?}");
    let (gate, broken) = (&info.gates[0], &info.gates[1]);
    assert_eq!((gate.epoch, gate.tasks), (0, 2));
    assert_eq!(gate.revision, batch.gate().revision);
    assert_eq!(gate.reason.as_deref(), Some("len(2) and started"));
    let taker = gate.by.as_ref().unwrap();
    assert_eq!(taker.who.as_ref().unwrap().label, "worker 1");
    assert_eq!(
        (broken.epoch, &broken.reason, &broken.by),
        (9, &None, &None)
    );
    assert!(info.unreadable.contains_key("gate/0000000000000009"));
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["rule"]["release"], "batch");

    batch.ack().await.unwrap();
    let then = condition::survey(&client, "c/1", before, 1).await.unwrap();
    assert_eq!((then.passed, then.gathering, then.tasks.len()), (2, 1, 1));
    for damaged in ["rule", "head"] {
        let key = format!("quorate/condition/c%2F1/{damaged}");
        client.put(key, "no JSON").await.unwrap();
    }
    let info = look().await.remove(0);
    assert_eq!((&info.rule, info.epoch, info.holds), (&None, None, None));
    assert_eq!(info.gates[0].epoch, 9);
    let unreadable: Vec<&str> = info.unreadable.keys().map(String::as_str).collect();
    assert_eq!(unreadable, ["gate/0000000000000009", "head", "rule"]);
}

#[tokio::test(start_paused = true)]
async fn of_a_fan_those_are_told_who_have_its_tasks() {
    let (_, client, session) = set_up().await;
    let fan = client.condition_queue::<u32>("fan", Condition::len(3));
    let fan = fan.release(Release::Fan).once();
    let consumer = fan.consumer(&session).await.unwrap();
    for id in ["a", "b", "c"] {
        fan.join(&session, id, &1).await.unwrap();
    }
    let bad = consumer.pop().await.unwrap();
    bad.nack(Nack::Dead("no".to_owned())).await.unwrap();
    let taken = consumer.pop().await.unwrap();
    assert_eq!(fan.join(&session, "d", &1).await.unwrap(), Joined::Late);
    let info = client.inspect().overview().await.unwrap().conditions;
    let info = &info[0];
    assert_eq!((info.claimed, info.dead, info.consumers), (1, 1, 1));
    assert_eq!(info.taken[0].item, *taken.id());
    assert_eq!(info.taken[0].by.lease, session.lease());
    assert_eq!((info.epoch, info.gathering, info.passed), (None, 0, 2));
    assert!(info.terms.is_empty(), "no gate opens any more: {info:?}");
}

#[tokio::test(start_paused = true)]
async fn dispatchers_tell_who_has_which_job() {
    let (_, client, session) = set_up().await;
    let other = client.session().label("worker 2").await.unwrap();
    let ops = client.dispatcher::<u32, u32>("ops/1");
    let to = |name: &str| Target::Instance(name.to_owned());
    let inbox = ops.inbox(&other, [to("web 1")]).await.unwrap();
    let done = ops.send(&session, to("web 1"), &0).await.unwrap();
    inbox.next().await.unwrap().reply(&1).await.unwrap();
    let waiting = ops.send(&session, to("web 2"), &1).await.unwrap();
    let having = ops.send(&session, to("web 1"), &2).await.unwrap();
    let any = Target::Any("web".to_owned());
    ops.send(&session, any.clone(), &3).await.unwrap();
    let mut command = inbox.next().await.unwrap();
    command.progress(0.5, "half").await.unwrap();
    assert!(having.cancel().await.unwrap());
    client
        .put("quorate/dispatch/ops%2F1/job/broken", "no JSON")
        .await
        .unwrap();

    let listing = client.inspect().dispatchers().await.unwrap();
    let all = client.inspect().overview().await.unwrap();
    assert_eq!(listing.entries, all.dispatchers);
    assert!(all.others.is_empty(), "{:?}", all.others);
    let info = &all.dispatchers[0];
    assert_eq!(
        (info.name.as_str(), info.kept, info.cancelling),
        ("ops/1", 5, 1)
    );
    let states = [("done", 1), ("queued", 2), ("running", 1)];
    assert_eq!(info.states, states.into());
    let ids: Vec<&str> = info.jobs.iter().map(|job| job.id.as_str()).collect();
    assert_eq!((ids.len(), ids[0], ids[1]), (4, waiting.id(), having.id()));
    assert_eq!(ids[3], done.id(), "what has ended comes last");
    assert_eq!((info.jobs[0].state, &info.jobs[0].by), ("queued", &None));
    let job = &info.jobs[1];
    assert_eq!((job.state, job.attempt), ("running", Some(1)));
    assert_eq!((job.fraction, job.message.as_str()), (Some(0.5), "half"));
    assert!(job.cancelling && !info.jobs[0].cancelling);
    let holder = job.by.as_ref().unwrap();
    assert_eq!(holder.who.as_ref().unwrap().label, "worker 2");
    assert!(info.unreadable.contains_key("broken"), "{info:?}");
    let inboxes: Vec<_> = info
        .inboxes
        .iter()
        .map(|inbox| (&inbox.target, inbox.open.len(), inbox.status.items))
        .collect();
    assert_eq!(
        inboxes,
        [(&to("web 1"), 1, 1), (&to("web 2"), 0, 1), (&any, 0, 1)]
    );
    assert_eq!(info.inboxes[0].open[0].lease, other.lease());
    assert_eq!(info.inboxes[0].status.claimed, 1);
    let json = serde_json::to_value(&all).unwrap();
    assert_eq!(json["dispatchers"][0]["states"]["queued"], 2);
}

#[tokio::test(start_paused = true)]
async fn probes_tell_what_each_observer_says() {
    let (_, client, session) = set_up().await;
    let second = Duration::from_secs(1);
    let mut observations = Vec::new();
    for (name, passes) in [("zone-a", false), ("zone-b", true), ("zone-c", false)] {
        let probe = Probe::of(move || async move { if passes { Ok(()) } else { Err("shut") } });
        let prober = client.probe(probe.every(second).rise(1).fall(1)).unwrap();
        let observation = session.observe("db/1", prober).observer(name);
        observations.push(observation.await.unwrap());
    }
    tokio::time::sleep(5 * second).await;
    client
        .put("quorate/probe/db%2F1/zone-d", "no JSON")
        .await
        .unwrap();
    let all = client.inspect().overview().await.unwrap();
    assert_eq!(client.inspect().probes().await.unwrap().entries, all.probes);
    let info = &all.probes[0];
    assert_eq!(info.target, "db/1");
    let told = info.opinions.iter();
    let told = told.map(|one| (one.observer.as_str(), one.state, one.reason.as_deref()));
    let expected = [
        ("zone-a", ProbeState::Down, Some("shut")),
        ("zone-b", ProbeState::Up, None),
        ("zone-c", ProbeState::Down, Some("shut")),
    ];
    assert!(told.eq(expected), "{info:?}");
    assert_eq!(info.opinions[0].by.label, "worker 1");
    assert_eq!(info.opinions[0].lease, session.lease());
    assert!(info.unreadable.contains_key("zone-d"), "{info:?}");
    assert_eq!(info.verdict(2), ProbeState::Down);
    assert_eq!(info.verdict(3), ProbeState::Unknown);
    drop(observations);
}

#[tokio::test(start_paused = true)]
async fn jobs_by_the_clock_tell_what_was_started_and_what_is_next() {
    let (_, client, session) = set_up().await;
    let schedule = "*/10 * * * * *".parse::<crate::cron::Schedule>().unwrap();
    let schedule = schedule.in_zone("Europe/Berlin").unwrap();
    let job = client.cron("nightly/1", schedule.clone());
    let mut running = Box::pin(job.run(&session, |_| async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Err::<(), _>("it is full")
    }));
    let look = async || client.inspect().crons().await.unwrap().entries.remove(0);
    waits(&mut running).await;
    let began = look().await;
    let shown = "*/10 * * * * * (Europe/Berlin)";
    assert_eq!(began.schedule.as_deref(), Some(shown));
    assert_eq!((&began.run, &began.running), (&None, &None));
    assert_eq!(began.next, schedule.next_after(began.last.unwrap()));

    let info = loop {
        waits(&mut running).await;
        let info = look().await;
        if info.running.is_some() {
            break info;
        }
    };
    let run = info.run.clone().unwrap();
    assert_eq!((Some(run.slot), info.last), (began.next, began.next));
    assert_eq!(run.outcome, Outcome::Running(session.lease()));
    let holder = info.running.clone().unwrap();
    assert_eq!(holder.who.unwrap().label, "worker 1");
    assert_eq!(info.next, schedule.next_after(run.slot));
    let overview = client.inspect().overview().await.unwrap();
    assert_eq!(overview.crons, [info]);
    assert!(overview.others.is_empty(), "{:?}", overview.others);

    let space = "quorate/cron/nightly%2F1";
    client
        .put(format!("{space}/running"), "no JSON")
        .await
        .unwrap();
    let damaged = look().await;
    assert_eq!(damaged.run.as_ref().unwrap().slot, run.slot);
    assert!(damaged.unreadable.contains_key("running"));
    client
        .put(format!("{space}/last"), "no JSON")
        .await
        .unwrap();
    let damaged = look().await;
    assert_eq!((damaged.last, damaged.next), (None, None));
    assert!(damaged.run.is_some() && damaged.unreadable.contains_key("last"));
}
