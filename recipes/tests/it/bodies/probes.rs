//! Observers of one target, and instances that check themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_recipes::probe::{Probe, ProbeState};
use quorate_recipes::registry::{Checks, Instance, Status};
use quorate_recipes::{Client, Error};

use super::{keys_below, session};
use crate::support::{soon, until};

/// A target that answers as it is told to, and a probe that one answer decides.
fn target() -> (Arc<AtomicBool>, Probe) {
    let answers = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&answers);
    let probe = Probe::of(move || {
        let answers = asked.load(Ordering::SeqCst);
        async move { answers.then_some(()).ok_or("no answer") }
    });
    let probe = probe.every(Duration::from_millis(10)).rise(1).fall(1);
    (answers, probe.damping(Duration::ZERO, Duration::ZERO))
}

/// So many must agree; who is not there any more is not asked.
pub async fn observers_agree(client: &Client) {
    let mut liveness = client.liveness("db").await.unwrap();
    assert_eq!(liveness.verdict().state, ProbeState::Unknown);
    let mut observers = Vec::new();
    for name in ["a", "b", "c"] {
        let (answers, probe) = target();
        let session = session(client).await;
        let prober = client.probe(probe).unwrap();
        let seen = session.observe("db", prober).observer(name).await.unwrap();
        observers.push((answers, session, seen));
    }
    let up = soon("the verdict", liveness.wait_for(ProbeState::Up))
        .await
        .unwrap();
    assert!(up.opinions.len() >= 2);
    // One that sees nothing is not believed, the second is.
    let says = |index: usize, answer| observers[index].0.store(answer, Ordering::SeqCst);
    says(0, false);
    loop {
        let now = soon("an opinion", liveness.changed()).await.unwrap();
        assert_eq!(now.state, ProbeState::Up);
        if let Some(one) = now
            .opinions
            .iter()
            .find(|one| one.state == ProbeState::Down)
        {
            assert_eq!(
                (one.observer.as_str(), one.reason.as_deref()),
                ("a", Some("no answer"))
            );
            break;
        }
    }
    says(1, false);
    let down = soon("the verdict", liveness.wait_for(ProbeState::Down))
        .await
        .unwrap();
    assert_eq!(down.opinions.len(), 3);
    // A dead observer has no opinion: one that says up and one that says down are no two.
    let (_, dead, _) = &observers[1];
    client.store().lease_revoke(dead.lease()).await.unwrap();
    let (_, _dead, seen) = observers.remove(1);
    seen.withdraw().await.unwrap();
    soon("the verdict", liveness.wait_for(ProbeState::Unknown))
        .await
        .unwrap();
    drop(observers);
    until("no opinions", async || {
        keys_below(client, "quorate/probe/db").await == 0
    })
    .await;
}

/// What is seen is written when it changes and not else; a second observer of the name takes its place.
pub async fn opinions_are_written_on_change_only(client: &Client) {
    let (session, (answers, probe)) = (session(client).await, target());
    let prober = client.probe(probe.clone()).unwrap();
    let seen = session
        .observe("quiet", prober)
        .observer("o")
        .await
        .unwrap();
    let version = async || client.get(seen.key()).await.unwrap().unwrap().version;
    until("what is up to be told", async || {
        let value = client.get(seen.key()).await.unwrap().unwrap().value;
        String::from_utf8_lossy(&value).contains("\"up\"")
    })
    .await;
    let (before, checks) = (version().await, seen.prober().report().checks);
    until("more checks", async || {
        seen.prober().report().checks > checks + 20
    })
    .await;
    assert_eq!(version().await, before);
    answers.store(false, Ordering::SeqCst);
    until("a change", async || version().await > before).await;
    assert_eq!(version().await, before + 1);
    let prober = client.probe(probe).unwrap();
    let second = session
        .observe("quiet", prober)
        .observer("o")
        .await
        .unwrap();
    assert!(matches!(
        soon("the end", seen.ended()).await,
        Error::Taken { .. }
    ));
    drop(seen);
    second.withdraw().await.unwrap();
    assert_eq!(keys_below(client, "quorate/probe/quiet").await, 0);
}

/// An instance takes work once its checks have passed and while they do; its owner's status is another matter.
pub async fn instances_check_themselves(client: &Client) {
    let session = session(client).await;
    let (answers, probe) = target();
    answers.store(false, Ordering::SeqCst);
    let (_, other) = target();
    let checks = Checks::new().add("disk", probe.clone()).add("port", other);
    let mut discovery = client.discover::<()>("checked").await.unwrap();
    let instance = Instance::builder("checked").id("i").address("h:1").build();
    let registration = session.register_checked(instance, checks).await.unwrap();
    let view = discovery.wait_for(|view| {
        let health = view.instance("i").and_then(|one| one.health.as_ref());
        health.is_some_and(|health| health.state == ProbeState::Down)
    });
    let view = soon("what is found", view).await.unwrap();
    let one = view.instance("i").unwrap();
    assert_eq!(
        (one.status, one.takes_work(), view.up().count()),
        (Status::Up, false, 0)
    );
    let failing = &one.health.as_ref().unwrap().failing;
    assert!(
        failing.keys().eq(["disk"]) && failing["disk"] == "no answer",
        "{failing:?}"
    );
    answers.store(true, Ordering::SeqCst);
    let healthy = discovery.wait_for(|view| view.up().count() == 1);
    let healthy = soon("health", healthy).await.unwrap();
    let (created, at) = (one.created, healthy.instance("i").unwrap().modified);
    // The owner's word and the checks' do not undo one another.
    registration.set_status(Status::Draining).await.unwrap();
    answers.store(false, Ordering::SeqCst);
    let both = discovery.wait_for(|view| {
        let one = view.instance("i").unwrap();
        let down = one
            .health
            .as_ref()
            .is_some_and(|health| health.state == ProbeState::Down);
        one.status == Status::Draining && down
    });
    let both = soon("both", both).await.unwrap();
    let one = both.instance("i").unwrap();
    assert_eq!(one.created, created);
    assert!(one.modified > at);
    registration.deregister().await.unwrap();
    let refused = session.register_checked(
        Instance::builder("checked").build(),
        Checks::new().add("a", probe.clone()).add("a", probe),
    );
    assert!(matches!(refused.await, Err(Error::Invalid(_))));
    let instance = Instance::builder("checked").build();
    let refused = session.register_checked(instance, Checks::new()).await;
    assert!(matches!(refused, Err(Error::Invalid(_))));
    assert_eq!(keys_below(client, "quorate/service/checked").await, 0);
}
