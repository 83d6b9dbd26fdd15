//! The latest revision that any answer of a member told: for answers that the proxy gives itself, whose
//! headers say where the store is.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use prost::Message as _;
use quorate::proto::etcdserverpb::ResponseHeader;

/// The tag of a message's first field, which is the header in every answer.
const HEADER: u8 = 0x0a;

/// The latest header. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Latest(Arc<Mutex<ResponseHeader>>);

impl Latest {
    /// A member has told this header. One without a revision tells nothing; one of another cluster begins
    /// anew.
    pub(super) fn hear(&self, header: ResponseHeader) {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = header.cluster_id != latest.cluster_id || header.revision > latest.revision;
        if header.revision > 0 && is_new {
            *latest = header;
        }
    }

    /// A member has given this answer, of whatever kind.
    pub(super) fn hear_answer(&self, answer: &Bytes) {
        if answer.first() != Some(&HEADER) {
            return;
        }
        let mut field = answer.slice(1..);
        if let Ok(header) = ResponseHeader::decode_length_delimited(&mut field) {
            self.hear(header);
        }
    }

    /// The header with the latest revision.
    pub(super) fn header(&self) -> ResponseHeader {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use quorate::proto::etcdserverpb::{PutResponse, RangeResponse};

    use super::*;

    fn header(cluster_id: u64, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id,
            revision,
            ..Default::default()
        }
    }

    #[test]
    fn the_latest_of_one_cluster_is_kept() {
        let latest = Latest::default();
        let answer = |header| PutResponse {
            header: Some(header),
            ..Default::default()
        };
        let hear = |header| latest.hear_answer(&answer(header).encode_to_vec().into());
        hear(header(1, 7));
        hear(header(1, 5));
        assert_eq!(latest.header(), header(1, 7));
        hear(header(2, 3));
        assert_eq!(latest.header(), header(2, 3));
        hear(header(2, 0));
        // Neither has a header that could be read.
        let headless = RangeResponse {
            count: 1,
            ..Default::default()
        };
        latest.hear_answer(&headless.encode_to_vec().into());
        latest.hear_answer(&Bytes::from_static(b"\x0a\xff\xff\xff"));
        latest.hear_answer(&Bytes::new());
        assert_eq!(latest.header(), header(2, 3));
    }
}
