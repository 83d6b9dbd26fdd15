//! `docs/gateway.md`, run: each command of its `console` blocks goes to one fresh server, in order, and
//! must print what the page shows, but for ids and figures of the machine.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use quorate_harness::cluster::ProcessCluster;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

const PAGE: &str = include_str!("../../docs/gateway.md");
/// The server that the page talks to.
const ENDPOINT: &str = "http://127.0.0.1:2379";
const PATIENCE: Duration = Duration::from_secs(20);
/// Figures of one server, not of what was asked.
const FIGURES: [&str; 9] = [
    "cluster_id",
    "member_id",
    "raft_term",
    "leader",
    "raftIndex",
    "raftTerm",
    "raftAppliedIndex",
    "dbSize",
    "dbSizeInUse",
];

/// A command and the lines it prints.
#[derive(Debug)]
struct Example {
    command: &'static str,
    expected: Vec<&'static str>,
}

fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for line in PAGE.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            examples.push(Example {
                command,
                expected: Vec::new(),
            });
        } else if inside && let Some(example) = examples.last_mut() {
            example.expected.push(line);
        }
    }
    examples
}

/// What the command prints: all of it, or of a stream (`curl -sN`) as many lines as are expected.
async fn run(example: &Example, endpoint: &str) -> anyhow::Result<Vec<String>> {
    let command = example.command.replace(ENDPOINT, endpoint);
    let mut child = Command::new("bash")
        .args(["-c", &format!("exec {command}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut out = BufReader::new(child.stdout.take().context("piped")?);
    let mut text = String::new();
    if command.contains(" -sN ") {
        for _ in &example.expected {
            out.read_line(&mut text).await?;
        }
    } else {
        out.read_to_string(&mut text).await?;
        let status = child.wait().await?;
        anyhow::ensure!(status.success(), "{command}: {status}");
    }
    Ok(text.lines().map(blank).collect())
}

fn blank(line: &str) -> String {
    let mut blanked = line.to_owned();
    for name in FIGURES {
        let before = format!("\"{name}\":\"");
        let mut parts = blanked.split(&before);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let digits = part.trim_start_matches(|c: char| c.is_ascii_digit());
            out.push_str(&before);
            out.push_str(digits);
        }
        blanked = out;
    }
    blanked
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_about_the_gateway_is_true() -> anyhow::Result<()> {
    let cluster = ProcessCluster::start(Path::new(env!("CARGO_BIN_EXE_quorate")), 1, &[]).await?;
    let examples = examples();
    assert!(examples.len() > 20, "the page has examples");
    for example in &examples {
        let told = tokio::time::timeout(PATIENCE, run(example, cluster.endpoint(0)));
        let told = told
            .await
            .with_context(|| format!("{} does not end", example.command))??;
        let expected: Vec<_> = example.expected.iter().map(|line| blank(line)).collect();
        assert_eq!(told, expected, "{}", example.command);
    }
    println!("{} examples, all true", examples.len());
    Ok(())
}
