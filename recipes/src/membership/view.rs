//! What those see who follow a group: its members at one revision.

use std::sync::Arc;

use crate::clock::Instant;
use crate::error::Result;
use crate::keys::{Key, LeaseId, Revision};

/// A member of a group.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Member<I> {
    /// Its name among the members: `<lease>/<nonce>`. Never used again after it has gone.
    pub id: String,
    /// Its key.
    pub key: Key,
    /// The revision at which it joined. It tells members that joined earlier from later ones.
    pub created: Revision,
    /// The revision at which it last changed.
    pub modified: Revision,
    /// The lease its key is attached to.
    pub lease: LeaseId,
    /// What it says about itself, or [`Error::Codec`](crate::Error::Codec) when that is not an `I`.
    pub info: Result<Arc<I>>,
}

/// The members of a group as they were at one revision.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MemberView<I> {
    /// The revision.
    pub revision: Revision,
    /// The members, those first who joined first.
    pub members: Vec<Arc<Member<I>>>,
    /// How many keys lie among the group's that no member can have put there. They count for nothing.
    pub strangers: usize,
    /// Since when the store has been out of reach: the view may be old.
    pub stale_since: Option<Instant>,
}

impl<I> MemberView<I> {
    /// The member of this id.
    #[must_use]
    pub fn member(&self, id: &str) -> Option<&Arc<Member<I>>> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The member that has been there longest.
    #[must_use]
    pub fn oldest(&self) -> Option<&Arc<Member<I>>> {
        self.members.first()
    }
}

/// How many of `expected` are more than half: `members.wait_for(majority_of(5))`.
#[must_use]
pub fn majority_of(expected: usize) -> usize {
    expected / 2 + 1
}
