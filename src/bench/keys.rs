//! The keys and values that are written and read, all below one prefix. They stay in the store.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::request_op::Request;
use quorate::proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _};
use tonic::transport::Channel;

/// Below it, everything that is written here.
const PREFIX: &str = "quorate-bench/";
/// Most puts of a filling transaction: what an etcd takes.
const FILL_OPS: u64 = 128;
/// Most bytes of a filling transaction, well below the 1.5 MiB that an etcd takes.
const FILL_BYTES: usize = 1 << 20;
/// Filling transactions at once.
const FILLS: usize = 8;

/// What keys and values there are.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// How many different keys; each request takes one at random
    #[arg(long, value_name = "KEYS", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    keys: u64,

    /// The length of a key
    #[arg(long, value_name = "BYTES", default_value_t = 32,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=65_536))]
    key_bytes: usize,

    /// The length of a value, which is random
    #[arg(long, value_name = "BYTES", default_value_t = 256,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=67_108_864))]
    value_bytes: usize,
}

/// A set of keys, and the length of their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeySpace {
    prefix: String,
    digits: usize,
    pub(super) keys: u64,
    pub(super) key_bytes: usize,
    pub(super) value_bytes: usize,
}

impl KeyArgs {
    /// The keys below `quorate-bench/<part>/`.
    ///
    /// # Errors
    /// When keys of that length cannot be told apart.
    pub(super) fn space(&self, part: &str) -> anyhow::Result<KeySpace> {
        let prefix = format!("{PREFIX}{part}/");
        let needed = prefix.len() + (self.keys - 1).to_string().len();
        ensure!(
            self.key_bytes >= needed,
            "--key-bytes {}: {} keys below {prefix} take at least {needed} bytes",
            self.key_bytes,
            self.keys
        );
        Ok(KeySpace {
            digits: self.key_bytes - prefix.len(),
            prefix,
            keys: self.keys,
            key_bytes: self.key_bytes,
            value_bytes: self.value_bytes,
        })
    }
}

impl KeySpace {
    /// What all the keys begin with.
    pub(super) fn prefix(&self) -> Bytes {
        self.prefix.clone().into()
    }

    /// Key `n`.
    pub(super) fn key(&self, n: u64) -> Bytes {
        format!("{}{n:0digits$}", self.prefix, digits = self.digits).into()
    }

    /// Any of the keys.
    pub(super) fn any_key(&self, random: &mut SmallRng) -> Bytes {
        self.key(random.random_range(0..self.keys))
    }

    /// A value that does not compress, beginning with `head`.
    ///
    /// # Panics
    /// When `head` is longer than a value.
    pub(super) fn value(&self, head: &[u8], random: &mut SmallRng) -> Bytes {
        let mut value = vec![0; self.value_bytes];
        let (front, rest) = value.split_at_mut(head.len());
        front.copy_from_slice(head);
        random.fill_bytes(rest);
        value.into()
    }

    /// Writes all the keys, so that reading finds them, and waits until the servers behind all of
    /// `channels` have them.
    ///
    /// # Errors
    /// When the store refuses or does not answer.
    pub(super) async fn fill(
        &self,
        channels: &[Channel],
        random: &mut SmallRng,
    ) -> anyhow::Result<()> {
        let channel = channels.first().context("a connection")?;
        let pair_bytes = self.key_bytes + self.value_bytes;
        let fitting = u64::try_from(FILL_BYTES / pair_bytes).unwrap_or(u64::MAX);
        let step = fitting.clamp(1, FILL_OPS);
        let mut at = 0;
        let requests = std::iter::from_fn(|| {
            let range = at..(at + step).min(self.keys);
            at = range.end;
            let puts = range.map(|n| self.put(n, random)).collect::<Vec<_>>();
            (!puts.is_empty()).then(|| TxnRequest {
                success: puts,
                ..TxnRequest::default()
            })
        });
        let fills = stream::iter(requests).map(|request| async move {
            KvClient::new(channel.clone()).txn(request).await.map(drop)
        });
        let filled = fills.buffer_unordered(FILLS).try_collect::<()>().await;
        filled.context("write the keys that are to be read")?;
        for channel in channels {
            let request = RangeRequest {
                key: self.key(0),
                count_only: true,
                ..RangeRequest::default()
            };
            KvClient::new(channel.clone()).range(request).await?;
        }
        Ok(())
    }

    fn put(&self, n: u64, random: &mut SmallRng) -> RequestOp {
        let put = PutRequest {
            key: self.key(n),
            value: self.value(&[], random),
            ..PutRequest::default()
        };
        RequestOp {
            request: Some(Request::RequestPut(put)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    fn args(keys: u64, key_bytes: usize, value_bytes: usize) -> KeyArgs {
        KeyArgs {
            keys,
            key_bytes,
            value_bytes,
        }
    }

    #[test]
    fn keys_are_different_and_as_long_as_asked_for() {
        let space = args(100, 20, 0).space("put").unwrap();
        let keys: BTreeSet<_> = (0..100).map(|n| space.key(n)).collect();
        assert_eq!(keys.len(), 100);
        assert!(keys.iter().all(|key| key.len() == 20));
        assert_eq!(space.key(7), "quorate-bench/put/07");
        let mut random = SmallRng::seed_from_u64(1);
        assert!(keys.contains(&space.any_key(&mut random)));
    }

    #[test]
    fn keys_that_are_too_short_for_their_number_are_refused() {
        let told = args(101, 20, 0).space("put").unwrap_err().to_string();
        assert!(told.contains("at least 21 bytes"), "{told}");
        assert!(args(1, 19, 0).space("put").is_ok());
        assert!(args(1, 18, 0).space("put").is_err());
    }

    #[test]
    fn values_begin_as_told_and_differ_beyond() {
        let space = args(1, 32, 24).space("watch").unwrap();
        let mut random = SmallRng::seed_from_u64(1);
        let (a, b) = (
            space.value(b"head", &mut random),
            space.value(b"head", &mut random),
        );
        assert_eq!((a.len(), &a[..4]), (24, b"head".as_slice()));
        assert_ne!(a, b);
    }
}
