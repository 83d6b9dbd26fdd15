//! What `/metrics` says of the connections between members, and of a member's place among them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::TcpListener;
use std::time::Duration;

use quorate_core::node::{Node, NodeBuilder};
use quorate_core::server::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(30);

/// A member with its peers on a port of its own, and the URL of that.
fn member(name: &str) -> (NodeBuilder, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let builder = Node::builder()
        .in_memory()
        .name(name)
        .cluster([(name, [url.clone()])])
        .peer_listener(listener);
    (builder, url)
}

async fn scrape(server: &Server) -> String {
    let mut stream = TcpStream::connect(server.local_addrs()[0]).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Scrapes until every line is there.
async fn shows(server: &Server, lines: &[String]) {
    let mut missing = Vec::new();
    let wait = async {
        loop {
            let metrics = scrape(server).await;
            missing = lines
                .iter()
                .filter(|line| !metrics.lines().any(|said| said == line.as_str()))
                .collect();
            if missing.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let shown = tokio::time::timeout(LIMIT, wait).await;
    assert!(
        shown.is_ok(),
        "{missing:#?} not in\n{}",
        scrape(server).await
    );
}

/// The value of the only series of this name.
fn value(metrics: &str, series: &str) -> f64 {
    let mut found = metrics.lines().filter_map(|line| line.strip_prefix(series));
    found.next().unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_tells_of_the_connections_to_peers() {
    let (first, url) = member("a");
    let first = first.start().await.unwrap();
    let server = Server::builder(first.clone())
        .listen("http://127.0.0.1:0")
        .start()
        .await
        .unwrap();
    let (second, _) = member("b");
    let second = second.join(url).start().await.unwrap();
    let (a, b) = (first.member_id(), second.member_id());
    let up = [
        format!("etcd_server_id{{server_id=\"{a:x}\"}} 1"),
        "etcd_server_is_learner 0".to_owned(),
        "etcd_server_snapshot_apply_in_progress_total 0".to_owned(),
        "# TYPE etcd_network_active_peers gauge".to_owned(),
        format!("etcd_network_active_peers{{Local=\"{a:x}\",Remote=\"{b:x}\"}} 1"),
        "# TYPE etcd_network_disconnected_peers_total counter".to_owned(),
        format!("etcd_network_disconnected_peers_total{{Local=\"{a:x}\",Remote=\"{b:x}\"}} 0"),
        format!("quorate_peer_stream_up{{To=\"{b:x}\"}} 1"),
        format!("quorate_peer_incoming_stream_up{{From=\"{b:x}\"}} 1"),
        format!("quorate_peer_connects_total{{To=\"{b:x}\"}} 1"),
        format!("etcd_network_peer_sent_failures_total{{To=\"{b:x}\"}} 0"),
        format!("etcd_network_snapshot_send_inflights_total{{To=\"{b:x}\"}} 0"),
        format!("etcd_network_snapshot_send_failures{{To=\"{b:x}\"}} 0"),
        "etcd_network_snapshot_receive_success 0".to_owned(),
        "# TYPE etcd_network_peer_round_trip_time_seconds histogram".to_owned(),
    ];
    shows(&server, &up).await;

    let to = format!("{{To=\"{b:x}\"}}");
    let trips = format!("etcd_network_peer_round_trip_time_seconds_count{to}");
    let longest = "etcd_network_peer_round_trip_time_seconds_bucket{le=\"+Inf\"";
    let probed = async {
        loop {
            let metrics = scrape(&server).await;
            if metrics.contains(&trips) && value(&metrics, &trips) > 0.0 {
                return metrics;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let metrics = tokio::time::timeout(LIMIT, probed).await.unwrap();
    let longest = format!("{longest},To=\"{b:x}\"}}");
    assert_eq!(
        value(&metrics, &longest),
        value(&metrics, &trips),
        "{metrics}"
    );
    for series in [
        "quorate_peer_in_flight",
        "quorate_peer_round_trip_seconds",
        "quorate_peer_stream_unchanged_seconds",
    ] {
        let value = value(&metrics, &format!("{series}{to}"));
        assert!((0.0..60.0).contains(&value), "{series} {value}");
    }

    second.shutdown().await;
    let down = [
        format!("etcd_network_active_peers{{Local=\"{a:x}\",Remote=\"{b:x}\"}} 0"),
        format!("etcd_network_disconnected_peers_total{{Local=\"{a:x}\",Remote=\"{b:x}\"}} 1"),
        format!("quorate_peer_stream_up{{To=\"{b:x}\"}} 0"),
        format!("quorate_peer_incoming_stream_up{{From=\"{b:x}\"}} 0"),
    ];
    shows(&server, &down).await;
    server.stop().await;
    first.shutdown().await;
}
