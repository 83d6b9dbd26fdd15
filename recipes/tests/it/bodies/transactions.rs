//! Transactional memory: as if each transaction were alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering::Relaxed};

use quorate_recipes::stm::Done;
use quorate_recipes::store::faulty::{Fault, Faulty};
use quorate_recipes::{Client, Error, Json, KeyRange, Transaction};
use tokio::sync::Notify;

use super::session;
use crate::support::{soon, until};

const ACCOUNTS: u64 = 4;

fn account(name: u64) -> String {
    format!("bank/{name}")
}

/// Moves money, if it is there. Fails the test when a run sees half of another transfer.
async fn transfer(client: &Client, from: u64, to: u64) -> Result<Done<bool>, Error> {
    let stm = client.stm().retries(10_000);
    stm.run(async |tx: Transaction| {
        let here: i64 = tx.get_json(account(from)).await?.unwrap_or(0);
        let all = tx.list(KeyRange::prefix("bank/")).await?;
        let all = all
            .iter()
            .map(|(_, value)| serde_json::from_slice::<i64>(value).unwrap());
        assert_eq!(all.sum::<i64>(), 100, "a mixture of two states");
        if here < 7 {
            return Ok(false);
        }
        let there: i64 = tx.get_json(account(to)).await?.unwrap_or(0);
        tx.put(account(from), Json(here - 7));
        tx.put(account(to), Json(there + 7));
        Ok(true)
    })
    .await
}

/// The sum of all accounts stays, at every revision that anybody reads.
pub async fn transfers_keep_the_sum(client: &Client) {
    client.put(account(0), "100").await.unwrap();
    let mut moving = tokio::task::JoinSet::new();
    for worker in 0..ACCOUNTS {
        let client = client.clone();
        moving.spawn(async move {
            let mut attempts = 0;
            for round in 0..8 {
                let (from, to) = (
                    (worker + round) % ACCOUNTS,
                    (worker + 2 * round + 1) % ACCOUNTS,
                );
                if from != to {
                    attempts += transfer(&client, from, to).await.unwrap().attempts;
                }
            }
            attempts
        });
    }
    let attempts = soon("the transfers", moving.join_all()).await;
    assert!(attempts.iter().all(|attempts| *attempts > 0));
    let (_, accounts) = client.list(KeyRange::prefix("bank/")).await.unwrap();
    let sum: i64 = accounts
        .iter()
        .map(|kv| serde_json::from_slice::<i64>(&kv.value).unwrap())
        .sum();
    assert_eq!(sum, 100);
    assert!(accounts.len() > 1, "something was moved");
}

/// Two who each rely on what the other changes: one of them has to look again. By keys, by a new key
/// in a range, by a deleted one.
pub async fn skew_is_impossible(client: &Client) {
    let sign_off = async |client: &Client, me: &'static str, gate: Option<&Notify>| {
        client
            .stm()
            .run(async |tx: Transaction| -> Result<bool, Error> {
                let on_call = tx.list(KeyRange::prefix("on-call/")).await?;
                if let Some(gate) = gate.filter(|_| on_call.len() == 2) {
                    gate.notified().await;
                }
                if on_call.len() < 2 {
                    return Ok(false);
                }
                tx.delete(format!("on-call/{me}"));
                Ok(true)
            })
            .await
            .unwrap()
    };
    client.put("on-call/anna", "").await.unwrap();
    client.put("on-call/ben", "").await.unwrap();
    let gate = Notify::new();
    let slow = sign_off(client, "anna", Some(&gate));
    let fast = async {
        let done = sign_off(client, "ben", None).await;
        gate.notify_one();
        done
    };
    let (slow, fast) = soon("both", async { tokio::join!(slow, fast) }).await;
    assert_eq!((fast.value, fast.attempts), (true, 1));
    assert_eq!((slow.value, slow.attempts), (false, 2));

    // A phantom: what was counted grows between the count and the commit.
    let runs = AtomicU32::new(0);
    let counted = client
        .stm()
        .run(async |tx: Transaction| -> Result<usize, Error> {
            let run = runs.fetch_add(1, Relaxed) + 1;
            let tasks = tx.list(KeyRange::prefix("tasks/")).await?;
            if run == 1 {
                client.put("tasks/1", "").await?;
            }
            assert_eq!(tx.get("tasks/1").await?.is_some(), run == 2, "one revision");
            tx.put("count", tasks.len().to_string());
            Ok(tasks.len())
        });
    let counted = counted.await.unwrap();
    assert_eq!((counted.value, counted.attempts), (1, 2));
    // A key that was absent.
    let absent = client
        .stm()
        .run(async |tx: Transaction| -> Result<(), Error> {
            if tx.get("flag").await?.is_none() {
                client.put("flag", "up").await?;
                tx.put("flag", "down");
            }
            Ok(())
        });
    assert_eq!(absent.await.unwrap().attempts, 2);
    assert_eq!(client.get("flag").await.unwrap().unwrap().value, "up");
}

