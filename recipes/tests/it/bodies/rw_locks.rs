//! Read-write locks: who is let in with whom, and in which order.

use std::time::Duration;

use quorate_recipes::lock::{Access, Upgraded};
use quorate_recipes::{Client, Error, TxnError};

use super::{keys_below, session};
use crate::support::{soon, until};

async fn stand(client: &Client, name: &str) -> Vec<(Access, bool)> {
    let contenders = client.rw_lock(name).contenders().await.unwrap();
    let each = contenders.into_iter();
    each.map(|contender| (contender.access, contender.holds))
        .collect()
}

/// Readers together, a writer alone, and nobody passes a writer that waits.
pub async fn readers_share_and_writers_do_not(client: &Client) {
    use Access::{Read, Write};
    let session = session(client).await;
    let lock = client.rw_lock("fair");
    let first = lock.read(&session).await.unwrap();
    let second = lock.read(&session).await.unwrap();
    assert!(second.token() > first.token());
    assert!(lock.try_write(&session).await.unwrap().is_none());
    let writer = tokio::spawn({
        let (lock, session) = (lock.clone(), session.clone());
        async move { lock.write(&session).await.unwrap() }
    });
    until("the writer", async || {
        stand(client, "fair").await == [(Read, true), (Read, true), (Write, false)]
    })
    .await;
    assert!(lock.try_read(&session).await.unwrap().is_none());
    let reader = tokio::spawn({
        let (lock, session) = (lock.clone(), session.clone());
        async move { lock.read(&session).await.unwrap() }
    });
    until("the last reader", async || {
        stand(client, "fair").await.last() == Some(&(Read, false))
    })
    .await;
    first.put("fair/x", "read").await.unwrap();
    first.release().await.unwrap();
    assert!(!writer.is_finished() && !reader.is_finished());
    second.release().await.unwrap();
    let writer = soon("the writer's turn", writer).await.unwrap();
    assert!(!reader.is_finished(), "a reader beside a writer");
    assert_eq!(stand(client, "fair").await, [(Write, true), (Read, false)]);
    writer.put("fair/x", "written").await.unwrap();
    writer.release().await.unwrap();
    drop(soon("the reader's turn", reader).await.unwrap());
    until("an empty lock", async || {
        keys_below(client, "quorate/rwlock/fair").await == 0
    })
    .await;
}

/// A writer that becomes a reader lets readers in and no writer, also one that waited before it.
pub async fn downgrading_lets_no_writer_in(client: &Client) {
    let session = session(client).await;
    let lock = client.rw_lock("down");
    let writer = lock.write(&session).await.unwrap();
    let token = writer.token();
    let next = tokio::spawn({
        let (lock, session) = (lock.clone(), session.clone());
        async move { lock.write(&session).await.unwrap() }
    });
    until("the next writer", async || {
        stand(client, "down").await.len() == 2
    })
    .await;
    let reader = writer.downgrade().await.unwrap();
    assert_eq!(reader.token(), token);
    reader.put("down/x", "still here").await.unwrap();
    let behind = lock.read_within(&session, Duration::from_millis(200)).await;
    assert!(behind.unwrap().is_none(), "past a writer that waits");
    assert!(!next.is_finished());
    reader.release().await.unwrap();
    let next = soon("the next writer's turn", next).await.unwrap();
    assert!(next.token() > token);
    drop(next);
}

/// Only a reader that is alone becomes a writer; otherwise it stays what it is.
pub async fn upgrading_never_waits(client: &Client) {
    let session = session(client).await;
    let lock = client.rw_lock("up");
    let first = lock.read(&session).await.unwrap();
    let second = lock.read(&session).await.unwrap();
    let Upgraded::Read(first) = first.try_upgrade().await.unwrap() else {
        panic!("two readers, and one has become a writer");
    };
    first.put("up/x", "read").await.unwrap();
    second.release().await.unwrap();
    let read = first.token();
    let Upgraded::Write(writer) = first.try_upgrade().await.unwrap() else {
        panic!("alone, and not a writer");
    };
    assert!(writer.token() > read);
    assert!(lock.try_read(&session).await.unwrap().is_none());
    writer.put("up/x", "written").await.unwrap();
    let reader = writer.downgrade().await.unwrap();
    assert_eq!(reader.token(), read);
    drop(
        lock.try_read(&session)
            .await
            .unwrap()
            .expect("readers again"),
    );
    reader.release().await.unwrap();
    until("an empty lock", async || {
        keys_below(client, "quorate/rwlock/up").await == 0
    })
    .await;
}

/// A writer one of whose keys is gone cannot write.
pub async fn half_a_writer_is_fenced(client: &Client) {
    let session = session(client).await;
    let lock = client.rw_lock("half");
    let writer = lock.write(&session).await.unwrap();
    let read = writer.key().to_string().replace("/write/", "/read/");
    assert!(client.delete(read.as_str()).await.unwrap());
    let refused = writer.put("half/x", "late").await;
    assert!(
        matches!(refused, Err(TxnError::Fenced { .. })),
        "{refused:?}"
    );
    let released = writer.release().await;
    assert!(
        matches!(released, Err(Error::Fenced { .. })),
        "{released:?}"
    );
    assert_eq!(keys_below(client, "quorate/rwlock/half").await, 0);
}
