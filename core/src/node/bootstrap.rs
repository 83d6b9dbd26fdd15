//! Puts a member together: data folder, storage, state, peers, consensus, and the node's own tasks.

use std::net::TcpListener;

use super::{DataDirError, Node};
use crate::config::{Config, ConfigError};
use crate::error::Error;

/// Why a member did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Settings that cannot work.
    #[error("bad configuration: {0}")]
    Config(#[from] ConfigError),
    /// A data folder that cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// An address that cannot be listened on.
    #[error("cannot listen for peers on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Consensus or its storage refused to start.
    #[error("cannot start the member: {0}")]
    Member(#[from] Error),
}

pub(crate) async fn start(
    _config: Config,
    _peer_listener: Option<TcpListener>,
) -> Result<Node, StartError> {
    unimplemented!()
}
