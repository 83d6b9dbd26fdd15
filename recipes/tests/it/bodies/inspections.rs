//! Inspection: what recipes do is seen from outside, at one revision, without disturbing them.

use quorate_recipes::Client;
use quorate_recipes::inspect::{LockKind, Overview};
use quorate_recipes::keys::LeaseId;
use quorate_recipes::registry::Instance;

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
