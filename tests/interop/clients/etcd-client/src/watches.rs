//! Watches.

use anyhow::{Context as _, ensure};
use etcd_client::{
    Client, EventType, Txn, TxnOp, WatchFilterType, WatchOptions, WatchResponse, WatchStream,
};

use crate::{Servers, cases};

cases! {
    "watch: puts and deletes in order, with the pair before, then cancelled" => live,
    "watch from a revision brings history first" => history,
    "watch with filters, of a range, with an id of its own" => filters,
    "watch of compacted history is cancelled and tells from where on" => compacted,
    "progress on request" => progress,
    "two hundred watchers on one stream each hear their own key" => many,
    "events of a large transaction come in fragments" => fragments,
}

async fn next(stream: &mut WatchStream) -> anyhow::Result<WatchResponse> {
    stream.message().await?.context("the stream ended")
}

/// The next `number` events, however many answers they come in.
async fn events(
    stream: &mut WatchStream,
    number: usize,
) -> anyhow::Result<Vec<(EventType, String, String)>> {
    let mut seen = Vec::new();
    while seen.len() < number {
        for event in next(stream).await?.events() {
            let kv = event.kv().context("a pair")?;
            seen.push((
                event.event_type(),
                kv.key_str()?.to_owned(),
                kv.value_str()?.to_owned(),
            ));
        }
    }
    Ok(seen)
}

async fn now(client: &mut Client) -> anyhow::Result<i64> {
    Ok(client
        .get("any", None)
        .await?
        .header()
        .context("a header")?
        .revision())
}

async fn live(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let options = WatchOptions::new().with_prefix().with_prev_key();
    let mut stream = client.watch("w/", Some(options)).await?;
    let created = next(&mut stream).await?;
    ensure!(
        created.created() && created.events().is_empty(),
        "{created:?}"
    );
    client.put("w/1", "a", None).await?;
    client.put("w/1", "b", None).await?;
    client.delete("w/1", None).await?;
    let mut before = Vec::new();
    while before.len() < 3 {
        let answer = next(&mut stream).await?;
        ensure!(answer.watch_id() == created.watch_id());
        for event in answer.events() {
            let kv = event
                .prev_kv()
                .map(|kv| kv.value_str().map(str::to_owned))
                .transpose()?;
            before.push((event.event_type(), kv));
        }
    }
    let text = |value: &str| Some(value.to_owned());
    ensure!(
        before
            == [
                (EventType::Put, None),
                (EventType::Put, text("a")),
                (EventType::Delete, text("b"))
            ],
        "{before:?}"
    );
    stream.cancel(created.watch_id()).await?;
    ensure!(next(&mut stream).await?.canceled());
    Ok(())
}

async fn history(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let start = now(&mut client).await? + 1;
    client.put("wh", "1", None).await?;
    client.put("wh", "2", None).await?;
    let options = WatchOptions::new().with_start_revision(start);
    let mut stream = client.watch("wh", Some(options)).await?;
    client.put("wh", "3", None).await?;
    let values: Vec<_> = events(&mut stream, 3)
        .await?
        .into_iter()
        .map(|event| event.2)
        .collect();
    ensure!(values == ["1", "2", "3"], "{values:?}");
    Ok(())
}

