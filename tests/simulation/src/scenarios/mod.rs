//! The recipes that are simulated, one a file.

mod adder;
mod assign;
mod barrier;
mod collect;
mod combined;
mod condition;
mod config;
mod counter;
mod cron;
mod cyclic_barrier;
mod deadlock;
mod delayed;
mod dispatch;
mod double_barrier;
mod election;
mod exclusive;
mod handover;
mod ids;
mod latch;
mod leased;
mod live_topic;
mod membership;
mod multi_lock;
mod mutex;
mod once;
mod probe;
mod progress;
mod queue;
mod rate;
mod registry;
mod request;
mod rw_lock;
mod selector;
mod semaphore;
mod shared;
mod stm;
mod topic;

pub use adder::Adder;
pub use assign::Assign;
pub use barrier::{Barrier, Waits};
pub use collect::{Collect, Written as WrittenLine, collection_of};
pub use combined::Combined;
pub use condition::{Condition, Kind as ConditionKind, Passages, numbers, task_done};
pub use config::Config;
pub use counter::Counter;
pub use cron::{Cron, Starts};
pub use cyclic_barrier::CyclicBarrier;
pub use deadlock::{Circle, Deadlock, Finds, Found, Wait};
pub use delayed::Delayed;
pub use dispatch::{Dispatch, job_done, ops};
pub use double_barrier::DoubleBarrier;
pub use election::Election;
pub use exclusive::Exclusive;
pub use handover::Handover;
pub use ids::Ids;
pub use latch::Latch;
pub use leased::{Leased, Written};
pub use live_topic::{Heard, LAST, LiveTopic, live_topic_of};
pub use membership::Membership;
pub use multi_lock::MultiLock;
pub use mutex::Mutex;
pub use once::{Once, Results};
pub use probe::{OPINIONS, Opinions, Probe};
pub use progress::{JOB, Progress, RECORDS, TASKS, Work as Attempt};
pub use queue::{BoundedQueue, Items, Queue, Work, check_limit, effect, handle, may_remain};
pub use rate::{Granted, Rate};
pub use registry::{Held, INSTANCES, Instances, Registry, Said, protection};
pub use request::Request;
pub use rw_lock::{RwLock, Sides};
pub use selector::Selector;
pub use semaphore::{Permits, Semaphore};
pub use shared::Shared;
pub use stm::Stm;
pub use topic::{Logs, Published, Seen, Topic, effect_of, topic_may_remain, topic_of};

pub use crate::gatherings::{PARTIES, Told as Gathered};
use crate::scenario::Scenario;
use crate::world::{Outcome, run};

/// How the world of a seed is run.
pub type Run = fn(u64) -> Outcome;

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    entry::<Mutex>(),
    entry::<Exclusive>(),
    entry::<Election>(),
    entry::<RwLock>(),
    entry::<Semaphore>(),
    entry::<MultiLock>(),
    entry::<Deadlock>(),
    entry::<Combined>(),
    entry::<Shared>(),
    entry::<Request>(),
    entry::<Delayed>(),
    entry::<Handover>(),
    entry::<Selector>(),
    entry::<Counter>(),
    entry::<Adder>(),
    entry::<Ids>(),
    entry::<Latch>(),
    entry::<Stm>(),
    entry::<Once>(),
    entry::<Barrier>(),
    entry::<DoubleBarrier>(),
    entry::<CyclicBarrier>(),
    entry::<Rate>(),
    entry::<Membership>(),
    entry::<Assign>(),
    entry::<Leased>(),
    entry::<Config>(),
    entry::<Queue<0>>(),
    entry::<Queue<1>>(),
    entry::<Queue<3>>(),
    entry::<BoundedQueue>(),
    entry::<Cron>(),
    entry::<Topic>(),
    entry::<Condition>(),
    entry::<Dispatch>(),
    entry::<Registry>(),
    entry::<LiveTopic>(),
    entry::<Probe>(),
    entry::<Progress>(),
    entry::<Collect>(),
];

const fn entry<S: Scenario>() -> (&'static str, Run) {
    (S::NAME, run::<S>)
}

/// How a recipe is run.
#[must_use]
pub fn named(name: &str) -> Option<Run> {
    let found = ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, run)| *run)
}
