//! Computing once: one published result that every reader gets, and none that is not whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate_recipes::once::OnceError;
use quorate_recipes::store::Store;
use quorate_recipes::store::faulty::{Fault, Faulty};
use quorate_recipes::{Client, Error, Revision};

use super::{keys_below, session};
use crate::support::{soon, until};

type Failure = OnceError<&'static str>;

fn client_of(faulty: &Faulty<Arc<dyn Store>>) -> Client {
    Client::new(faulty.clone())
}

/// Of many who need it one computes, and all get that; so do those who come later, and who only wait.
pub async fn one_computes_and_all_get_it(client: &Client) {
    let computed = Arc::new(AtomicUsize::new(0));
    let waiter = tokio::spawn({
        let cell = client.once::<u64>("shared");
        async move { cell.wait().await }
    });
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (client, computed) = (client.clone(), Arc::clone(&computed));
        tasks.spawn(async move {
            let session = session(&client).await;
            let cell = client.once::<u64>("shared").with_info("summing");
            let value = cell
                .get_or_try_init(&session, || async {
                    let holder = cell.computing().await.unwrap().unwrap();
                    assert_eq!(
                        (holder.info.as_str(), holder.lease),
                        ("summing", session.lease())
                    );
                    computed.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, &str>(42)
                })
                .await;
            *value.unwrap()
        });
    }
    soon("all", async {
        while let Some(value) = tasks.join_next().await {
            assert_eq!(value.unwrap(), 42);
        }
    })
    .await;
    assert_eq!(computed.load(Ordering::SeqCst), 1);
    assert_eq!(*soon("the waiter", waiter).await.unwrap().unwrap(), 42);
    let cell = client.once::<u64>("shared");
    assert_eq!(cell.get().await.unwrap().as_deref(), Some(&42));
    until("an empty line", async || {
        cell.computing().await.unwrap().is_none() && keys_below(client, cell.prefix()).await == 2
    })
    .await;
}

/// A failure is that caller's own; a loss of the turn stops the computation; the next one computes.
pub async fn the_next_one_computes(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let cell = client.once::<String>("next");
    let failed = cell
        .get_or_try_init(&a, || async { Err::<String, _>("no") })
        .await;
    assert!(matches!(failed, Err(OnceError::Init("no"))), "{failed:?}");
    let lost = tokio::spawn({
        let (cell, a) = (cell.clone(), a.clone());
        async move {
            let never = std::future::pending::<Result<String, &str>>();
            cell.get_or_try_init(&a, || never).await
        }
    });
    until("the first to compute", async || {
        let who = cell.computing().await.unwrap();
        who.is_some_and(|who| who.lease == a.lease())
    })
    .await;
    let next = tokio::spawn({
        let (cell, b) = (cell.clone(), b.clone());
        async move {
            cell.get_or_try_init(&b, || async { Ok::<_, &str>("b".to_owned()) })
                .await
        }
    });
    client.store().lease_revoke(a.lease()).await.unwrap();
    let lost = soon("the loss", lost).await.unwrap();
    assert!(
        matches!(lost, Err(OnceError::Failed(Error::SessionLost(_)))),
        "{lost:?}"
    );
    assert_eq!(*soon("the next", next).await.unwrap().unwrap(), "b");
    // Dropped while it computes: nobody waits for it.
    let cell = client.once::<String>("dropped");
    let never = std::future::pending::<Result<String, &str>>;
    tokio::select! {
        _ = cell.get_or_try_init(&b, never) => panic!("it never ends"),
        () = until("it to compute", async || cell.computing().await.unwrap().is_some()) => {}
    }
    let value = cell.get_or_try_init(&b, || async { Ok::<_, &str>("again".to_owned()) });
    assert_eq!(*soon("the value", value).await.unwrap(), "again");
}

