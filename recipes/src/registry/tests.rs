//! Cold starts of a discovery: from the file while the store is out of reach.

use std::path::Path;
use std::time::Duration;

use super::{Change, Departure, Discovery, Instance, Registration};
use crate::client::Client;
use crate::clock;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::store::faulty::Outage;
use crate::store::{Faulty, MemStore};

struct World {
    faulty: Faulty<MemStore>,
    client: Client,
    other: Client,
    session: Session,
}

impl World {
    async fn new() -> Self {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let other = Client::builder(store).seed(2).build();
        Self {
            client: Client::builder(faulty.clone()).seed(1).build(),
            session: other.session().await.unwrap(),
            faulty,
            other,
        }
    }

    async fn discover(&self, path: &Path) -> Result<Discovery<String>> {
        self.client.discover("api").snapshot(path).await
    }

    async fn register(&self, id: &str) -> Registration<String> {
        let instance = Instance::builder("api").id(id).address(format!("{id}:1"));
        let instance = instance.meta(format!("of {id}")).build();
        self.session.register(instance).await.unwrap()
    }
}

fn ids(discovery: &Discovery<String>) -> Vec<String> {
    let view = discovery.view();
    view.instances.iter().map(|one| one.id.clone()).collect()
}

/// Waits, in real time, until the file is as wanted: work on the disk takes real time.
async fn saved(path: &Path, wanted: impl Fn(&str) -> bool) {
    for _ in 0..2_000 {
        if std::fs::read_to_string(path).is_ok_and(|text| wanted(&text)) {
            return;
        }
        let pause = || {
            std::sync::mpsc::channel::<()>()
                .1
                .recv_timeout(Duration::from_millis(2))
        };
        let paused = tokio::task::spawn_blocking(pause).await;
        paused.unwrap().unwrap_err();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it is not saved");
}

#[tokio::test(start_paused = true)]
async fn starts_without_the_store_and_catches_up_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let world = World::new().await;
    let (a, b) = (world.register("a").await, world.register("b").await);
    let discovery = world.discover(&path).await.unwrap();
    assert_eq!(ids(&discovery), ["a", "b"]);
    let c = world.register("c/1").await;
    saved(&path, |text| text.contains("of c/1")).await;
    let at = discovery.view().revision;
    drop(discovery);
    for outage in [Outage::Refused, Outage::Silent] {
        world.faulty.disconnect(outage);
        let begun = clock::now();
        let mut discovery = world.discover(&path).await.unwrap();
        assert_eq!(clock::now() - begun, Duration::from_secs(1));
        let view = discovery.view();
        assert_eq!(ids(&discovery), ["a", "b", "c/1"]);
        assert_eq!((view.is_from_snapshot(), view.revision), (true, at));
        assert!(view.stale_since.is_some());
        let one = view.instance("c/1").unwrap();
        assert_eq!(
            (one.address.as_str(), one.meta.as_ref().unwrap().as_str()),
            ("c/1:1", "of c/1")
        );
        world.faulty.reconnect();
        let view = discovery
            .wait_for(|view| !view.is_from_snapshot())
            .await
            .unwrap();
        assert_eq!(view.instances.len(), 3);
        discovery
            .wait_for(|view| view.stale_since.is_none())
            .await
            .unwrap();
    }
    // What became of them meanwhile shows once the store answers, and not as deaths.
    world.faulty.disconnect(Outage::Refused);
    let mut discovery = world.discover(&path).await.unwrap();
    let mut events = discovery.events();
    let mut event = async || {
        futures::StreamExt::next(&mut events)
            .await
            .unwrap()
            .unwrap()
    };
    for _ in 0..3 {
        assert!(matches!(event().await, Change::Joined(_)));
    }
    a.deregister().await.unwrap();
    b.deregister().await.unwrap();
    let b = world.register("b").await;
    world.faulty.reconnect();
    let mut gone = Vec::new();
    for _ in 0..2 {
        let Change::Left {
            instance,
            departure,
        } = event().await
        else {
            panic!("nobody left")
        };
        assert_eq!(departure, Departure::Unseen);
        gone.push(instance.id.clone());
    }
    gone.sort();
    assert_eq!(gone, ["a", "b"]);
    assert!(matches!(event().await, Change::Joined(one) if one.id == "b"));
    discovery
        .wait_for(|view| view.instances.len() == 2)
        .await
        .unwrap();
    // The file follows: who is gone is not in it.
    saved(&path, |text| {
        !text.contains("of a") && text.contains("of b")
    })
    .await;
    drop((b, c, discovery));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_is_replaced_and_another_one_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let world = World::new().await;
    let _a = world.register("a").await;
    let discovery = world.discover(&path).await.unwrap();
    saved(&path, |text| text.contains("of a")).await;
    drop(discovery);
    let whole = std::fs::read_to_string(&path).unwrap();
    let other = world.client.discover::<()>("other").snapshot(&path).await;
    assert!(matches!(other, Err(Error::Invalid(_))), "{other:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    world.faulty.disconnect(Outage::Refused);
    let limit = Duration::from_secs(60);
    let waits = tokio::time::timeout(limit, world.discover(&path)).await;
    assert!(waits.is_err(), "there is nothing to start from");
    world.faulty.reconnect();
    let discovery = world.discover(&path).await.unwrap();
    assert_eq!(ids(&discovery), ["a"]);
    saved(&path, |text| text.ends_with('}')).await;
    std::fs::write(&path, "[settings]\nport = 80\n").unwrap();
    let foreign = world.discover(&path).await;
    assert!(matches!(foreign, Err(Error::Invalid(_))), "{foreign:?}");
    assert!(world.other.session().await.is_ok());
}
