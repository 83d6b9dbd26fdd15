//! Following a group: the newest view, kept up to date in the background, and a stream of what happens.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use futures::Stream;
use futures::stream::BoxStream;
use serde::de::DeserializeOwned;

use super::roster::{MemberEvent, Roster};
use super::view::MemberView;
use crate::client::Client;
use crate::error::Result;
use crate::follow::Followed;
use crate::keys::KeySpace;
use crate::watch::Watcher;

/// A view of a group that follows the store, with one watch. Every view is a state that the group went
/// through; views never go back, and intermediate ones may be skipped. While the store is out of
/// reach the last view stays, marked as stale.
///
/// Clones share the view; each waits for changes by itself. Dropping the last stops following.
pub struct Members<I> {
    followed: Followed<MemberView<I>>,
    client: Client,
    space: KeySpace,
}

impl<I: DeserializeOwned + Send + Sync + 'static> Members<I> {
    pub(super) async fn start(client: Client, space: KeySpace) -> Result<Self> {
        let roster = Roster::new(space.clone());
        Ok(Self {
            followed: Followed::start(&client, space.range(), roster).await?,
            client,
            space,
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The newest view.
    #[must_use]
    pub fn view(&self) -> Arc<MemberView<I>> {
        self.followed.view()
    }

    /// Waits for a view that has not been waited for before, and returns it.
    ///
    /// # Errors
    /// The store's final refusal that ended the view.
    ///
    /// # Cancel safety
    /// No view is missed when the future is dropped; intermediate ones may be skipped.
    pub async fn changed(&mut self) -> Result<Arc<MemberView<I>>> {
        self.followed.changed().await
    }

    /// Waits until there are at least `count` members, which may be now, and returns the view.
    /// For a majority of those that there should be: `wait_for(majority_of(expected))`.
    ///
    /// # Errors
    /// As [`Members::changed`].
    ///
    /// # Cancel safety
    /// As [`Members::changed`].
    pub async fn wait_for(&mut self, count: usize) -> Result<Arc<MemberView<I>>> {
        self.wait_until(|view| view.members.len() >= count).await
    }

    /// Waits until a view satisfies `enough`, which may be the one now, and returns it.
    ///
    /// # Errors
    /// As [`Members::changed`].
    ///
    /// # Cancel safety
    /// As [`Members::changed`].
    pub async fn wait_until(
        &mut self,
        enough: impl FnMut(&MemberView<I>) -> bool,
    ) -> Result<Arc<MemberView<I>>> {
        self.followed.wait_for(enough).await
    }

    /// What happens in the group: first everyone who is there as joined, then each change, exactly
    /// as it happened, however slow the reader is. After events were missed, because the store had
    /// compacted them meanwhile, the net difference. Ends after a final refusal of the store, which it
    /// yields first.
    ///
    /// Ready once the first listing is in: nothing that happens afterwards is missed. Each stream is a
    /// watch of its own, and goes on without this handle.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing. Nothing is lost when a wait for the next event is dropped.
    pub async fn events(&self) -> Result<BoxStream<'static, Result<MemberEvent<I>>>> {
        let mut watcher = self.client.watch(self.space.range());
        let mut roster = Roster::new(self.space.clone());
        let ready = roster.apply(watcher.next().await?).collect();
        Ok(Box::pin(events(watcher, roster, ready)))
    }
}

fn events<I>(
    watcher: Watcher,
    roster: Roster<I>,
    ready: VecDeque<MemberEvent<I>>,
) -> impl Stream<Item = Result<MemberEvent<I>>> + Send
where
    I: DeserializeOwned + Send + Sync + 'static,
{
    let state = Some((watcher, roster, ready));
    futures::stream::unfold(state, |state| async move {
        let (mut watcher, mut roster, mut ready) = state?;
        loop {
            if let Some(event) = ready.pop_front() {
                return Some((Ok(event), Some((watcher, roster, ready))));
            }
            match watcher.next().await {
                Ok(batch) => ready.extend(roster.apply(batch)),
                Err(error) => return Some((Err(error), None)),
            }
        }
    })
}

impl<I> Clone for Members<I> {
    fn clone(&self) -> Self {
        Self {
            followed: self.followed.clone(),
            client: self.client.clone(),
            space: self.space.clone(),
        }
    }
}

impl<I> fmt::Debug for Members<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members")
            .field("group", &self.space.prefix())
            .finish_non_exhaustive()
    }
}
