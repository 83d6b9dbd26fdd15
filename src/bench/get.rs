//! The workload of gets: random keys, one at a time, all of which are there.

use clap::Args;
use quorate::core::clock::Instant;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tonic::transport::Channel;

use super::drive::Worker;
use super::keys::KeySpace;
use super::tally::{Tally, kind};

/// How is read.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// Let each member answer from what it has, which may be old, without asking the others
    #[arg(long)]
    pub(super) serializable: bool,
}

/// A client that gets.
#[derive(Debug)]
pub(super) struct Getter {
    endpoint: usize,
    client: KvClient<Channel>,
    space: KeySpace,
    serializable: bool,
    random: SmallRng,
}

impl Getter {
    /// Client number `seed`.
    pub(super) fn new(
        endpoint: usize,
        channel: Channel,
        space: KeySpace,
        serializable: bool,
        seed: u64,
    ) -> Self {
        Self {
            endpoint,
            client: KvClient::new(channel).max_decoding_message_size(usize::MAX),
            space,
            serializable,
            random: SmallRng::seed_from_u64(seed),
        }
    }
}

impl Worker for Getter {
    fn endpoint(&self) -> usize {
        self.endpoint
    }

    async fn request(&mut self, _: Instant, _: &Tally) -> Result<i64, String> {
        let get = RangeRequest {
            key: self.space.any_key(&mut self.random),
            serializable: self.serializable,
            ..RangeRequest::default()
        };
        let answer = self.client.range(get).await;
        let answer = answer.map_err(|status| kind(&status))?.into_inner();
        match answer.kvs.as_slice() {
            [pair] if pair.value.len() == self.space.value_bytes => {
                Ok(answer.header.map_or(0, |header| header.revision))
            }
            [_] => Err("a value of another length than was put".into()),
            _ => Err("no value for a key that was put".into()),
        }
    }
}
