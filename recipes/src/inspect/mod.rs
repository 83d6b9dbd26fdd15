//! Looking at what recipes do, from their keys alone: of any program, without a session, changing
//! nothing.

mod deadlock;

pub use deadlock::{Deadlock, LockKind, LockName, Wait};

use crate::client::Client;

/// Looks at recipes. Made by [`Client::inspect`].
#[derive(Debug, Clone)]
pub struct Inspect {
    client: Client,
}

impl Inspect {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }
}