/// A large result is cut into chunks and read whole; one above the limit is refused before it is
/// written, and not read.
pub async fn large_results_are_whole(client: &Client) {
    let session = session(client).await;
    let cell = client.once::<String>("large");
    let text: String = (0..400_000).map(|n| format!("{n:07}")).collect();
    let write = cell.get_or_try_init(&session, || async { Ok::<_, &str>(text.clone()) });
    soon("writing", write).await.unwrap();
    assert!(keys_below(client, &format!("{}/chunk", cell.prefix())).await >= 3);
    let read = client.once::<String>("large");
    assert!(*soon("reading", read.get()).await.unwrap().unwrap() == text);
    let again = read.get().await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&again, &read.get().await.unwrap().unwrap()));
    let small = client.once::<String>("large").bytes_max(1000);
    assert!(matches!(small.get().await, Err(Error::Invalid(_))));
    let small = client.once::<String>("small").bytes_max(1000);
    let refused = small
        .get_or_try_init(&session, || async { Ok::<_, &str>(text.clone()) })
        .await;
    assert!(
        matches!(refused, Err(OnceError::Failed(Error::Invalid(_)))),
        "it is written"
    );
    until("nothing written", async || {
        keys_below(client, small.prefix()).await == 0
    })
    .await;
}

/// What is not what was published is an error that names the key, never a value.
pub async fn damage_is_no_value(client: &Client) {
    let session = session(client).await;
    let cell = client.once::<String>("damage");
    cell.get_or_try_init(&session, || async { Ok::<_, &str>("right".to_owned()) })
        .await
        .unwrap();
    let (_, kvs) = client
        .list(quorate_recipes::KeyRange::prefix(format!(
            "{}/chunk/",
            cell.prefix()
        )))
        .await
        .unwrap();
    let chunk = quorate_recipes::Key::from(kvs[0].key.clone());
    for wrong in ["\"wrong\"", "\"short", "\"much too long\""] {
        client.put(&chunk, wrong).await.unwrap();
        let read = client.once::<String>("damage").get().await;
        assert!(matches!(read, Err(Error::Codec { .. })), "{read:?}");
    }
    client.delete(&chunk).await.unwrap();
    let read = client.once::<String>("damage").get().await;
    assert!(
        matches!(&read, Err(Error::Codec { key, .. }) if *key == chunk),
        "{read:?}"
    );
}

/// A result that was taken back is computed anew; taking back an older one does nothing.
pub async fn taken_back_and_computed_anew(client: &Client) {
    let session = session(client).await;
    let cell = client.once::<u32>("anew");
    let put = async |value: u32| {
        let cell = client.once::<u32>("anew");
        let got: Result<_, Failure> = cell.get_or_try_init(&session, || async { Ok(value) }).await;
        *got.unwrap()
    };
    assert_eq!(put(1).await, 1);
    assert_eq!(put(2).await, 1);
    assert_eq!(cell.get().await.unwrap().as_deref(), Some(&1));
    let first = cell.published().await.unwrap().unwrap();
    cell.invalidate(first.revision).await.unwrap();
    assert_eq!(cell.get().await.unwrap(), None, "a clone remembers");
    until("nothing left", async || {
        keys_below(client, cell.prefix()).await == 0
    })
    .await;
    assert_eq!(put(3).await, 3);
    cell.invalidate(first.revision).await.unwrap();
    assert_eq!(cell.get().await.unwrap().as_deref(), Some(&3));
}

/// What happens to so many writes: each fault by itself, and two in turn.
fn plans(writes: usize) -> [Vec<Fault>; 4] {
    let each = [Fault::NotSent, Fault::Unanswered, Fault::Late];
    let [a, b, c] = each.map(|fault| vec![fault; writes]);
    let in_turn = [Fault::Late, Fault::Unanswered].into_iter().cycle();
    [a, b, c, in_turn.take(4).collect()]
}

