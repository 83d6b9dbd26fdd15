//! A limit on how often something is done, over all processes: at most so many permits in any window
//! of time. [`RateLimiter`] hands them out; `rule` is what the processes agree on, `block` the permits
//! of one grant, and how long they may be used, `grant` how a grant is got from the store, `pace` how
//! much time that is given.

mod block;
mod grant;
mod pace;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;

use tokio::sync::Notify;

use self::block::Block;
use self::grant::{Asked, Grants};
pub use self::rule::Rule;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{KeySpace, Revision};
use crate::session::Session;
use crate::wait::{Backoff, until_event};

impl Client {
    /// The rate limiter of this name: at most `limit` permits in any window of `per`, rounded up to
    /// whole seconds.
    #[must_use]
    pub fn rate_limiter(&self, name: impl Into<String>, limit: u32, per: Duration) -> RateLimiter {
        RateLimiter::new(self.clone(), &name.into(), Rule::new(limit, per))
    }
}

/// Hands out permits, at most so many in any window of time over all processes that use the name.
/// Clones share the permits that were fetched in a block.
///
/// A permit is used by being returned: there is nothing to give back. The count is kept by leases that
/// the store ends, so no clock of any process has to agree with another's; see [`RateLimiter::acquire`]
/// for what is measured.
///
/// Costs: a block of permits is one read, one lease and one transaction; permits of a block at hand
/// cost nothing. A wait is one watch.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    grants: Grants,
    block: u32,
    at_hand: Arc<AtHand>,
}

/// The permits that have been fetched and not used.
#[derive(Debug, Default)]
struct AtHand {
    blocks: Mutex<VecDeque<Block>>,
    /// Held by the caller who fetches, or waits to: callers of one handle are served in order.
    turn: tokio::sync::Mutex<()>,
    /// Told of each block, also of one that a dropped caller had asked for.
    added: Notify,
}

impl AtHand {
    fn blocks(&self) -> MutexGuard<'_, VecDeque<Block>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, block: Block) {
        let mut blocks = self.blocks();
        let place = blocks.partition_point(|earlier| earlier.ends() <= block.ends());
        blocks.insert(place, block);
        drop(blocks);
        self.added.notify_waiters();
    }

    /// Takes `permits`, those that end first first; or says how many more are needed.
    fn take(&self, client: &Client, permits: u32) -> Result<(), u32> {
        let mut blocks = self.blocks();
        blocks.retain(|block| block.is_usable(client));
        let there: u32 = blocks.iter().map(Block::left).sum();
        if there < permits {
            return Err(permits - there);
        }
        let mut wanted = permits;
        for block in blocks.iter_mut() {
            wanted -= block.take(wanted);
        }
        Ok(())
    }
}

impl RateLimiter {
    fn new(client: Client, name: &str, rule: Rule) -> Self {
        Self {
            grants: Grants::new(client, KeySpace::of("rate", name), rule),
            block: 1,
            at_hand: Arc::default(),
        }
    }

    /// Fetches `permits` at a time, where there is room for so many, and hands them out in this
    /// process: fewer calls of the store. What is not used within a tenth of the window (at least a
    /// second; longer where the store is slow) lapses, and counts all the same. Default: 1.
    #[must_use]
    pub fn block(mut self, permits: u32) -> Self {
        self.block = permits.max(1);
        self
    }

    /// The rule of this handle.
    #[must_use]
    pub fn rule(&self) -> Rule {
        self.grants.rule()
    }

