//! How a member is set up.
