//! What members say of themselves: the `members` table. Used by the executor and by `node`.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_proto::log::MemberAttributes;

use crate::mvcc::Overlay;
use crate::storage::codec::{self, Table};
use crate::storage::kv::{Direction, KvError, View};

/// What is known of a member beside its place in the raft membership. Stays known after the member
/// is removed: ids are never used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Member id.
    pub id: u64,
    /// Human-readable name.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Where peers reach it.
    pub peer_urls: Vec<String>,
    /// 16 bytes: UUID of the data directory.
    pub incarnation: Bytes,
}

impl From<MemberAttributes> for Member {
    fn from(attributes: MemberAttributes) -> Self {
        let MemberAttributes {
            id,
            name,
            client_urls,
            incarnation,
            peer_urls,
        } = attributes;
        Self {
            id,
            name,
            client_urls,
            peer_urls,
            incarnation,
        }
    }
}

/// All members that ever spoke of themselves, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Members {
    by_id: BTreeMap<u64, Member>,
}

impl Members {
    pub(super) fn load(view: &dyn View) -> Result<Self, KvError> {
        let (start, end) = codec::table_bounds(Table::Members);
        let mut by_id = BTreeMap::new();
        for row in view.range(start, end, Direction::Forward) {
            let (key, record) = row?;
            let member = record
                .strip_prefix(&[codec::FORMAT])
                .and_then(|message| MemberAttributes::decode(message).ok())
                .map(Member::from)
                .filter(|member| codec::member_key(member.id) == key)
                .ok_or_else(|| KvError::Corrupt {
                    what: format!("key {key:02x?} in members"),
                })?;
            by_id.insert(member.id, member);
        }
        Ok(Self { by_id })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    /// Replaces what was known of a member; but what one says that has lost its data folder and came
    /// back under its old id is ignored, or it would bind itself anew.
    pub(super) fn record(&mut self, overlay: &mut Overlay, attributes: MemberAttributes) {
        let known = self.by_id.get(&attributes.id);
        let bound = known.map(|known| &known.incarnation);
        if bound.is_some_and(|bound| !bound.is_empty() && *bound != attributes.incarnation) {
            return;
        }
        let mut record = BytesMut::with_capacity(1 + attributes.encoded_len());
        record.put_u8(codec::FORMAT);
        attributes
            .encode(&mut record)
            .expect("a growing buffer has room");
        overlay.put(codec::member_key(attributes.id), record.freeze());
        self.by_id.insert(attributes.id, attributes.into());
    }
}