/// One result is published whatever answers are lost, and no late copy brings anything back.
pub async fn publishing_survives_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    for (index, plan) in plans(4).into_iter().enumerate() {
        let cell = client.once::<String>(format!("lost-{index}"));
        faulty.plan(cell.prefix(), plan.clone());
        let write = cell.get_or_try_init(&session, || async { Ok::<_, &str>("x".to_owned()) });
        soon("publishing", write).await.unwrap();
        until("the plan's end", async || faulty.left() == 0).await;
        let read = client.once::<String>(format!("lost-{index}"));
        assert_eq!(*read.get().await.unwrap().unwrap(), "x", "{plan:?}");
        let published = cell.published().await.unwrap().unwrap();
        faulty.plan(cell.prefix(), [Fault::Late, Fault::Unanswered]);
        soon("taking back", cell.invalidate(published.revision))
            .await
            .unwrap();
        until("an empty line", async || {
            keys_below(&client, cell.prefix()).await == 0
        })
        .await;
        assert_eq!(faulty.deliver().await.1, 0, "{plan:?}");
        assert_eq!(keys_below(&client, cell.prefix()).await, 0, "{plan:?}");
    }
}

/// A result is replaced while the old one is read; who follows sees the new one, and of many who replace
/// the same one computes.
pub async fn replaced_while_it_is_read(client: &Client) {
    let session = session(client).await;
    let text = |fill: char| fill.to_string().repeat(2_500_000);
    let cell = client.once::<String>("fresh");
    let first: Result<_, Failure> = cell
        .get_or_try_init(&session, || async { Ok(text('a')) })
        .await;
    first.unwrap();
    let (old, _) = cell.changed(Revision(0)).await.unwrap();
    assert!(old.age().unwrap() < Duration::from_secs(300));
    let follower = tokio::spawn({
        let cell = client.once::<String>("fresh");
        async move { cell.changed(old.revision).await }
    });
    let computed = AtomicUsize::new(0);
    let init = || async {
        computed.fetch_add(1, Ordering::SeqCst);
        let read = client.once::<String>("fresh").get().await.unwrap();
        assert!(
            *read.unwrap() == text('a'),
            "the old one while the new one is computed"
        );
        Ok(text('b'))
    };
    let refreshes = (0..3).map(|_| cell.refresh(&session, old.revision, init));
    let all = futures::future::join_all(refreshes);
    let reads = async {
        loop {
            let read = client.once::<String>("fresh").get().await.unwrap().unwrap();
            assert!([text('a'), text('b')].contains(&read));
            if read.starts_with('b') {
                break;
            }
        }
    };
    let (all, ()) = soon("refreshing", async { tokio::join!(all, reads) }).await;
    for one in all {
        let one: Result<_, Failure> = one;
        assert!(one.unwrap().starts_with('b'));
    }
    assert_eq!(computed.load(Ordering::SeqCst), 1);
    let (new, seen) = soon("the follower", follower).await.unwrap().unwrap();
    assert!(seen.starts_with('b') && new.revision > old.revision);
    let chunks = quorate_recipes::KeyRange::prefix(format!("{}/chunk/", cell.prefix()));
    let (_, kvs) = client.list(chunks).await.unwrap();
    let firsts = kvs.iter().filter(|kv| kv.key.ends_with(b"/00000000"));
    assert_eq!(firsts.count(), 1, "the old one's chunks are there");
}

