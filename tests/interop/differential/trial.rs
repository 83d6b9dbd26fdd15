//! The same scripted operations to quorate and to every real etcd at hand, for tests that look at
//! one thing closely. Without an etcd they still say what quorate has to answer.

use std::path::PathBuf;

use anyhow::Context as _;
use bytes::Bytes;
use quorate_harness::etcd;
use quorate_proto::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, ResponseHeader, TxnRequest,
};

use super::known::Known;
use super::op::{Answer, Op, Refusal, Reply};
use super::store::Store;

/// The etcds there are.
pub(crate) fn etcds() -> impl Iterator<Item = PathBuf> {
    etcd::installed().into_iter().chain(etcd::installed_3_5())
}

/// The stores of one test.
pub(crate) struct Trial {
    pub(crate) quorate: Store,
    pub(crate) etcds: Vec<(String, Store)>,
}

impl Trial {
    /// Starts all stores, with one watch stream each.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    /// The same, with arguments for all of them.
    pub(crate) async fn start_with(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut trial = Self {
            quorate: Store::quorate(arguments).await?,
            etcds: Vec::new(),
        };
        trial.quorate.open_streams(1).await?;
        for binary in etcds() {
            let version = etcd::version(&binary)?;
            let mut store = Store::etcd(binary, &version, arguments).await?;
            store.open_streams(1).await?;
            trial.etcds.push((version, store));
        }
        Ok(trial)
    }

    /// Quorate's answer, after making sure that it is every etcd's.
    pub(crate) async fn ask(&mut self, op: Op) -> anyhow::Result<Answer> {
        let ours = self.quorate.answer(&op).await?;
        for (version, store) in &mut self.etcds {
            let theirs = store.answer(&op).await?;
            let known = || Known::find(version, &op, &theirs, &ours);
            anyhow::ensure!(
                theirs == ours || known().is_some(),
                "{op:?}\netcd {version} {theirs:?}\nquorate {ours:?}"
            );
        }
        Ok(ours)
    }

    /// The reply to an operation that has to pass.
    pub(crate) async fn reply(&mut self, op: Op) -> anyhow::Result<Reply> {
        let what = format!("{op:?}");
        let answer = self.ask(op).await?;
        answer.map_err(|refusal| anyhow::anyhow!("{what}: {refusal:?}"))
    }

    /// The refusal of an operation that must not pass.
    pub(crate) async fn refusal(&mut self, op: Op) -> anyhow::Result<Refusal> {
        let what = format!("{op:?}");
        self.ask(op).await?.err().context(what)
    }

    /// The revision in the header of an operation that has to pass.
    pub(crate) async fn revision(&mut self, op: Op) -> anyhow::Result<i64> {
        let header = match self.reply(op).await? {
            Reply::Put(answer) => answer.header,
            Reply::DeleteRange(answer) => answer.header,
            Reply::Txn(answer) => answer.header,
            Reply::Range(answer) => answer.header,
            Reply::Compact(answer) => answer.header,
            Reply::LeaseGrant(answer) => answer.header,
            Reply::LeaseRevoke(answer) => answer.header,
            other => anyhow::bail!("{other:?}"),
        };
        Ok(header.map_or(0, |header: ResponseHeader| header.revision))
    }
}

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) fn put(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: bytes(key),
        value: bytes(value),
        ..PutRequest::default()
    }
}

pub(crate) fn get(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest {
        key: bytes(key),
        range_end: bytes(range_end),
        ..RangeRequest::default()
    }
}

pub(crate) fn delete(key: &str, range_end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: bytes(key),
        range_end: bytes(range_end),
        prev_kv: true,
    }
}

pub(crate) fn grant(id: i64, ttl: i64) -> Op {
    Op::LeaseGrant(LeaseGrantRequest { id, ttl })
}

/// A transaction without compares.
pub(crate) fn all_of<const N: usize>(
    operations: [quorate_proto::etcdserverpb::RequestOp; N],
) -> TxnRequest {
    TxnRequest {
        success: operations.into(),
        ..TxnRequest::default()
    }
}
