//! What a candidate decides on: the result, the failure and the tally as they stand at one revision.

use std::sync::Arc;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use serde::de::DeserializeOwned;

use super::failure::{self, Failure, Tally};
use super::manifest::Manifest;
use super::{OnceCell, OnceError, fetch};
use crate::error::Result;
use crate::keys::{KeyRange, Revision};
use crate::store::ops;
use crate::wait::{self, Backoff};

/// What there is for one who does not want the result of a certain revision.
pub(super) enum Look<T> {
    Settled(Settled<T>),
    /// Somebody has to compute.
    Vacant(Vacancy),
}

/// Why nobody has to compute.
pub(super) enum Settled<T> {
    /// There is another result.
    Result(Arc<T>),
    /// A computation failed, and the time for which that counts is not over.
    Failure(Box<Failure>),
}

impl<T> Settled<T> {
    pub(super) fn into_result<E>(self) -> Result<Arc<T>, OnceError<E>> {
        match self {
            Self::Result(value) => Ok(value),
            Self::Failure(failure) => Err(OnceError::Cached(failure)),
        }
    }
}

/// The state that a computation begins with.
#[derive(Debug)]
pub(super) struct Vacancy {
    seen: Revision,
    pub(super) base: Base,
    pub(super) counted: Counted,
}

/// What a computation is to replace.
#[derive(Debug)]
pub(super) struct Base {
    /// The revision of the result; 0: none was published.
    pub(super) revision: Revision,
    /// The name of the result's attempt, if that can be read.
    pub(super) attempt: Option<String>,
}

/// A tally, and the revision of its last write; 0: nothing was counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) tally: Tally,
    pub(super) at: Revision,
}

impl Base {
    fn of(manifest: Option<&KeyValue>) -> Self {
        let read = manifest.and_then(|kv| Manifest::read(kv).ok());
        Self {
            revision: Revision(manifest.map_or(0, |kv| kv.mod_revision)),
            attempt: read.map(|manifest| manifest.attempt),
        }
    }
}

impl Counted {
    pub(super) fn read(kv: Option<&KeyValue>) -> Result<Self> {
        let Some(kv) = kv else {
            return Ok(Self::default());
        };
        Ok(Self {
            tally: failure::read(kv)?,
            at: Revision(kv.mod_revision),
        })
    }
}

/// Looks for a result other than that of `stale`, and for a failure if the handle wants to know.
pub(super) async fn look<T: DeserializeOwned>(
    cell: &OnceCell<T>,
    stale: Revision,
) -> Result<Look<T>> {
    let mut pause = Backoff::between_attempts(&cell.client);
    let keys = [cell.manifest_key(), cell.failure_key(), cell.tally_key()];
    loop {
        let request = TxnRequest {
            success: keys.iter().map(|key| ops::read(ops::get(key))).collect(),
            ..Default::default()
        };
        let (answer, _) = wait::repeat(&cell.client, request).await?;
        let seen = Revision(answer.header.map_or(0, |header| header.revision));
        let [manifest, failure, tally] =
            [0, 1, 2].map(|index| ops::kvs(&answer.responses, index).first());
        if let Some(kv) = manifest.filter(|kv| kv.mod_revision != stale.0) {
            match fetch::read(cell, kv, seen).await? {
                Some(value) => return Ok(Look::Settled(Settled::Result(value))),
                None => pause.pause().await,
            }
            continue;
        }
        if let (Some(kv), Some(_)) = (failure, cell.cache_failures) {
            return Ok(Look::Settled(Settled::Failure(failure::read(kv)?)));
        }
        let counted = match cell.max_attempts {
            Some(_) => Counted::read(tally)?,
            None => Counted::default(),
        };
        return Ok(Look::Vacant(Vacancy {
            seen,
            base: Base::of(manifest),
            counted,
        }));
    }
}

/// As [`look`], until nobody has to compute any more.
pub(super) async fn settled<T: DeserializeOwned>(
    cell: &OnceCell<T>,
    stale: Revision,
) -> Result<Settled<T>> {
    let mut pause = Backoff::between_attempts(&cell.client);
    let failure = cell.cache_failures.map(|_| cell.failure_key());
    let keys = [cell.manifest_key()].into_iter().chain(failure);
    let ranges: Vec<KeyRange> = keys.map(KeyRange::one).collect();
    loop {
        let vacancy = match look(cell, stale).await? {
            Look::Vacant(vacancy) => vacancy,
            Look::Settled(settled) => return Ok(settled),
        };
        let from = Revision(vacancy.seen.0 + 1);
        let put = |event: &Event| event.r#type() == EventType::Put;
        wait::until_event(&cell.client, &ranges, from, &mut pause, put).await?;
    }
}
