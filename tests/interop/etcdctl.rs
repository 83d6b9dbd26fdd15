//! `etcdctl`, the same commands against a real etcd and against quorate: what it prints and how it
//! exits must be the same, but for ids, addresses, sizes and times.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use quorate_harness::etcd::{self, Etcd};
use quorate_harness::eventually;
use serde_json::Value;

/// One command line after `etcdctl`. `{lease}` is the lease granted last; a line that begins with
/// `|` is what is piped into the command.
const SCRIPT: &[&[&str]] = &[
    // put, get
    &["put", "fruit/apple", "red"],
    &["put", "fruit/banana", "yellow"],
    &["put", "fruit/cherry", "dark red"],
    &["put", "fruit/apple", "green", "--prev-kv"],
    &["get", "fruit/apple"],
    &["get", "fruit/apple", "-w", "json"],
    &["get", "fruit/apple", "-w", "fields"],
    &["get", "fruit/", "--prefix"],
    &["get", "fruit/", "--prefix", "--keys-only"],
    &["get", "fruit/", "--prefix", "--count-only", "-w", "fields"],
    &["get", "fruit/", "--prefix", "--limit", "2", "-w", "json"],
    &[
        "get",
        "fruit/",
        "--prefix",
        "--sort-by",
        "VALUE",
        "--order",
        "DESCEND",
    ],
    &["get", "fruit/apple", "fruit/cherry"],
    &["get", "fruit/b", "--from-key", "--print-value-only"],
    &["get", "fruit/apple", "--rev", "2"],
    &["get", "fruit/", "--prefix", "--rev", "3", "-w", "json"],
    &["get", "fruit/apple", "--rev", "1000"],
    &["get", "nothing"],
    &["get", "fruit/apple", "--consistency", "s"],
    // delete
    &["del", "fruit/banana", "--prev-kv"],
    &["del", "fruit/banana"],
    &["get", "fruit/banana", "--rev", "4"],
    &["put", "fruit/banana", "again"],
    &["get", "fruit/banana", "-w", "json"],
    // txn
    &[
        "txn",
        "|mod(\"fruit/apple\") = \"5\"\n\nput fruit/apple sour\nget fruit/apple\n\nget fruit/cherry\n\n",
    ],
    &[
        "txn",
        "|value(\"fruit/apple\") = \"sour\"\nver(\"none\") = \"0\"\n\nput t/1 one\nput t/2 two\nget t/ --prefix\ndel fruit/cherry\n\nget t/1\n\n",
    ],
    &[
        "txn",
        "-w",
        "json",
        "|create(\"t/1\") > \"0\"\n\nget t/1\nput t/3 three\n\n\n",
    ],
    &[
        "txn",
        "|ver(\"t/1\") = \"1\"\n\nput same 1\nput same 2\n\n\n",
    ],
    // watch
    &["watch", "--prefix", "t/", "--rev", "2", "-w", "json"],
    &["watch", "--prefix", "fruit/", "--rev", "2"],
    &["watch", "fruit/apple", "--rev", "2", "--prev-kv"],
    // leases
    &["lease", "grant", "100"],
    &["put", "leased/a", "1", "--lease={lease}"],
    &["put", "leased/b", "2", "--lease={lease}"],
    &["lease", "timetolive", "{lease}", "--keys"],
    &["lease", "keep-alive", "--once", "{lease}"],
    &["lease", "list"],
    &["get", "leased/a", "-w", "fields"],
    &["lease", "revoke", "{lease}"],
    &["lease", "revoke", "{lease}"],
    &["lease", "timetolive", "{lease}"],
    &["lease", "keep-alive", "--once", "{lease}"],
    &["get", "leased/", "--prefix"],
    &["put", "x", "1", "--lease=7b"],
    // compaction
    &["compaction", "6"],
    &["compaction", "6"],
    &["compaction", "99999"],
    &["get", "fruit/apple", "--rev", "3"],
    &["get", "fruit/apple", "--rev", "6"],
    &["watch", "fruit/apple", "--rev", "3"],
    // the server
    &["endpoint", "health"],
    &["endpoint", "status"],
    &["endpoint", "status", "-w", "json"],
    &["endpoint", "hashkv"],
    &["member", "list"],
    &["member", "list", "-w", "json"],
    &["alarm", "list"],
    // mistakes
    &["put", "", "x"],
    &["put", "x", "y", "--ignore-value"],
    &["put", "gone", "--ignore-value"],
];

