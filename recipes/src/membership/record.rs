//! How a member is written: JSON with the member's own info inside; and the last value before it
//! leaves, by which a clean leave is told from a crash.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::view::Member;
use crate::keys::{KeySpace, LeaseId, Revision};
use crate::kit::Line;
use crate::value::{Json, V1, Value, from_json};

#[derive(Debug, Serialize, Deserialize)]
struct Record<I> {
    /// The version of this record.
    v: V1,
    info: I,
}

/// The part that says whether there is more to read.
#[derive(Debug, Default, Deserialize)]
struct Mark {
    #[serde(default)]
    left: bool,
}

/// The value of a member's key.
pub(super) fn write<I: Serialize>(info: &I) -> Value {
    Json(Record { v: V1, info }).into()
}

/// The last value of a member's key before it leaves.
pub(super) fn farewell() -> Bytes {
    Bytes::from_static(br#"{"v":1,"left":true}"#)
}

/// What a key of a group says.
pub(crate) enum Reading<I> {
    /// A member is there.
    There(Member<I>),
    /// The member is about to leave.
    Leaving,
    /// No member can have put it there.
    Stranger,
}

/// Reads a key of a group. What a member says of itself may be unreadable; it is a member all the same.
pub(crate) fn read<I: DeserializeOwned>(space: &KeySpace, kv: &KeyValue) -> Reading<I> {
    let Some(id) = space
        .suffix(&kv.key)
        .filter(|_| Line::of(space).is_contender(kv))
    else {
        return Reading::Stranger;
    };
    let mark: Mark = serde_json::from_slice(&kv.value).unwrap_or_default();
    if mark.left {
        return Reading::Leaving;
    }
    let record = from_json::<Record<I>>(&kv.key, &kv.value);
    Reading::There(Member {
        id: id.to_owned(),
        key: kv.key.clone().into(),
        created: Revision(kv.create_revision),
        modified: Revision(kv.mod_revision),
        lease: LeaseId(kv.lease),
        info: record.map(|record| Arc::new(record.info)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn read_as<I: DeserializeOwned>(key: &str, value: Bytes, lease: i64) -> Reading<I> {
        let kv = KeyValue {
            key: key.to_owned().into(),
            value,
            lease,
            create_revision: 3,
            mod_revision: 5,
            ..Default::default()
        };
        read(&KeySpace::raw("g"), &kv)
    }

    #[test]
    fn members_are_read_back_whatever_they_say() {
        let value = write(&vec![1, 2]).into_bytes(&"k".into()).unwrap();
        let Reading::There(member) = read_as::<Vec<u8>>("g/ff/1a", value.clone(), 0xff) else {
            panic!("not a member")
        };
        assert_eq!((member.id.as_str(), member.created.0), ("ff/1a", 3));
        assert_eq!(*member.info.unwrap(), [1, 2]);
        for value in [value.clone(), "no JSON".into(), "".into()] {
            let Reading::There(member) = read_as::<String>("g/ff/1a", value, 0xff) else {
                panic!("not a member")
            };
            assert!(matches!(member.info, Err(Error::Codec { .. })));
        }
        assert!(matches!(
            read_as::<String>("g/ff/1a", farewell(), 0xff),
            Reading::Leaving
        ));
        for (key, lease) in [("g/ff/1a", 0), ("g/ff/1a", 0xfe), ("g/x", 0xff)] {
            let read = read_as::<Vec<u8>>(key, value.clone(), lease);
            assert!(matches!(read, Reading::Stranger), "{key} {lease}");
        }
    }
}
