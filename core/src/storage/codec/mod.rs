//! Encodings of keys and records.