/// Reads see the transaction's own writes; nothing is written by a run that fails.
pub async fn own_writes_are_read(client: &Client) {
    for name in ["a", "b", "c"] {
        client.put(format!("own/{name}"), name).await.unwrap();
    }
    let range = || KeyRange::prefix("own/");
    let first = AtomicI64::new(0);
    let done = client
        .stm()
        .run(async |tx: Transaction| -> Result<(), Error> {
            tx.put("own/b", "B");
            tx.put("own/d", "D");
            tx.delete("own/a");
            assert_eq!(tx.revision(), None);
            assert_eq!(tx.get("own/b").await?.unwrap(), "B");
            assert_eq!(tx.get("own/a").await?, None);
            assert_eq!(tx.get("own/c").await?.unwrap(), "c");
            let listed = tx.list(range()).await?;
            let listed: Vec<_> = listed
                .iter()
                .map(|(key, value)| format!("{key}={}", String::from_utf8_lossy(value)))
                .collect();
            assert_eq!(listed, ["own/b=B", "own/c=c", "own/d=D"]);
            tx.delete("own/d");
            assert_eq!(tx.list(range()).await?.len(), 2);
            first.store(tx.revision().unwrap().0, Relaxed);
            Ok(())
        });
    let done = done.await.unwrap();
    assert_eq!(done.attempts, 1);
    assert_eq!(done.revision.0, first.into_inner() + 1);
    let (revision, kvs) = client.list(range()).await.unwrap();
    assert_eq!(revision, done.revision);
    assert_eq!(kvs.len(), 2);
    assert!(
        kvs.iter()
            .any(|kv| kv.value == "B" && kv.mod_revision == revision.0)
    );

    // A failing run, a reading one, an empty one, one that writes without reading.
    let failed = client
        .stm()
        .run(async |tx: Transaction| -> Result<(), Error> {
            tx.put("own/b", "never");
            tx.get("own/c").await?;
            Err(Error::Invalid("enough".to_owned()))
        });
    assert!(matches!(failed.await, Err(Error::Invalid(text)) if text == "enough"));
    let read = client
        .stm()
        .run(async |tx: Transaction| -> Result<usize, Error> {
            client.put("own/else", "x").await?;
            let before = tx.list(range()).await?.len();
            client.put("own/more", "x").await?;
            assert_eq!(
                tx.list(KeyRange::prefix("own")).await?.len(),
                before,
                "one revision"
            );
            Ok(before)
        });
    let read = read.await.unwrap();
    assert_eq!(
        (read.value, read.attempts),
        (3, 1),
        "reading alone never conflicts"
    );
    let nothing = client
        .stm()
        .run(async |_: Transaction| Ok::<_, Error>(5))
        .await;
    assert_eq!(nothing.unwrap().value, 5);
    let blind = client
        .stm()
        .run(async |tx: Transaction| -> Result<(), Error> {
            tx.put("own/b", "blind");
            Ok(())
        });
    blind.await.unwrap();
    assert_eq!(client.get("own/b").await.unwrap().unwrap().value, "blind");
}

