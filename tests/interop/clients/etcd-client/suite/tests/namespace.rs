//! `tests/namespace.rs` of the crate.
include!(concat!(env!("OUT_DIR"), "/namespace.rs"));
