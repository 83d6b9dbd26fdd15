//! Inspection: what recipes do is seen from outside, at one revision, without disturbing them.

use std::time::Duration;

use quorate_recipes::condition::Condition;
use quorate_recipes::dispatch::Target;
use quorate_recipes::inspect::{LockKind, Overview};
use quorate_recipes::keys::LeaseId;
use quorate_recipes::probe::{Probe, ProbeState};
use quorate_recipes::registry::Instance;
use quorate_recipes::{Client, Session};

use super::{session, short_session};
use crate::support::{soon, until};

/// What lock `l` looks like: the lease of its holder, if it has one, and how many wait.
fn lock(all: &Overview) -> (Option<LeaseId>, usize) {
    let mut locks = all.locks.iter();
    let found = locks.find(|one| one.lock.kind == LockKind::Mutex && one.lock.name == "l");
    let holder = found.and_then(|one| one.holders.first());
    (
        holder.map(|holder| holder.by.lease),
        found.map_or(0, |one| one.waiters.len()),
    )
}

/// One of each is shown with what it holds, and is gone once it has ended.
pub async fn everything_is_shown(client: &Client) {
    let mine = session(client).await;
    let other = short_session(client).await;

    let held = client.mutex("l").lock(&mine).await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    let (line, waiter) = (client.mutex("l"), other.clone());
    waiting.spawn(async move { line.lock(&waiter).await });

    let queue = client.queue::<u32>("q");
    queue.push_all(&mine, &[1, 2, 3]).await.unwrap();
    let consumer = queue.consumer(&mine).await.unwrap();
    let taken = soon("an item", consumer.pop()).await.unwrap();

    let topic = client.topic::<u32>("t");
    topic.publish_all(&mine, &[1, 2]).await.unwrap();
    let mut group = topic.group(&mine, "g").await.unwrap();
    let first = soon("a message", group.next()).await.unwrap();
    group.commit(&first).await.unwrap();

    let instance = Instance::builder("s").id("w").address("h:1").build();
    let registered = other.register(instance).await.unwrap();

    let inspect = client.inspect();
    until("one waits", async || {
        lock(&inspect.overview().await.unwrap()).1 == 1
    })
    .await;
    let all = inspect.overview().await.unwrap();
    assert_eq!(lock(&all), (Some(mine.lease()), 1));
    let leases: Vec<_> = all.sessions.iter().map(|one| one.lease).collect();
    assert!(leases.contains(&mine.lease()) && leases.contains(&other.lease()));
    let shown = &all.queues[0];
    assert_eq!((shown.name.as_str(), shown.status.items), ("q", 3));
    assert_eq!(shown.taken[0].item, *taken.id());
    assert_eq!(shown.taken[0].by.lease, mine.lease());
    let shown = &all.topics[0];
    let far = &shown.groups["g"];
    assert_eq!(
        (shown.name.as_str(), shown.partitions[0].messages),
        ("t", 2)
    );
    assert_eq!(
        (far.partitions[0].committed, far.partitions[0].lag),
        (Some(1), Some(1))
    );
    assert_eq!(far.members.len(), 1);
    let shown = &all.services[0].instances[0];
    assert_eq!((shown.id.as_str(), shown.lease), ("w", other.lease()));
    assert!(shown.takes_work);
    let json = serde_json::to_value(&all).unwrap();
    assert_eq!(json["queues"][0]["status"]["items"], 3);

    taken.ack().await.unwrap();
    registered.deregister().await.unwrap();
    drop(held);
    let next = soon("the lock", waiting.join_next()).await.unwrap();
    let _next = next.unwrap().unwrap();
    let all = inspect.overview().await.unwrap();
    assert_eq!(lock(&all), (Some(other.lease()), 0));
    assert_eq!(all.queues[0].status.items, 2);
    assert!(all.queues[0].taken.is_empty());
    assert!(all.services.iter().all(|one| one.instances.is_empty()));
}

