//! Alarms: raised and cleared by command, kept in the `alarms` table. Used by the executor and
//! shown to anyone.

use quorate_proto::etcdserverpb::AlarmType;

/// An alarm that is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alarm {
    /// The member it was raised for.
    pub member: u64,
    /// What is wrong.
    pub kind: AlarmType,
}
