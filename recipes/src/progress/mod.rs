//! Progress of long tasks: whoever works reports, cheaply and without waiting; whoever manages sees
//! all tasks of a job, how far they are, how long they will take, and which of them stand still.
//!
//! `record` is what is written; `start` begins an attempt, `reporter` and `writer` write for it, `cancel`
//! asks for its end; `monitor` follows a job, `tracker` decides what a view shows, `overall` sums it up,
//! `rate` estimates speed and remaining time.

mod cancel;
mod monitor;
mod overall;
mod rate;
mod record;
mod reporter;
mod start;
mod tracker;
mod view;
mod writer;

#[cfg(test)]
mod tests;

pub use monitor::{Monitor, MonitorBuilder};
pub use overall::Overall;
pub use rate::Eta;
pub use record::TaskName;
pub(crate) use record::{Part, Record, Written};
pub use reporter::{Outcome, Reporter};
pub use start::{Previous, ReporterBuilder};
pub use view::{JobView, TaskState, TaskView};

/// The kind of key space that jobs live in.
pub(crate) const KIND: &str = "progress";
