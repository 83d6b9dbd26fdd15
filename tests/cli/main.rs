//! The program as a process: when it ends, and what it leaves behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bench;
mod ctl;

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_quorate");
const LIMIT: Duration = Duration::from_secs(30);

/// A child that is killed when the test is over.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the wait with a deadline"
)]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A dev node, and where it serves.
fn dev() -> (Running, String) {
    let mut child = Command::new(PROGRAM)
        .args([
            "dev",
            "--port",
            "0",
            "--print-endpoint",
            "--exit-with-stdin",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
    let endpoint = said["endpoint"].as_str().unwrap().to_owned();
    assert!(endpoint.starts_with("http://127.0.0.1:"), "{line}");
    (Running(child), endpoint)
}

#[test]
fn a_dev_node_ends_with_its_standard_input() {
    let (mut dev, _) = dev();
    drop(dev.0.stdin.take());
    until("the node ends", || dev.0.try_wait().unwrap().is_some());
    assert!(dev.0.wait().unwrap().success());
}

#[test]
fn a_dev_node_ends_at_a_signal_while_its_standard_input_is_open() {
    let (mut dev, _) = dev();
    let signal = Command::new("kill").arg(dev.0.id().to_string()).status();
    assert!(signal.unwrap().success());
    until("the node ends", || dev.0.try_wait().unwrap().is_some());
    assert!(dev.0.wait().unwrap().success());
}

#[test]
fn an_error_names_what_failed_and_tells_each_cause_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for arguments in [
        [
            OsStr::new("server"),
            OsStr::new("--data-dir"),
            file.as_os_str(),
        ],
        [OsStr::new("demo"), OsStr::new("--calm"), file.as_os_str()],
    ] {
        let ended = Command::new(PROGRAM).args(arguments).output().unwrap();
        assert!(!ended.status.success());
        let told = String::from_utf8(ended.stderr).unwrap();
        let (_, told) = told.split_once("error: ").unwrap();
        assert!(told.contains(file.to_str().unwrap()), "{told}");
        assert_eq!(told.matches("(os error").count(), 1, "{told}");
    }
}

#[test]
fn a_server_that_was_told_to_encrypt_does_not_start() {
    for (name, value) in [
        ("QUORATE_CERT_FILE", "/x"),
        ("ETCD_PEER_CERT_FILE", "/x"),
        ("ETCD_AUTO_TLS", "true"),
        ("QUORATE_PEER_AUTO_TLS", "true"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let ended = Command::new(PROGRAM)
            .args(["server", "--data-dir"])
            .arg(folder.path().join("data"))
            .env(name, value)
            .output()
            .unwrap();
        let told = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.status.success(), "{name}");
        assert!(told.contains("no TLS"), "{name}: {told}");
    }
}

/// How many processes have `path` in their command line.
#[cfg(target_os = "linux")]
fn processes_with(path: &Path) -> usize {
    let path = path.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap();
    let lines =
        processes.filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(path))
        .count()
}

#[cfg(target_os = "linux")]
fn demo_ends_by(signal: &str) {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    std::fs::create_dir(&files).unwrap();
    for n in 0..20 {
        std::fs::write(files.join(n.to_string()), n.to_string()).unwrap();
    }
    let mut demo = Running(
        Command::new(PROGRAM)
            .args(["demo", "--calm", "--pace", "600"])
            .arg(&files)
            .env("TMPDIR", folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    until("three members and four workers run beside the demo", || {
        processes_with(folder.path()) == 8
    });
    let pid = demo.0.id().to_string();
    let sent = Command::new("kill").args([signal, &pid]).status();
    assert!(sent.unwrap().success());
    until("the demo ends", || demo.0.try_wait().unwrap().is_some());
    assert!(!demo.0.wait().unwrap().success());
    until("all of its processes are gone", || {
        processes_with(folder.path()) == 0
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_demo_that_is_asked_to_stop_takes_its_processes_along() {
    demo_ends_by("-TERM");
}

#[test]
#[cfg(target_os = "linux")]
fn a_demo_that_is_killed_leaves_no_process_behind() {
    demo_ends_by("-KILL");
}
