//! Coordination recipes over any etcd v3 store: locks, elections, service registry, task progress.
//!
//! Everything a process holds, it holds under a [`Session`]: one lease, kept alive in the
//! background. Every guard can write through a transaction that the *store* refuses once the guard
//! is lost, so a process that was stopped, cut off or too slow cannot do harm with an old lock.
//!
//! ```no_run
//! use std::time::Duration;
//! use quorate_recipes::{Client, Json, store::remote::Remote};
//!
//! # #[derive(serde::Serialize)] enum State { Paid }
//! # async fn example() -> Result<(), quorate_recipes::Error> {
//! let client = Client::new(Remote::new(["http://127.0.0.1:2379"])?);
//! let session = client.session().ttl(Duration::from_secs(10)).await?;
//! let guard = client.mutex("orders/42").lock(&session).await?;
//! guard.put("orders/42/state", Json(&State::Paid)).await?; // refused if the lock was lost
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # What dropping does
//!
//! Every future here may be dropped at any await, so `tokio::time::timeout` and `select!` are safe.
//!
//! | dropped | effect |
//! |---|---|
//! | a `lock()` future | the contender leaves the line, also if its key is still on the way; the next call stands at the end |
//! | a guard | the release is queued at once and repeated until the store has answered; nothing blocks |
//! | a `release()` future | the release goes on unobserved |
//! | a `commit()` future | an unknown outcome |
//! | a `campaign()` future | as a `lock()` future |
//! | a leadership | resigns, as a guard releases |
//! | a registration, or a `register()` future | deregistered |
//! | a reporter without `finish` | the task is reported as abandoned |
//! | a discovery, a monitor, an observer | the watch is closed |
//! | the last handle of a session | every hold is given up, then the lease is revoked |
//! | a `close()` future | closing goes on |
//! | a watcher, a mirror | the watch is closed |
//! | the runtime, or the process, killed | the lease runs out and takes the keys along |
//!
//! # Where things live
//!
//! All keys lie under `quorate/`: locks at `quorate/lock/<name>/<lease>/<nonce>`, sessions at
//! `quorate/session/<lease>`, elections at `quorate/election/<name>/…`, services at
//! `quorate/service/<name>/<id>`, progress at `quorate/progress/<job>/…`. Names are escaped so that none lies under another. The layout of locks
//! and elections is that of etcd's Go `concurrency` package, so its users stand in the same lines.
//!
//! # Testing what you build
//!
//! [`store::MemStore`] is an etcd in memory whose time is the test's, [`store::Faulty`] a store that
//! loses, delays, repeats and holds calls where you want it, [`store::Counting`] one that counts what a
//! piece of code costs. With [`clock::LateClock`] a client's clock can be stopped. Together, on tokio's
//! paused clock, they show in no time what your code does in the worst minute of its life.

mod client;
pub mod clock;
pub mod election;
pub mod error;
mod follow;
pub mod keys;
pub mod kit;
pub mod lock;
pub mod progress;
pub mod registry;
pub mod session;
mod settled;
pub mod store;
mod tasks;
pub mod txn;
mod value;
mod wait;
pub mod watch;

pub use client::{Client, ClientBuilder, Identity};
pub use election::{Election, Leader, Leadership};
pub use error::{Error, LostReason, Result, TxnError};
pub use keys::{Key, KeyRange, KeySpace, LeaseId, Name, Revision};
pub use lock::{Fence, Fenced, FencingToken};
pub use session::{Lost, Session, SessionBuilder, SessionState};
pub use store::{Store, StoreError, ops::Compare};
pub use txn::{Committed, Txn};
pub use value::{Json, Value, from_json};
