//! Talking to the other members: one long-lived stream a pair, and a pipeline for what is large.
