//! Coordination recipes over any etcd v3 store: locks, elections, synchronisers, membership, service
//! registry and load balancing, settings, queues, topics, job dispatch, task progress.
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
//! # What there is
//!
//! | need | recipe |
//! |---|---|
//! | one at a time | [`Mutex`](lock::Mutex), [`ExclusiveLock`](lock::ExclusiveLock), several at once [`MultiLock`](lock::MultiLock) |
//! | readers together, so many at a time | [`RwLock`](lock::RwLock), [`Semaphore`](lock::Semaphore) |
//! | one leader | [`Election`] |
//! | one computes, all share | [`OnceCell`] |
//! | who is there, who does what | [`Group`], [`PartitionSet`], [`registry`], [`KeptKey`] |
//! | which instance takes the next call | [`balance`] |
//! | whether something answers, as one sees it or as several agree | [`probe`] |
//! | go on together | [`Barrier`], [`DoubleBarrier`], [`CyclicBarrier`], [`CountdownLatch`] |
//! | numbers | [`AtomicCounter`], [`Adder`], [`IdBlocks`], [`RateLimiter`] |
//! | several keys, no lock | [`Stm`], [`Txn`] |
//! | settings that change while programs run | [`Config`], [`ConfigGroup`] |
//! | work to be done by whoever is free, the urgent first | [`queue`], [`PriorityQueue`](queue::PriorityQueue) |
//! | work to be done at its time, once | [`Cron`] |
//! | messages for all who want them | [`topic`], lines of logs [`collect`] |
//! | work that waits until a condition holds, then goes together | [`ConditionQueue`] |
//! | commands for others, and their replies | [`dispatch`] |
//! | how far it is | [`progress`] |
//! | recipes of one's own | [`kit`], and the stores to test them with in [`store`] |
//!
//! # What dropping does
//!
//! Every future here may be dropped at any await, so `tokio::time::timeout` and `select!` are safe. What has
//! been sent to the store by then is seen to its end; what could not be sent, for want of a store, is not sent
//! any more once nobody waits for it.
//!
//! | dropped | effect |
//! |---|---|
//! | a `lock()`, `read()`, `write()`, `acquire()`, `campaign()` future | the contender leaves the line, also if its key is still on the way; the next call stands at the end |
//! | a guard, a permit, a leadership | the release is queued at once and repeated until the store has answered; nothing blocks |
//! | a `release()`, `resign()` future | goes on unobserved |
//! | a `try_upgrade()`, `downgrade()`, `hand_over()` future | what was held is given up |
//! | a request to release | taken back |
//! | a guard, by a panic | as dropped; with `poison_on_panic()` a mark is left |
//! | a `run()` future of an election | the leader's work is dropped, then as a leadership |
//! | a `commit()` future, one of a transaction's `run()` | an unknown outcome |
//! | an `add()`, `set()`, `count_down()` future; `publish()`, `rollback()`, `gray()`, `promote()`, `withdraw()` of a setting | an unknown outcome: what is on its way ends by itself, once or not at all |
//! | a `next()` future of ids | a block may go unused |
//! | an `acquire()` of a rate limiter | no permit is used; granted ones are at hand for the next call |
//! | a hold of a barrier | opens it, as a guard releases |
//! | a `wait()` at a cyclic barrier, an `enter()` future | the member withdraws, unless all have come |
//! | an entered double barrier | leaves, without waiting for the others |
//! | a `get_or_try_init()`, `refresh()` future | the computation is dropped, and counts if attempts are counted; the next candidate computes |
//! | a membership, or a `join()` future | leaves, and is seen to |
//! | a partition | given back, as a guard releases |
//! | a member's share of partitions | leaves; what it did not take is given back, what it took is revoked |
//! | a registration, or a `register()` future | deregistered |
//! | a kept key, or a `keep()` future | removed |
//! | a `pop()` future | a claim that is on its way is undone, and the attempt does not count |
//! | a delivery | given back at once |
//! | an `ack()`, `nack()` future | goes on unobserved |
//! | a `push()` future | an unknown outcome, as an `add()`; who waits for room stands in no line any more |
//! | a consumer | takes nothing any more; its deliveries go on |
//! | a prober | the check under way is dropped, its program killed |
//! | an observation, or an `observe()` future | the prober stops, the opinion is taken back |
//! | a `run()` future of a job | the work is dropped, and the run ends; a start on its way counts as started |
//! | a `publish()` future of a topic, a `commit()`, `commit_with()` future of a group | an unknown outcome, as an `add()`; a cursor never goes back |
//! | a `next()` future of a subscription or a group | no message is lost |
//! | a member of a group | leaves; its partitions are given up, and what it did not commit comes again |
//! | a retainer | removes nothing any more; another one goes on |
//! | a log agent | stops; lines in memory are lost, those in the spool stay |
//! | a log collector, or its `run()` future | leaves; stops, and the chunk comes again |
//! | a `join()` of a condition queue; `withdraw()`, `start()`, `mark_done()` | an unknown outcome, as an `add()`; the gate is left to others to open |
//! | a `take()` future | a claim that is on its way is undone |
//! | a batch, a command | given back at once |
//! | a `send()` of a command | an unknown outcome, as an `add()` |
//! | a `next()` of an inbox | what is on its way goes back, and may count as an attempt |
//! | a `reply()`, `fail()`, `stop()` of a command | goes on unobserved, once it has been sent |
//! | an inbox, a job | takes nothing any more, and is not there for others; nothing |
//! | an `ack()` of a batch | done, or given back |
//! | an `opened()` future | nothing is held |
//! | a reporter without `finish` | the task is reported as abandoned |
//! | a `start()`, `flush()`, `finish()` future of a reporter | an attempt that has begun is abandoned; the report goes out |
//! | a `cancel_task()` future | it may still be asked for |
//! | a pick | the instance is not outstanding any more |
//! | a following of settings | the watch is closed, the acknowledgement removed; a snapshot file stays |
//! | a discovery, a liveness, a monitor, an observer, the members of a group, a subscription, a watcher, a mirror | the watch is closed |
//! | the last handle of a session | every hold is given up, then the lease is revoked |
//! | a `close()` future | closing goes on |
//! | the runtime, or the process, killed | the lease runs out and takes the keys along |
//!
//! # Where things live
//!
//! All keys lie under `quorate/`, those of a name under `quorate/<kind>/<name>/`. Names are escaped, so
//! none lies under another. The layout of locks and elections is that of etcd's Go `concurrency` package,
//! so its users stand in the same lines.
//!
//! | kind | keys |
//! |---|---|
//! | `session`, `lane` | of a session: `quorate/session/<lease>`, `quorate/lane/<lease>/<n>` |
//! | `lock`, `election` | `<lease>/<nonce>` of each contender; what is said about them under `lock-meta`, `election-meta` |
//! | `request` | requests to release, under the revision of the holder's key |
//! | `exclusive`, `rwlock`, `semaphore` | `owner`; `read/…`, `write/…`; `door/…`, `permit/…`, `limit` |
//! | `once` | `turn/…`, `chunk/…`, `manifest`, `failure`, `attempts` |
//! | `member`, `assign`, `service` | one key a member, a contender for a partition, an instance |
//! | `progress` | of each task `record/…`, `owner/…` and `cancel/…` |
//! | `probe` | one key an observer |
//! | `cron` | `last` what was started, `running` and `run` |
//! | `config` | `live/…` what is published and gray releases, `history/…`, `ack/…` what instances run |
//! | `barrier`, `double-barrier`, `cyclic-barrier`, `latch` | holds and members, and a register of the state |
//! | `queue` | `head` and `segment/…`, the items; `try/…`, who has them; `delayed/…`, `dead/…`; `bound`, the limit; `lane/…`, those of a lane |
//! | `topic`, `live-topic` | `meta`; `partition/…`, heads and messages; `group/…`, cursors; `removed/…`, `share/…`, `retainer/…`; `last` |
//! | `collect` | how far each source is |
//! | `condition` | `head` and `segment/…`, the tasks; `gate/…` what has opened; `claim/…`, `try/…` who has them; `signal/…`, `done/…` |
//! | `dispatch` | `job/…` how far each is, `cancel/…`; `inbox/…` and `service/…`, queues of commands; `here/…`, `cast/…` |
//! | `counter`, `adder`, `ids`, `rate` | the number; cells; the last id; grants and the rule |
//!
//! `quorate/epoch` is the store's epoch, which every fence compares. Kept keys, and whatever is written
//! under a guard, lie where their users say.

