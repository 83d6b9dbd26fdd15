//! Partitions shared out among the members of a group: each works on its own, all of them are worked
//! on, and no two ever write for the same one. Every member computes the same shares from the same
//! view; that views differ for a moment does no harm, because a partition is worked on only under a
//! lock of its own.
//!
//! `balance` computes shares, `set` is the handle and joins, `partitions` is what a member holds,
//! `worker` stands in line for one partition, `partition` is the guard.

mod balance;
mod partition;
mod partitions;
mod set;
#[cfg(test)]
mod tests;
mod worker;

pub use partition::Partition;
pub use partitions::Partitions;
pub use set::PartitionSet;

/// The kind of key space that partitions live in.
pub(crate) const KIND: &str = "assign";

/// Most partitions of one set.
pub const PARTITIONS_MAX: u32 = 1_024;
