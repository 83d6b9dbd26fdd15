//! Events to watchers: one hub, fed by `raft` after each applied batch, and for each watcher a
//! handle, read by `node`.
//!
//! A watcher is *live* while everything published reaches its buffer at once, and *behind* while it
//! has to catch up with what it missed, from the recent events in memory or from the `events`
//! table. It begins in either state, falls behind when its buffer is full, and becomes live again
//! by itself, without a gap or a double. Publishing never waits for a watcher: it costs the
//! matches of the events, and a watcher that is not read costs nothing beyond its buffer.
//!
//! All events of one revision stay together, in the order the operations ran.
//!
//! Why there is no gap and no double: the hub's lock is held while a batch is published and while
//! a watcher becomes live, and a watcher becomes live only when the next revision it wants is
//! beyond the last one published. Lock order: the hub, then a buffer.

mod buffer;
mod hub;
mod page;
mod range_set;
mod recent;
mod watcher;

#[cfg(test)]
mod tests;

pub use hub::{Hub, Options, ViewSource};
pub use recent::Publication;
pub use watcher::{Item, Request, Watcher};
