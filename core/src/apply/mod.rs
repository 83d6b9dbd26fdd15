//! What a committed command does: the replicated state machine, synchronous and deterministic. Used
//! by `raft`, which feeds it the log, and by `node`, which reads through [`Reader`] and checks
//! requests with [`check`] before proposing them.
//!
//! Nothing here knows time, chance, the network or the options of one member: what a command does
//! depends on the log before it and on nothing else, so that all members agree.
//!
//! - Each proposal is a transaction of its own: a refused one changes nothing.
//! - One applied batch is one atomic batch of the store, with the applied log id and the membership
//!   in it: the store is always the state after some prefix of the log.
//! - Leases, alarms and members are small and kept in memory as well; everything else is read from
//!   the store.

mod alarm;
pub mod check;
mod command;
mod executor;
mod kv;
mod lease;
mod members;
mod pairs;
mod reader;
mod restored;
mod state;
pub mod txn;

#[cfg(test)]
mod tests;

pub use alarm::{Alarm, alarms_in};
pub use command::{Answer, Applied, Committed, Options, Outcome, Payload, ProposalId};
pub use lease::{lease_record, leases_in};
pub use members::Member;
pub use reader::Reader;
pub use restored::{epoch_in, is_restore_unfinished, restored_mark};
pub use state::{State, applied_in, applied_record};