/// Condition queues, dispatchers, probes and jobs by the clock, with one damaged record of each.
pub async fn work_is_shown(client: &Client) {
    let session = session(client).await;
    let inspect = client.inspect();

    let when = Condition::len(2).and(Condition::started());
    let queue = client.condition_queue::<u32>("c", when);
    for id in ["b", "a"] {
        queue.join(&session, id, &1).await.unwrap();
    }
    let ops = client.dispatcher::<u32, u32>("d");
    let to = |name: &str| Target::Instance(name.to_owned());
    let inbox = ops.inbox(&session, [to("w")]).await.unwrap();
    let job = ops.send(&session, to("w"), &1).await.unwrap();
    let command = soon("the command", inbox.next()).await.unwrap();
    assert!(job.cancel().await.unwrap());
    ops.send(&session, to("gone"), &2).await.unwrap();
    let probe = Probe::of(|| async { Err("shut") });
    let probe = probe.every(Duration::from_millis(50)).rise(1).fall(1);
    let prober = client.probe(probe).unwrap();
    let observation = session.observe("p", prober).observer("o").await.unwrap();
    let running = runs_for_long(client, &session);
    for damaged in [
        "condition/c/gate/000000000000000f",
        "dispatch/d/job/x",
        "probe/p/x",
    ] {
        let key = format!("quorate/{damaged}");
        client.put(key, "no JSON").await.unwrap();
    }
    until("a run, and what the prober sees", async || {
        let all = inspect.overview().await.unwrap();
        let seen = all.probes[0].verdict(1) == ProbeState::Down;
        seen && all.crons.iter().any(|cron| cron.running.is_some())
    })
    .await;

    let all = inspect.overview().await.unwrap();
    let shown = &all.conditions[0];
    let terms = shown.terms.iter();
    let terms = terms.map(|term| (term.term.as_str(), term.holds));
    assert!(terms.eq([("len(2)", Some(true)), ("started", Some(false))]));
    assert_eq!((shown.epoch, shown.holds), (Some(0), Some(false)));
    let ids = shown.tasks.iter().map(|task| task.id.as_str());
    assert!(ids.eq(["b", "a"]), "{shown:?}");
    assert_eq!(shown.unreadable.len(), 1, "{shown:?}");

    let shown = &all.dispatchers[0];
    let states = [("delivered", 1), ("queued", 1)];
    assert_eq!((shown.kept, &shown.states), (3, &states.into()));
    let holder = shown.jobs[0].by.as_ref().unwrap();
    assert_eq!(
        (holder.lease, shown.jobs[0].cancelling),
        (session.lease(), true)
    );
    assert_eq!(
        (&shown.jobs[1].target, &shown.jobs[1].by),
        (&to("gone"), &None)
    );
    let open = shown.inboxes.iter().map(|inbox| inbox.open.len());
    assert!(open.eq([0, 1]), "{shown:?}");
    assert_eq!(shown.unreadable.len(), 1, "{shown:?}");

    let shown = &all.probes[0];
    assert_eq!((shown.opinions.len(), shown.unreadable.len()), (1, 1));
    assert_eq!(shown.opinions[0].reason.as_deref(), Some("shut"));

    let shown = &all.crons[0];
    assert_eq!(shown.running.as_ref().unwrap().lease, session.lease());
    assert_eq!(shown.run.as_ref().map(|run| run.slot), shown.last);
    assert!(
        shown.next > shown.last && shown.schedule.is_some(),
        "{shown:?}"
    );
    let kinds = all.others.iter().map(|other| other.kind.as_str());
    assert_eq!(kinds.count(), 0, "{:?}", all.others);

    running.abort();
    queue.start(&session).await.unwrap();
    let batch = soon("the batch", queue.take(&session)).await.unwrap();
    command.stop().await.unwrap();
    observation.withdraw().await.unwrap();
    until("the run to be over", async || {
        inspect.crons().await.unwrap().entries[0].running.is_none()
    })
    .await;
    let all = inspect.overview().await.unwrap();
    let shown = &all.conditions[0];
    let taker = shown.gates[0].by.as_ref().unwrap();
    assert_eq!((shown.epoch, shown.gates[0].tasks), (Some(1), 2));
    assert_eq!(taker.lease, session.lease());
    assert_eq!(all.dispatchers[0].states["cancelled"], 1);
    assert_eq!(all.dispatchers[0].cancelling, 0);
    assert!(all.probes[0].opinions.is_empty());
    batch.ack().await.unwrap();
}

/// Runs a job that is due each second, and does not end by itself.
fn runs_for_long(client: &Client, session: &Session) -> tokio::task::JoinHandle<()> {
    let job = client.cron("j", "* * * * * *".parse().unwrap());
    let session = session.clone();
    tokio::spawn(async move {
        let work = |_| std::future::pending::<Result<(), String>>();
        let ended = job.run(&session, work).await;
        panic!("it ended: {ended:?}");
    })
}
