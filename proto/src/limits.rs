//! Limits on requests, with their units and what happens beyond them; used by whoever checks or
//! builds a request. Those called defaults can be changed on a server.

/// Longest key, range end or name, in bytes; beyond it [`KeyTooLong`](crate::Reason::KeyTooLong).
///
/// etcd has no such limit. The storage engine ends at 65,535 bytes and escaping may double a key.
pub const KEY_BYTES_MAX: usize = 32_000;

/// Default limit of an encoded request, in bytes (1.5 MiB, as etcd's); beyond it
/// [`RequestTooLarge`](crate::Reason::RequestTooLarge).
pub const REQUEST_BYTES_MAX: usize = 1_572_864;

/// What the gRPC layer lets through above the request limit, in bytes; beyond it the message is
/// refused unread.
pub const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;

/// Default limit of compares, and of operations in each branch, of one transaction level (as
/// etcd's); beyond it [`TooManyOps`](crate::Reason::TooManyOps).
pub const TXN_OPS_MAX: usize = 128;

/// Levels of a transaction, the outermost included; beyond it
/// [`TxnTooDeep`](crate::Reason::TxnTooDeep).
pub const TXN_DEPTH_MAX: usize = 8;

/// Longest time to live of a lease, in seconds (as etcd's); beyond it
/// [`LeaseTtlTooLarge`](crate::Reason::LeaseTtlTooLarge).
pub const LEASE_TTL_SECONDS_MAX: i64 = 9_000_000_000;