/// Conflicts without end are an error, and so is what is too large for one transaction; with a guard
/// it is the store that refuses.
pub async fn limits_and_guards(client: &Client) {
    let runs = AtomicU32::new(0);
    let beaten = client
        .stm()
        .retries(3)
        .run(async |tx: Transaction| -> Result<(), Error> {
            runs.fetch_add(1, Relaxed);
            tx.get("hot").await?;
            client.put("hot", "x").await?;
            tx.put("hot", "mine");
            Ok(())
        });
    assert!(matches!(beaten.await, Err(Error::Conflict)));
    assert_eq!(runs.into_inner(), 4);

    let most = client.store().capabilities().max_txn_ops;
    for number in 0..=most {
        client.put(format!("many/{number}"), "").await.unwrap();
    }
    let reading = client
        .stm()
        .run(async |tx: Transaction| -> Result<usize, Error> {
            Ok(tx.list(KeyRange::prefix("many/")).await?.len())
        });
    assert_eq!(reading.await.unwrap().value, most + 1);
    let session = session(client).await;
    let writes = async |count: usize, under: bool| {
        let mut stm = client.stm();
        if under {
            stm = stm.under(&session);
        }
        stm.run(async |tx: Transaction| -> Result<(), Error> {
            for number in 0..count {
                tx.put(format!("wide/{number}"), "");
            }
            Ok(())
        })
        .await
    };
    writes(most, false).await.unwrap();
    writes(most - 1, true).await.unwrap();
    for too_many in [writes(most + 1, false).await, writes(most, true).await] {
        assert!(
            matches!(&too_many, Err(Error::Invalid(text)) if text.contains("operations")),
            "{too_many:?}"
        );
    }

    let guard = client.mutex("stm").lock(&session).await.unwrap();
    let guarded = async |value: Option<&'static str>, under: bool| {
        let stm = client.stm();
        let stm = if under { stm.under(&session) } else { stm };
        stm.run(async |tx: Transaction| -> Result<(), Error> {
            tx.guard(&guard);
            tx.get("guarded").await?;
            if let Some(value) = value {
                tx.put("guarded", value);
            }
            Ok(())
        })
        .await
    };
    for under in [false, true] {
        guarded(Some("held"), under).await.unwrap();
        guarded(None, under).await.unwrap();
    }
    client.delete(guard.key()).await.unwrap();
    for under in [false, true] {
        for value in [Some("late"), None] {
            let outcome = guarded(value, under).await;
            assert!(matches!(outcome, Err(Error::Fenced { .. })), "{outcome:?}");
        }
    }
    assert_eq!(client.get("guarded").await.unwrap().unwrap().value, "held");
}

/// A lost answer is reported, or, under a session, found out about.
pub async fn commits_survive_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let client = Client::builder(faulty.clone()).build();
    let session = session(&client).await;
    let add = async |exactly: bool| {
        let stm = client.stm();
        let stm = if exactly { stm.under(&session) } else { stm };
        stm.run(async |tx: Transaction| -> Result<i64, Error> {
            let now = tx.get_json::<i64>("lost/sum").await?.unwrap_or(0) + 1;
            tx.put("lost/sum", Json(now));
            Ok(now)
        })
        .await
    };
    faulty.plan("lost/", [Fault::NotSent]);
    assert_eq!(add(false).await.unwrap().value, 1);
    faulty.plan("lost/", [Fault::Unanswered]);
    let outcome = add(false).await;
    assert!(
        outcome.as_ref().is_err_and(Error::is_ambiguous),
        "{outcome:?}"
    );
    let mut expected = 2;
    for plan in [
        vec![Fault::Unanswered],
        vec![Fault::Late],
        vec![Fault::NotSent, Fault::Late, Fault::Unanswered],
    ] {
        expected += 1;
        faulty.plan("lost/", plan.clone());
        let done = add(true).await.unwrap();
        assert_eq!((done.value, done.attempts), (expected, 1), "{plan:?}");
        assert_eq!(faulty.deliver().await.1, 0, "{plan:?}");
        let kv = client.get("lost/sum").await.unwrap().unwrap();
        assert_eq!(kv.value, expected.to_string());
        assert_eq!(kv.mod_revision, done.revision.0);
    }
    // Dropped in its commit, it ends by itself.
    let gate = Arc::new(Notify::new());
    faulty.plan("lost/", [Fault::HeldBefore(Arc::clone(&gate))]);
    {
        let adding = add(true);
        tokio::select! {
            _ = adding => panic!("the commit is held"),
            () = until("the commit to be on its way", async || faulty.held() == 1) => {}
        }
    }
    gate.notify_one();
    until("the commit", async || faulty.held() == 0).await;
    assert_eq!(add(true).await.unwrap().value, expected + 2);
}

/// Runs on tasks of their own, with errors of the user's own.
pub async fn runs_anywhere(client: &Client) {
    #[derive(Debug)]
    enum Refused {
        Poor,
        Store(#[expect(dead_code, reason = "shown when the test fails")] Error),
    }
    impl From<Error> for Refused {
        fn from(error: Error) -> Self {
            Self::Store(error)
        }
    }
    let client = client.clone();
    let spawned = tokio::spawn(async move {
        let name = String::from("purse");
        let stm = client.stm();
        let outcome = stm.run(async |tx: Transaction| {
            let left = tx.get_json::<u32>(&name).await?.unwrap_or(0).checked_sub(1);
            tx.put(&name, Json(left.ok_or(Refused::Poor)?));
            Ok(())
        });
        outcome.await
    });
    let outcome = soon("the task", spawned).await.unwrap();
    assert!(matches!(outcome, Err(Refused::Poor)), "{outcome:?}");
}