async fn filters(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let start = now(&mut client).await? + 1;
    for key in ["wf/1", "wf/2", "wf/3"] {
        client.put(key, "x", None).await?;
        client.delete(key, None).await?;
    }
    let options = |id: i64, filter| {
        let options = WatchOptions::new()
            .with_start_revision(start)
            .with_filters([filter]);
        options.with_range("wf/3").with_watch_id(id)
    };
    let mut stream = client
        .watch("wf/1", Some(options(7, WatchFilterType::NoPut)))
        .await?;
    ensure!(next(&mut stream).await?.watch_id() == 7);
    let seen = events(&mut stream, 2).await?;
    ensure!(
        seen.iter().all(|event| event.0 == EventType::Delete),
        "{seen:?}"
    );
    stream
        .watch("wf/1", Some(options(8, WatchFilterType::NoDelete)))
        .await?;
    ensure!(next(&mut stream).await?.watch_id() == 8);
    let keys: Vec<_> = events(&mut stream, 2)
        .await?
        .into_iter()
        .map(|event| (event.0, event.1))
        .collect();
    ensure!(
        keys == [
            (EventType::Put, "wf/1".to_owned()),
            (EventType::Put, "wf/2".to_owned())
        ],
        "{keys:?}"
    );
    stream
        .watch("wf/1", Some(options(8, WatchFilterType::NoDelete)))
        .await?;
    let answer = next(&mut stream).await?;
    ensure!(answer.created() && answer.canceled(), "{answer:?}");
    ensure!(
        answer
            .cancel_reason()
            .contains("duplicate watch ID provided"),
        "{answer:?}"
    );
    Ok(())
}

async fn compacted(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    client.put("wc", "1", None).await?;
    client.put("wc", "2", None).await?;
    let at = now(&mut client).await?;
    client.compact(at, None).await?;
    let options = WatchOptions::new().with_start_revision(at - 1);
    let mut stream = client.watch("wc", Some(options)).await?;
    ensure!(next(&mut stream).await?.created());
    let answer = next(&mut stream).await?;
    ensure!(
        answer.canceled() && answer.compact_revision() == at,
        "{answer:?}"
    );
    let options = WatchOptions::new().with_start_revision(at);
    stream.watch("wc", Some(options)).await?;
    ensure!(events(&mut stream, 1).await?[0].2 == "2");
    Ok(())
}

async fn progress(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let options = WatchOptions::new().with_progress_notify();
    let mut stream = client.watch("wp", Some(options)).await?;
    ensure!(next(&mut stream).await?.created());
    client.put("beside", "x", None).await?;
    let at = now(&mut client).await?;
    stream.request_progress().await?;
    let answer = next(&mut stream).await?;
    ensure!(
        answer.events().is_empty() && answer.watch_id() == -1,
        "{answer:?}"
    );
    ensure!(
        answer.header().context("a header")?.revision() == at,
        "{answer:?}"
    );
    Ok(())
}

async fn many(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let mut stream = client.watch("wm/0", None).await?;
    for i in 1..200 {
        stream.watch(format!("wm/{i}"), None).await?;
    }
    let mut keys = Vec::new();
    for _ in 0..200 {
        let answer = next(&mut stream).await?;
        ensure!(answer.created(), "{answer:?}");
        keys.push(answer.watch_id());
    }
    for i in 0..200 {
        client.put(format!("wm/{i}"), i.to_string(), None).await?;
        let answer = next(&mut stream).await?;
        ensure!(
            answer.watch_id() == keys[i] && answer.events().len() == 1,
            "{answer:?}"
        );
        ensure!(answer.events()[0].kv().context("a pair")?.value_str()? == i.to_string());
    }
    Ok(())
}

async fn fragments(servers: Servers) -> anyhow::Result<()> {
    let mut client = servers.client().await?;
    let start = now(&mut client).await? + 1;
    let of = |range: std::ops::Range<i32>| -> Vec<_> {
        range
            .map(|i| TxnOp::put(format!("wg/{i:02}"), vec![b'x'; 100_000], None))
            .collect()
    };
    for range in [0..10, 10..20, 20..30, 30..40] {
        client.txn(Txn::new().and_then(of(range))).await?;
    }
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(start)
        .with_fragment();
    let mut stream = client.watch("wg/", Some(options)).await?;
    let keys: Vec<_> = events(&mut stream, 40)
        .await?
        .into_iter()
        .map(|event| event.1)
        .collect();
    ensure!(
        keys == (0..40).map(|i| format!("wg/{i:02}")).collect::<Vec<_>>(),
        "{keys:?}"
    );
    Ok(())
}
