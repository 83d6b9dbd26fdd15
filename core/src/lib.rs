//! quorate's replicated key-value store, as a library: embed a [`Node`](node) in a process, or serve it.
//!
//! The layers, bottom up; a module uses only those above it in this list, and a test of the tree
//! checks that:
//!
//! 1. leaves: [`error`], [`clock`], [`config`], [`tasks`]
//! 2. bytes on disk, bytes between members: [`storage`], [`peer`]
//! 3. revisions and history, leases: [`mvcc`], [`lease`]
//! 4. events to watchers: [`watch`]
//! 5. what a committed command does: [`apply`]
//! 6. which commands are committed: [`raft`]
//! 7. one member, the waist of the house: [`node`]
//! 8. gRPC services and HTTP routes: [`api`]
//! 9. listeners: [`server`]

pub mod clock;
pub mod config;
pub mod error;
pub mod tasks;

pub mod peer;
pub mod storage;

pub mod lease;
pub mod mvcc;

pub mod watch;

pub mod apply;

pub mod raft;

pub mod node;

pub mod api;

pub mod server;
