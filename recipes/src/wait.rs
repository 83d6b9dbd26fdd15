//! Waiting: pauses between attempts, and for keys to go away. Used by sessions and contenders.

use std::time::Duration;

use futures::StreamExt;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest,
};
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};

use crate::client::Client;
use crate::error::{self, Error};
use crate::keys::{Key, KeyRange, LeaseId, Revision};
use crate::store::{Cause, StoreError, WatchStream, ops};

/// Pauses that double from a first length to a longest one, with jitter.
#[derive(Debug)]
pub struct Backoff {
    client: Client,
    first: Duration,
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Pauses of `first`, then twice as long each time, up to `longest`.
    #[must_use]
    pub fn new(client: &Client, first: Duration, longest: Duration) -> Self {
        Self {
            client: client.clone(),
            first,
            next: first,
            longest,
        }
    }

    /// The pauses between attempts at the store: 50 ms to 1 s.
    #[must_use]
    pub fn between_attempts(client: &Client) -> Self {
        Self::new(client, Duration::from_millis(50), Duration::from_secs(1))
    }

    /// The pauses after somebody else was faster: 4 ms to 500 ms.
    #[must_use]
    pub fn contended(client: &Client) -> Self {
        Self::new(client, Duration::from_millis(4), Duration::from_millis(500))
    }

    /// Waits for the next pause: between half of its length and all of it.
    pub async fn pause(&mut self) {
        let length = self.client.jitter(self.next);
        self.next = (self.next * 2).min(self.longest);
        self.client.sleep(length).await;
    }

    /// Starts again from the first pause, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// What ended a wait for deletions.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// This key was deleted at or after the revision asked for.
    Deleted(Key),
    /// The watch ended, for a reason that says nothing about the keys, or a key came off its lease, and may
    /// stay for ever: look again.
    Interrupted,
}

/// Waits until one of `keys`, each attached to the lease beside it, is deleted, looking from revision `from`
/// on, with one watch stream.
pub(crate) async fn deleted(
    client: &Client,
    keys: &[(Key, LeaseId)],
    from: Revision,
) -> Result<Woken, StoreError> {
    let requests = keys.iter().map(|(key, _)| WatchCreateRequest {
        key: key.as_bytes().clone(),
        start_revision: from.0,
        ..Default::default()
    });
    let stream = client.store().watch(requests.collect()).await?;
    let ended = |event: &Event| match (&event.kv, event.r#type()) {
        (_, EventType::Delete) => true,
        (Some(kv), EventType::Put) => keys
            .iter()
            .any(|(key, lease)| kv.key == *key.as_bytes() && kv.lease != lease.0),
        (None, EventType::Put) => false,
    };
    let event = first_event(stream, ended).await?;
    let event = event.filter(|event| event.r#type() == EventType::Delete);
    Ok(match event.and_then(|event| event.kv) {
        Some(kv) => Woken::Deleted(kv.key.into()),
        None => Woken::Interrupted,
    })
}

/// The first event that is `wanted`; `None` when the watch ended before.
async fn first_event(
    mut stream: WatchStream,
    wanted: impl Fn(&Event) -> bool,
) -> Result<Option<Event>, StoreError> {
    while let Some(answer) = stream.next().await {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_transient() => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(event) = answer.events.into_iter().find(&wanted) {
            return Ok(Some(event));
        }
        if answer.canceled {
            return refusal(&answer.cancel_reason).map_or(Ok(None), Err);
        }
    }
    Ok(None)
}

/// Waits until an event of these ranges is `wanted`, from revision `from` on. May return before:
/// then it has paused, and the caller looks again, as it does in any case.
pub(crate) async fn until_event(
    client: &Client,
    ranges: &[KeyRange],
    from: Revision,
    pause: &mut Backoff,
    wanted: impl Fn(&Event) -> bool,
) -> Result<(), StoreError> {
    let requests = ranges.iter().map(|range| WatchCreateRequest {
        key: range.start.clone(),
        range_end: range.end.clone(),
        start_revision: from.0,
        ..Default::default()
    });
    let event = match client.store().watch(requests.collect()).await {
        Ok(stream) => first_event(stream, wanted).await,
        Err(error) => Err(error),
    };
    match event {
        Ok(Some(_)) => pause.reset(),
        Ok(None) => pause.pause().await,
        Err(error) if error.is_transient() => pause.pause().await,
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Waits until a key is there. Trouble with the store is waited out.
pub(crate) async fn until_there(client: &Client, key: &Key) -> Result<(), StoreError> {
    let mut pause = Backoff::between_attempts(client);
    loop {
        let found = read(client, ops::get(key)).await?;
        if !found.kvs.is_empty() {
            return Ok(());
        }
        let seen = found.header.map_or(0, |header| header.revision);
        let range = [KeyRange::one(key)];
        let put = |event: &Event| event.r#type() == EventType::Put;
        let news = until_event(client, &range, Revision(seen + 1), &mut pause, put);
        if news.await.is_err() {
            pause.pause().await;
        }
    }
}

/// Lists until the store answers, page by page as it was at one revision.
pub(crate) async fn list(
    client: &Client,
    range: KeyRange,
) -> error::Result<(Revision, Vec<KeyValue>)> {
    let mut pause = Backoff::between_attempts(client);
    loop {
        match client.list(range.clone()).await {
            Err(Error::Store(error)) if error.is_transient() => {}
            // Between two pages.
            Err(Error::Store(StoreError::Compacted { .. })) => {}
            listed => return listed,
        }
        pause.pause().await;
    }
}

/// Reads until the store answers.
pub(crate) async fn read(
    client: &Client,
    request: RangeRequest,
) -> Result<RangeResponse, StoreError> {
    let mut pause = Backoff::between_attempts(client);
    loop {
        match client.store().range(request.clone()).await {
            Err(error) if error.is_transient() => pause.pause().await,
            answer => return answer,
        }
    }
}

/// As [`Actor::repeat`](crate::session::Actor::repeat), without a session.
pub(crate) async fn repeat(
    client: &Client,
    request: TxnRequest,
) -> Result<(TxnResponse, bool), StoreError> {
    let mut pause = Backoff::between_attempts(client);
    let mut repeated = false;
    loop {
        match client.store().txn(request.clone()).await {
            Ok(answer) => return Ok((answer, repeated)),
            Err(error) if error.is_transient() => {
                repeated |= error.is_ambiguous();
                pause.pause().await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The final error that a server's reason for ending a watch stands for, if it is one. The reason
/// may have a code in front of it.
pub(crate) fn refusal(reason: &str) -> Option<StoreError> {
    let cause = || Cause::new(reason);
    let tells = |known: Reason| reason.ends_with(known.text());
    if [
        Reason::PermissionDenied,
        Reason::UserEmpty,
        Reason::InvalidAuthToken,
    ]
    .into_iter()
    .any(tells)
    {
        return Some(StoreError::Auth(cause()));
    }
    if [
        Reason::WatchRangeEmpty,
        Reason::WatchIdInUse,
        Reason::EmptyKey,
    ]
    .into_iter()
    .any(tells)
    {
        return Some(StoreError::Invalid(cause()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_end_a_watch_for_good() {
        let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
        assert!(matches!(refusal(denied), Some(StoreError::Auth(_))));
        assert!(matches!(
            refusal("mvcc: watcher range is empty"),
            Some(StoreError::Invalid(_))
        ));
        assert_eq!(refusal("etcdserver: no leader"), None);
        assert_eq!(refusal(""), None);
    }
}
