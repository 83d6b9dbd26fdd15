//! Reading the answers of transactions; used by whoever runs one.

use crate::etcdserverpb::response_op::Response;
use crate::etcdserverpb::{
    DeleteRangeResponse, PutResponse, RangeResponse, ResponseOp, TxnResponse,
};
use crate::mvccpb::KeyValue;

impl From<Response> for ResponseOp {
    fn from(response: Response) -> Self {
        Self {
            response: Some(response),
        }
    }
}

impl ResponseOp {
    /// The answer, if the operation was a read.
    #[must_use]
    pub fn as_range(&self) -> Option<&RangeResponse> {
        match &self.response {
            Some(Response::ResponseRange(response)) => Some(response),
            _ => None,
        }
    }

    /// The answer, if the operation was a write.
    #[must_use]
    pub fn as_put(&self) -> Option<&PutResponse> {
        match &self.response {
            Some(Response::ResponsePut(response)) => Some(response),
            _ => None,
        }
    }

    /// The answer, if the operation was a removal.
    #[must_use]
    pub fn as_delete(&self) -> Option<&DeleteRangeResponse> {
        match &self.response {
            Some(Response::ResponseDeleteRange(response)) => Some(response),
            _ => None,
        }
    }

    /// The answer, if the operation was a nested transaction.
    #[must_use]
    pub fn as_txn(&self) -> Option<&TxnResponse> {
        match &self.response {
            Some(Response::ResponseTxn(response)) => Some(response),
            _ => None,
        }
    }
}

impl TxnResponse {
    /// The answers to the reads of the branch taken, in order; not those of nested transactions.
    pub fn ranges(&self) -> impl Iterator<Item = &RangeResponse> {
        self.responses.iter().filter_map(ResponseOp::as_range)
    }

    /// The answers to the writes of the branch taken, in order; not those of nested transactions.
    pub fn puts(&self) -> impl Iterator<Item = &PutResponse> {
        self.responses.iter().filter_map(ResponseOp::as_put)
    }

    /// The answers to the removals of the branch taken, in order; not those of nested transactions.
    pub fn deletes(&self) -> impl Iterator<Item = &DeleteRangeResponse> {
        self.responses.iter().filter_map(ResponseOp::as_delete)
    }

    /// The pairs read by the branch taken, in order; not those of nested transactions.
    pub fn kvs(&self) -> impl Iterator<Item = &KeyValue> {
        self.ranges().flat_map(|range| &range.kvs)
    }

    /// Revision of the key space after the transaction; 0 if the answer has no header.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.header.as_ref().map_or(0, |header| header.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_by_kind() {
        let read = RangeResponse {
            kvs: vec![KeyValue::default()],
            ..RangeResponse::default()
        };
        let inner = TxnResponse {
            responses: vec![Response::ResponseRange(read.clone()).into()],
            ..TxnResponse::default()
        };
        let answer = TxnResponse {
            responses: vec![
                Response::ResponsePut(PutResponse::default()).into(),
                Response::ResponseRange(read).into(),
                Response::ResponseDeleteRange(DeleteRangeResponse::default()).into(),
                Response::ResponseTxn(inner).into(),
            ],
            ..TxnResponse::default()
        };
        assert_eq!(answer.puts().count(), 1);
        assert_eq!(answer.ranges().count(), 1);
        assert_eq!(answer.deletes().count(), 1);
        assert_eq!(answer.kvs().count(), 1);
        assert!(answer.responses[3].as_txn().is_some());
        assert_eq!(answer.revision(), 0);
    }
}
