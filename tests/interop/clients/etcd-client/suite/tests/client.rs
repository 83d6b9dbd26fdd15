//! `tests/client.rs` of the crate.
include!(concat!(env!("OUT_DIR"), "/client.rs"));
