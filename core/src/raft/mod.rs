//! Consensus: openraft glued to the log, the state and the peers. The only module that names openraft.

pub mod codec;
mod log;
mod machine;
pub mod pending;
pub mod snapshot;
pub mod start;
mod state_machine;
pub mod types;

pub use machine::AppliedPoint;
pub use pending::{Completion, Pending, Ticket};
