//! The config centre: typed settings that are published with a check against what was there before,
//! followed by everybody, tried out on some instances first, and taken back in one step.
//!
//! `name` is what a setting is called and where its keys lie, `record` how they are written. `publish`
//! writes exactly once; `setting` and `group` are what publishes one key or a namespace's keys together;
//! `rule` says which instances a gray release selects, `release` has those of a group. `tracker` decides what a follower shows, `following`
//! is the follower, `snapshot` the file that it starts from when the store is out of reach, and
//! `acknowledge` tells others what it runs.

mod acknowledge;
mod following;
mod group;
mod name;
mod publish;
mod record;
mod release;
mod rule;
mod setting;
mod snapshot;
#[cfg(test)]
mod tests;
mod tracker;
mod view;

pub use acknowledge::Acknowledgement;
pub(crate) use acknowledge::rejection;
pub use following::{Follow, Following};
pub use group::{ConfigGroup, GroupPublication};
pub use name::ConfigName;
pub(crate) use name::{Layout, Live};
pub use publish::{Expect, Published};
pub use record::Entry;
pub(crate) use record::Record;
pub use release::GroupRelease;
pub use rule::{GrayRelease, Rule};
pub use setting::Config;
pub use view::{Part, Rejection, Source, View};

/// The kind of key space that settings live in.
pub(crate) const KIND: &str = "config";
