//! The deliberate differences that random sequences keep away from, each with what etcd does and
//! what quorate does. They are told in `docs/decisions/etcd-wire.md`.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, PutRequest, RangeRequest, RangeResponse,
    TxnRequest, WatchCreateRequest,
};
use tonic::Code;

use super::op::{Answer, OWN_MEMBER, Op, Refusal, Reply};
use super::trial::{Trial, all_of, bytes, delete, get, put};

fn refused(reason: Reason) -> Answer {
    Err(Refusal {
        code: reason.code(),
        message: reason.text().to_owned(),
    })
}

fn alarm(action: AlarmAction, kind: AlarmType) -> Op {
    Op::Alarm(AlarmRequest {
        action: action.into(),
        member_id: OWN_MEMBER,
        alarm: kind.into(),
    })
}

/// What brings etcd down, so that only quorate is asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_brings_etcd_down_is_refused() -> anyhow::Result<()> {
    let mut quorate = super::store::Store::quorate(&[]).await?;
    quorate.answer(&Op::Put(put("k", "1"))).await?.ok();
    let sorted = |sort_target| RangeRequest {
        sort_target,
        ..get("a", "z")
    };
    let keep = || PutRequest {
        ignore_value: true,
        ..put("k", "")
    };
    let raise = |action, alarm| {
        Op::Alarm(AlarmRequest {
            action,
            member_id: OWN_MEMBER,
            alarm,
        })
    };
    let deleting = || all_of([delete("k", "").into()]);
    let nested = TxnRequest {
        success: vec![deleting().into(), all_of([keep().into()]).into()],
        ..TxnRequest::default()
    };
    let script = [
        (Op::Range(sorted(5)), Reason::InvalidSortOption),
        (Op::Range(sorted(-1)), Reason::InvalidSortOption),
        (
            Op::Txn(all_of([sorted(9).into()])),
            Reason::InvalidSortOption,
        ),
        (
            Op::Txn(TxnRequest {
                failure: vec![sorted(9).into()],
                ..all_of([put("k", "2").into()])
            }),
            Reason::InvalidSortOption,
        ),
        (raise(9, 1), Reason::UnknownAlarm),
        (raise(1, 9), Reason::UnknownAlarm),
        // All keys from `a` on: not seen as a duplicate of the put.
        (
            Op::Txn(all_of([delete("a", "\0").into(), keep().into()])),
            Reason::KeyNotFound,
        ),
        (Op::Txn(nested), Reason::DuplicateKey),
    ];
    for (op, reason) in script {
        assert_eq!(quorate.answer(&op).await?, refused(reason), "{op:?}");
    }
    let Ok(Reply::Range(found)) = quorate.answer(&Op::Range(get("k", ""))).await? else {
        anyhow::bail!("a range");
    };
    assert_eq!(found.kvs[0].value, "1", "nothing was changed");
    Ok(())
}

/// Until 3.5.1 at least, etcd takes a negative start for one that was compacted, or, where nothing
/// was, for the beginning; 3.5.30 and quorate refuse it at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_cannot_begin_at_a_negative_revision() -> anyhow::Result<()> {
    let mut trial = Trial::start().await?;
    let op = Op::WatchCreate {
        stream: 0,
        request: WatchCreateRequest {
            key: bytes("a"),
            start_revision: -2,
            ..WatchCreateRequest::default()
        },
    };
    let Ok(Reply::Watch(ours)) = trial.quorate.answer(&op).await? else {
        anyhow::bail!("an answer");
    };
    assert!(ours.created && ours.canceled && ours.watch_id == -1);
    assert_eq!(ours.cancel_reason, Reason::Compacted.text());
    for (version, etcd) in &mut trial.etcds {
        let Ok(Reply::Watch(theirs)) = etcd.answer(&op).await? else {
            anyhow::bail!("an answer");
        };
        let late = theirs.created && !theirs.canceled && theirs.watch_id == 0;
        assert!(late || theirs == ours, "etcd {version}: {theirs:?}");
    }
    Ok(())
}

/// etcd does not count puts in nested transactions when the store is full, so that it can outgrow
/// its quota; and a second alarm of another kind undoes what the first forbids, as does lifting it.
#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_forbids_what_it_forbids_until_it_is_lifted() -> anyhow::Result<()> {
    use AlarmAction::{Activate, Deactivate};
    use AlarmType::{Corrupt, Nospace};
    let mut trial = Trial::start().await?;
    let nested = Op::Txn(all_of([all_of([put("k", "1").into()]).into()]));
    let put = Op::Put(put("k", "2"));
    let script = [
        (alarm(Activate, Nospace), None),
        (put.clone(), Some((false, Reason::NoSpace))),
        (nested, Some((true, Reason::NoSpace))),
        (alarm(Activate, Corrupt), None),
        (put.clone(), Some((false, Reason::Corrupt))),
        (alarm(Deactivate, Corrupt), None),
        // On etcd nothing is forbidden any more, although the alarm is still listed.
        (put.clone(), Some((true, Reason::NoSpace))),
        (alarm(Deactivate, Nospace), None),
    ];
    for (op, expected) in script {
        let Some((passes_on_etcd, reason)) = expected else {
            assert!(trial.quorate.answer(&op).await?.is_ok(), "{op:?}");
            for (version, etcd) in &mut trial.etcds {
                assert!(etcd.answer(&op).await?.is_ok(), "etcd {version}: {op:?}");
            }
            continue;
        };
        assert_eq!(trial.quorate.answer(&op).await?, refused(reason), "{op:?}");
        for (version, etcd) in &mut trial.etcds {
            let theirs = etcd.answer(&op).await?;
            assert_eq!(
                theirs.is_ok(),
                passes_on_etcd,
                "etcd {version}: {op:?} {theirs:?}"
            );
        }
    }
    assert!(trial.quorate.answer(&put).await?.is_ok());
    Ok(())
}

