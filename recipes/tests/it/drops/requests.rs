//! Requests to let go, made and heard, dropped everywhere.

use std::sync::Mutex;
use std::time::Duration;

use quorate_recipes::{Client, Session};

use super::{QUIET, Stopped, World, at_every_call, in_time};

const LIMIT: &str = "quorate/semaphore/x/limit";
const LOCK: &str = "quorate/lock/x/";

dropped_everywhere! {
    request_to_give_a_permit_back, [LIMIT], async |client: Client, session: Session, hold| {
        let semaphore = client.semaphore("x", 1);
        let permit = semaphore.acquire(&session).await?;
        tokio::time::sleep(hold).await;
        let holders = semaphore.holders().await?;
        let request = session.request_release(&holders[0].holder, "why").await?;
        let request = request.expect("it is held");
        assert_eq!(permit.release_requested().await?.reason, "why");
        permit.release().await?;
        request.granted().await
    };
}

/// Whoever is dropped while it waits to be asked hears what it has not heard when it waits again, and
/// nothing twice.
#[tokio::test(start_paused = true)]
async fn each_request_is_heard_once() {
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let mutex = world.user.0.mutex("x");
        let guard = mutex.lock(&world.user.1).await.unwrap();
        let mutex = world.other.0.mutex("x");
        let asks = async |why| mutex.request_release(&world.other.1, why).await.unwrap();
        let heard = Mutex::new(Vec::new());
        let hear = async || {
            let asked = guard.release_requested().await?;
            heard.lock().unwrap().push(asked.reason);
            Ok(())
        };
        let earlier = (asks("one").await, asks("two").await);
        let of_user = async {
            hear().await?;
            hear().await
        };
        let Stopped { held, .. } = world.stop(at, of_user).await;
        let reached = held.is_reached();
        let later = asks("three").await;
        held.release();
        while heard.lock().unwrap().len() < 3 {
            in_time(at, "the user", hear()).await;
        }
        let more = tokio::time::timeout(QUIET, hear()).await;
        assert!(more.is_err(), "{at}: {heard:?}");
        assert_eq!(*heard.lock().unwrap(), ["one", "two", "three"], "{at}");
        drop((earlier, later));
        reached
    })
    .await;
    assert!(visited >= 4 * 2, "{visited} calls only");
}

/// A request whose sender was dropped is taken back, also by one that was not answered, and the holder
/// hears those of others.
#[tokio::test(start_paused = true)]
async fn a_dropped_request_is_taken_back() {
    let mut told = [0; 2];
    at_every_call(async |at| {
        let world = World::new().await;
        let mutex = world.other.0.mutex("x");
        let guard = mutex.lock(&world.other.1).await.unwrap();
        let heard = Mutex::new(Vec::new());
        let asks = async {
            let mutex = world.user.0.mutex("x");
            let request = mutex.request_release(&world.user.1, "the user's").await?;
            let request = request.expect("it is held");
            let granted = tokio::time::timeout(Duration::from_secs(1), request.granted());
            assert!(granted.await.is_err(), "{at}: nobody let go");
            Ok(())
        };
        let listens = async {
            loop {
                let asked = guard.release_requested().await.unwrap();
                heard.lock().unwrap().push(asked.reason);
            }
        };
        let of_user = async {
            let Stopped { held, finished } = world.stop(at, asks).await;
            let reached = held.is_reached();
            held.release();
            tokio::time::sleep(QUIET).await;
            assert_eq!(world.left(&[LOCK]), [""; 0], "{at}");
            let request = mutex.request_release(&world.other.1, "another's").await;
            drop(request.unwrap().expect("it is held"));
            tokio::time::sleep(QUIET).await;
            (reached, finished)
        };
        let (reached, finished) = tokio::select! {
            biased;
            done = of_user => done,
            never = listens => never,
        };
        let heard = heard.lock().unwrap();
        let users = heard.iter().filter(|why| *why == "the user's").count();
        assert!(users <= 1 && (!finished || users == 1), "{at}: {heard:?}");
        told[users] += 1;
        assert_eq!(heard[users..], ["another's"], "{at}");
        reached
    })
    .await;
    assert!(told.iter().all(|times| *times > 0), "{told:?}");
}