/// A failure counts for everybody until its time is over, which the store says, or until it is forgotten.
pub async fn failures_count_for_a_while(client: &Client) {
    let session = session(client).await;
    let fail = async |cell: &quorate_recipes::OnceCell<u32>| {
        let failed: Result<_, Failure> =
            cell.get_or_try_init(&session, || async { Err("no") }).await;
        failed
    };
    let cell = client.once::<u32>("failing").with_info("summing");
    let cell = cell.cache_failures(Duration::from_secs(600));
    assert!(matches!(fail(&cell).await, Err(OnceError::Init("no"))));
    let other = client
        .once::<u32>("failing")
        .cache_failures(Duration::from_secs(600));
    match fail(&other).await {
        Err(OnceError::Cached(failure)) => {
            assert_eq!(
                (failure.text.as_str(), failure.info.as_str()),
                ("no", "summing")
            );
        }
        other => panic!("{other:?}"),
    }
    cell.forget_failures().await.unwrap();
    assert!(matches!(fail(&cell).await, Err(OnceError::Init("no"))));
    cell.forget_failures().await.unwrap();
    let brief = client
        .once::<u32>("failing")
        .cache_failures(Duration::from_secs(1));
    assert!(matches!(fail(&brief).await, Err(OnceError::Init("no"))));
    assert!(matches!(fail(&brief).await, Err(OnceError::Cached(_))));
    until("its time to be over", async || {
        keys_below(client, cell.prefix()).await == 0
    })
    .await;
    let computed: Result<_, Failure> = brief.get_or_try_init(&session, || async { Ok(1) }).await;
    assert_eq!(*computed.unwrap(), 1);
}

/// Computations are counted before they begin, whatever becomes of them, and end with the limit.
pub async fn attempts_have_a_limit(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let cell = client.once::<u32>("limited").max_attempts(2);
    let lost = tokio::spawn({
        let (cell, a) = (cell.clone(), a.clone());
        async move {
            let never = std::future::pending::<Result<u32, &str>>;
            cell.get_or_try_init(&a, never).await
        }
    });
    let counted = format!("{}/attempts", cell.prefix());
    until("the first to compute", async || {
        client.get(&counted).await.unwrap().is_some()
    })
    .await;
    client.store().lease_revoke(a.lease()).await.unwrap();
    assert!(soon("the loss", lost).await.unwrap().is_err());
    let failed: Result<_, Failure> = cell.get_or_try_init(&b, || async { Err("no") }).await;
    assert!(matches!(failed, Err(OnceError::Init("no"))), "{failed:?}");
    let init = || async { Ok(5) };
    let refused: Result<_, Failure> = soon("the refusal", cell.get_or_try_init(&b, init)).await;
    match refused {
        Err(OnceError::Exhausted { attempts: 2, last }) => {
            let last = last.unwrap();
            assert_eq!((last.text.as_str(), last.attempt), ("no", Some(2)));
        }
        other => panic!("{other:?}"),
    }
    cell.forget_failures().await.unwrap();
    let computed: Result<_, Failure> = cell.get_or_try_init(&b, init).await;
    assert_eq!(*computed.unwrap(), 5);
    until("nothing but the result", async || {
        keys_below(client, cell.prefix()).await == 2
    })
    .await;
}

/// Neither lost answers nor late copies replace what another one was, or count twice.
pub async fn refreshing_survives_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = client_of(&faulty);
    let session = session(&client).await;
    for (index, plan) in plans(5).into_iter().enumerate() {
        let cell = client
            .once::<u32>(format!("refreshed-{index}"))
            .max_attempts(3);
        let first: Result<_, Failure> = cell.get_or_try_init(&session, || async { Ok(0) }).await;
        first.unwrap();
        for number in 1..=4 {
            let old = cell.published().await.unwrap().unwrap();
            faulty.plan(cell.prefix(), plan.clone());
            let init = || async move { Ok(number) };
            let refreshed: Result<_, Failure> =
                soon("refreshing", cell.refresh(&session, old.revision, init)).await;
            assert_eq!(*refreshed.unwrap(), number, "{plan:?}");
            until("the plan's end", async || faulty.left() == 0).await;
        }
        until("an empty line", async || {
            keys_below(&client, cell.prefix()).await == 2
        })
        .await;
        assert_eq!(faulty.deliver().await.1, 0, "{plan:?}");
        assert_eq!(
            *client
                .once::<u32>(format!("refreshed-{index}"))
                .wait()
                .await
                .unwrap(),
            4
        );
    }
}
