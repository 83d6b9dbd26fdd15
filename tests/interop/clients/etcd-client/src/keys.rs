//! Keys and transactions.

use anyhow::{Context as _, ensure};
use etcd_client::{
    CompactionOptions, Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse,
};

use crate::{Servers, cases, refusal};

cases! {
    "put, get, delete, with the pair before" => single,
    "ranges: prefix, from a key, all, limit, sorted, count, keys only" => ranges,
    "get at a revision, and between revisions" => revisions,
    "compaction takes history away, also a physical one" => compaction,
    "transactions compare, branch and answer in order" => transaction,
    "a transaction that is refused writes nothing" => refused_transaction,
    "refusals carry etcd's codes and texts" => refusals,
    "a hundred calls at once on one connection" => many,
}

async fn single(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let put = client.put("a/1", "one", None).await?;
    let at = put.header().context("a header")?.revision();
    let answer = client.get("a/1", None).await?;
    let [kv] = answer.kvs() else {
        anyhow::bail!("{answer:?}")
    };
    ensure!((kv.key(), kv.value()) == (b"a/1".as_slice(), b"one".as_slice()));
    ensure!(
        (
            kv.create_revision(),
            kv.mod_revision(),
            kv.version(),
            kv.lease()
        ) == (at, at, 1, 0)
    );
    let options = PutOptions::new().with_prev_key();
    let put = client.put("a/1", [0, 255], Some(options)).await?;
    ensure!(put.prev_key().context("a pair before")?.value() == b"one");
    client
        .put("a/1", "", Some(PutOptions::new().with_ignore_value()))
        .await?;
    let options = DeleteOptions::new().with_prev_key();
    let gone = client.delete("a/1", Some(options)).await?;
    ensure!((gone.deleted(), gone.prev_kvs()[0].value()) == (1, [0, 255].as_slice()));
    ensure!(client.delete("a/1", None).await?.deleted() == 0);
    ensure!(client.get("a/1", None).await?.kvs().is_empty());
    Ok(())
}

async fn ranges(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    for (key, value) in [("~b/1", "z"), ("~b/2", "y"), ("~b/3", "x"), ("~b/2", "y")] {
        client.put(key, value, None).await?;
    }
    let prefix = || GetOptions::new().with_prefix();
    let of = [
        (SortTarget::Key, "~b/3"),
        (SortTarget::Version, "~b/2"),
        (SortTarget::Create, "~b/3"),
        (SortTarget::Mod, "~b/2"),
        (SortTarget::Value, "~b/1"),
    ];
    for (target, last) in of {
        let options = prefix().with_sort(target, SortOrder::Descend);
        let answer = client.get("~b/", Some(options)).await?;
        ensure!(answer.kvs()[0].key_str()? == last, "{target:?}");
    }
    let answer = client.get("~b/", Some(prefix().with_limit(2))).await?;
    ensure!((answer.kvs().len(), answer.count(), answer.more()) == (2, 3, true));
    let answer = client
        .get("~b/2", Some(GetOptions::new().with_from_key()))
        .await?;
    ensure!(answer.count() == 2);
    let answer = client
        .get("~b/1", Some(GetOptions::new().with_range("~b/3")))
        .await?;
    ensure!(answer.count() == 2);
    let answer = client.get("~b/", Some(prefix().with_count_only())).await?;
    ensure!((answer.count(), answer.kvs().len()) == (3, 0));
    let answer = client
        .get("~b/", Some(prefix().with_keys_only().with_serializable()))
        .await?;
    ensure!(answer.kvs().iter().all(|kv| kv.value().is_empty()) && answer.kvs().len() == 3);
    let answer = client
        .get("", Some(GetOptions::new().with_all_keys()))
        .await?;
    ensure!(answer.count() >= 3);
    let gone = client
        .delete("~b/", Some(DeleteOptions::new().with_prefix()))
        .await?;
    ensure!(gone.deleted() == 3);
    Ok(())
}

async fn revisions(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let put = client.put("c/1", "old", None).await?;
    let first = put.header().context("a header")?.revision();
    client.put("c/1", "new", None).await?;
    client.put("c/2", "newest", None).await?;
    let answer = client
        .get("c/1", Some(GetOptions::new().with_revision(first)))
        .await?;
    ensure!(answer.kvs()[0].value() == b"old");
    let prefix = || GetOptions::new().with_prefix();
    for (options, key) in [
        (prefix().with_min_mod_revision(first + 2), "c/2"),
        (prefix().with_max_mod_revision(first + 1), "c/1"),
        (prefix().with_min_create_revision(first + 1), "c/2"),
        (prefix().with_max_create_revision(first), "c/1"),
    ] {
        let answer = client.get("c/", Some(options)).await?;
        let keys: Vec<_> = answer
            .kvs()
            .iter()
            .map(|kv| kv.key_str())
            .collect::<Result<_, _>>()?;
        ensure!(keys == [key] && answer.count() == 2);
    }
    Ok(())
}

