//! Clusters of member processes under load, with members killed and paused.

mod leader_kill;
mod lock_safety;
