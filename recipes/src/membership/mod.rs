//! Group membership: who is in a group of processes, known to all of them and to anybody who watches.
//! A member is a leased key; it is one for as long as the key lives, and can make writes that the
//! store refuses once it is none. Unlike an instance in the [registry](crate::registry) it does not
//! come back by itself: a process that lost its session joins anew, as another member.
//!
//! `group` joins, `record` is how a member is written, `roster` decides what a view shows and what
//! has happened, `members` follows a group, `suspect` asks who may be dead.

mod group;
mod members;
mod record;
mod roster;
mod suspect;
mod view;

pub use group::{Group, Membership};
pub use members::Members;
pub(crate) use record::{Reading, read};
pub use roster::MemberEvent;
pub use suspect::Suspect;
pub use view::{Member, MemberView, majority_of};

pub use crate::departure::Departure;

/// The kind of key space that groups live in.
pub(crate) const KIND: &str = "member";
