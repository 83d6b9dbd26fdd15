use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use super::*;
use crate::error::{Error, LostReason};
use crate::store::faulty::{Calls, Fault, Held, Stage};
use crate::store::{MemStore, Store};
use crate::testing::{Place, no_news, soon};

mod bounds;
mod ends;
mod lanes;
mod orders;
mod pushing;
mod taking;

/// What there is to do with a queue at a place.
trait OfQueues {
    fn queue(&self) -> Queue<u32>;

    /// Cuts all watches of one consumer, and lets none come back before it is released: those of the front, of
    /// delayed items, and of who sees to them.
    async fn without_watches(&self) -> Vec<Held>;

    /// Everything of the queue that is kept, save its head and what consumers have agreed on.
    fn left(&self) -> Vec<String>;
}

impl OfQueues for Place {
    fn queue(&self) -> Queue<u32> {
        self.client.queue("q")
    }

    async fn without_watches(&self) -> Vec<Held> {
        let watches: Vec<Held> = (1..=6)
            .map(|nth| self.faulty.hold(nth, Calls::Read, Stage::NotSent))
            .collect();
        self.faulty.cut_watches();
        for watch in &watches {
            soon(watch.reached()).await;
        }
        watches
    }

    fn left(&self) -> Vec<String> {
        self.keys_but("quorate/queue/", &["/head", "/settings"])
    }
}
