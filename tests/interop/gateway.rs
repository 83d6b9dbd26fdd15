//! The JSON gateway: the same `curl` calls against a real etcd and against quorate must have the same
//! HTTP status and the same body, byte for byte but for ids, addresses and raft's own numbers.
//!
//! The answers are etcd 3.5's. With an etcd 3.4 beside it, what changed since is named in
//! [`Told::like_since_3_5`] and in the calls that are marked [`Since::V3_5`].

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::etcd::{self, Etcd};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(20);

/// The etcd release whose answer is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Since {
    V3_4,
    V3_5,
}

/// One call; `lines` ends a stream that would not end by itself.
#[derive(Clone, Copy)]
struct Call {
    since: Since,
    arguments: &'static [&'static str],
    path: &'static str,
    body: &'static str,
    lines: Option<usize>,
}

const fn post(path: &'static str, body: &'static str) -> Call {
    Call {
        since: Since::V3_4,
        arguments: &[],
        path,
        body,
        lines: None,
    }
}

const fn stream(path: &'static str, body: &'static str, lines: usize) -> Call {
    Call {
        lines: Some(lines),
        ..post(path, body)
    }
}

const fn since_3_5(call: Call) -> Call {
    Call {
        since: Since::V3_5,
        ..call
    }
}

#[rustfmt::skip]
const CALLS: &[Call] = &[
    // Keys, and how requests may be written.
    post("/v3/kv/range", r#"{"key":"Zm9v"}"#),
    post("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
    post("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy","prev_kv":true}"#),
    post("/v3/kv/put", r#"{"key":"Zm9w","value":"","prevKv":true}"#),
    post("/v3/kv/range", r#"{"key":"Zm9v"}"#),
    post("/v3/kv/range", r#"{"key":"Zm9v"} what follows is ignored"#),
    post("/v3/kv/range", r#"{"key":"Zm9v","unknown":[{"x":1}]}"#),
    post("/v3/kv/range", r#"{"key":"YQ==","key":"Zm9v","limit":null}"#),
    post("/v3/kv/range", r#"{"key":"Zm9v","rangeEnd":"Zm94","limit":"1"}"#),
    post("/v3/kv/range", r#"{"key":"Zm9v","range_end":"Zm94","limit":1}"#),
    post("/v3/kv/range", r#"{"key":"AA==","range_end":"AA==","count_only":true}"#),
    post("/v3/kv/range", r#"{"key":"AA==","range_end":"AA==","keys_only":true,"sort_order":"DESCEND"}"#),
    post("/v3/kv/range", r#"{"key":"AA==","range_end":"AA==","sortOrder":2,"sortTarget":"VERSION"}"#),
    post("/v3/kv/range", r#"{"key":"Zm9v","revision":"2"}"#),
    post("/v3/kv/deleterange", r#"{"key":"Zm9w","prev_kv":true}"#),
    post("/v3/kv/deleterange", r#"{"key":"Zm9w"}"#),
    // Transactions.
    post("/v3/kv/txn", r#"{"compare":[{"key":"Zm9v","target":"VALUE","result":"EQUAL","value":"YmFy"}],"success":[{"requestPut":{"key":"Zm9v","value":"cXV4","prev_kv":true}},{"request_range":{"key":"Zm9v"}},{"request_delete_range":{"key":"bm8="}},{"request_txn":{"success":[{"request_range":{"key":"YQ=="}}]}}]}"#),
    post("/v3/kv/txn", r#"{"compare":[{"key":"Zm9v","target":3,"result":3,"value":"cXV4"}],"failure":[{"request_range":{"key":"Zm9v"}}]}"#),
    post("/v3/kv/txn", "{}"),
    post("/v3/kv/txn", r#"{"success":[{}]}"#),
    post("/v3/kv/txn", r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#),
    // Refusals.
    post("/v3/kv/range", ""),
    post("/v3/kv/range", "null"),
    post("/v3/kv/range", "{}"),
    post("/v3/kv/range", r#"{"key":"#),
    post("/v3/kv/range", "xx"),
    post("/v3/kv/range", r#"{"key":"Zm9v","revision":"99"}"#),
    post("/v3/kv/put", r#"{"key":"Zm9v","lease":"99"}"#),
    post("/v3/kv/compaction", r#"{"revision":"99"}"#),
    post("/v3/kv/compaction", r#"{"revision":3,"physical":true}"#),
    post("/v3/kv/compaction", r#"{"revision":3}"#),
    post("/v3/kv/range", r#"{"key":"Zm9v","revision":"2"}"#),
    post("/v3/nothing", "{}"),
    post("/v3/kv/range/", "{}"),
    post("/nothing", "{}"),
    since_3_5(Call {
        arguments: &["-X", "GET"],
        ..post("/v3/kv/range", "")
    }),
    Call {
        arguments: &["-H", "Content-Type: text/plain"],
        ..post("/v3/kv/range", r#"{"key":"Zm9v"}"#)
    },
    // Watches.
    stream("/v3/watch", r#"{"create_request":{"key":"Zm9v","start_revision":"4","prevKv":true}}"#, 2),
    stream("/v3/watch", r#"{"create_request":{"key":"Zm9v","filters":["NOPUT"],"watch_id":"5"}} {"cancel_request":{"watch_id":5}}"#, 2),
    stream("/v3/watch", r#"{"create_request":{"key":"Zm9v","startRevision":1}}"#, 2),
    post("/v3/watch", "xx"),
    // Leases.
    post("/v3/lease/grant", r#"{"TTL":100,"ID":"7"}"#),
    post("/v3/lease/grant", r#"{"TTL":100,"ID":"7"}"#),
    post("/v3/lease/grant", r#"{"TTL":"9000000001"}"#),
    post("/v3/kv/put", r#"{"key":"bGVhc2Vk","lease":7}"#),
    post("/v3/lease/keepalive", r#"{"ID":7}{"ID":8} {"ID":"7"}"#),
    post("/v3/lease/keepalive", ""),
    post("/v3/lease/keepalive", "xx"),
    post("/v3/lease/timetolive", r#"{"ID":99}"#),
    post("/v3/kv/lease/timetolive", r#"{"ID":7,"keys":true}"#),
    post("/v3/lease/leases", ""),
    post("/v3/kv/lease/leases", "{}"),
    post("/v3/lease/revoke", r#"{"ID":99}"#),
    post("/v3/kv/lease/revoke", r#"{"ID":7}"#),
    // Locks and elections.
    post("/v3/lease/grant", r#"{"TTL":100,"ID":"9"}"#),
    post("/v3/lock/lock", r#"{"name":"bg==","lease":9}"#),
    post("/v3/lock/unlock", r#"{"key":"bi85"}"#),
    post("/v3/lock/unlock", "{}"),
    post("/v3/lock/lock", r#"{"name":"bg==","lease":99}"#),
    post("/v3/election/leader", r#"{"name":"ZQ=="}"#),
    post("/v3/election/campaign", r#"{"name":"ZQ==","lease":9,"value":"b25l"}"#),
    post("/v3/election/leader", r#"{"name":"ZQ=="}"#),
    stream("/v3/election/observe", r#"{"name":"ZQ=="}"#, 1),
    post("/v3/election/proclaim", r#"{"leader":{"name":"ZQ==","key":"ZS85","rev":"1","lease":"9"},"value":"dHdv"}"#),
    post("/v3/election/resign", r#"{"leader":{"name":"ZQ==","key":"ZS85","rev":"1","lease":"9"}}"#),
    post("/v3/election/resign", "{}"),
    // The member.
    post("/v3/cluster/member/list", ""),
    since_3_5(post("/v3/maintenance/alarm", r#"{"action":"GET"}"#)),
    since_3_5(post("/v3/maintenance/alarm", r#"{"action":"ACTIVATE","alarm":"NOSPACE","memberID":"5"}"#)),
    since_3_5(post("/v3/maintenance/alarm", r#"{"action":2,"alarm":1,"memberID":5}"#)),
    post("/v3/maintenance/defragment", "{}"),
    post("/v3/maintenance/transfer-leadership", r#"{"targetID":"5"}"#),
    since_3_5(post("/v3/maintenance/downgrade", r#"{"action":"CANCEL"}"#)),
];

/// What a call was told.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    status: String,
    body: String,
}

impl Told {
    /// etcd 3.4 answers FailedPrecondition with 412 where later ones have 400, and tells the code
    /// after the message.
    fn like_since_3_5(mut self) -> Self {
        if self.status == "412" {
            self.status = "400".to_owned();
        }
        if let Some((head, code)) = self.body.rsplit_once(",\"code\":")
            && let Some((error, message)) = head.rsplit_once(",\"message\":")
            && let Some(code) = code.strip_suffix('}')
        {
            self.body = format!("{error},\"code\":{code},\"message\":{message}}}");
        }
        self
    }
}

async fn call(endpoint: &str, call: &Call) -> anyhow::Result<Told> {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "-N", "-X", "POST", "--data-binary", call.body])
        .args(["-w", "\n%{http_code}"])
        .args(call.arguments)
        .arg(format!("{endpoint}{}", call.path))
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().context("curl")?;
    let mut out = BufReader::new(child.stdout.take().context("piped")?);
    let mut text = String::new();
    let read = async {
        match call.lines {
            Some(lines) => {
                for _ in 0..lines {
                    out.read_line(&mut text).await?;
                }
                text.push_str("\n(more)");
                anyhow::Ok(())
            }
            None => {
                out.read_to_string(&mut text).await?;
                anyhow::ensure!(child.wait().await?.success(), "curl failed: {text}");
                Ok(())
            }
        }
    };
    let read = tokio::time::timeout(PATIENCE, read).await;
    read.with_context(|| format!("{} {} does not end", call.path, call.body))??;
    let (body, status) = text.rsplit_once('\n').context("a status")?;
    Ok(Told {
        status: status.to_owned(),
        body: blank(&body.replace(endpoint, "ENDPOINT")),
    })
}

/// Takes the numbers out that belong to one server.
fn blank(body: &str) -> String {
    let mut blanked = body.to_owned();
    for name in ["cluster_id", "member_id", "raft_term"] {
        blanked = without_values(&blanked, &format!("\"{name}\":\""), '"');
    }
    // The ids of leases are the caller's.
    if blanked.contains("\"members\":") {
        blanked = without_values(&blanked, "\"ID\":\"", '"');
        blanked = without_values(&blanked, "\"name\":\"", '"');
        blanked = without_values(&blanked, "\"peerURLs\":[", ']');
    }
    blanked
}

fn without_values(text: &str, before: &str, after: char) -> String {
    let mut parts = text.split(before);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.find(after).map_or("", |end| &part[end..]);
        out.push_str(before);
        out.push_str(rest);
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_answers_as_etcds_does() -> anyhow::Result<()> {
    let Some(binary) = etcd::installed() else {
        return Ok(());
    };
    let etcd = Etcd::start(binary).await?;
    let quorate = ProcessCluster::start(Path::new(env!("CARGO_BIN_EXE_quorate")), 1, &[]).await?;
    let version = call(
        etcd.endpoint(),
        &Call {
            arguments: &["-X", "GET"],
            ..post("/version", "")
        },
    )
    .await?;
    let theirs = if version.body.contains(r#""etcdserver":"3.4"#) {
        Since::V3_4
    } else {
        Since::V3_5
    };
    let (mut differences, mut compared) = (Vec::new(), 0);
    for asked in CALLS {
        let mut expected = call(etcd.endpoint(), asked).await?;
        if theirs == Since::V3_4 {
            expected = expected.like_since_3_5();
        }
        let actual = call(quorate.endpoint(0), asked).await?;
        if asked.since > theirs {
            continue;
        }
        compared += 1;
        if actual != expected {
            differences.push(format!(
                "{} {}\n  etcd    {expected:?}\n  quorate {actual:?}",
                asked.path, asked.body
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {compared} calls differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
    println!("{compared} calls, all alike");
    Ok(())
}
