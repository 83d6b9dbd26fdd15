//! A group, and what a member of it holds.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::members::Members;
use super::record;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{KeyRange, KeySpace, Revision};
use crate::kit::fresh_key;
use crate::lock::{Fence, Fenced, Hold};
use crate::session::{Claim, Claimed, Session};

impl Client {
    /// The group of this name. `I` is what each member says about itself, written as JSON.
    #[must_use]
    pub fn group<I>(&self, name: impl AsRef<str>) -> Group<I> {
        Group::of(self.clone(), KeySpace::of(super::KIND, name.as_ref()))
    }
}

/// A group of processes. A handle: cheap to clone, holds nothing.
///
/// Costs: joining is one transaction, leaving two; following is one listing and one watch.
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
/// let session = client.session().await?;
/// let membership = client.group("workers").join(&session, "10.0.0.7:80".to_owned()).await?;
/// let mut members = client.group::<String>("workers").members().await?;
/// members.wait_for(3).await?;
/// membership.put("workers/log", "three of us").await?; // refused by the store if no longer a member
/// membership.leave().await?;
/// # Ok(()) }
/// ```
pub struct Group<I> {
    client: Client,
    space: KeySpace,
    info: PhantomData<fn(I) -> I>,
}

impl<I> Group<I> {
    pub(crate) fn of(client: Client, space: KeySpace) -> Self {
        Self {
            client,
            space,
            info: PhantomData,
        }
    }

    /// Joins the group. Each call makes another member, under one session too.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; [`Error::Codec`]; the store's final refusals. Trouble with the store is
    /// waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, the member leaves as soon as it turns out to be there.
    pub async fn join(&self, session: &Session, info: I) -> Result<Membership<I>>
    where
        I: Serialize,
    {
        session.belongs_to(&self.client)?;
        let key = fresh_key(session, &self.space);
        let mut claim = Claim::of(key.clone(), record::write(&info).into_bytes(&key)?);
        claim.farewell = Some(record::farewell());
        let own = KeyRange::one(&key);
        let id = self.space.suffix(key.as_bytes()).unwrap_or_default();
        let id = id.to_owned();
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(claim).await })
            .await?;
        let Claimed::Made { owned, .. } = claimed else {
            // The key has a fresh nonce, and the claim no other condition.
            return Err(Error::Conflict);
        };
        Ok(Membership {
            hold: Hold::new(session.clone(), owned, vec![own]),
            id,
            info: PhantomData,
        })
    }

    /// Follows who is in the group. Ready once the first listing is in. Needs no session.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    pub async fn members(&self) -> Result<Members<I>>
    where
        I: DeserializeOwned + Send + Sync + 'static,
    {
        Members::start(self.client.clone(), self.space.clone()).await
    }
}

impl<I> Clone for Group<I> {
    fn clone(&self) -> Self {
        Self::of(self.client.clone(), self.space.clone())
    }
}

impl<I> fmt::Debug for Group<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("prefix", &self.space.prefix())
            .finish_non_exhaustive()
    }
}

/// A place in a group; everything a guard can do is in [`Hold`]: its loss, and writes that the store
/// refuses once this is no member any more. It is lost with its session.
///
/// Dropping it leaves the group in the background, and closing its session leaves too: those who
/// watch see that it left, and did not crash.
#[must_use = "a dropped membership leaves at once"]
pub struct Membership<I> {
    hold: Hold,
    id: String,
    info: PhantomData<fn(I)>,
}

impl<I> Membership<I> {
    /// The member's name in the views of the group.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The revision at which it joined: its place among the members.
    #[must_use]
    pub fn created(&self) -> Revision {
        self.fence().revision()
    }

    /// Says something else about the member, and waits until the store has confirmed. Updates take
    /// effect in the order of the calls. Returns the revision.
    ///
    /// # Errors
    /// [`Error::SessionLost`] or [`Error::Removed`] when it is no member any more;
    /// [`Error::Codec`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome.
    pub async fn update(&self, info: I) -> Result<Revision>
    where
        I: Serialize,
    {
        self.hold.set_value(record::write(&info)).await
    }

    /// Leaves the group, saying so, and waits until the store has confirmed.
    ///
    /// # Errors
    /// [`Error::Fenced`] when it was no member any more; [`Error::SessionLost`]; the store's final
    /// refusals. It is no member afterwards in any case, or is not once the session has ended.
    ///
    /// # Cancel safety
    /// Leaving goes on when the future is dropped.
    pub async fn leave(self) -> Result<()> {
        self.hold.release().await
    }
}

impl<I> Deref for Membership<I> {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl<I> Fenced for Membership<I> {
    fn fence(&self) -> &Fence {
        self.hold.fence()
    }
}

impl<I> fmt::Debug for Membership<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
