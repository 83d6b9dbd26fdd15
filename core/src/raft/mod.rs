//! Consensus: openraft glued to the log, the state and the peers. The only module that names openraft.

pub mod codec;
mod log;
pub mod start;
pub mod types;
