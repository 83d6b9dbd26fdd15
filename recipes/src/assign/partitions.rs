//! What a member holds: its place among those who share the partitions, and its share.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::balance::assign;
use super::partition::Partition;
use super::worker::{Desk, Worker};
use crate::error::Result;
use crate::keys::KeySpace;
use crate::membership::{MemberView, Members, Membership};
use crate::session::{Lost, Session};
use crate::tasks::Tasks;

/// What a member says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stake {
    /// How many partitions it takes there to be.
    pub(super) partitions: u32,
}

/// Tells each partition's own listeners whether it falls to this member. They are told one after the
/// other, in the order of the partitions, and only of what has changed.
struct Shares {
    partitions: u32,
    id: String,
    mine: Vec<watch::Sender<bool>>,
}

impl Shares {
    /// Those who take there to be another number of partitions have none.
    fn take(&self, view: &MemberView<Stake>) {
        let counted = view.members.iter().filter(|member| {
            let stake = member.info.as_ref();
            stake.is_ok_and(|stake| stake.partitions == self.partitions)
        });
        let owners = assign(self.partitions, counted.map(|member| member.id.as_str()));
        for (index, mine) in self.mine.iter().enumerate() {
            let now = owners.get(index).is_some_and(|owner| *owner == self.id);
            mine.send_if_modified(|mine| std::mem::replace(mine, now) != now);
        }
    }

    /// Computes the shares anew whenever somebody comes or goes.
    async fn follow(self, mut members: Members<Stake>, desk: Arc<Desk>) {
        loop {
            match members.changed().await {
                Ok(view) => self.take(&view),
                Err(error) => {
                    desk.fail(error);
                    return;
                }
            }
        }
    }
}

/// A member's share of the partitions, which changes as members come and go.
///
/// Dropping it gives everything back and leaves, in the background; partitions that were taken with
/// [`Partitions::next`] are revoked, and given back when they are dropped.
#[must_use = "a dropped member gives everything back"]
pub struct Partitions {
    // Dropped before the membership, so that nothing new is begun in a group that was left.
    sharing: Sharing,
    /// Of each partition, whether it falls to this member.
    mine: Vec<watch::Receiver<bool>>,
    membership: Membership<Stake>,
}

/// What goes on in the background. Dropping it ends that, and gives back what nobody has taken.
struct Sharing {
    tasks: Tasks,
    desk: Arc<Desk>,
}

impl Drop for Sharing {
    fn drop(&mut self) {
        self.tasks.cancel();
        self.desk.clear();
    }
}

impl Partitions {
    /// Begins to share. `members` has been listed after `membership` was there.
    pub(super) fn start(
        space: &KeySpace,
        partitions: u32,
        membership: Membership<Stake>,
        members: Members<Stake>,
    ) -> Self {
        let channels = (0..partitions).map(|_| watch::channel(false));
        let (tell, mine): (Vec<_>, Vec<_>) = channels.unzip();
        let (desk, tasks) = (Arc::new(Desk::default()), Tasks::current());
        let shares = Shares {
            partitions,
            id: membership.id().to_owned(),
            mine: tell,
        };
        shares.take(&members.view());
        tasks.spawn("shares", shares.follow(members, Arc::clone(&desk)));
        for (index, mine) in (0..partitions).zip(&mine) {
            let worker = Worker {
                index,
                space: space.child(&index.to_string()),
                session: membership.session().clone(),
                mine: mine.clone(),
                desk: Arc::clone(&desk),
            };
            tasks.spawn("partition", worker.run());
        }
        Self {
            sharing: Sharing { tasks, desk },
            mine,
            membership,
        }
    }

    /// Waits for a partition of this member's share: one that has fallen to it newly and that its former
    /// owner has given back, or one of its own that was dropped.
    ///
    /// # Errors
    /// [`Error::SessionLost`](crate::Error::SessionLost) when the session is lost, and
    /// [`Error::Removed`](crate::Error::Removed) when somebody deleted the member's key: nothing comes any
    /// more then. [`Error::ForeignKey`](crate::Error::ForeignKey) and the store's refusals for one
    /// partition: it is tried again, and the others come as before. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// No partition is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Partition> {
        self.membership.scope(self.sharing.desk.next()).await?
    }

    /// The numbers of the partitions that fall to this member, as of the newest view of all. It may not
    /// hold them yet.
    #[must_use]
    pub fn share(&self) -> Vec<u32> {
        let all = (0..).zip(&self.mine);
        let mine = all.filter(|(_, mine)| *mine.borrow());
        mine.map(|(index, _)| index).collect()
    }

    /// The session that everything is held under.
    #[must_use]
    pub fn session(&self) -> &Session {
        self.membership.session()
    }

    /// Completes when this is no member any more: with its session, when somebody deleted its key, or
    /// when it is dropped.
    pub fn lost(&self) -> Lost {
        self.membership.lost()
    }

    /// Gives everything back that was not taken with [`Partitions::next`], leaves, and waits until the
    /// store has confirmed that. What was taken is revoked.
    ///
    /// # Errors
    /// As [`Membership::leave`].
    ///
    /// # Cancel safety
    /// Leaving goes on when the future is dropped.
    pub async fn leave(self) -> Result<()> {
        let Self {
            sharing,
            membership,
            ..
        } = self;
        drop(sharing);
        membership.leave().await
    }
}

impl fmt::Debug for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partitions")
            .field("member", &self.membership.id())
            .field("share", &self.share())
            .finish_non_exhaustive()
    }
}
