use std::collections::BTreeMap;

use super::*;
use crate::config::Expect;
use crate::probe::Probe;
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
