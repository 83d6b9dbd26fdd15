//! `quorate bench` on a dev node: what it says happened, happened.

use std::net::TcpListener;
use std::process::{Command, Output};

use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::{RangeRequest, RangeResponse};
use quorate::proto::range::KeyRange;
use serde_json::Value;

use super::{PROGRAM, dev};

fn bench(arguments: &str) -> Output {
    Command::new(PROGRAM)
        .arg("bench")
        .args(arguments.split_whitespace())
        .env_remove("QUORATE_ENDPOINTS")
        .output()
        .unwrap()
}

/// The JSON object of a run without failures.
fn figures(arguments: &str) -> Value {
    let ended = bench(arguments);
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{told}");
    assert_eq!(told, "", "a progress line is for terminals");
    let figures: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(figures["failed"], 0);
    assert_eq!(figures["errors"], serde_json::json!({}));
    assert_eq!(figures["store_errors"], serde_json::json!({}));
    figures
}

fn refusal(arguments: &str) -> String {
    let ended = bench(arguments);
    assert!(!ended.status.success());
    assert!(ended.stdout.is_empty());
    String::from_utf8(ended.stderr).unwrap()
}

/// All pairs below `prefix`, read from outside.
fn pairs(endpoint: &str, prefix: &'static str) -> RangeResponse {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = KvClient::connect(endpoint.to_owned()).await.unwrap();
        let (key, range_end) = KeyRange::prefix(prefix).to_wire();
        let request = RangeRequest {
            key,
            range_end,
            ..RangeRequest::default()
        };
        client.range(request).await.unwrap().into_inner()
    })
}

fn assert_rising(latency: &Value) {
    let at = |name: &str| latency[name].as_f64().unwrap();
    let rising = ["p50", "p90", "p99", "p999", "max"].map(at);
    assert!(rising[0] > 0.0 && rising.is_sorted(), "{latency}");
}

#[test]
fn puts_that_are_counted_have_arrived() {
    let (_dev, endpoint) = dev();
    let figures = figures(&format!(
        "put --total 200 --clients 4 --keys 50 --value-bytes 100 --json --endpoints {endpoint}"
    ));
    let found = pairs(&endpoint, "quorate-bench/put/");
    assert_eq!(found.kvs.iter().map(|pair| pair.version).sum::<i64>(), 200);
    assert!(found.kvs.iter().all(|pair| pair.key.len() == 32));
    assert!(found.kvs.iter().all(|pair| pair.value.len() == 100));
    assert_eq!(found.header.unwrap().revision, 201);

    assert_eq!(figures["workload"], "put");
    assert_eq!(figures["requests"], 200);
    assert_eq!(figures["revision"], 201);
    assert_eq!(figures["not_sent"], 0);
    assert_eq!(
        (&figures["clients"], &figures["connections"]),
        (&4.into(), &4.into())
    );
    assert_eq!(figures["rate_per_second"], Value::Null);
    assert_eq!(figures["warmup_seconds"], 0.0);
    assert_eq!(figures["endpoints"][0]["url"], endpoint.as_str());
    assert_eq!(figures["endpoints"][0]["leads"], true);
    assert_eq!(figures["endpoints"][0]["requests"], 200);
    assert_eq!(figures["leader_changed"], false);
    assert_rising(&figures["latency_seconds"]);
    let elapsed = figures["elapsed_seconds"].as_f64().unwrap();
    let throughput = figures["throughput_per_second"].as_f64().unwrap();
    assert!((throughput * elapsed - 200.0).abs() < 1e-6);
}

#[test]
fn gets_locks_and_watches_count_what_they_did() {
    let (_dev, endpoint) = dev();
    let common = format!("--clients 4 --json --endpoints {endpoint}");
    for get in ["get", "get --serializable"] {
        let figures = figures(&format!("{get} --total 100 --keys 300 {common}"));
        assert_eq!(figures["requests"], 100);
        assert_rising(&figures["latency_seconds"]);
    }
    assert_eq!(pairs(&endpoint, "quorate-bench/get/").kvs.len(), 300);

    let locks = figures(&format!("lock --total 40 --names 2 {common}"));
    assert_eq!(locks["requests"], 40);
    assert_eq!(locks["lock_names"], 2);
    for part in ["acquire", "release"] {
        assert_eq!(locks["parts"][part]["count"], 40);
        assert_rising(&locks["parts"][part]["latency_seconds"]);
    }
    // Sessions are ended and locks released: nothing waits for a lease to run out.
    for prefix in ["quorate/lock/", "quorate/session/"] {
        assert_eq!(pairs(&endpoint, prefix).kvs.len(), 0, "{prefix}");
    }

    // The warm-up is watched, too, and not counted.
    let watches = figures(&format!(
        "watch --total 30 --rate 200 --watchers 7 --warmup 100ms {common}"
    ));
    assert_eq!(watches["requests"], 30);
    assert_eq!(watches["parts"]["event"]["count"], 210);
    assert_rising(&watches["parts"]["event"]["latency_seconds"]);
}

#[test]
fn an_endpoint_that_nobody_serves_is_named_and_nothing_is_measured() {
    // Taken and let go: nobody listens there.
    let port = {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        taken.local_addr().unwrap().port()
    };
    let (_dev, endpoint) = dev();
    let told = refusal(&format!("put --endpoints {endpoint},127.0.0.1:{port}"));
    assert!(told.contains("1 of 2 endpoints cannot be used"), "{told}");
    let line = format!("http://127.0.0.1:{port}  Connection refused");
    assert!(told.contains(&line), "{told}");
    assert_eq!(pairs(&endpoint, "quorate-bench/").kvs.len(), 0);
}

#[test]
fn contradicting_flags_are_refused_before_anything_is_connected() {
    for (arguments, said) in [
        ("put --key-bytes 20", "take at least 22 bytes"),
        ("watch --value-bytes 8", "carries when it was put"),
        ("put --clients 2 --connections 3", "more than one for each"),
        ("get --endpoints https://127.0.0.1:1", "no TLS"),
    ] {
        let told = refusal(arguments);
        assert!(told.contains(said), "{arguments}: {told}");
    }
}

#[test]
fn requests_that_fail_are_shown_and_make_the_run_fail() {
    let (_dev, endpoint) = dev();
    let ended = bench(&format!(
        "put --total 3 --clients 1 --value-bytes 2000000 --json --endpoints {endpoint}"
    ));
    assert_eq!(ended.status.code(), Some(1));
    let figures: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(
        (&figures["requests"], &figures["failed"]),
        (&0.into(), &3.into())
    );
    assert_eq!(figures["latency_seconds"], Value::Null);
    assert_eq!(
        figures["errors"],
        serde_json::json!({ "InvalidArgument: etcdserver: request is too large": 3 })
    );
}
