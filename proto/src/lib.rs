//! What quorate says on the wire: the etcd v3 API, the peer protocol and the raft log's commands;
//! and what is shared by all who speak it.
//!
//! - The generated modules [`mvccpb`], [`authpb`], [`etcdserverpb`], [`v3lockpb`],
//!   [`v3electionpb`], [`log`] and [`peer`]: messages, clients and servers. Names and numbers are
//!   those of etcd 3.7. Every `bytes` field is a [`bytes::Bytes`], so keys and values are shared,
//!   not copied, on their way through the house.
//! - [`Reason`], the error catalogue, and [`Kind`], what to do about an error.
//! - [`KeyRange`], the half-open range of keys that all requests speak of.
//! - [`txn`], which makes transactions readable to write.
//! - [`limits`] on requests, and the [`epoch`] of fencing tokens.
//!
//! Nothing here keeps state, does I/O or knows the time.

mod answer;
pub mod epoch;
mod generated;
mod kind;
pub mod limits;
mod pieces;
pub mod range;
pub mod reason;
pub mod txn;

pub use generated::quorate::log::v1 as log;
pub use generated::quorate::peer::v1 as peer;
pub use generated::{authpb, etcdserverpb, mvccpb, v3electionpb, v3lockpb};
pub use kind::Kind;
pub use range::KeyRange;
pub use reason::Reason;

/// All generated packages as an encoded `google.protobuf.FileDescriptorSet`, for reflection and
/// for the JSON gateway.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn services_carry_etcds_names() {
        use etcdserverpb::*;
        assert_eq!(kv_server::SERVICE_NAME, "etcdserverpb.KV");
        assert_eq!(watch_server::SERVICE_NAME, "etcdserverpb.Watch");
        assert_eq!(lease_server::SERVICE_NAME, "etcdserverpb.Lease");
        assert_eq!(cluster_server::SERVICE_NAME, "etcdserverpb.Cluster");
        assert_eq!(maintenance_server::SERVICE_NAME, "etcdserverpb.Maintenance");
        assert_eq!(auth_server::SERVICE_NAME, "etcdserverpb.Auth");
        assert_eq!(v3lockpb::lock_server::SERVICE_NAME, "v3lockpb.Lock");
        let election = v3electionpb::election_server::SERVICE_NAME;
        assert_eq!(election, "v3electionpb.Election");
    }

    #[test]
    fn messages_have_etcds_bytes() {
        let event = mvccpb::Event {
            r#type: mvccpb::event::EventType::Delete.into(),
            kv: Some(mvccpb::KeyValue {
                key: "k".into(),
                mod_revision: 3,
                ..Default::default()
            }),
            prev_kv: None,
        };
        let watch = etcdserverpb::WatchResponse {
            watch_id: -1,
            canceled: true,
            cancel_reason: "r".into(),
            events: vec![event],
            ..Default::default()
        };
        let expected = b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x20\x01\x32\x01r\
            \x5a\x09\x08\x01\x12\x05\x0a\x01k\x18\x03";
        assert_eq!(watch.encode_to_vec(), expected);
    }

    #[test]
    fn the_descriptor_set_names_every_package() {
        for package in [
            "mvccpb",
            "authpb",
            "etcdserverpb",
            "v3lockpb",
            "v3electionpb",
            "quorate.log.v1",
            "quorate.peer.v1",
        ] {
            let mut windows = FILE_DESCRIPTOR_SET.windows(package.len());
            assert!(
                windows.any(|window| window == package.as_bytes()),
                "{package}"
            );
        }
    }
}
