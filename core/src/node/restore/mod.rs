//! Restoring a member from a backup.

mod finish;

pub(super) use finish::run as finish;
