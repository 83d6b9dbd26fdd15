//! What quorate's suites stand on: processes that are started, paused, killed and always stopped;
//! clusters of them, and cuts between them; clients at work; the targets a test body runs on;
//! waiting for a condition with a deadline.

pub mod client;
pub mod cluster;
pub mod etcd;
pub mod keys;
pub mod knobs;
pub mod load;
pub mod metrics;
pub mod network;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod target;
pub mod traffic;
pub mod wait;
pub mod watching;

pub use wait::eventually;
