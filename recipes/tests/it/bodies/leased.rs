//! Kept keys: in place whatever happens, with the newest value, and gone with their owner.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::mvccpb::KeyValue;
use quorate_recipes::keys::LeaseId;
use quorate_recipes::{Client, Compare, KeptState};

use super::keys_below;
use crate::support::until;
use quorate_recipes::store::faulty::{Fault, Faulty};

async fn read(client: &Client, key: &str) -> Option<KeyValue> {
    client.get(key).await.unwrap()
}

/// Waits until the key has this value under a lease; returns which.
async fn back(client: &Client, key: &str, value: &str) -> LeaseId {
    until("the key to be back", async || {
        let found = read(client, key).await;
        found.is_some_and(|kv| kv.value == value.as_bytes() && kv.lease != 0)
    })
    .await;
    LeaseId(read(client, key).await.unwrap().lease)
}

/// Deleted, overwritten, its lease gone: the key comes back with its newest value, until it is removed.
pub async fn kept_keys_stay_in_place(client: &Client) {
    let key = "kept/stay";
    client.put(key, "somebody before").await.unwrap();
    let ttl = Duration::from_secs(3);
    let kept = client.keep(key, "one").ttl(ttl).await.unwrap();
    assert_eq!(kept.state(), KeptState::Kept);
    let lease = back(client, key, "one").await;
    let at = kept.set("two").await.unwrap();
    let kv = read(client, key).await.unwrap();
    assert_eq!(
        (kv.mod_revision, &kv.value[..], kv.lease),
        (at.0, &b"two"[..], lease.0)
    );
    client.delete(key).await.unwrap();
    assert_eq!(back(client, key, "two").await, lease);
    client.put(key, "mine").await.unwrap();
    assert_eq!(back(client, key, "two").await, lease);
    client.store().lease_revoke(lease).await.unwrap();
    let next = back(client, key, "two").await;
    assert_ne!(next, lease);
    kept.set("three").await.unwrap();
    client.store().lease_revoke(next).await.unwrap();
    assert_ne!(back(client, key, "three").await, next);
    kept.wait_for(|state| state == KeptState::Kept).await;
    kept.remove().await.unwrap();
    assert_eq!(read(client, key).await, None);
    // Somebody else's key is not removed.
    let kept = client.keep(key, "four").yielding().await.unwrap();
    client.put(key, "mine").await.unwrap();
    kept.wait_for(|state| state == KeptState::Yielded).await;
    kept.remove().await.unwrap();
    assert_eq!(read(client, key).await.unwrap().value, "mine");
}

/// With somebody else's key in its place it waits, and is there when that is gone, as it is then.
pub async fn kept_keys_yield_if_asked(client: &Client) {
    let key = "kept/yield";
    client.put(key, "theirs").await.unwrap();
    let kept = client.keep(key, "one").yielding().await.unwrap();
    assert_eq!(kept.state(), KeptState::Yielded);
    let deleting = async {
        client.put(key, "still theirs").await.unwrap();
        assert_eq!(kept.state(), KeptState::Yielded);
        // Nobody has written it since, and what is set comes after.
        let theirs = client.txn().when(Compare::value(key, "still theirs"));
        theirs.delete(key).commit().await.unwrap().revision()
    };
    let (set, deleted) = tokio::join!(kept.set("two"), deleting);
    assert!(set.unwrap() > deleted);
    back(client, key, "two").await;
    kept.wait_for(|state| state == KeptState::Kept).await;
    // Yields again when it is overwritten, and to another of its kind.
    client.put(key, "theirs again").await.unwrap();
    kept.wait_for(|state| state == KeptState::Yielded).await;
    let second = client.keep(key, "second").yielding().await.unwrap();
    client.delete(key).await.unwrap();
    until("one of them", async || read(client, key).await.is_some()).await;
    let both = [&kept, &second];
    until("a state", async || {
        let count = |asked| both.iter().filter(|kept| kept.state() == asked).count();
        count(KeptState::Kept) == 1 && count(KeptState::Yielded) == 1
    })
    .await;
    drop(kept);
    back(client, key, "second").await;
    second.remove().await.unwrap();
    assert_eq!(read(client, key).await, None);
}

/// Lost and late answers: the newest value, and no late copy after the removal.
pub async fn kept_keys_survive_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let cut = Client::new(faulty.clone());
    for faults in [
        vec![Fault::NotSent, Fault::Unanswered],
        vec![Fault::Unanswered, Fault::Late],
        vec![Fault::Late, Fault::Late],
    ] {
        faulty.plan("kept/lost", faults.clone());
        let kept = cut.keep("kept/lost", "a").await.unwrap();
        faulty.plan("kept/lost", faults.clone());
        for value in ["b", "c"] {
            kept.set(value).await.unwrap();
        }
        faulty.deliver().await;
        assert_eq!(
            read(client, "kept/lost").await.unwrap().value,
            "c",
            "{faults:?}"
        );
        assert_eq!(kept.state(), KeptState::Kept);
        faulty.plan("kept/lost", faults.clone());
        kept.remove().await.unwrap();
        faulty.deliver().await;
        assert_eq!(read(client, "kept/lost").await, None, "{faults:?}");
    }
}

/// A builder dropped on its way, and a dropped key, leave nothing.
pub async fn dropped_kept_keys_leave_nothing(client: &Client) {
    for micros in [0, 500, 2_000, 5_000] {
        let limit = Duration::from_micros(micros);
        let keep = client.keep("kept/dropped", "x").into_future();
        drop(tokio::time::timeout(limit, keep).await);
    }
    drop(client.keep("kept/dropped", "x").await.unwrap());
    until("nothing", async || {
        read(client, "kept/dropped").await.is_none()
    })
    .await;
    // Only their own sessions could still put it back.
    until("their sessions to be gone", async || {
        keys_below(client, "quorate/session").await == 0
    })
    .await;
    assert_eq!(read(client, "kept/dropped").await, None);
}