async fn compaction(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    for value in ["1", "2", "3"] {
        client.put("cp", value, None).await?;
    }
    let now = client.get("cp", None).await?.kvs()[0].mod_revision();
    client.compact(now - 1, None).await?;
    let at = |revision| Some(GetOptions::new().with_revision(revision));
    ensure!(client.get("cp", at(now - 1)).await?.kvs()[0].value() == b"2");
    let compacted = "OutOfRange: etcdserver: mvcc: required revision has been compacted";
    ensure!(refusal(client.get("cp", at(now - 2)).await)? == compacted);
    ensure!(refusal(client.compact(now - 1, None).await)? == compacted);
    client
        .compact(now, Some(CompactionOptions::new().with_physical()))
        .await?;
    Ok(())
}

async fn transaction(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    client.put("t/1", "m", None).await?;
    let at = client.get("t/1", None).await?.kvs()[0].mod_revision();
    let inner = Txn::new().and_then([TxnOp::put("t/3", "inner", None)]);
    let txn = Txn::new()
        .when([
            Compare::value("t/1", CompareOp::Equal, "m"),
            Compare::value("t/1", CompareOp::Greater, "a"),
            Compare::version("t/1", CompareOp::Less, 2),
            Compare::create_revision("t/1", CompareOp::Equal, at),
            Compare::mod_revision("t/1", CompareOp::NotEqual, at + 1),
            Compare::lease("t/1", CompareOp::Equal, 0),
            Compare::create_revision("t/none", CompareOp::Equal, 0),
            Compare::mod_revision("t/", CompareOp::Equal, at).with_prefix(),
        ])
        .and_then([
            TxnOp::put("t/2", "yes", None),
            TxnOp::get("t/2", None),
            TxnOp::txn(inner),
            TxnOp::delete("t/1", None),
        ])
        .or_else([TxnOp::get("t/2", None)]);
    let won = client.txn(txn.clone()).await?;
    let revision = won.header().context("a header")?.revision();
    ensure!(won.succeeded() && revision == at + 1, "{won:?}");
    let answers = won.op_responses();
    let [
        TxnOpResponse::Put(_),
        TxnOpResponse::Get(got),
        TxnOpResponse::Txn(inner),
        TxnOpResponse::Delete(gone),
    ] = answers.as_slice()
    else {
        anyhow::bail!("{answers:?}");
    };
    ensure!(got.kvs()[0].value() == b"yes" && inner.succeeded() && gone.deleted() == 1);
    let lost = client.txn(txn).await?;
    ensure!(
        !lost.succeeded() && lost.op_responses().len() == 1,
        "{lost:?}"
    );
    Ok(())
}

async fn refused_transaction(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let twice = [TxnOp::put("t/4", "1", None), TxnOp::put("t/4", "2", None)];
    let answer = client.txn(Txn::new().and_then(twice)).await;
    ensure!(refusal(answer)? == "InvalidArgument: etcdserver: duplicate key given in txn request");
    let lease = Some(PutOptions::new().with_lease(999));
    let half = [TxnOp::put("t/4", "1", None), TxnOp::put("t/5", "2", lease)];
    let answer = client.txn(Txn::new().and_then(half)).await;
    ensure!(refusal(answer)? == "NotFound: etcdserver: requested lease not found");
    let many: Vec<_> = (0..129)
        .map(|i| TxnOp::put(format!("t/{i}"), "x", None))
        .collect();
    let answer = client.txn(Txn::new().and_then(many)).await;
    ensure!(refusal(answer)? == "InvalidArgument: etcdserver: too many operations in txn request");
    ensure!(client.get("t/4", None).await?.count() == 0);
    Ok(())
}

async fn refusals(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let answer = client.put("", "x", None).await;
    ensure!(refusal(answer)? == "InvalidArgument: etcdserver: key is not provided");
    let answer = client
        .put("none", "", Some(PutOptions::new().with_ignore_lease()))
        .await;
    ensure!(refusal(answer)? == "InvalidArgument: etcdserver: key not found");
    let answer = client.put("x", vec![0; 1_600_000], None).await;
    ensure!(refusal(answer)? == "InvalidArgument: etcdserver: request is too large");
    let answer = client.put("x", vec![0; 3_000_000], None).await;
    let text = refusal(answer)?;
    ensure!(
        text.starts_with("ResourceExhausted: grpc: received message larger than max"),
        "{text}"
    );
    let answer = client
        .get("x", Some(GetOptions::new().with_revision(1 << 40)))
        .await;
    ensure!(
        refusal(answer)? == "OutOfRange: etcdserver: mvcc: required revision is a future revision"
    );
    Ok(())
}

async fn many(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..100 {
        let mut client = client.clone();
        calls.spawn(async move { client.put(format!("many/{i}"), "x", None).await });
    }
    while let Some(call) = calls.join_next().await {
        call??;
    }
    let answer = client
        .get("many/", Some(GetOptions::new().with_prefix()))
        .await?;
    ensure!(answer.count() == 100);
    Ok(())
}
