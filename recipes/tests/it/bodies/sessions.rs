//! Sessions: their end takes everything along, and nothing outlives it.

use std::time::Duration;

use quorate_recipes::{Client, Error, LostReason, SessionState};

use super::{keys_below, session, short_session};
use crate::support::{soon, until};

/// Closing revokes the lease: the keys are gone, guards are lost, late users are told.
pub async fn closing_ends_everything(client: &Client) {
    let session = session(client).await;
    let lock = client.mutex("closing");
    let guard = lock.lock(&session).await.unwrap();
    let lost = guard.lost();
    soon("closing", session.clone().close()).await.unwrap();
    assert_eq!(soon("the loss", lost).await, LostReason::Closed);
    assert_eq!(keys_below(client, lock.prefix()).await, 0);
    assert_eq!(
        client.store().lease_ttl(session.lease()).await.unwrap(),
        None
    );
    assert_eq!(session.state(), SessionState::Lost(LostReason::Closed));
    assert!(matches!(
        guard.put("closing/x", "").await.unwrap_err().into(),
        Error::SessionLost(_)
    ));
    assert!(matches!(
        lock.lock(&session).await,
        Err(Error::SessionLost(LostReason::Closed))
    ));
}

/// The last handle is the session: while a guard has it the lease is renewed, then it is revoked.
pub async fn last_handle_ends_the_session(client: &Client) {
    let session = short_session(client).await;
    let (lease, ttl) = (session.lease(), session.ttl());
    let guard = client.mutex("last").lock(&session).await.unwrap();
    drop(session);
    tokio::time::sleep(ttl + Duration::from_secs(1)).await;
    guard.put("last/x", "still held").await.unwrap();
    drop(guard);
    let alive = async || client.store().lease_ttl(lease).await.unwrap().is_some();
    until("the lease's end", async || !alive().await).await;
}

/// A session tells who it is, under its own lease.
pub async fn session_tells_who_it_is(client: &Client) {
    let session = session(client).await;
    let key = quorate_recipes::keys::session_key(session.lease());
    let kv = client.get(&key).await.unwrap().unwrap();
    assert_eq!(kv.lease, session.lease().0);
    let text = String::from_utf8_lossy(&kv.value).into_owned();
    assert!(
        text.contains("\"label\":\"test\"") && text.contains("\"pid\":"),
        "{text}"
    );
    assert!(matches!(session.state(), SessionState::Live { .. }));
    assert!(session.remaining() <= session.ttl());
}
