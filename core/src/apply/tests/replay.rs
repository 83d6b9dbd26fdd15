//! The same log gives the same state, however it is cut into batches and whenever the store is
//! opened again in between.

use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::{AlarmRequest, AlarmType};
use quorate_proto::log::MemberAttributes;
use quorate_proto::txn::{TxnBuilder, absent, delete as delete_op, get, put as put_op};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::mvcc::hash::hash_kv;
use crate::storage::kv::{Direction, DiskOptions, FjallKv, Kv, KvError, View, WriteBatch};

fn key(rng: &mut StdRng) -> String {
    format!("k{}", rng.random_range(0..12))
}

fn command(rng: &mut StdRng, revision_guess: i64) -> Command {
    let lease = rng.random_range(0..4);
    let key_one = key(rng);
    match rng.random_range(0..14) {
        0..=3 => put(PutRequest {
            lease,
            ..pair_of(&key_one, &key(rng))
        }),
        4 => put(PutRequest {
            ignore_value: true,
            lease,
            ..pair_of(&key_one, "")
        }),
        5 => delete(&key_one, ""),
        6 => delete(&key_one, &key(rng)),
        7 => Kind::LeaseGrant(LeaseGrant {
            id: lease,
            ttl_seconds: 60,
        }),
        8 => revoke(lease),
        9 => expire(&[lease, 3]),
        10 => checkpoint(lease, rng.random_range(0..50)),
        11 => compact(rng.random_range(0..=revision_guess)),
        12 => {
            let inner = TxnBuilder::new()
                .when(absent(key(rng)))
                .then(delete_op(key(rng)))
                .or_else(put_op(key(rng), "n"));
            let txn = TxnBuilder::new()
                .when(absent(key_one.clone()))
                .then(put_op(key_one, "t"))
                .then(inner.build())
                .or_else(get(key(rng)))
                .or_else(PutRequest {
                    lease,
                    ..put_op(key(rng), "f")
                });
            Kind::Txn(txn.build())
        }
        _ if rng.random_bool(0.5) => Kind::MemberAttributes(MemberAttributes {
            id: lease.unsigned_abs(),
            name: key_one,
            ..MemberAttributes::default()
        }),
        _ => {
            let action = [
                AlarmAction::Activate,
                AlarmAction::Deactivate,
                AlarmAction::Deactivate,
            ];
            Kind::Alarm(AlarmRequest {
                action: action[rng.random_range(0..3)].into(),
                member_id: lease.unsigned_abs(),
                alarm: AlarmType::Nospace.into(),
            })
        }
    }
}

/// A log of entries of one to four commands, with blanks, memberships and new terms among them.
fn log(rng: &mut StdRng, entries: u64) -> Vec<Committed> {
    let mut term = 1;
    (1..=entries)
        .map(|index| {
            let payload = match rng.random_range(0..10) {
                0 => {
                    term += 1;
                    Payload::Blank
                }
                1 => Payload::Membership(format!("members at {index}").into()),
                _ => {
                    let count = rng.random_range(1..=4);
                    let guess = i64::try_from(index).expect("small");
                    Payload::Normal(batch((0..count).map(|_| command(rng, guess)).collect()))
                }
            };
            Committed {
                id: EntryId::new(term, index),
                payload,
            }
        })
        .collect()
}

fn content(kv: &dyn Kv) -> Vec<(Bytes, Bytes)> {
    use std::ops::Bound::Unbounded;
    let view = kv.view();
    view.range(Unbounded, Unbounded, Direction::Forward)
        .collect::<Result<_, _>>()
        .expect("memory does not fail")
}

/// What a state keeps in memory, in words.
fn caches(state: &State) -> String {
    let reader = state.reader();
    let lessor = reader.lessor();
    let leases: Vec<_> = lessor.ids().into_iter().map(|id| lessor.get(id)).collect();
    format!(
        "{:?} {:?} {} {:?} {:?} {leases:?}",
        state.applied(),
        reader.revision(),
        reader.compact_revision(),
        reader.alarms(),
        reader.members(),
    )
}

fn open(kv: &Arc<dyn Kv>) -> State {
    State::open(Arc::clone(kv), &Options::default()).expect("opens")
}

fn answers(applied: Applied) -> Vec<Result<Answer, Reason>> {
    applied
        .outcomes
        .into_iter()
        .map(|outcome| outcome.result)
        .collect()
}

#[test]
fn batches_and_reopening_make_no_difference() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let log = log(&mut rng, 120);
        let one: Arc<dyn Kv> = Arc::new(MemKv::new());
        let other: Arc<dyn Kv> = Arc::new(MemKv::new());
        let (mut first, mut second) = (open(&one), open(&other));
        let (mut first_answers, mut second_answers) = (Vec::new(), Vec::new());
        let (mut first_events, mut second_events) = (Vec::new(), Vec::new());
        // One entry a batch, opened again after each.
        for entry in log.clone() {
            let applied = first.apply(vec![entry], OWN).expect("applies");
            first_events.extend(applied.publication.events().cloned());
            first_answers.extend(answers(applied));
            let reopened = open(&one);
            assert_eq!(caches(&first), caches(&reopened), "seed {seed}");
            first = reopened;
        }
        // Batches of any size, never opened again.
        let mut rest = log;
        while !rest.is_empty() {
            let size = rng.random_range(1..=rest.len().min(30));
            let later = rest.split_off(size);
            let applied = second.apply(rest, OWN).expect("applies");
            second_events.extend(applied.publication.events().cloned());
            second_answers.extend(answers(applied));
            rest = later;
        }
        assert_eq!(content(&*one), content(&*other), "seed {seed}");
        assert_eq!(caches(&first), caches(&second), "seed {seed}");
        assert_eq!(first_answers, second_answers, "seed {seed}");
        assert_eq!(first_events, second_events, "seed {seed}");
        let hash = |kv: &Arc<dyn Kv>| hash_kv(&*kv.view(), 0).expect("readable").hash;
        assert_eq!(hash(&one), hash(&other), "seed {seed}");
    }
}

