//! Alarms: raised and cleared by command, kept in the `alarms` table, and what they forbid. Used by
//! the executor and shown to anyone.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmResponse, AlarmType};

use crate::mvcc::Overlay;
use crate::storage::codec::{self, Table};
use crate::storage::kv::{Direction, KvError, View};

/// An alarm that is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alarm {
    /// The member it was raised for.
    pub member: u64,
    /// What is wrong.
    pub kind: AlarmType,
}

impl From<Alarm> for AlarmMember {
    fn from(alarm: Alarm) -> Self {
        Self {
            member_id: alarm.member,
            alarm: alarm.kind.into(),
        }
    }
}

/// The alarms raised as of `view`, in order of member.
///
/// # Errors
///
/// A storage failure or a damaged record.
pub fn alarms_in(view: &dyn View) -> Result<Vec<Alarm>, KvError> {
    Ok(Alarms::load(view)?.iter().collect())
}

/// All alarms raised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Alarms {
    raised: BTreeSet<Alarm>,
}

impl Alarms {
    pub(super) fn load(view: &dyn View) -> Result<Self, KvError> {
        let (start, end) = codec::table_bounds(Table::Alarms);
        let rows = view.range(start, end, Direction::Forward);
        let raised = rows
            .map(|row| {
                let (key, _) = row?;
                decode(&key).ok_or_else(|| KvError::Corrupt {
                    what: format!("key {key:02x?} in alarms"),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { raised })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Alarm> {
        self.raised.iter().copied()
    }

    fn any(&self, kind: AlarmType) -> bool {
        self.raised.iter().any(|alarm| alarm.kind == kind)
    }

    /// Whether something may be written that frees no space.
    pub(super) fn admit_put(&self) -> Result<(), Reason> {
        self.admit_write()?;
        if self.any(AlarmType::Nospace) {
            return Err(Reason::NoSpace);
        }
        Ok(())
    }

    /// Whether anything may be written at all.
    pub(super) fn admit_write(&self) -> Result<(), Reason> {
        if self.any(AlarmType::Corrupt) {
            return Err(Reason::Corrupt);
        }
        Ok(())
    }

    /// Does what a checked request says. The answer has no header.
    pub(super) fn execute(
        &mut self,
        overlay: &mut Overlay,
        request: &AlarmRequest,
    ) -> AlarmResponse {
        let kind = request.alarm();
        let alarm = Alarm {
            member: request.member_id,
            kind,
        };
        let stored = codec::alarm_key(alarm.member, kind.into());
        let alarms = match request.action() {
            AlarmAction::Get => self
                .iter()
                .filter(|raised| kind == AlarmType::None || raised.kind == kind)
                .map(AlarmMember::from)
                .collect(),
            AlarmAction::Activate if kind == AlarmType::None => Vec::new(),
            AlarmAction::Activate => {
                if self.raised.insert(alarm) {
                    overlay.put(stored, Bytes::from_static(&[codec::FORMAT]));
                }
                vec![alarm.into()]
            }
            AlarmAction::Deactivate => {
                if self.raised.remove(&alarm) {
                    overlay.delete(stored);
                    vec![alarm.into()]
                } else {
                    Vec::new()
                }
            }
        };
        AlarmResponse {
            header: None,
            alarms,
        }
    }
}

/// The alarm a key in `alarms` is for.
fn decode(key: &[u8]) -> Option<Alarm> {
    let (member, kind) = key.get(1..)?.split_first_chunk::<8>()?;
    let kind = i32::from_be_bytes(kind.try_into().ok()?);
    Some(Alarm {
        member: u64::from_be_bytes(*member),
        kind: AlarmType::try_from(kind).ok()?,
    })
}