pub mod assign;
pub mod balance;
pub mod barrier;
mod client;
pub mod clock;
pub mod collect;
pub mod condition;
pub mod config;
pub mod counter;
pub mod cron;
mod departure;
pub mod dispatch;
pub mod election;
pub mod error;
mod follow;
mod hash;
pub mod inspect;
mod keeper;
pub mod keys;
pub mod kit;
pub mod latch;
pub mod leased;
pub mod lock;
pub mod membership;
pub mod once;
pub mod probe;
pub mod progress;
pub mod queue;
pub mod rate;
mod register;
pub mod registry;
pub mod session;
mod settled;
mod snapshot;
pub mod stm;
pub mod store;
mod tasks;
#[cfg(test)]
mod testing;
pub mod topic;
pub mod txn;
mod value;
mod wait;
pub mod watch;

pub use assign::{Partition, PartitionSet, Partitions};
pub use barrier::{Barrier, CyclicBarrier, DoubleBarrier};
pub use client::{Client, ClientBuilder, Identity};
pub use condition::ConditionQueue;
pub use config::{Config, ConfigGroup};
pub use counter::{Adder, AtomicCounter, IdBlocks};
pub use cron::Cron;
pub use dispatch::Dispatcher;
pub use election::{Election, Leader, Leadership};
pub use error::{Error, LostReason, Result, TxnError};
pub use keys::{Key, KeyRange, KeySpace, LeaseId, Name, Revision};
pub use latch::CountdownLatch;
pub use leased::{KeptKey, KeptState};
pub use lock::{Fence, Fenced, FencingToken};
pub use membership::{Group, Members, Membership};
pub use once::{OnceCell, OnceError};
pub use probe::Probe;
pub use queue::Queue;
pub use rate::RateLimiter;
pub use session::{Lost, Session, SessionBuilder, SessionState};
pub use stm::{Stm, Transaction};
pub use store::{Store, StoreError, ops::Compare};
pub use topic::Topic;
pub use txn::{Committed, Txn};
pub use value::{Json, Value, from_json};
