//! The building blocks of the recipes, public so that others can be built of them.
//!
//! A [`Contender`] stands in a [`Line`] until its turn has come; an [`Actor`] does writes that must
//! not be left half done, [`Claim`] among them; a [`Watcher`] follows a range of keys for ever; a
//! [`SegmentedLog`] keeps items in the order of their commits.

mod contender;
mod line;
mod log;

pub use contender::Contender;
pub use line::Line;
pub(crate) use line::{fresh_key, is_of_recipes, priority_of};

pub use log::{Append, Appended, Head, ItemId, Placed, Position, Rolled, SegmentedLog};

pub use crate::session::{Actor, Attach, Claim, Claimed, Effect, Effected, Lane, NewKey, Owned};
pub use crate::wait::Backoff;
pub use crate::watch::{Mirror, Watcher};
