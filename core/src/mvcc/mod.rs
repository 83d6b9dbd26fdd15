//! Revisions, history, reads and compaction over a storage view; synchronous and deterministic.
