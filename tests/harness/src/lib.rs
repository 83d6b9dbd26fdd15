//! What quorate's suites stand on: processes that are started, paused, killed and always stopped;
//! clusters of them; the targets a test body runs on; waiting for a condition with a deadline.

pub mod cluster;
pub mod etcd;
pub mod load;
pub mod ports;
pub mod process;
pub mod target;
pub mod wait;

pub use wait::eventually;
