//! Leases: what they hold, and when the leader expires them.
