//! The registry: who is there, who left and how, and that nobody who lives goes missing.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use quorate_recipes::registry::{Change, Departure, Instance, RegistrationState, Status};
use quorate_recipes::store::faulty::{Faulty, Outage};
use quorate_recipes::{Client, Error, Name};
use serde::{Deserialize, Serialize};

use super::session;
use crate::support::{soon, until};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    zone: String,
}

fn meta(zone: &str) -> Meta {
    Meta {
        zone: zone.to_owned(),
    }
}

/// Joining, changing, leaving and dying show in views and events, and are told apart.
pub async fn views_and_events(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let mut discovery = client.discover::<Meta>("api").await.unwrap();
    assert!(discovery.view().instances.is_empty());
    let mut events = discovery.events();
    let mut event = async || soon("an event", events.next()).await.unwrap().unwrap();
    let instance = Instance::builder("api").id("w/1").address("h:1");
    let one = a
        .register(instance.weight(2).meta(meta("x")).build())
        .await
        .unwrap();
    let Change::Joined(joined) = event().await else {
        panic!("not joined")
    };
    assert_eq!(
        (joined.id.as_str(), joined.address.as_str()),
        ("w/1", "h:1")
    );
    assert_eq!((joined.weight, joined.status), (2, Status::Up));
    assert_eq!(joined.meta.as_deref(), Some(&meta("x")));
    assert_eq!(joined.lease, a.lease());
    let before = discovery.view().revision;
    let at = one.set_status(Status::Draining).await.unwrap();
    let Change::Updated { now, .. } = event().await else {
        panic!("not updated")
    };
    assert_eq!((now.status, now.modified), (Status::Draining, at));
    assert_eq!(now.created, joined.created, "the same incarnation");
    let view = discovery
        .wait_for(|view| view.revision >= at)
        .await
        .unwrap();
    assert!(view.revision > before && view.up().next().is_none());
    let two = b
        .register(Instance::builder("api").id("w2").meta(meta("y")).build())
        .await
        .unwrap();
    assert!(matches!(event().await, Change::Joined(e) if e.id == "w2"));
    one.deregister().await.unwrap();
    let Change::Left { departure, .. } = event().await else {
        panic!("not left")
    };
    assert_eq!(departure, Departure::Clean);
    // Closing the session says farewell too.
    b.close().await.unwrap();
    let Change::Left { departure, .. } = event().await else {
        panic!("not left")
    };
    assert_eq!(departure, Departure::Clean);
    assert!(matches!(
        soon("the end", two.ended()).await,
        Error::SessionLost(_)
    ));
    assert_eq!(two.state(), RegistrationState::Ended);
    assert!(discovery.view().instances.is_empty());
}

/// A lost lease shows as expired, and the instance comes back by itself, as it was last.
pub async fn comes_back_as_it_was_last(client: &Client) {
    let session = session(client).await;
    let mut discovery = client.discover::<Meta>("back").await.unwrap();
    let instance = Instance::builder("back").id("w").meta(meta("old")).build();
    let registration = session.register(instance).await.unwrap();
    registration
        .update(|instance| instance.meta = meta("new"))
        .await
        .unwrap();
    let first = discovery
        .wait_for(|view| view.instances.len() == 1)
        .await
        .unwrap();
    client.store().lease_revoke(session.lease()).await.unwrap();
    let lease = session.lease();
    let back = discovery.wait_for(|view| {
        let now = view.instance("w");
        now.is_some_and(|now| now.lease != lease && now.created > first.revision)
    });
    let back = soon("the return", back).await.unwrap();
    let now = back.instance("w").unwrap();
    assert_eq!(now.meta.as_deref(), Some(&meta("new")));
    until("the registration to know", async || {
        registration.state() == RegistrationState::Registered
    })
    .await;
    // Evicted by hand, while its session lives: back again.
    client.delete(registration.key()).await.unwrap();
    let created = now.created;
    let back = discovery.wait_for(|view| {
        let now = view.instance("w");
        now.is_some_and(|now| now.created > created)
    });
    soon("the second return", back).await.unwrap();
    // Deregistered is deregistered.
    registration.deregister().await.unwrap();
    let other = super::session(client).await;
    let later = Instance::builder("back").id("later").build();
    let _later = other.register(later).await.unwrap();
    let view = discovery.wait_for(|view| view.instance("later").is_some());
    let view = soon("the one that came later", view).await.unwrap();
    assert_eq!(view.instances.len(), 1);
}

/// Two living instances cannot have one id, unless the second says that it replaces the first.
pub async fn ids_are_taken_once(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let instance = || Instance::builder("ids").id("w").address("h");
    let first = a.register(instance().build()).await.unwrap();
    let refused = b.register(instance().build()).await;
    assert!(
        matches!(&refused, Err(Error::Taken { lease, .. }) if *lease == a.lease()),
        "{refused:?}"
    );
    let mut discovery = client.discover::<()>("ids").await.unwrap();
    let second = b.register(instance().replace().build()).await.unwrap();
    assert!(matches!(
        soon("the end", first.ended()).await,
        Error::Taken { .. }
    ));
    // The first one's end does not take the second away, and there was no gap.
    drop(first);
    a.close().await.unwrap();
    let view = discovery
        .wait_for(|view| view.instance("w").is_some_and(|w| w.lease == b.lease()))
        .await
        .unwrap();
    assert_eq!(view.instances.len(), 1);
    assert_eq!(second.state(), RegistrationState::Registered);
    drop(second);
    let gone = discovery.wait_for(|view| view.instances.is_empty());
    soon("the drop to deregister", gone).await.unwrap();
}

