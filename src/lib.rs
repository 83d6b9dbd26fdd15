//! Coordination for Rust services: a façade over [`core`], the replicated store that speaks the etcd
//! v3 API, and [`recipes`], what services do with it.
//!
//! The program of the same name serves the store (`quorate server`, `quorate dev`) and shows what
//! it is for (`quorate demo`).

pub use quorate_core as core;
pub use quorate_proto as proto;
pub use quorate_recipes as recipes;

/// The README's examples, compiled with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
