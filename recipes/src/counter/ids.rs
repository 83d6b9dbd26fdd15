//! Unique numbers in blocks: one transaction takes a block, and the numbers in it cost nothing.

use std::ops::Range;
use std::sync::Arc;

use quorate_proto::etcdserverpb::TxnRequest;

use super::parse;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeySpace, Revision};
use crate::register::read;
use crate::store::{ops, ops::Compare};
use crate::wait::Backoff;

/// Numbers taken from the store with one transaction, unless told otherwise.
const BLOCK_DEFAULT: u64 = 100;

/// Gives out numbers from 1 on, each once among all processes. A handle: cheap to clone; clones share
/// one block. Needs no session.
///
/// Numbers of one handle and its clones grow. Those of different processes are unique, and in no
/// order between them. What is left of a block when a process ends is never given out, nor is a block
/// whose answer was lost.
///
/// Costs: one transaction a block, and one read before the first of a handle, or after another
/// process took a block.
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
/// let ids = client.ids("orders").block(1_000);
/// let order = ids.next().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct IdBlocks {
    client: Client,
    key: Key,
    block: u64,
    taken: Arc<tokio::sync::Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    left: Range<u64>,
    /// The key's number and mod revision after this handle's last block.
    seen: Option<(u64, Revision)>,
}

impl IdBlocks {
    pub(crate) fn new(client: Client, name: &str) -> Self {
        Self {
            client,
            key: KeySpace::of("ids", name).key("last"),
            block: BLOCK_DEFAULT,
            taken: Arc::default(),
        }
    }

    /// How many numbers are taken with one transaction, at least 1; processes may differ. Larger
    /// blocks cost fewer transactions, and larger gaps when a process ends. Default: 100.
    #[must_use]
    pub fn block(mut self, numbers: u64) -> Self {
        self.block = numbers.max(1);
        self
    }

    /// The key that has the largest number taken, in decimal digits.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The next number. Trouble with the store is waited out.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the numbers are used up;
    /// [`Error::Codec`] when the key's value is not a number; the store's final refusals.
    ///
    /// # Cancel safety
    /// When the future is dropped, a block on its way may go unused.
    pub async fn next(&self) -> Result<u64> {
        let mut taken = self.taken.lock().await;
        loop {
            if let Some(id) = taken.left.next() {
                return Ok(id);
            }
            self.take(&mut taken).await?;
        }
    }

    async fn take(&self, taken: &mut Taken) -> Result<()> {
        let mut pause = Backoff::between_attempts(&self.client);
        let mut contended = Backoff::contended(&self.client);
        let mut remembered = taken.seen.is_some();
        loop {
            let (last, at) = match taken.seen.take() {
                Some(seen) => seen,
                None => {
                    let kv = read(&self.client, &self.key, None).await?;
                    let at = Revision(kv.as_ref().map_or(0, |kv| kv.mod_revision));
                    (parse(&self.key, kv.map(|kv| kv.value).as_ref())?, at)
                }
            };
            let up_to = last
                .checked_add(self.block)
                .filter(|up_to| *up_to < u64::MAX);
            let up_to = up_to.ok_or_else(|| {
                Error::Invalid(format!("{}: no {} numbers are left", self.key, self.block))
            })?;
            let request = TxnRequest {
                compare: vec![Compare::mod_revision(&self.key, at).into()],
                success: vec![ops::put(&self.key, up_to.to_string().into(), None)],
                failure: vec![ops::read(ops::get(&self.key))],
            };
            match self.client.store().txn(request).await {
                Ok(answer) if answer.succeeded => {
                    let at = answer.header.map_or(0, |header| header.revision);
                    taken.seen = Some((up_to, Revision(at)));
                    taken.left = last + 1..up_to + 1;
                    return Ok(());
                }
                // Beaten by somebody else just now: after a pause what was read is old.
                Ok(_) if !remembered => contended.pause().await,
                Ok(answer) => {
                    remembered = false;
                    let kv = ops::kvs(&answer.responses, 0).first();
                    let at = Revision(kv.map_or(0, |kv| kv.mod_revision));
                    taken.seen = Some((parse(&self.key, kv.map(|kv| &kv.value))?, at));
                }
                // Whether that block was taken does not matter: the next look skips it if it was.
                Err(error) if error.is_transient() => pause.pause().await,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
