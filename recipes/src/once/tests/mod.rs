//! Shared results on a store in memory whose calls fail at random, judged by everything that was
//! written.

mod drops;
mod failures;
mod refreshes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_proto::mvccpb::event::EventType;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::manifest::{Joined, Manifest, chunk_name};
use super::{OnceCell, OnceError, Published};
use crate::client::Client;
use crate::clock;
use crate::error::Error;
use crate::keys::{KeySpace, Revision};
use crate::session::Session;
use crate::store::{Capabilities, Faulty, MemStore, Rates};

const MINUTES: Duration = Duration::from_secs(180);

/// A value that somebody got, and the store's revisions before and after the call.
struct Got {
    value: String,
    from: Revision,
    to: Revision,
}

async fn open(client: &Client) -> Session {
    loop {
        match client.session().ttl(Duration::from_secs(6)).await {
            Ok(session) => return session,
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

fn millis(random: &mut SmallRng, most: u64) -> Duration {
    Duration::from_millis(random.random_range(0..most))
}

/// Asks for the result, and computes, fails, gives up, dies, waits and takes back now and then.
async fn candidate(store: &MemStore, client: &Client, seed: u64) -> Vec<Got> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut session = open(client).await;
    let mut all = Vec::new();
    let end = clock::now() + MINUTES;
    for round in 0.. {
        if clock::now() >= end {
            break;
        }
        if session.check().is_err() {
            session = open(client).await;
        }
        tokio::time::sleep(millis(&mut random, 2_000)).await;
        let (patience, takes) = (millis(&mut random, 15_000), millis(&mut random, 3_000));
        let chance = random.random_range(0..12);
        let cell: OnceCell<String> = client.once("r");
        let from = store.revision();
        // What it replaces comes first.
        let text = |stale: Revision| format!("{stale} {seed} {round} ").repeat(1 + round % 20);
        let work = async {
            let init = |stale: Revision| async move {
                tokio::time::sleep(takes).await;
                if chance == 2 {
                    Err("no")
                } else {
                    Ok(text(stale))
                }
            };
            match chance {
                0 => cell.wait().await.map_err(OnceError::Failed),
                1 => cell
                    .get()
                    .await
                    .map_err(OnceError::Failed)
                    .map(|got| got.unwrap_or_default()),
                2..6 => {
                    let published = cell.published().await.unwrap();
                    let Some(Published { revision, .. }) = published else {
                        return Ok(Arc::default());
                    };
                    let init = || init(revision);
                    cell.refresh(&session, revision, init).await
                }
                _ => {
                    let init = || init(Revision(0));
                    cell.get_or_try_init(&session, init).await
                }
            }
        };
        let got = tokio::select! {
            biased;
            got = work => got,
            () = tokio::time::sleep(patience) => {
                if chance > 9 {
                    let _ = store.expire(session.lease());
                }
                continue;
            }
        };
        let to = store.revision();
        match got {
            Ok(value) if value.is_empty() => {}
            Ok(value) => all.push(Got {
                value: String::clone(&value),
                from,
                to,
            }),
            Err(
                OnceError::Init("no")
                | OnceError::Failed(
                    Error::SessionLost(_) | Error::OutcomeUnknown(_) | Error::Conflict,
                ),
            ) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
        if random.random_range(0..3) == 0
            && let Some(published) = cell.published().await.unwrap()
        {
            let _ = tokio::time::timeout(patience, cell.invalidate(published.revision)).await;
        }
    }
    all
}

/// Replays what was written; gives each published value, and from which revision to which it was.
fn judge(store: &MemStore, seed: u64) -> Vec<Got> {
    let chunks = KeySpace::of("once", "r").child("chunk");
    let mut live = BTreeMap::new();
    let mut all: Vec<Got> = Vec::new();
    let mut published: Option<(Revision, Manifest)> = None;
    for commit in store.history(Revision(0)) {
        let place = format!("seed {seed} at {}", commit.revision);
        let before = published.as_ref().map_or(Revision(0), |(at, _)| *at);
        let mut put = None;
        for event in &commit.changes {
            let kv = event.kv.as_ref().unwrap();
            let deleted = event.r#type() == EventType::Delete;
            match deleted {
                true => live.remove(&kv.key),
                false => live.insert(kv.key.clone(), kv.clone()),
            };
            if kv.key.ends_with(b"/manifest") && deleted {
                published = None;
                all.last_mut().unwrap().to = commit.revision;
            } else if kv.key.ends_with(b"/manifest") {
                put = Some(Manifest::read(kv).unwrap());
            }
        }
        if let Some(manifest) = put {
            if published.is_some() {
                all.last_mut().unwrap().to = commit.revision;
            }
            let (from, to) = (commit.revision, Revision(i64::MAX));
            let value = String::new();
            all.push(Got { value, from, to });
            published = Some((commit.revision, manifest));
        }
        // Whole at every revision at which it is published.
        if let Some((at, manifest)) = &published {
            let space = manifest.space(&chunks);
            let mut joined = Joined::default();
            for index in 0..manifest.chunks {
                let kv = live.get(space.key(&chunk_name(index)).as_bytes());
                let kv = kv.unwrap_or_else(|| panic!("{place}: chunk {index} is missing"));
                joined.push(manifest, kv).unwrap();
            }
            let value = manifest.decode(&"r".into(), joined.as_bytes());
            let value: String = value.unwrap_or_else(|error| panic!("{place}: {error}"));
            if *at == commit.revision {
                // Nothing else than what it was to replace; nothing at all, if that had been taken back.
                let named = value.split(' ').next().unwrap();
                let vacant = before == Revision(0);
                assert!(
                    vacant || before.to_string() == named,
                    "{place}: what is to replace {named} replaces {before}"
                );
            }
            all.last_mut().unwrap().value = value;
        }
    }
    all
}

#[tokio::test(start_paused = true)]
async fn every_reader_gets_what_was_published() {
    let (mut results, mut reads) = (0, 0);
    for seed in 0..40 {
        let store = MemStore::with_capabilities(Capabilities {
            // Chunks of 32 bytes.
            max_request_bytes: 64,
            ..Default::default()
        });
        let mut faults = Vec::new();
        let mut clients = Vec::new();
        for index in 0..4 {
            let faulty = Faulty::new(store.clone());
            faulty.fail_at_random(seed * 10 + index, Rates::evenly(0.2));
            faults.push(faulty.clone());
            clients.push(Client::builder(faulty).seed(seed * 10 + index).build());
        }
        let candidates = (0..).zip(&clients).map(|(index, client)| {
            let seed = seed * 10 + index;
            candidate(&store, client, seed)
        });
        let got = join_all(candidates).await;
        faults
            .iter()
            .for_each(|faulty| faulty.fail_at_random(0, Rates::NONE));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let published = judge(&store, seed);
        for got in got.iter().flatten() {
            let there = published
                .iter()
                .any(|one| one.value == got.value && one.from <= got.to && got.from <= one.to);
            assert!(
                there,
                "seed {seed}: {} from {} to {}",
                got.value, got.from, got.to
            );
        }
        let line = store.keys("quorate/once/r/turn/");
        assert!(line.is_empty(), "seed {seed}: {line:?}");
        results += published.len();
        reads += got.iter().flatten().count();
    }
    assert!(
        results > 200 && reads > 1_000,
        "{results} results, {reads} reads"
    );
}

#[tokio::test(start_paused = true)]
async fn a_result_is_read_whole_across_a_compaction() {
    let store = MemStore::with_capabilities(Capabilities {
        max_request_bytes: 64,
        ..Default::default()
    });
    let client = Client::new(store.clone());
    let session = client.session().await.unwrap();
    let text = "a long enough text for several chunks ".repeat(5);
    let cell = client.once::<String>("r");
    cell.get_or_try_init(&session, || async { Ok::<_, &str>(text.clone()) })
        .await
        .unwrap();
    let reader = client.once::<String>("r");
    let compact = async {
        for _ in 0..6 {
            client.put("other", "x").await.unwrap();
            store.compact(store.revision()).unwrap();
        }
    };
    let (read, ()) = tokio::join!(reader.get(), compact);
    assert_eq!(*read.unwrap().unwrap(), text);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_can_be_taken_back() {
    let store = MemStore::new();
    let client = Client::new(store.clone());
    let session = client.session().await.unwrap();
    let cell = client.once::<String>("r");
    for damage in ["", "{", r#"{"v":2,"parts":[]}"#] {
        client.put("quorate/once/r/manifest", damage).await.unwrap();
        let init = || async { Ok::<_, &str>("x".to_owned()) };
        let refused = cell.get_or_try_init(&session, init).await;
        let codec = matches!(refused, Err(OnceError::Failed(Error::Codec { .. })));
        assert!(codec, "{damage}: {refused:?}");
        let published = cell.published().await.unwrap().unwrap();
        assert_eq!(published.bytes, None, "{damage}");
        cell.invalidate(published.revision).await.unwrap();
        assert_eq!(*cell.get_or_try_init(&session, init).await.unwrap(), "x");
        let published = cell.published().await.unwrap().unwrap();
        assert_eq!(published.bytes, Some(3));
        cell.invalidate(published.revision).await.unwrap();
    }
}
