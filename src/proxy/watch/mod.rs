//! Watches: many clients' watchers on few upstream watches.
//!
//! - [`spec`] says what a watcher watches; watchers of the same can share.
//! - [`line`](mod@line) is one upstream stream of watches, resumed where it broke.
//! - [`shared`] is who listens to which shared watch; [`outbox`] holds what waits for one client.
//! - [`session`] is one client's stream, on shared watches and on its own.
//! - [`now`] says what "now" is for who joins.
//! - [`trunk`] and [`service`] bring them the upstream streams and the clients.
//!
//! All but the last three are pure state, tested against a model.

mod line;
mod now;
mod outbox;
mod service;
mod session;
mod shared;
mod spec;
mod trunk;

#[cfg(test)]
mod tests;

pub(super) use outbox::Room;
pub(super) use service::Watches;
pub(super) use session::Limits;
