//! One watch stream: many watchers, their ids, and what the client hears of them.

use quorate_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};

use super::Node;
use crate::error::Result;

/// One watch stream. Dropping it ends all its watchers.
#[derive(Debug)]
pub struct WatchSession {}

/// The asking side of a [`WatchSession`], for another task than the one that reads answers.
#[derive(Debug, Clone)]
pub struct WatchControl {}

impl Node {
    /// Opens a watch stream.
    #[must_use]
    pub fn watch(&self) -> WatchSession {
        unimplemented!()
    }
}

impl WatchSession {
    /// The asking side.
    #[must_use]
    pub fn control(&self) -> WatchControl {
        unimplemented!()
    }

    /// The next answer: to a request on the control side, or events. Errs when the member stops.
    ///
    /// # Cancel safety
    /// Cancel safe: no answer is lost.
    pub async fn next(&mut self) -> Result<WatchResponse> {
        unimplemented!()
    }
}

impl WatchControl {
    /// Asks for a watcher; the answer comes out of [`WatchSession::next`].
    pub async fn create(&self, _request: WatchCreateRequest) {
        unimplemented!()
    }
    /// Ends a watcher; unknown ids are ignored.
    pub async fn cancel(&self, _watch_id: i64) {
        unimplemented!()
    }
    /// Asks where the stream stands.
    pub async fn progress(&self) {
        unimplemented!()
    }
}
