//! The watch hub: applied events to watchers, live or catching up.