/// What one command gave.
#[derive(Debug, PartialEq)]
struct Said {
    success: bool,
    out: String,
    err: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_prints_the_same_for_quorate_as_for_etcd() -> anyhow::Result<()> {
    let Some(binary) = etcd::installed() else {
        return Ok(());
    };
    let etcd = Etcd::start(binary).await?;
    let quorate = ProcessCluster::start(Path::new(env!("CARGO_BIN_EXE_quorate")), 1, &[]).await?;

    let (mut lease, mut differences) = ([String::new(), String::new()], Vec::new());
    for line in SCRIPT {
        let expected = run(address(etcd.endpoint()), line, &mut lease[0]).await?;
        let actual = run(address(quorate.endpoint(0)), line, &mut lease[1]).await?;
        if expected != actual {
            differences.push(format!(
                "{line:?}\n  etcd    {expected:?}\n  quorate {actual:?}"
            ));
        }
    }
    let cases = SCRIPT.len();
    assert!(
        differences.is_empty(),
        "{} of {cases} commands differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
    println!("{cases} commands, all alike");
    Ok(())
}

/// The endpoint as `etcdctl` has it by default, without a scheme: with one, its 3.4 line sends the
/// whole URL as the authority of its `endpoint` commands, which HTTP/2 does not allow.
fn address(url: &str) -> &str {
    url.trim_start_matches("http://")
}

async fn run(endpoint: &str, line: &[&str], lease: &mut String) -> anyhow::Result<Said> {
    let (input, arguments): (Vec<&str>, Vec<&str>) =
        line.iter().copied().partition(|word| word.starts_with('|'));
    let mut command = Command::new("etcdctl");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", endpoint, "--command-timeout", "10s"]);
    for argument in &arguments {
        command.arg(argument.replace("{lease}", lease));
    }
    let watch = arguments.first() == Some(&"watch");
    let said = if watch {
        watched(command).await?
    } else {
        finished(command, input.first().copied()).await?
    };
    if line.starts_with(&["lease", "grant"]) {
        *lease = said
            .out
            .split_whitespace()
            .nth(1)
            .context("no lease id")?
            .to_owned();
    }
    Ok(normalise(said, line, endpoint, lease))
}

async fn finished(mut command: Command, input: Option<&str>) -> anyhow::Result<Said> {
    let input = input
        .map(|text| text.trim_start_matches('|').to_owned())
        .unwrap_or_default();
    let output = tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(input.as_bytes())?;
        child.wait_with_output()
    })
    .await??;
    Ok(Said {
        success: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A watch ends on its own only when it is refused; otherwise it is stopped once nothing new has
/// come for a while (all that these watches ask for is history, which is there at once).
#[expect(clippy::disallowed_methods, reason = "a test's own deadline")]
async fn watched(mut command: Command) -> anyhow::Result<Said> {
    const QUIET: Duration = Duration::from_millis(700);
    let folder = tempfile::tempdir()?;
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    command.stdin(Stdio::null());
    command
        .stdout(std::fs::File::create(&out)?)
        .stderr(std::fs::File::create(&err)?);
    let mut child = command.spawn()?;
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let mut last = (0, tokio::time::Instant::now());
    let ended = eventually("the watch goes quiet", Duration::from_secs(20), || {
        let now = size(&out) + size(&err);
        if now != last.0 || now == 0 {
            last = (now, tokio::time::Instant::now());
        }
        let ended = child.try_wait().ok().flatten();
        let quiet = now > 0 && last.1.elapsed() > QUIET;
        async move {
            if ended.is_some() {
                Some(ended)
            } else {
                quiet.then_some(None)
            }
        }
    })
    .await?;
    child.kill()?;
    child.wait()?;
    Ok(Said {
        success: ended.is_none_or(|status| status.success()),
        out: std::fs::read_to_string(out)?,
        err: std::fs::read_to_string(err)?,
    })
}

/// Takes out what may differ: ids, addresses, versions, sizes, times, raft's own numbers.
fn normalise(mut said: Said, line: &[&str], endpoint: &str, lease: &str) -> Said {
    if said.success && line.contains(&"json") {
        let lines = said
            .out
            .lines()
            .map(|line| match serde_json::from_str::<Value>(line) {
                Ok(mut value) => {
                    blank(&mut value);
                    value.to_string()
                }
                Err(_) => line.to_owned(),
            });
        said.out = lines.collect::<Vec<_>>().join("\n");
    }
    for text in [&mut said.out, &mut said.err] {
        *text = text.replace(endpoint, "ENDPOINT");
        if !lease.is_empty() {
            *text = text.replace(lease, "LEASE");
            if let Ok(id) = i64::from_str_radix(lease, 16) {
                *text = text.replace(&id.to_string(), "LEASE");
            }
        }
        *text = text
            .lines()
            .map(|text| line_without_ids(text, line))
            .collect::<Vec<_>>()
            .join("\n");
    }
    said
}

fn line_without_ids(text: &str, line: &[&str]) -> String {
    let cut = |text: &str, from: usize| -> String {
        let parts: Vec<_> = text.split(", ").collect();
        let kept = parts
            .iter()
            .enumerate()
            .map(|(i, part)| if i < from { *part } else { "…" });
        kept.collect::<Vec<_>>().join(", ")
    };
    if text.starts_with("\"ClusterID\"")
        || text.starts_with("\"MemberID\"")
        || text.starts_with("\"RaftTerm\"")
    {
        return text.split(':').next().unwrap_or_default().to_owned();
    }
    match line {
        // ENDPOINT, id, version, size, leader, learner, term, index, applied index, errors
        ["endpoint", "status"] => cut(text, 1),
        ["endpoint", "hashkv"] => cut(text, 1),
        ["endpoint", "health"] => text.split(": took").next().unwrap_or_default().to_owned(),
        // id, started, name, peer URLs, client URLs, learner
        ["member", "list"] => {
            let parts: Vec<_> = text.split(", ").collect();
            format!(
                "{} parts, {:?}, {:?}",
                parts.len(),
                parts.get(1),
                parts.last()
            )
        }
        ["lease", "timetolive", ..] => match text.split_once("remaining(") {
            Some((before, after)) => {
                let rest = after.split_once(')').map_or("", |(_, rest)| rest);
                format!("{before}remaining(…{}", in_order(rest))
            }
            None => text.to_owned(),
        },
        // The client logs a refusal as one JSON line of its own, with the time in it.
        _ if text.starts_with("{\"level\"") => "{log}".to_owned(),
        _ => text.to_owned(),
    }
}

/// The list between `([` and `])`, sorted: etcd gives the keys of a lease in any order.
fn in_order(text: &str) -> String {
    let list = text
        .split_once("([")
        .and_then(|(before, rest)| Some((before, rest.split_once("])")?)));
    let Some((before, (list, after))) = list else {
        return text.to_owned();
    };
    let mut keys: Vec<&str> = list.split(' ').collect();
    keys.sort_unstable();
    format!("{before}([{}]){after}", keys.join(" "))
}

fn blank(value: &mut Value) {
    const MAY_DIFFER: &[&str] = &[
        "cluster_id",
        "member_id",
        "raft_term",
        "ID",
        "leader",
        "raftTerm",
        "raftIndex",
        "raftAppliedIndex",
        "dbSize",
        "dbSizeInUse",
        "version",
        "name",
        "peerURLs",
        "clientURLs",
        "Endpoint",
        "hash",
    ];
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if MAY_DIFFER.contains(&name.as_str()) {
                    *value = "…".into()
                } else {
                    blank(value)
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(blank),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