/// A registration dropped on its way leaves no instance behind.
pub async fn dropped_registrations_leave_nothing(client: &Client) {
    let session = session(client).await;
    for micros in [0, 300, 1_000, 3_000] {
        let instance = Instance::builder("dropped").build();
        let limit = Duration::from_micros(micros);
        drop(tokio::time::timeout(limit, session.register(instance)).await);
    }
    until("an empty service", async || {
        let discovery = client.discover::<()>("dropped").await.unwrap();
        discovery.view().instances.is_empty()
    })
    .await;
}

/// What the Go library `go.etcd.io/etcd/client/v3/naming/endpoints` (v3.5.0) wrote to an etcd when a program
/// called `Manager.AddEndpoint` for a manager of the target `greeter`.
const OF_GO: [(&str, &str); 5] = [
    (
        "greeter/10.0.0.1:80",
        r#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":null}"#,
    ),
    (
        "greeter/10.0.0.2:80",
        r#"{"Op":0,"Addr":"10.0.0.2:80","Metadata":"zone-a"}"#,
    ),
    (
        "greeter/10.0.0.3:80",
        r#"{"Op":0,"Addr":"10.0.0.3:80","Metadata":{"Zone":"eu \u0026 \u003cus\u003e","Weight":3}}"#,
    ),
    (
        "greeter/10.0.0.4:80",
        r#"{"Op":0,"Addr":"10.0.0.4:80","Metadata":{"a":null,"b":[1]}}"#,
    ),
    (
        "greeter/[::1]:80",
        r#"{"Op":0,"Addr":"[::1]:80","Metadata":7}"#,
    ),
];

/// Discovery reads what Go programs register, and a registration beside them has the form that their resolver
/// reads.
pub async fn go_writes_what_is_read(client: &Client) {
    let session = session(client).await;
    for (key, value) in OF_GO {
        let put = client.txn().put_leased(key, value, &session);
        put.commit().await.unwrap();
    }
    let service = Name::raw("greeter");
    let mut discovery = client
        .discover::<serde_json::Value>(&service)
        .await
        .unwrap();
    let view = discovery.view();
    assert_eq!((view.instances.len(), view.unreadable), (5, 0));
    for (key, value) in OF_GO {
        let written: serde_json::Value = serde_json::from_str(value).unwrap();
        let one = view
            .instance(key.strip_prefix("greeter/").unwrap())
            .unwrap();
        assert_eq!(one.address, written["Addr"].as_str().unwrap());
        assert_eq!(one.meta.as_deref(), Some(&written["Metadata"]));
        assert!(one.takes_work() && one.weight == 1);
    }
    let instance = Instance::builder(&service).id("10.0.0.9:80");
    let instance = instance.address("10.0.0.9:80").meta(meta("a")).build();
    let registration = session.register(instance).await.unwrap();
    assert_eq!(registration.key().as_bytes(), "greeter/10.0.0.9:80");
    let value = client
        .get("greeter/10.0.0.9:80")
        .await
        .unwrap()
        .unwrap()
        .value;
    let text = std::str::from_utf8(&value).unwrap();
    let start = r#"{"Op":0,"Addr":"10.0.0.9:80","Metadata":{"#;
    assert!(text.starts_with(start), "{text}");
    let six = discovery.wait_for(|view| view.instances.len() == 6);
    soon("the sixth", six).await.unwrap();
}

/// A discovery starts from its file while the store is away, and catches up with it.
pub async fn starts_from_a_snapshot(client: &Client) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cold");
    let session = session(client).await;
    let instance = |id| Instance::builder("cold").id(id).address("h:1").build();
    let first = session.register(instance("first")).await.unwrap();
    let faulty = Faulty::new(Arc::clone(client.store()));
    let other = Client::new(faulty.clone());
    let discovery = other.discover::<()>("cold").snapshot(&path).await.unwrap();
    until("the file", async || path.exists()).await;
    drop(discovery);
    faulty.disconnect(Outage::Refused);
    let mut discovery = other.discover::<()>("cold").snapshot(&path).await.unwrap();
    let view = discovery.view();
    assert!(view.is_from_snapshot() && view.stale_since.is_some());
    assert!(view.instance("first").is_some_and(|one| one.takes_work()));
    first.deregister().await.unwrap();
    let _second = session.register(instance("second")).await.unwrap();
    faulty.reconnect();
    let fresh = discovery.wait_for(|view| !view.is_from_snapshot());
    let fresh = soon("the store's answer", fresh).await.unwrap();
    assert!(fresh.instance("first").is_none() && fresh.instance("second").is_some());
}