/// The compacted revision can be watched from. Deletions in it are lost on etcd until 3.5.16.
#[tokio::test(flavor = "multi_thread")]
async fn deletions_in_the_compacted_revision_are_told() -> anyhow::Result<()> {
    let mut trial = Trial::start().await?;
    let script = [
        Op::Put(put("a", "1")),
        Op::DeleteRange(delete("a", "")),
        Op::Compact(CompactionRequest {
            revision: 3,
            physical: true,
        }),
        Op::WatchCreate {
            stream: 0,
            request: WatchCreateRequest {
                key: bytes("a"),
                start_revision: 3,
                ..WatchCreateRequest::default()
            },
        },
        Op::Put(put("a", "2")),
    ];
    for op in script {
        trial.reply(op).await?;
    }
    let told = trial.quorate.told(&[BTreeMap::from([(0, 2)])]).await?;
    let told = &told[0][&0];
    for (version, etcd) in &mut trial.etcds {
        let theirs = etcd.told(&[BTreeMap::from([(0, 1)])]).await?;
        let theirs = &theirs[0][&0];
        assert!(
            theirs[..] == told[1..] || theirs == told,
            "etcd {version}: {theirs:?}"
        );
    }
    Ok(())
}

/// etcd limits neither keys nor the depth of transactions.
#[tokio::test(flavor = "multi_thread")]
async fn keys_and_nesting_are_limited() -> anyhow::Result<()> {
    let mut trial = Trial::start().await?;
    let mut deep = all_of([put("k", "1").into()]);
    for _ in 0..8 {
        deep = all_of([deep.into()]);
    }
    let script = [
        (Op::Put(put(&"k".repeat(32_001), "")), Reason::KeyTooLong),
        (Op::Range(get(&"k".repeat(32_001), "")), Reason::KeyTooLong),
        (Op::Txn(deep), Reason::TxnTooDeep),
    ];
    for (op, reason) in script {
        assert_eq!(trial.quorate.answer(&op).await?, refused(reason));
        for (version, etcd) in &mut trial.etcds {
            assert!(etcd.answer(&op).await?.is_ok(), "etcd {version}");
        }
    }
    let longest = Op::Put(put(&"k".repeat(32_000), ""));
    assert!(trial.quorate.answer(&longest).await?.is_ok());
    Ok(())
}

/// `RangeStream` is of 3.7, which is not at hand: it must tell what `Range` does.
#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_range_is_the_range() -> anyhow::Result<()> {
    let mut quorate = super::store::Store::quorate(&[]).await?;
    let mut kv = quorate.clients.kv.clone();
    for n in 0..40 {
        let request = PutRequest {
            value: vec![b'v'; 100_000].into(),
            ..put(&format!("k{n:02}"), "")
        };
        quorate.answer(&Op::Put(request)).await?.ok();
    }
    let options = [
        get("k", "l"),
        get("k", "\0"),
        get("k07", ""),
        get("none", ""),
        get("l", "k"),
        RangeRequest {
            limit: 1,
            ..get("k", "l")
        },
        RangeRequest {
            limit: 15,
            ..get("k", "l")
        },
        RangeRequest {
            limit: 40,
            ..get("k", "l")
        },
        RangeRequest {
            limit: 99,
            ..get("k", "l")
        },
        RangeRequest {
            revision: 25,
            ..get("k", "l")
        },
        RangeRequest {
            keys_only: true,
            ..get("k", "l")
        },
        RangeRequest {
            count_only: true,
            ..get("k", "l")
        },
        RangeRequest {
            serializable: true,
            ..get("k", "l")
        },
    ];
    for request in options {
        let whole = kv.range(request.clone()).await?.into_inner();
        let mut pieces = kv.range_stream(request.clone()).await?.into_inner();
        let mut joined = RangeResponse::default();
        let mut count = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece?.range_response.unwrap_or_default();
            count += 1;
            joined.kvs.extend(piece.kvs);
            joined.more |= piece.more;
            joined.count += piece.count;
            joined.header = piece.header.or(joined.header);
        }
        assert!(joined == whole, "{request:?} in {count} pieces");
        assert!(
            count > 1 || whole.kvs.len() < 15,
            "{request:?} in {count} pieces"
        );
    }
    for (request, reason) in [
        (
            RangeRequest {
                revision: 99,
                ..get("k", "l")
            },
            Reason::FutureRevision,
        ),
        (get("", "l"), Reason::EmptyKey),
    ] {
        let status = match kv.range_stream(request).await {
            Err(status) => Some(status),
            Ok(pieces) => pieces.into_inner().next().await.and_then(Result::err),
        };
        let status = status.unwrap_or_else(|| tonic::Status::new(Code::Ok, ""));
        assert_eq!(
            (status.code(), status.message()),
            (reason.code(), reason.text())
        );
    }
    Ok(())
}