#[test]
fn a_member_that_answers_nobody_comes_to_the_same_state() {
    for seed in 100..110 {
        let mut rng = StdRng::seed_from_u64(seed);
        let log = log(&mut rng, 60);
        let one: Arc<dyn Kv> = Arc::new(MemKv::new());
        let other: Arc<dyn Kv> = Arc::new(MemKv::new());
        let mine = open(&one).apply(log.clone(), OWN).expect("applies");
        let theirs = open(&other)
            .apply(log, Uuid::from_u128(2))
            .expect("applies");
        assert!(!mine.outcomes.is_empty() && theirs.outcomes.is_empty());
        assert_eq!(mine.terms, theirs.terms);
        assert_eq!(content(&*one), content(&*other), "seed {seed}");
    }
}

#[test]
fn applied_id_and_membership_are_in_the_store_of_the_batch() {
    let kv: Arc<dyn Kv> = Arc::new(MemKv::new());
    let mut state = open(&kv);
    assert_eq!(state.applied(), (None, None));
    let entry = |term, index, payload| Committed {
        id: EntryId::new(term, index),
        payload,
    };
    let membership = || Payload::Membership("m".into());
    let applied = state
        .apply(
            vec![entry(0, 0, membership()), entry(1, 1, Payload::Blank)],
            OWN,
        )
        .expect("applies");
    assert_eq!(applied.terms, [EntryId::new(0, 0), EntryId::new(1, 1)]);
    let applied = state
        .apply(
            vec![entry(1, 2, Payload::Blank), entry(4, 3, Payload::Blank)],
            OWN,
        )
        .expect("applies");
    assert_eq!(applied.terms, [EntryId::new(4, 3)]);
    let expected = (Some(EntryId::new(4, 3)), Some(Bytes::from("m")));
    assert_eq!(state.applied(), expected);
    let view: Arc<dyn View> = kv.view();
    assert_eq!(
        crate::apply::applied_in(&*view).expect("readable"),
        expected
    );
}

#[test]
fn an_installed_store_replaces_everything() {
    let mut ahead = Machine::new();
    ahead.grant(7);
    ahead.put(PutRequest {
        lease: 7,
        ..pair_of("new", "v")
    });
    let mut behind = Machine::new();
    behind.grant(8);
    let reader = behind.state.reader();
    let lessor = reader.lessor();
    behind.state.install(ahead.state.kv()).expect("loads");
    assert_eq!(caches(&behind.state), caches(&ahead.state));
    assert_eq!((reader.revision(), lessor.ids()), (2, vec![7]));
    assert!(behind.pair("new").is_some());
}

/// A store whose commits fail.
#[derive(Debug)]
struct Broken(MemKv);

impl Kv for Broken {
    fn view(&self) -> Arc<dyn View> {
        self.0.view()
    }
    fn commit(&self, _: WriteBatch) -> Result<(), KvError> {
        Err(KvError::DiskFull {
            cause: "test".to_owned(),
        })
    }
    fn persist(&self) -> Result<(), KvError> {
        Ok(())
    }
    fn disk_bytes(&self) -> u64 {
        0
    }
    fn reclaim(&self) -> Result<(), KvError> {
        self.0.reclaim()
    }
}

#[test]
fn a_batch_that_cannot_be_stored_shows_nowhere() {
    let kv: Arc<dyn Kv> = Arc::new(Broken(MemKv::new()));
    let mut state = open(&kv);
    let before = caches(&state);
    let grant = Kind::LeaseGrant(LeaseGrant {
        id: 7,
        ttl_seconds: 60,
    });
    let payload = Payload::Normal(batch(vec![grant, put(pair_of("k", "v"))]));
    let entry = Committed {
        id: EntryId::new(1, 1),
        payload,
    };
    assert!(state.apply(vec![entry], OWN).is_err());
    assert_eq!(caches(&state), before);
    let garbage = Payload::Normal(Bytes::from_static(b"\xff\xff"));
    let entry = Committed {
        id: EntryId::new(1, 1),
        payload: garbage,
    };
    assert!(matches!(
        state.apply(vec![entry], OWN),
        Err(KvError::Corrupt { .. })
    ));
}

#[test]
fn a_store_on_disk_opens_as_it_was_left() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("kv");
    let options = DiskOptions::default();
    drop(FjallKv::create(&folder, &options).expect("a new store"));
    let disk = || -> Arc<dyn Kv> { Arc::new(FjallKv::open(&folder, &options).expect("opens")) };
    let memory: Arc<dyn Kv> = Arc::new(MemKv::new());
    let mut expected = open(&memory);
    let mut rest = log(&mut StdRng::seed_from_u64(7), 60);
    while !rest.is_empty() {
        let later = rest.split_off(20);
        expected.apply(rest.clone(), OWN).expect("applies");
        let kv = disk();
        open(&kv).apply(rest, OWN).expect("applies");
        drop(kv);
        let kv = disk();
        assert_eq!(caches(&open(&kv)), caches(&expected));
        assert_eq!(content(&*kv), content(&*memory));
        rest = later;
    }
}