    /// The prefix of the limiter's keys.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.grants.prefix()
    }

    fn client(&self) -> &Client {
        self.grants.client()
    }

    /// Waits until `permits` are this caller's.
    ///
    /// In any window as long as the rule's `per`, the calls that return get at most `limit` permits
    /// together, in all processes. A permit counts from the grant on, for `per` and up to a tenth of it
    /// (at least a second; longer where the store takes about as long to answer) more, and until the
    /// store has ended its lease: so a steady demand gets somewhat fewer permits than the limit, never more. Callers of one handle and its clones are served in
    /// order; among handles there is none.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when another rule is stored; [`Error::Invalid`] for more permits than the
    /// limit; [`Error::SessionLost`] at once when the session is lost; the store's final refusals.
    /// Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future uses nothing. What was granted meanwhile is at hand for the next caller, and
    /// lapses if there is none in time.
    pub async fn acquire(&self, session: &Session, permits: u32) -> Result<()> {
        self.check(session, permits)?;
        tokio::select! {
            biased;
            reason = session.lost() => Err(Error::SessionLost(reason)),
            got = self.wait_for(session, permits) => got,
        }
    }

    /// Takes `permits` if they are to be had now; returns whether they were. False as well while
    /// another caller waits for permits at this handle or a clone.
    ///
    /// # Errors
    /// As [`RateLimiter::acquire`].
    ///
    /// # Cancel safety
    /// As [`RateLimiter::acquire`].
    pub async fn try_acquire(&self, session: &Session, permits: u32) -> Result<bool> {
        self.check(session, permits)?;
        session.check()?;
        let Ok(_turn) = self.at_hand.turn.try_lock() else {
            return Ok(false);
        };
        tokio::select! {
            biased;
            reason = session.lost() => Err(Error::SessionLost(reason)),
            asked = self.ask(session, permits) => Ok(matches!(asked?, Asked::Granted)),
        }
    }

    fn check(&self, session: &Session, permits: u32) -> Result<()> {
        session.belongs_to(self.client())?;
        let Rule { limit, .. } = self.rule();
        if permits == 0 || permits > limit {
            return Err(Error::Invalid(format!(
                "{permits} permits at once, where the limit is {limit}"
            )));
        }
        Ok(())
    }

    async fn wait_for(&self, session: &Session, permits: u32) -> Result<()> {
        let _turn = self.at_hand.turn.lock().await;
        let mut pause = Backoff::contended(self.client());
        let ended = |event: &Event| event.r#type() == EventType::Delete;
        let ranges = [self.grants.range()];
        loop {
            let added = self.at_hand.added.notified();
            let Asked::Full { seen } = self.ask(session, permits).await? else {
                return Ok(());
            };
            let from = Revision(seen.0 + 1);
            tokio::select! {
                biased;
                () = added => {}
                looked = until_event(self.client(), &ranges, from, &mut pause, ended) => looked?,
            }
        }
    }

    /// Takes the permits from those at hand, and gets what is missing from the store.
    async fn ask(&self, session: &Session, permits: u32) -> Result<Asked> {
        loop {
            let Err(missing) = self.at_hand.take(self.client(), permits) else {
                return Ok(Asked::Granted);
            };
            let (grants, at_hand) = (self.grants.clone(), Arc::clone(&self.at_hand));
            let most = missing.max(self.block);
            // What is granted is put in its place in there, so that it is not lost with this future.
            let asked = session.actor().run(move |actor| async move {
                grants
                    .ask(&actor, missing, most, |block| at_hand.add(block))
                    .await
            });
            if let full @ Asked::Full { .. } = asked.await? {
                return Ok(full);
            }
        }
    }

    /// Changes the rule for everybody; gives a handle with the new one. Handles with the old one get
    /// [`Error::Mismatch`] from now on, save for permits they have at hand.
    ///
    /// Permits granted under the old rule count as long as they did under it. So where the window
    /// becomes longer, its limit holds from one new window after the change on.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a rule that cannot be; [`Error::SessionLost`];
    /// [`Error::OutcomeUnknown`] when an answer was lost and the rule is another one now; the store's
    /// final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, the rule may still change.
    pub async fn set_rule(&self, session: &Session, limit: u32, per: Duration) -> Result<Self> {
        session.belongs_to(self.client())?;
        let grants = self.grants.with_rule(Rule::new(limit, per));
        let new = grants.clone();
        session
            .actor()
            .run(|actor| async move { new.set_rule(&actor).await })
            .await?;
        Ok(Self {
            grants,
            block: self.block,
            at_hand: Arc::default(),
        })
    }
}
