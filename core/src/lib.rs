//! quorate's replicated key-value store, as a library: embed a [`Node`](node) in a process, or serve it.
//!
//! The layers, bottom up; a module uses only those above it in this list, and a test of the tree
//! checks that:
//!
//! 1. [`error`], [`clock`], [`config`], [`tasks`]: leaves
//! 2. [`storage`], [`peer`]: bytes on disk, bytes between members
//! 3. [`mvcc`], [`lease`]: revisions and history, leases
//! 4. [`watch`]: events to watchers
//! 5. [`apply`]: what a committed command does
//! 6. [`raft`]: which commands are committed
//! 7. [`node`]: one member, the waist of the house
//! 8. [`api`]: gRPC services and HTTP routes
//! 9. [`server`]: listeners

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
