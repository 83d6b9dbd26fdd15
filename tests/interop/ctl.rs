//! The cluster commands of `quorate` against a real etcd, with `etcdctl` as the measure.

use std::path::Path;
use std::process::Command;

use quorate_harness::etcd::{self, Etcd};
use quorate_harness::ports;

/// What one command gave: whether it went well, and its standard output.
#[derive(Debug, PartialEq)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn said(mut command: Command, endpoint: &str, line: &[&str]) -> anyhow::Result<Said> {
    command
        .env_clear()
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", endpoint])
        .args(line);
    let output = command.output()?;
    Ok(Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Commands that must print the same to the byte. Those that add to the log come last.
const ALIKE: &[&[&str]] = &[
    &["member", "list"],
    &["member", "list", "-w", "json"],
    &["endpoint", "status"],
    &["endpoint", "status", "-w", "json"],
    &["endpoint", "hashkv"],
    &["endpoint", "hashkv", "-w", "json"],
    &["alarm", "list"],
    &["alarm", "list", "-w", "json"],
    &["alarm", "disarm"],
    &["defrag"],
    &["member", "remove", "12"],
    &["member", "promote", "12"],
    &["move-leader", "12"],
];

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_commands_print_what_etcdctl_prints() -> anyhow::Result<()> {
    let newer = etcd::installed_3_5().map(|etcd| (etcd.with_file_name("etcdctl"), etcd));
    let older = etcd::installed().map(|etcd| ("etcdctl".into(), etcd));
    for (etcdctl, binary) in older.into_iter().chain(newer) {
        let etcd = Etcd::start(binary).await?;
        compare(&etcdctl, &etcd)?;
    }
    Ok(())
}

fn compare(etcdctl: &Path, etcd: &Etcd) -> anyhow::Result<()> {
    // Without a scheme, as etcdctl 3.4 wants it.
    let endpoint = etcd.endpoint().trim_start_matches("http://");
    // Found by name before the environment is cleared.
    let etcdctl = match etcdctl.parent() {
        Some(folder) if folder != Path::new("") => etcdctl.to_owned(),
        _ => found(etcdctl),
    };
    let theirs = |line: &[&str]| said(Command::new(&etcdctl), endpoint, line);
    let ours = |line: &[&str]| {
        let program = env!("CARGO_BIN_EXE_quorate");
        said(Command::new(program), endpoint, line)
    };
    for line in ALIKE {
        let (expected, actual) = (theirs(line)?, ours(line)?);
        assert_eq!(
            actual.code, expected.code,
            "{line:?}: {actual:?} {expected:?}"
        );
        assert_eq!(actual.out, expected.out, "{line:?}");
        // Its last line is the refusal, after what it logs.
        let refusal = expected.err.lines().last().unwrap_or_default();
        let refusal = refusal.trim_start_matches("Error: ");
        assert!(
            actual.err.contains(refusal),
            "{line:?}: {actual:?} {expected:?}"
        );
    }

    let health = ours(&["endpoint", "health"])?;
    let told = format!("{endpoint} is healthy: successfully committed proposal: took = ");
    assert!(health.out.starts_with(&told), "{health:?}");
    let status = ours(&["status", "--json"])?;
    let status: serde_json::Value = serde_json::from_str(&status.out)?;
    assert_eq!(status["quorum"], true);
    assert_eq!(status["members"][0]["role"], "leader");
    assert_eq!(status["members"][0]["name"], "etcd");

    // A learner, so that a cluster of one goes on without it. Each has an address of its own: etcd
    // derives ids from addresses and seconds, and takes no id a second time.
    let urls = ports::free(2);
    let urls = urls.iter().map(|port| format!("http://127.0.0.1:{port}"));
    let urls: Vec<String> = urls.collect();
    let add = |url| ["member", "add", "new", "--learner", "--peer-urls", url];
    let by_us = ours(&add(&urls[0]))?.out;
    remove(&ours, "unstarted")?;
    let by_them = theirs(&add(&urls[1]))?.out.replace(&urls[1], &urls[0]);
    let lines = |out: &str| out.lines().map(str::to_owned).collect::<Vec<_>>();
    let (by_us, by_them) = (lines(&by_us), lines(&by_them));
    assert_eq!(by_us.len().min(by_them.len()), 6, "{by_us:?} {by_them:?}");
    // Members are in the order of their ids, which the two additions do not share.
    let in_any_order = |line: &String| {
        let mut parts: Vec<&str> = line.split(['"', ',']).collect();
        parts.sort_unstable();
        parts.join(" ")
    };
    let (us, them) = (by_us[1..6].iter(), by_them[1..6].iter());
    assert!(
        us.map(in_any_order).eq(them.map(in_any_order)),
        "{by_us:?} {by_them:?}"
    );
    let shape = |line: &str| {
        // An id that begins with a zero has a space in its place.
        let words = line.split_whitespace().map(str::to_owned);
        words
            .enumerate()
            .filter(|(i, _)| *i != 1)
            .map(|(_, word)| word)
            .collect::<Vec<_>>()
    };
    assert_eq!(shape(&by_us[0]), shape(&by_them[0]));
    assert!(
        by_us
            .iter()
            .any(|line| line.starts_with("  quorate server --name new "))
    );
    let both = [
        ours(&["member", "list"])?.out,
        theirs(&["member", "list"])?.out,
    ];
    assert!(
        both[0].contains(", unstarted, , ") && both[0] == both[1],
        "{both:?}"
    );
    remove(&ours, "unstarted")?;
    assert_eq!(ours(&["member", "list"])?.out.lines().count(), 1);
    Ok(())
}

/// Removes the only member in this state.
fn remove(ours: &impl Fn(&[&str]) -> anyhow::Result<Said>, state: &str) -> anyhow::Result<()> {
    let list = ours(&["member", "list"])?.out;
    let id = list
        .lines()
        .find_map(|line| line.split_once(&format!(", {state}, ")))
        .map(|(id, _)| id.to_owned());
    let id = id.ok_or_else(|| anyhow::anyhow!("none is {state}: {list}"))?;
    let removed = ours(&["member", "remove", &id])?;
    let told = format!("Member {id:>16} removed from cluster ");
    anyhow::ensure!(removed.out.starts_with(&told), "{removed:?}");
    Ok(())
}

/// Where a program is.
fn found(program: &Path) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).map(|folder| folder.join(program));
    let mut folders = folders.filter(|file| file.is_file());
    folders.next().unwrap_or_else(|| program.to_owned())
}
