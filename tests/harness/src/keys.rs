//! Reading a whole prefix, page by page at one revision.

use bytes::Bytes;
use quorate_proto::etcdserverpb::RangeRequest;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::range::{KeyRange, successor};

/// Keys read at a time.
const PAGE: i64 = 1_000;

/// All pairs below `prefix`, read through `endpoint`, linearizably, at one revision.
///
/// # Errors
/// When it does not answer.
pub async fn read_all(endpoint: &str, prefix: &str) -> anyhow::Result<Vec<KeyValue>> {
    let mut client = KvClient::connect(endpoint.to_owned())
        .await?
        .max_decoding_message_size(usize::MAX);
    let (start, end) = KeyRange::prefix(Bytes::copy_from_slice(prefix.as_bytes())).to_wire();
    let mut request = RangeRequest {
        key: start,
        range_end: end,
        limit: PAGE,
        ..RangeRequest::default()
    };
    let mut all = Vec::new();
    loop {
        let answer = client.range(request.clone()).await?.into_inner();
        if request.revision == 0 {
            request.revision = answer.header.map_or(0, |header| header.revision);
        }
        let last = answer.kvs.last().map(|pair| pair.key.clone());
        all.extend(answer.kvs);
        match last {
            Some(last) if answer.more => request.key = successor(&last),
            _ => return Ok(all),
        }
    }
}
