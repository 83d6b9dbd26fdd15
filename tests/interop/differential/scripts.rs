//! Scripts for what random sequences reach seldom, or where an answer has to be right and not only
//! etcd's.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use quorate_harness::eventually;
use quorate_proto::etcdserverpb::{
    CompactionRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest,
    RangeRequest, WatchCreateRequest,
};
use quorate_proto::mvccpb::KeyValue;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::Code;

use super::op::{Op, Reply};
use super::streams::Told;
use super::trial::{Trial, all_of, bytes, delete, get, grant, put};

#[tokio::test(flavor = "multi_thread")]
async fn revisions_count_writes() -> anyhow::Result<()> {
    let mut trial = Trial::start().await?;
    let nested = || all_of([put("d", "1").into(), delete("a", "").into()]);
    let script = [
        (Op::Range(get("a", "")), 1),
        (Op::DeleteRange(delete("a", "z")), 1),
        (Op::Txn(all_of([])), 1),
        (Op::Txn(all_of([get("a", "").into()])), 1),
        (Op::Txn(all_of([delete("a", "").into()])), 1),
        (grant(7, 100), 1),
        (Op::Put(put("a", "1")), 2),
        (Op::Put(put("a", "1")), 3),
        (
            Op::Txn(all_of([put("b", "1").into(), put("c", "1").into()])),
            4,
        ),
        (Op::Txn(all_of([nested().into(), put("e", "1").into()])), 5),
        (Op::DeleteRange(delete("b", "d")), 6),
        (Op::DeleteRange(delete("b", "d")), 6),
        (Op::LeaseRevoke(LeaseRevokeRequest { id: 7 }), 6),
        (
            Op::Compact(CompactionRequest {
                revision: 5,
                physical: true,
            }),
            6,
        ),
        (
            Op::Range(RangeRequest {
                revision: 5,
                ..get("a", "z")
            }),
            6,
        ),
    ];
    for (op, revision) in script {
        let what = format!("{op:?}");
        assert_eq!(trial.revision(op).await?, revision, "{what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_what_was_there() -> anyhow::Result<()> {
    let mut trial = Trial::start().await?;
    let mut random = StdRng::seed_from_u64(5);
    let mut states: BTreeMap<i64, Vec<KeyValue>> = BTreeMap::new();
    let everything = |revision| {
        Op::Range(RangeRequest {
            revision,
            ..get("\0", "\0")
        })
    };
    let mut compacted = 0;
    for round in 0..150 {
        let key = ["a", "a\0", "aa", "b", "c"][random.random_range(0..5)];
        let value = format!("{round}");
        let op = match random.random_range(0..4) {
            0 => Op::DeleteRange(delete(key, "")),
            // Deleted and made anew in one revision; not so named that it counts as a duplicate.
            1 => Op::Txn(all_of([delete(key, "\0").into(), put(key, &value).into()])),
            _ => Op::Put(put(key, &value)),
        };
        trial.reply(op).await?;
        let Reply::Range(now) = trial.reply(everything(0)).await? else {
            anyhow::bail!("a range");
        };
        let revision = now.header.unwrap_or_default().revision;
        states.insert(revision, now.kvs);
        if round % 40 == 39 {
            compacted = revision - 20;
            trial
                .reply(Op::Compact(CompactionRequest {
                    revision: compacted,
                    physical: true,
                }))
                .await?;
            for (revision, state) in &states {
                let answer = trial.ask(everything(*revision)).await?;
                match answer {
                    Ok(Reply::Range(then)) => assert_eq!(&then.kvs, state, "at {revision}"),
                    Ok(other) => anyhow::bail!("{other:?}"),
                    Err(_) => assert!(*revision < compacted),
                }
            }
        }
    }
    assert!(compacted > 50);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_sees_its_own_writes_but_not_in_compares() -> anyhow::Result<()> {
    let mut trial = Trial::start().await?;
    trial.reply(Op::Put(put("a", "old"))).await?;
    let request = all_of([
        get("a", "").into(),
        put("a", "new").into(),
        get("a", "").into(),
        RangeRequest {
            revision: 2,
            ..get("a", "")
        }
        .into(),
        put("b", "new").into(),
        get("a", "z").into(),
        delete("b\0", "").into(),
        get("a", "z").into(),
    ]);
    let Reply::Txn(answer) = trial.reply(Op::Txn(request)).await? else {
        anyhow::bail!("a transaction");
    };
    let values: Vec<Vec<Bytes>> = answer
        .responses
        .iter()
        .filter_map(|response| response.as_range())
        .map(|range| range.kvs.iter().map(|kv| kv.value.clone()).collect())
        .collect();
    assert_eq!(
        values,
        [
            vec!["old"],
            vec!["new"],
            vec!["old"],
            vec!["new", "new"],
            vec!["new", "new"]
        ]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_hears_a_transaction_in_the_order_it_ran() -> anyhow::Result<()> {
    let mut trial = Trial::start().await?;
    let create = WatchCreateRequest {
        key: bytes("\0"),
        range_end: bytes("\0"),
        prev_kv: true,
        ..WatchCreateRequest::default()
    };
    trial
        .reply(Op::WatchCreate {
            stream: 0,
            request: create,
        })
        .await?;
    let nested = all_of([put("c", "1").into(), delete("a", "b").into()]);
    trial.reply(Op::Put(put("a", "1"))).await?;
    trial
        .reply(Op::Txn(all_of([
            put("z", "1").into(),
            nested.into(),
            put("b", "1").into(),
        ])))
        .await?;
    let due = [BTreeMap::from([(0, 5)])];
    let ours = trial.quorate.told(&due).await?;
    for (version, etcd) in &mut trial.etcds {
        assert_eq!(etcd.told(&due).await?, ours, "etcd {version}");
    }
    let keys: Vec<_> = ours[0][&0]
        .iter()
        .filter_map(|told| match told {
            Told::Event(event) => event
                .kv
                .as_ref()
                .map(|kv| (kv.mod_revision, kv.key.clone())),
            Told::Control(_) => None,
        })
        .collect();
    let expected = [(2, "a"), (3, "z"), (3, "c"), (3, "a"), (3, "b")];
    assert_eq!(keys, expected.map(|(revision, key)| (revision, bytes(key))));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_watchers_are_told_of_themselves() -> anyhow::Result<()> {
    let mut trial = Trial::start().await?;
    for value in ["1", "2", "3", "4"] {
        trial.reply(Op::Put(put("a", value))).await?;
    }
    trial
        .reply(Op::Compact(CompactionRequest {
            revision: 4,
            physical: true,
        }))
        .await?;
    let create = |watch_id, key: &str, range_end: &str, start_revision| Op::WatchCreate {
        stream: 0,
        request: WatchCreateRequest {
            key: bytes(key),
            range_end: bytes(range_end),
            start_revision,
            watch_id,
            prev_kv: true,
            ..WatchCreateRequest::default()
        },
    };
    let cancel = |id, known| Op::WatchCancel {
        stream: 0,
        id,
        known,
    };
    // (operation, id, canceled, reason)
    let (in_use, empty) = (
        "mvcc: duplicate watch ID provided on the WatchStream",
        "mvcc: watcher range is empty",
    );
    let script = [
        (create(0, "a", "", 0), 0, false, ""),
        (create(0, "a", "", 100), 1, false, ""),
        (create(5, "a", "", 0), 5, false, ""),
        (create(2, "a", "", 0), 2, false, ""),
        (create(0, "a", "", 0), 3, false, ""),
        (create(5, "a", "", 0), -1, true, in_use),
        (create(-7, "a", "", 0), -7, false, ""),
        (create(0, "b", "a", 0), -1, true, empty),
        (create(0, "b", "b", 0), -1, true, empty),
        (create(0, "", "b", 0), 4, false, ""),
        (create(0, "", "\0", 0), 6, false, ""),
        (cancel(5, true), 5, true, ""),
        (create(5, "a", "", 0), 5, false, ""),
        // Compacted: the refusal comes by itself, and the id stays taken.
        (create(9, "a", "", 3), 9, false, ""),
        (create(9, "a", "", 0), -1, true, in_use),
        // At the compacted revision: told, without the pair before.
        (create(10, "a", "", 4), 10, false, ""),
    ];
    for (op, id, canceled, reason) in script {
        let what = format!("{op:?}");
        let Reply::Watch(answer) = trial.reply(op).await? else {
            anyhow::bail!("{what}");
        };
        let told = (
            answer.watch_id,
            answer.canceled,
            answer.cancel_reason.as_str(),
        );
        assert_eq!(told, (id, canceled, reason), "{what}");
        assert_eq!(answer.header.unwrap_or_default().revision, 5, "{what}");
    }
    for unknown in [99, -1] {
        trial.reply(cancel(unknown, false)).await?;
    }
    let due = [BTreeMap::from([(9, 1), (10, 2)])];
    let ours = trial.quorate.told(&due).await?;
    for (version, etcd) in &mut trial.etcds {
        assert_eq!(etcd.told(&due).await?, ours, "etcd {version}");
    }
    let [Told::Control(refusal)] = &ours[0][&9][..] else {
        anyhow::bail!("{ours:?}");
    };
    assert_eq!(
        (refusal.compact_revision, refusal.cancel_reason.as_str()),
        (4, "")
    );
    let before: Vec<_> = ours[0][&10]
        .iter()
        .filter_map(|told| match told {
            Told::Event(event) => Some(event.prev_kv.as_ref().map(|kv| kv.value.clone())),
            Told::Control(_) => None,
        })
        .collect();
    assert_eq!(before, [None, Some(bytes("3"))]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_the_lease_of_its_last_put() -> anyhow::Result<()> {
    let mut trial = Trial::start().await?;
    for lease in [1, 2] {
        trial.reply(grant(lease, 1_000)).await?;
    }
    let with = |key: &str, lease| PutRequest {
        lease,
        ..put(key, "v")
    };
    let keep = |key: &str, keep_value, lease| PutRequest {
        ignore_value: keep_value,
        ignore_lease: !keep_value,
        lease,
        ..put(key, if keep_value { "" } else { "w" })
    };
    // What is put, and the keys of lease 1 and 2 then.
    let script: [(PutRequest, &[&str], &[&str]); 9] = [
        (with("a", 1), &["a"], &[]),
        (with("b", 1), &["a", "b"], &[]),
        (with("a", 2), &["b"], &["a"]),
        (with("a", 0), &["b"], &[]),
        (keep("a", true, 2), &["b"], &["a"]),
        (keep("b", false, 0), &["b"], &["a"]),
        (keep("b", true, 2), &[], &["a", "b"]),
        (keep("b", true, 0), &[], &["a"]),
        (with("b", 1), &["b"], &["a"]),
    ];
    for (request, first, second) in script {
        let what = format!("{request:?}");
        trial.reply(Op::Put(request)).await?;
        for (lease, keys) in [(1, first), (2, second)] {
            let left = Op::LeaseTimeToLive(LeaseTimeToLiveRequest {
                id: lease,
                keys: true,
            });
            let Reply::LeaseTimeToLive(left) = trial.reply(left).await? else {
                anyhow::bail!("{what}");
            };
            assert_eq!(left.keys, keys, "lease {lease} after {what}");
        }
    }
    trial.reply(Op::DeleteRange(delete("a", ""))).await?;
    assert_eq!(
        trial
            .revision(Op::LeaseRevoke(LeaseRevokeRequest { id: 2 }))
            .await?,
        11
    );
    assert_eq!(
        trial
            .revision(Op::LeaseRevoke(LeaseRevokeRequest { id: 1 }))
            .await?,
        12
    );
    assert_eq!(trial.revision(Op::Range(get("a", "z"))).await?, 12);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_nobody_renews_takes_its_keys_with_it() -> anyhow::Result<()> {
    // A member alone may take all of its election timeout to begin.
    let mut trial = Trial::start_with(&["--election-timeout", "1000"]).await?;
    for (id, ttl) in [(1, 1), (2, -5), (3, 0)] {
        let Reply::LeaseGrant(granted) = trial.reply(grant(id, ttl)).await? else {
            anyhow::bail!("a grant");
        };
        assert_eq!(granted.ttl, 2, "the shortest");
    }
    for key in ["b", "a"] {
        trial
            .reply(Op::Put(PutRequest {
                lease: 1,
                ..put(key, "v")
            }))
            .await?;
    }
    let mut stores: Vec<_> = vec![("quorate".to_owned(), &mut trial.quorate)];
    stores.extend(
        trial
            .etcds
            .iter_mut()
            .map(|(version, store)| (version.clone(), store)),
    );
    let mut all = Vec::new();
    for (name, store) in stores {
        let clients = store.clients.clone();
        eventually(
            &format!("{name}: the leases end"),
            Duration::from_secs(20),
            || async {
                let leases = clients
                    .lease
                    .clone()
                    .lease_leases(LeaseLeasesRequest {})
                    .await;
                leases.ok()?.into_inner().leases.is_empty().then_some(())
            },
        )
        .await?;
        let left = LeaseTimeToLiveRequest { id: 1, keys: true };
        let left = store.answer(&Op::LeaseTimeToLive(left)).await?;
        let renewed = store.answer(&Op::LeaseKeepAlive(1)).await?;
        all.push((left, renewed, store.everything_until(4).await?));
    }
    let ours = all.remove(0);
    for theirs in all {
        assert_eq!(theirs, ours);
    }
    let keys = ours.2.iter().filter_map(|told| match told {
        Told::Event(event) => event
            .kv
            .as_ref()
            .map(|kv| (kv.mod_revision, kv.key.clone())),
        Told::Control(_) => None,
    });
    let expected = [(2, "b"), (3, "a"), (4, "a"), (4, "b")];
    assert_eq!(
        keys.collect::<Vec<_>>(),
        expected.map(|(revision, key)| (revision, bytes(key)))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_too_large_are_refused_in_etcds_words() -> anyhow::Result<()> {
    const LIMIT: usize = 1_572_864;
    const GRPC_LIMIT: usize = 2_097_152;
    let mut trial = Trial::start().await?;
    let of = |size| PutRequest {
        value: vec![b'v'; size].into(),
        ..put("big", "")
    };
    trial.reply(Op::Put(of(LIMIT - 64))).await?;
    let too_large = "etcdserver: request is too large";
    let half = || of(LIMIT / 2);
    let other = || PutRequest {
        key: bytes("other"),
        ..half()
    };
    let two = all_of([half().into(), other().into()]);
    for op in [
        Op::Put(of(LIMIT)),
        Op::Put(of(GRPC_LIMIT - 64)),
        Op::Txn(two),
    ] {
        let refusal = trial.refusal(op).await?;
        assert_eq!(
            (refusal.code, refusal.message.as_str()),
            (Code::InvalidArgument, too_large)
        );
    }
    let refusal = trial.refusal(Op::Put(of(GRPC_LIMIT))).await?;
    assert_eq!(refusal.code, Code::ResourceExhausted);
    // Tag and length of the key (5 bytes), and tag and length of the value (5 bytes).
    let message = format!(
        "grpc: received message larger than max ({} vs. {GRPC_LIMIT})",
        GRPC_LIMIT + 10
    );
    assert_eq!(refusal.message, message);
    let Reply::Range(found) = trial.reply(Op::Range(get("big", ""))).await? else {
        anyhow::bail!("a range");
    };
    assert_eq!(found.kvs[0].value.len(), LIMIT - 64);
    Ok(())
}
