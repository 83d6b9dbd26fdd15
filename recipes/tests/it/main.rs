//! Every recipe on every kind of store: the bodies are functions over a client, run on a node in this
//! process, on a cluster of three through its client ports, and on a real etcd.

#![cfg(feature = "embedded")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests start their own tasks and stop at what they did not expect"
)]

mod bodies;
mod cluster;
mod drops;
mod embedded;
mod etcd;
mod mem;
mod services;
mod support;
