//! Includes the generated code, nested as its packages are: generated paths count on that.
#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::cast_possible_truncation,
    reason = "generated code; its documentation is that of the .proto files"
)]

pub mod mvccpb {
    //! Key-value pairs and events (package `mvccpb`).
    tonic::include_proto!("mvccpb");
    include!(concat!(env!("OUT_DIR"), "/mvccpb.serde.rs"));
}

pub mod authpb {
    //! Users, roles and permissions (package `authpb`).
    tonic::include_proto!("authpb");
    include!(concat!(env!("OUT_DIR"), "/authpb.serde.rs"));
}

pub mod etcdserverpb {
    //! The etcd v3 services KV, Watch, Lease, Cluster, Maintenance and Auth (package `etcdserverpb`).
    tonic::include_proto!("etcdserverpb");
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.serde.rs"));
}

pub mod v3lockpb {
    //! The lock service (package `v3lockpb`).
    tonic::include_proto!("v3lockpb");
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.serde.rs"));
}

pub mod v3electionpb {
    //! The election service (package `v3electionpb`).
    tonic::include_proto!("v3electionpb");
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.serde.rs"));
}

pub mod quorate {
    pub mod log {
        pub mod v1 {
            //! Commands of the raft log (package `quorate.log.v1`).
            tonic::include_proto!("quorate.log.v1");
        }
    }
    pub mod peer {
        pub mod v1 {
            //! The protocol between members (package `quorate.peer.v1`).
            tonic::include_proto!("quorate.peer.v1");
        }
    }
}
