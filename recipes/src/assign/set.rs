//! The handle of a set of partitions: joins those who share them, and tells who has which.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::partitions::{Partitions, Stake};
use super::{KIND, PARTITIONS_MAX};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::KeySpace;
use crate::lock::Holder;
use crate::membership::Group;
use crate::session::Session;

impl Client {
    /// The set of `count` partitions of this name, 1 to [`PARTITIONS_MAX`].
    #[must_use]
    pub fn partitions(&self, name: impl AsRef<str>, count: u32) -> PartitionSet {
        PartitionSet::of(self.clone(), KeySpace::of(KIND, name.as_ref()), count)
    }
}

/// A set of partitions, numbered from 0, to be shared out among whoever joins. A handle: cheap to clone,
/// holds nothing.
///
/// ```no_run
/// # async fn work(partition: &quorate_recipes::Partition) -> Result<(), quorate_recipes::Error> { Ok(()) }
/// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
/// let session = client.session().await?;
/// let mut partitions = client.partitions("topic", 16).join(&session).await?;
/// loop {
///     let partition = partitions.next().await?;
///     tokio::spawn(async move {
///         tokio::select! {
///             () = partition.revoked() => {} // somebody else waits for it
///             done = partition.scope(work(&partition)) => drop(done),
///         }
///         partition.release().await
///     });
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PartitionSet {
    client: Client,
    space: KeySpace,
    count: u32,
}

impl PartitionSet {
    /// The set whose keys lie in `space`.
    pub(crate) fn of(client: Client, space: KeySpace, count: u32) -> Self {
        Self {
            client,
            space,
            count,
        }
    }

    /// Joins those who share the partitions. Each call makes another member.
    ///
    /// All members must take there to be as many partitions. Those who do not are left out of each
    /// other's reckoning: while a set grows or shrinks, old and new members wait for each other's
    /// partitions, and still no two have one at a time.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no partitions, or more than [`PARTITIONS_MAX`]; [`Error::SessionLost`];
    /// the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, the member leaves as soon as it turns out to be there.
    pub async fn join(&self, session: &Session) -> Result<Partitions> {
        if !(1..=PARTITIONS_MAX).contains(&self.count) {
            return Err(Error::Invalid(format!(
                "{} partitions; there may be 1 to {PARTITIONS_MAX}",
                self.count
            )));
        }
        let group: Group<Stake> = Group::of(self.client.clone(), self.space.child("member"));
        let stake = Stake {
            partitions: self.count,
        };
        let membership = group.join(session, stake).await?;
        let members = group.members().await?;
        Ok(Partitions::start(
            &self.space,
            self.count,
            membership,
            members,
        ))
    }

    /// Who holds which partition, for people: as it was at one revision. Those without an owner are
    /// not in it.
    ///
    /// # Errors
    /// The store's.
    pub async fn owners(&self) -> Result<BTreeMap<u32, Holder>> {
        let (_, kvs) = self.client.list(self.space.range()).await?;
        let mut owners: BTreeMap<u32, Holder> = BTreeMap::new();
        for kv in &kvs {
            let suffix = self.space.suffix(&kv.key);
            let index = suffix.and_then(|suffix| suffix.split('/').next());
            let Some(Ok(index)) = index.map(str::parse) else {
                continue;
            };
            let contender = Holder::of(kv);
            match owners.entry(index) {
                Entry::Vacant(entry) => {
                    entry.insert(contender);
                }
                Entry::Occupied(mut entry) if contender.revision < entry.get().revision => {
                    entry.insert(contender);
                }
                Entry::Occupied(_) => {}
            }
        }
        Ok(owners)
    }
}
