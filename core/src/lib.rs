//! quorate's replicated key-value store, as a library: embed a [`Node`](node) in a process, or serve it.
//!
//! The layers, bottom up; a module uses only those above it in this list, and a test of the tree
//! checks that:
//!
//! 1. leaves: [`error`], [`clock`], [`config`], [`tasks`]
//! 2. how connections are accepted
//! 3. bytes on disk, bytes between members: [`storage`], [`peer`]
//! 4. revisions and history, leases: [`mvcc`], [`lease`]
//! 5. events to watchers: [`watch`]
//! 6. what a committed command does: [`apply`]
//! 7. which commands are committed: [`raft`]; the state as a file for etcd: [`backup`]
//! 8. one member, the waist of the house: [`node`]
//! 9. gRPC services and HTTP routes: [`api`]
//! 10. listeners: [`server`]

pub mod clock;
pub mod config;
pub mod error;
mod failpoint;
pub mod tasks;

mod accept;

pub mod peer;
pub mod storage;

pub mod lease;
pub mod mvcc;

pub mod watch;

pub mod apply;

pub mod backup;
pub mod raft;

pub mod node;

pub mod api;

pub mod server;
