//! Members that may be dead already: their leases were due to be renewed and were not. Asked of the store
//! when somebody wants to know; nothing is decided by it.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use serde::de::DeserializeOwned;

use super::members::Members;
use super::view::Member;
use crate::error::{Error, Result};

/// Most leases asked for at a time.
const ASKED_AT_ONCE: usize = 16;

/// What a store that tells whole seconds may leave out.
const GRAIN: Duration = Duration::from_secs(1);

/// A member whose lease has not been renewed for more than half of its time to live. A session renews
/// after a third. Stores tell whole seconds, so a lease of two seconds or less never shows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Suspect<I> {
    /// The member.
    pub member: Arc<Member<I>>,
    /// How long its lease lasts yet, at most; then it is gone. Zero: it has ended already.
    pub remaining: Duration,
}

impl<I: DeserializeOwned + Send + Sync + 'static> Members<I> {
    /// The members of the newest view that may be dead already, in the order in which their leases end. It
    /// asks the store for each member's lease.
    ///
    /// # Errors
    /// The store's.
    pub async fn suspects(&self) -> Result<Vec<Suspect<I>>> {
        let members = self.view().members.clone();
        let suspects = stream::iter(members)
            .map(|member| async move {
                let lease = self.client().store().lease_ttl(member.lease).await?;
                let (granted, remaining) = match lease {
                    Some(lease) => (lease.granted, lease.remaining + GRAIN),
                    None => (Duration::MAX, Duration::ZERO),
                };
                let silent = granted.saturating_sub(remaining);
                Ok::<_, Error>((silent > granted / 2).then_some(Suspect { member, remaining }))
            })
            .buffered(ASKED_AT_ONCE);
        let suspects: Vec<Option<_>> = suspects.try_collect().await?;
        let mut suspects: Vec<_> = suspects.into_iter().flatten().collect();
        suspects.sort_by_key(|suspect| suspect.remaining);
        Ok(suspects)
    }
}
