//! The replicated state: what a committed command does. Synchronous, no clock, no randomness.
