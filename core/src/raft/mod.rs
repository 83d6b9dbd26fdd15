//! Consensus: openraft glued to the log, the state and the peers. The only module that names openraft.
//!
//! ```text
//! propose ─▶ openraft ─▶ log ─▶ Wal            commit ─▶ state_machine ─▶ machine (one thread)
//!               │                                          waits for log      │ State, Hub, Pending
//!               └─ network ─▶ peers                                           └─▶ AppliedPoint
//! ```
//!
//! - `log` and `state_machine` are what openraft stores through; `machine` owns the state.
//! - `start` decides whether a log and a state belong together, `rebuild` takes a peer's state if not;
//!   `retention` says how much log is kept.
//! - `restored` is how a restored cluster begins, `survivor` how one does that was forced.
//! - `network` and `handler` are the two ends of a message between members; `wire` is its form.
//! - `membership` changes who takes part, `leadership` says who leads, `pending` what became of this
//!   member's own proposals.

mod alone;
pub mod codec;
mod consensus;
#[doc(hidden)]
pub mod foreign;
mod handler;
mod leadership;
mod log;
mod machine;
mod membership;
mod network;
mod pending;
mod rebuild;
mod restored;
mod retention;
mod settings;
pub mod snapshot;
pub mod start;
mod state_machine;
mod survivor;
mod transfer;
pub mod types;
mod wire;

#[cfg(test)]
mod tests;

pub use consensus::{Consensus, Options, ProposeError, Status};
pub use leadership::Leadership;
pub use machine::AppliedPoint;
pub use membership::{Change, RaftMember, members_in};
pub use pending::{Completed, Completion, Pending, Ticket};
pub use rebuild::{Unusable, take_state, usable};
pub use restored::{RESTORED_AT, restored_marks};
pub use survivor::{is_alone, make_alone};
pub use types::Peer;
