//! Events to watchers: one hub, fed by `raft` after each applied batch, and for each watcher a
//! handle, read by `node`.
//!
//! A watcher is *live* while everything published reaches its buffer at once, and *catching up*
//! while it reads what it missed, from the recent events in memory or from the `events` table. It
//! begins in either state, falls back to catching up when its buffer is full, and becomes live
//! again by itself, without a gap or a double. Publishing never waits for a watcher: it costs the
//! matches of the events, and a watcher that does not read costs nothing beyond its buffer.
//!
//! All events of one revision stay together, in the order the operations ran.

mod hub;
mod range_set;
mod watcher;

pub use hub::{Hub, Options, Publication, ViewSource};
pub use watcher::{Item, Request, Watcher};
