//! The workload of puts: random values to random keys.

use quorate::core::clock::Instant;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tonic::transport::Channel;

use super::drive::Worker;
use super::keys::KeySpace;
use super::tally::{Tally, kind};

/// A client that puts.
#[derive(Debug)]
pub(super) struct Putter {
    endpoint: usize,
    client: KvClient<Channel>,
    space: KeySpace,
    random: SmallRng,
}

impl Putter {
    /// Client number `seed`.
    pub(super) fn new(endpoint: usize, channel: Channel, space: KeySpace, seed: u64) -> Self {
        Self {
            endpoint,
            client: KvClient::new(channel),
            space,
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// Puts a value that begins with `head`.
    pub(super) async fn put(&mut self, head: &[u8]) -> Result<i64, String> {
        let put = PutRequest {
            key: self.space.any_key(&mut self.random),
            value: self.space.value(head, &mut self.random),
            ..PutRequest::default()
        };
        let answer = self.client.put(put).await.map_err(|status| kind(&status))?;
        let header = answer.into_inner().header;
        Ok(header.map_or(0, |header| header.revision))
    }
}

impl Worker for Putter {
    fn endpoint(&self) -> usize {
        self.endpoint
    }

    async fn request(&mut self, _: Instant, _: &Tally) -> Result<i64, String> {
        self.put(&[]).await
    }
}
