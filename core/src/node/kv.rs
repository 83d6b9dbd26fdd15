//! Requests on the key space.

use quorate_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};

use super::Node;
use crate::error::Result;

impl Node {
    /// Reads keys; linearizable unless the request says serializable.
    pub async fn range(&self, _request: RangeRequest) -> Result<RangeResponse> {
        unimplemented!()
    }
    /// Writes a key.
    pub async fn put(&self, _request: PutRequest) -> Result<PutResponse> {
        unimplemented!()
    }
    /// Deletes keys.
    pub async fn delete_range(&self, _request: DeleteRangeRequest) -> Result<DeleteRangeResponse> {
        unimplemented!()
    }
    /// Compares, then reads and writes, as one step.
    pub async fn txn(&self, _request: TxnRequest) -> Result<TxnResponse> {
        unimplemented!()
    }
    /// Gives up history before a revision.
    pub async fn compact(&self, _request: CompactionRequest) -> Result<CompactionResponse> {
        unimplemented!()
    }
}
