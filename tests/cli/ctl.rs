//! The cluster commands, against clusters of processes.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use quorate_harness::cluster::ProcessCluster;
use quorate_harness::process::Process;
use quorate_harness::{eventually, ports};
use serde_json::Value;

use crate::{LIMIT, PROGRAM};

/// How a command ended and what it printed.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs `quorate` with nothing in its environment but `variables`.
fn run_with(variables: &[(&str, &str)], arguments: &[&str]) -> Said {
    let mut command = Command::new(PROGRAM);
    let command = command.env_clear().envs(variables.iter().copied());
    let Output {
        status,
        stdout,
        stderr,
    } = command.args(arguments).output().unwrap();
    Said {
        code: status.code(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn run(arguments: &[&str]) -> Said {
    run_with(&[], arguments)
}

/// What a command that goes well prints as JSON.
fn json(arguments: &[&str]) -> Value {
    let said = run(&[arguments, &["--json"]].concat());
    assert_eq!(said.code, Some(0), "{arguments:?}: {said:?}");
    serde_json::from_str(&said.out).unwrap()
}

async fn cluster(size: usize) -> ProcessCluster {
    let program = Path::new(PROGRAM);
    ProcessCluster::start(program, size, &[]).await.unwrap()
}

/// The row of a member in `quorate status --json`.
fn row(status: &Value, name: &str) -> Value {
    let rows = status["members"].as_array().unwrap();
    let found = rows.iter().find(|row| row["name"] == name);
    found.cloned().unwrap_or(Value::Null)
}

/// Waits until `quorate status` gives `name` this role.
async fn has_role(endpoint: &str, name: &str, role: &str) {
    eventually(&format!("{name} is {role}"), LIMIT, || async {
        let status = json(&["--endpoints", endpoint, "status"]);
        (row(&status, name)["role"] == role).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_added_started_as_told_and_removed() {
    let cluster = cluster(1).await;
    let endpoint = cluster.endpoint(0);
    let ports = ports::free(2);
    let peer_url = format!("http://127.0.0.1:{}", ports[0]);
    let member = |words: &[&str]| {
        let words = [&["member"], words, &["--endpoints", endpoint]].concat();
        run(&words)
    };

    let added = json(&[
        "member",
        "add",
        "m2",
        "--peer-urls",
        &peer_url,
        "--learner",
        "--endpoints",
        endpoint,
    ]);
    let id = added["member"]["id"].as_str().unwrap().to_owned();
    assert_eq!(added["members"].as_array().unwrap().len(), 2, "{added}");
    let listed = member(&["list"]);
    let line = format!("{id}, unstarted, , {peer_url}, , true\n");
    assert!(listed.out.contains(&line), "{listed:?}");

    // A second one with the same address, and a change of a member that there is not.
    let again = member(&["add", "m3", "--peer-urls", &peer_url]);
    assert_eq!(again.code, Some(1));
    let told = format!(
        "error: the member was not added\n  {endpoint}  etcdserver: Peer URLs already exists\n  \
         hint: `quorate member list` shows who has that peer URL\n"
    );
    assert_eq!(again.err, told);
    let early = member(&["promote", &id]);
    assert_eq!(early.code, Some(1), "{early:?}");
    assert!(early.err.contains("in sync with leader"), "{early:?}");

    // Both ways to start it are there; this is the shorter one.
    let start = added["start"].as_array().unwrap();
    assert_eq!(start.len(), 2, "{added}");
    let words = start[1].as_array().unwrap().iter().skip(1);
    let client_url = format!("http://127.0.0.1:{}", ports[1]);
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .args(words.map(|word| word.as_str().unwrap()))
        .args(["--listen-client-urls", &client_url])
        .arg("--data-dir")
        .arg(folder.path().join("m2"));
    let mut second = Process::start("m2", command, folder.path()).unwrap();
    has_role(endpoint, "m2", "learner").await;
    eventually("it has caught up", LIMIT, || async {
        (member(&["promote", &id]).code == Some(0)).then_some(())
    })
    .await
    .unwrap();
    has_role(endpoint, "m2", "follower").await;
    let twice = member(&["promote", &id]);
    assert!(twice.err.contains("only promote a learner"), "{twice:?}");

    let updated = member(&["update", &id, "--peer-urls", &peer_url]);
    let cluster_id = added["cluster_id"].as_str().unwrap();
    assert_eq!(
        updated.out,
        format!("Member {id:>16} updated in cluster {cluster_id:>16}\n")
    );
    let removed = member(&["remove", &id]);
    assert_eq!(
        removed.out,
        format!("Member {id:>16} removed from cluster {cluster_id:>16}\n")
    );
    let gone = member(&["remove", &id]);
    assert_eq!(gone.code, Some(1));
    assert!(gone.err.contains("member not found"), "{gone:?}");
    let left = json(&["member", "list", "--endpoints", endpoint]);
    assert_eq!(left["members"].as_array().unwrap().len(), 1);
    second.wait(LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_endpoints_tell_how_a_member_is() {
    let cluster = cluster(1).await;
    let endpoint = cluster.endpoint(0);
    let at = |words: &[&str]| json(&[words, &["--endpoints", endpoint]].concat());

    let status = at(&["status"]);
    assert_eq!(status["quorum"], true);
    assert_eq!(status["leader"]["name"], "m1");
    assert_eq!(status["alarms"], Value::Array(Vec::new()));
    assert_eq!(status["revision"], 1);
    let own = row(&status, "m1");
    assert_eq!(own["role"], "leader");
    assert_eq!(own["address"], endpoint);
    assert_eq!(own["lag"], 0);
    assert_eq!(own["id"], status["leader"]["id"]);
    assert!(own["applied"].as_u64().unwrap() > 0, "{own}");
    assert!(own["rtt_seconds"].as_f64().unwrap() > 0.0, "{own}");
    let text = run(&["status", "--endpoints", endpoint]).out;
    let first = format!(
        "cluster {}  1 member, quorum ok, leader m1 (term {}), revision 1, no alarms",
        status["cluster_id"].as_str().unwrap(),
        status["term"]
    );
    assert_eq!(text.lines().next(), Some(first.as_str()));
    let header = text.lines().nth(1).unwrap();
    let header: Vec<_> = header.split_whitespace().collect();
    let expected = [
        "NAME", "ID", "ADDRESS", "ROLE", "APPLIED", "LAG", "DB", "RTT",
    ];
    assert_eq!(header, expected);

    for scope in [&[][..], &["--cluster"]] {
        let at = |words: &[&str]| at(&[words, scope].concat());
        let status = at(&["endpoint", "status"]);
        assert_eq!(status[0]["endpoint"], endpoint);
        assert_eq!(status[0]["member_id"], own["id"]);
        assert_eq!(status[0]["is_leader"], true);
        let health = at(&["endpoint", "health"]);
        assert_eq!(health[0]["healthy"], true);
        assert!(
            health[0]["took_seconds"].as_f64().unwrap() > 0.0,
            "{health}"
        );
        let hashed = at(&["endpoint", "hashkv"]);
        assert_eq!(hashed[0]["revision"], 1);
        assert!(hashed[0]["hash"].is_u64(), "{hashed}");
        let defragmented = at(&["defrag"]);
        assert_eq!(defragmented[0]["endpoint"], endpoint);
        assert!(defragmented[0]["db_bytes_after"].is_i64(), "{defragmented}");
    }
    assert_eq!(at(&["alarm", "list"])["alarms"], Value::Array(Vec::new()));
    let future = ["endpoint", "hashkv", "--rev", "99", "--endpoints", endpoint];
    let future = run(&future);
    assert_eq!(future.code, Some(1));
    assert!(future.err.contains("future revision"), "{future:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_is_shown_and_lifted() {
    let program = Path::new(PROGRAM);
    let quota = ["--quota-backend-bytes", "1"];
    let cluster = ProcessCluster::start(program, 1, &quota).await.unwrap();
    let endpoint = cluster.endpoint(0);
    let status = eventually("the store is over its quota", LIMIT, || async {
        let status = json(&["status", "--endpoints", endpoint]);
        (status["alarms"] != Value::Array(Vec::new())).then_some(status)
    });
    let status = status.await.unwrap();
    assert_eq!(status["alarms"][0]["alarm"], "NOSPACE");
    assert_eq!(status["alarms"][0]["member"], status["leader"]["id"]);
    let text = run(&["status", "--endpoints", endpoint]).out;
    assert!(text.contains("ALARM NOSPACE on m1\n"), "{text}");
    let health = run(&["endpoint", "health", "--endpoints", endpoint]);
    assert_eq!(health.code, Some(1));
    assert!(
        health.err.contains("Active Alarm(s): NOSPACE"),
        "{health:?}"
    );
    let lifted = json(&["alarm", "disarm", "--endpoints", endpoint]);
    assert_eq!(lifted["alarms"][0]["alarm"], "NOSPACE");
}

/// An address that refuses connections.
fn dead() -> String {
    format!("127.0.0.1:{}", ports::free(1)[0])
}

#[test]
fn an_endpoint_that_is_dead_is_named_and_ends_the_command_with_6() {
    let dead = dead();
    let told = format!(
        "error: no endpoint answered within 2s\n  {dead}  connection refused\n  \
         hint: start one with `quorate dev`, or set --endpoints / QUORATE_ENDPOINTS\n"
    );
    for words in [
        &["status"][..],
        &["member", "list"],
        &["member", "remove", "12"],
        &["endpoint", "status"],
        &["endpoint", "health"],
        &["endpoint", "hashkv"],
        &["move-leader", "12"],
        &["alarm", "list"],
        &["defrag"],
    ] {
        let said = run(&[words, &["--endpoints", &dead]].concat());
        assert_eq!(said.code, Some(6), "{words:?}: {said:?}");
        assert_eq!(said.err, told, "{words:?}");
        if !words.contains(&"health") {
            assert_eq!(said.out, "", "{words:?}");
        }
    }
}

#[test]
fn an_endpoint_that_is_silent_costs_the_dial_timeout() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    let said = run(&["status", "--endpoints", &silent, "--dial-timeout", "300ms"]);
    assert_eq!(said.code, Some(6), "{said:?}");
    let told = format!("error: no endpoint answered within 300ms\n  {silent}  no answer\n");
    assert!(said.err.starts_with(&told), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_endpoint_is_asked_and_flags_win_over_the_environment() {
    let cluster = cluster(1).await;
    let (endpoint, dead) = (cluster.endpoint(0), dead());
    let both = format!("{dead},{endpoint}");
    assert_eq!(run(&["status", "--endpoints", &both]).code, Some(0));
    assert_eq!(run(&["--endpoints", &both, "alarm", "list"]).code, Some(0));
    assert_eq!(run(&["alarm", "--endpoints", &both, "list"]).code, Some(0));
    let some = run(&["endpoint", "status", "--endpoints", &both]);
    assert_eq!(some.code, Some(1));
    assert!(some.out.starts_with(&format!("{endpoint}, ")), "{some:?}");
    assert!(
        some.err
            .contains(&format!("\n  {dead}  connection refused")),
        "{some:?}"
    );

    let list = ["member", "list"];
    for (variables, arguments, code) in [
        (&[("ETCDCTL_ENDPOINTS", endpoint)][..], &[][..], 0),
        (
            &[
                ("QUORATE_ENDPOINTS", endpoint),
                ("ETCDCTL_ENDPOINTS", &dead),
            ],
            &[],
            0,
        ),
        (
            &[("QUORATE_ENDPOINTS", &dead)],
            &["--endpoints", endpoint],
            0,
        ),
        (
            &[("QUORATE_ENDPOINTS", endpoint)],
            &["--endpoints", &dead],
            6,
        ),
        (
            &[
                ("QUORATE_ENDPOINTS", endpoint),
                ("ETCDCTL_WRITE_OUT", "json"),
            ],
            &[],
            0,
        ),
        (
            &[
                ("QUORATE_ENDPOINTS", endpoint),
                ("ETCDCTL_WRITE_OUT", "fields"),
            ],
            &[],
            2,
        ),
        (
            &[
                ("QUORATE_ENDPOINTS", endpoint),
                ("ETCDCTL_DIAL_TIMEOUT", "soon"),
            ],
            &[],
            2,
        ),
        (&[("QUORATE_ENDPOINTS", "https://x:1")], &[], 2),
    ] {
        let said = run_with(variables, &[&list, arguments].concat());
        assert_eq!(
            said.code,
            Some(code),
            "{variables:?} {arguments:?}: {said:?}"
        );
    }
    let json = run_with(
        &[
            ("QUORATE_ENDPOINTS", endpoint),
            ("ETCDCTL_WRITE_OUT", "json"),
        ],
        &list,
    );
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert!(json["members"][0]["ID"].is_u64(), "{json}");
    assert_eq!(run(&["--endpoints", endpoint, "dev"]).code, Some(2));
    assert_eq!(run(&["member", "remove", "no-hex"]).code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_and_a_lost_quorum_is_told() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader(LIMIT).await.unwrap();
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    let (next, third) = (others[0], others[1]);
    let name = |i: usize| format!("m{}", i + 1);
    let ids = json(&["status", "--endpoints", cluster.endpoint(leader)]);
    let id = row(&ids, &name(next))["id"].as_str().unwrap().to_owned();
    // Through a member that does not lead.
    let moved = run(&["move-leader", &id, "--endpoints", cluster.endpoint(third)]);
    assert_eq!(moved.code, Some(0), "{moved:?}");
    let old = row(&ids, &name(leader))["id"].as_str().unwrap().to_owned();
    assert_eq!(
        moved.out,
        format!("Leadership transferred from {old} to {id}\n")
    );
    has_role(cluster.endpoint(third), &name(next), "leader").await;
    let nobody = run(&["move-leader", "12", "--endpoints", cluster.endpoint(third)]);
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.err.contains("bad leader transferee"), "{nobody:?}");

    cluster.kill(leader).unwrap();
    cluster.kill(next).unwrap();
    let endpoint = cluster.endpoint(third).to_owned();
    let lost = eventually("the quorum is lost", LIMIT, || async {
        let said = run(&["status", "--endpoints", &endpoint]);
        (said.code == Some(6)).then_some(said)
    });
    let lost = lost.await.unwrap();
    assert!(lost.out.contains("3 members, NO QUORUM"), "{lost:?}");
    let refused = format!("  {}  connection refused\n", cluster.endpoint(next));
    assert!(lost.err.contains(&refused), "{lost:?}");
    assert_eq!(
        run(&["member", "list", "--endpoints", &endpoint]).code,
        Some(0)
    );
    let removal = run(&["member", "remove", &id, "--endpoints", &endpoint]);
    assert_eq!(removal.code, Some(6), "{removal:?}");
    assert!(
        removal.err.contains("the cluster has no quorum"),
        "{removal:?}"
    );
    let moving = run(&["move-leader", &id, "--endpoints", &endpoint]);
    assert_eq!(moving.code, Some(6), "{moving:?}");
    let late = Duration::from_secs(20);
    cluster.launch(next).unwrap();
    cluster.serves(next, late).await.unwrap();
    has_role(&endpoint, &name(leader), "unreachable").await;
    let back = run(&["status", "--endpoints", &endpoint]);
    assert_eq!(back.code, Some(0));
    let told = format!("\n{} at ", name(leader));
    assert!(back.out.contains(&told), "{back:?}");
}
