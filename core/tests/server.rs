//! The client port of a lone member, over real connections: gRPC as any etcd client speaks it, and
//! the HTTP routes beside it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use prost::Message as _;
use quorate_core::node::Node;
use quorate_core::server::Server;
use quorate_proto::etcdserverpb::cluster_client::ClusterClient;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::lease_client::LeaseClient;
use quorate_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;
use quorate_proto::etcdserverpb::{
    HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest, MemberAddRequest, PutRequest,
    RangeRequest, StatusRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

struct Served {
    node: Node,
    server: Server,
    address: std::net::SocketAddr,
}

async fn serve() -> Served {
    let node = Node::builder().in_memory().start().await.unwrap();
    // Health and metrics tell of it.
    node.wait_for_leader().await.unwrap();
    let server = Server::builder(node.clone())
        .listen("http://127.0.0.1:0")
        .start()
        .await
        .unwrap();
    let address = server.local_addrs()[0];
    Served {
        node,
        server,
        address,
    }
}

impl Served {
    async fn channel(&self) -> Channel {
        let uri = format!("http://{}", self.address);
        Channel::from_shared(uri).unwrap().connect().await.unwrap()
    }

    /// The whole answer to a plain HTTP/1.1 request.
    async fn http(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.http(&format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ))
        .await
    }

    async fn stop(self) {
        self.server.stop().await;
        self.node.shutdown().await;
    }
}

fn put(key: &str, bytes: usize) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: vec![b'v'; bytes].into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_leases_and_watches_over_grpc() {
    let served = serve().await;
    let channel = served.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: "a".into(),
            ..Default::default()
        })),
    };
    let (asking, requests) = tokio::sync::mpsc::channel(4);
    asking.send(create).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut answers = WatchClient::new(channel.clone())
        .watch(requests)
        .await
        .unwrap()
        .into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    kv.put(put("a", 3)).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().events.len(), 1);
    let read = RangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    let mut pieces = kv.range_stream(read).await.unwrap().into_inner();
    let piece = pieces
        .message()
        .await
        .unwrap()
        .unwrap()
        .range_response
        .unwrap();
    assert_eq!((piece.kvs.len(), piece.count), (1, 1));
    // A client that asks for nothing more, as one-shot tools do, still hears of changes.
    drop(asking);
    kv.put(put("a", 3)).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().events.len(), 1);
    drop(answers);

    let mut leases = LeaseClient::new(channel);
    let granted = leases
        .lease_grant(LeaseGrantRequest { ttl: 60, id: 0 })
        .await
        .unwrap();
    let id = granted.into_inner().id;
    let asked = tokio_stream::iter([id, 404, id].map(|id| LeaseKeepAliveRequest { id }));
    let mut kept = leases.lease_keep_alive(asked).await.unwrap().into_inner();
    let mut ttls = Vec::new();
    while let Some(answer) = kept.message().await.unwrap() {
        ttls.push((answer.id, answer.ttl));
    }
    assert_eq!(ttls, [(id, 60), (404, 0), (id, 60)]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_carry_etcds_codes_and_texts() {
    let served = serve().await;
    let channel = served.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let told = |status: Status| (status.code(), status.message().to_owned());
    let empty = kv.put(put("", 1)).await.map_err(told).unwrap_err();
    assert_eq!(
        empty,
        (
            Code::InvalidArgument,
            "etcdserver: key is not provided".to_owned()
        )
    );
    let large = kv
        .put(put("big", 1_572_864))
        .await
        .map_err(told)
        .unwrap_err();
    assert_eq!(
        large,
        (
            Code::InvalidArgument,
            "etcdserver: request is too large".to_owned()
        )
    );
    let (code, text) = kv
        .put(put("big", 2_097_152))
        .await
        .map_err(told)
        .unwrap_err();
    assert_eq!(code, Code::ResourceExhausted);
    assert!(
        text.starts_with("grpc: received message larger than max ("),
        "{text}"
    );
    assert!(text.ends_with(" vs. 2097152)"), "{text}");
    let mut cluster = ClusterClient::new(channel.clone());
    let member = cluster
        .member_add(MemberAddRequest::default())
        .await
        .map_err(told)
        .unwrap_err();
    assert_eq!(
        member,
        (
            Code::InvalidArgument,
            "etcdserver: given member URLs are invalid".to_owned()
        )
    );
    let unknown = unknown(&channel, "/etcdserverpb.KV/Nope").await;
    assert_eq!(unknown, "unknown method Nope for service etcdserverpb.KV");
    let unknown = self::unknown(&channel, "/no.Such/Method").await;
    assert_eq!(unknown, "unknown service no.Such");
    served.stop().await;
}

/// What a call of something that does not exist is told.
async fn unknown(channel: &Channel, path: &'static str) -> String {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<PutRequest, PutRequest>::default();
    let path = axum::http::uri::PathAndQuery::from_static(path);
    let request = tonic::Request::new(PutRequest::default());
    let answer: Result<tonic::Response<PutRequest>, Status> =
        client.unary(request, path, codec).await;
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    status.message().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn version_and_health_are_beside_grpc_on_the_same_port() {
    let served = serve().await;
    let version = served.get("/version").await;
    assert!(version.contains(r#""etcdserver":"3."#), "{version}");
    let health = served.get("/health").await;
    assert!(
        health.contains(r#"{"health":"true","reason":""}"#),
        "{health}"
    );
    for (path, expected) in [
        ("/livez", "ok\n"),
        ("/livez?verbose", "[+]serializable_read ok\nok\n"),
        ("/readyz", "ok\n"),
        (
            "/readyz?verbose",
            "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n\
             [+]non_learner ok\nok\n",
        ),
        (
            "/readyz?exclude=linearizable_read&verbose&exclude=non_learner",
            "[+]data_corruption ok\n[+]serializable_read ok\nok\n",
        ),
        (
            "/readyz/linearizable_read?verbose",
            "[+]linearizable_read ok\nok\n",
        ),
        (
            "/health?serializable=true",
            r#"{"health":"true","reason":""}"#,
        ),
    ] {
        let answer = served.get(path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, expected, "{path}");
    }
    assert!(
        served
            .get("/livez/nothing")
            .await
            .starts_with("HTTP/1.1 404")
    );
    let metrics = served.get("/metrics").await;
    for line in [
        "etcd_server_has_leader 1",
        "# TYPE etcd_server_leader_changes_seen_total counter",
        "etcd_server_leader_changes_seen_total 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let open = served.http(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n",
    );
    let open = open.await;
    assert!(open.contains("# TYPE etcd_server_leader_changes_seen counter"));
    assert!(open.ends_with("# EOF\n") && !metrics.contains("# EOF"));
    assert!(served.get("/nowhere").await.starts_with("HTTP/1.1 404"));
    let post = "POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let refused = served.http(post).await;
    assert!(refused.starts_with("HTTP/1.1 405"), "{refused}");
    assert!(refused.to_lowercase().contains("allow: get"), "{refused}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_shows_in_health_until_it_is_excluded_or_cleared() {
    use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
    use quorate_proto::etcdserverpb::{AlarmRequest, AlarmType};

    let served = serve().await;
    let mut maintenance = MaintenanceClient::new(served.channel().await);
    let mut raise = async |alarm: AlarmType, action: AlarmAction| {
        let request = AlarmRequest {
            action: action.into(),
            member_id: 1,
            alarm: alarm.into(),
        };
        maintenance.alarm(request).await.unwrap();
    };
    raise(AlarmType::Nospace, AlarmAction::Activate).await;
    let health = served.get("/health").await;
    assert!(health.starts_with("HTTP/1.1 503"), "{health}");
    assert!(
        health.ends_with(r#"{"health":"false","reason":"ALARM NOSPACE"}"#),
        "{health}"
    );
    let excluded = served.get("/health?exclude=CORRUPT&exclude=NOSPACE").await;
    assert!(excluded.starts_with("HTTP/1.1 200"), "{excluded}");
    assert!(served.get("/readyz").await.starts_with("HTTP/1.1 200"));
    raise(AlarmType::Nospace, AlarmAction::Deactivate).await;
    raise(AlarmType::Corrupt, AlarmAction::Activate).await;
    let ready = served.get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(
        ready.contains("[-]data_corruption failed: alarm activated: CORRUPT\n"),
        "{ready}"
    );
    assert!(served.get("/livez").await.starts_with("HTTP/1.1 200"));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_open_watches_instead_of_waiting_for_them() {
    let served = serve().await;
    let channel = served.channel().await;
    let mut answers = watch(&channel, "a").await;
    let asked = tokio_stream::once(LeaseKeepAliveRequest { id: 404 });
    let asked = asked.chain(tokio_stream::pending());
    let kept = LeaseClient::new(channel).lease_keep_alive(asked).await;
    let mut kept = kept.unwrap().into_inner();
    assert_eq!(kept.message().await.unwrap().unwrap().ttl, 0);
    let stopped = tokio::time::timeout(Duration::from_secs(3), served.server.stop());
    stopped
        .await
        .expect("an open watch does not hold up the stop");
    for status in [
        answers.message().await.unwrap_err(),
        kept.message().await.unwrap_err(),
    ] {
        let told = (status.code(), status.message());
        assert_eq!(told, (Code::Unavailable, "etcdserver: server stopped"));
    }
    served.node.shutdown().await;
}

fn service(name: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: name.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_health_tells_of_the_server_and_of_its_end() {
    let served = serve().await;
    let mut health = HealthClient::new(served.channel().await);
    let checked = health.check(service("")).await.unwrap().into_inner();
    assert_eq!(checked.status(), ServingStatus::Serving);
    let unknown = health.check(service("etcdserverpb.KV")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(unknown.message(), "unknown service");

    let mut states = health.watch(service("")).await.unwrap().into_inner();
    let mut next = async || states.message().await.unwrap().map(|state| state.status());
    assert_eq!(next().await, Some(ServingStatus::Serving));
    let mut of_unknown = health.watch(service("x")).await.unwrap().into_inner();
    let state = of_unknown.message().await.unwrap().unwrap();
    assert_eq!(state.status(), ServingStatus::ServiceUnknown);
    served.server.stop().await;
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    assert_eq!(next().await, None);
    served.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services_and_describes_them() {
    use tonic_reflection::pb::v1 as pb;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let served = serve().await;
    let channel = served.channel().await;
    let mut client = pb::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let asked = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("etcdserverpb.KV".to_owned()),
    ];
    let asked = asked.map(|request| pb::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    });
    let answers = client
        .server_reflection_info(tokio_stream::iter(asked))
        .await;
    let mut answers = answers.unwrap().into_inner();
    let mut next = async || answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = next().await else {
        panic!("a list of services");
    };
    let names: Vec<_> = listed.service.iter().map(|s| s.name.as_str()).collect();
    for name in [
        "etcdserverpb.KV",
        "etcdserverpb.Watch",
        "etcdserverpb.Lease",
        "etcdserverpb.Cluster",
        "etcdserverpb.Maintenance",
        "etcdserverpb.Auth",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    // What members speak to each other is not served here.
    assert!(
        !names.iter().any(|name| name.starts_with("quorate.")),
        "{names:?}"
    );
    let Some(MessageResponse::FileDescriptorResponse(described)) = next().await else {
        panic!("a description");
    };
    assert!(!described.file_descriptor_proto.is_empty());

    use tonic_reflection::pb::v1alpha as alpha;
    let mut client = alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let list = alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let asked = alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(list),
    };
    let answers = client
        .server_reflection_info(tokio_stream::iter([asked]))
        .await;
    assert!(
        answers
            .unwrap()
            .into_inner()
            .message()
            .await
            .unwrap()
            .is_some()
    );
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_calls_go_through_the_gateway_and_are_counted() {
    let served = serve().await;
    let post = async |path: &str, headers: &str, body: &str| {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\
             Content-Length: {length}\r\n\r\n{body}"
        );
        served.http(&request).await
    };
    let put = post("/v3/kv/put", "", r#"{"key":"Zm9v","value":"YmFy"}"#).await;
    assert!(put.starts_with("HTTP/1.1 200"), "{put}");
    let refused = post("/v3/kv/put", "", "").await;
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
    assert!(refused.ends_with(
        r#"{"error":"etcdserver: key is not provided","code":3,"message":"etcdserver: key is not provided"}"#
    ));
    let foreign = post("/v3/kv/put", "Origin: http://y\r\n", r#"{"key":"Zm9v"}"#).await;
    assert!(foreign.starts_with("HTTP/1.1 403"), "{foreign}");
    let large = format!(r#"{{"key":"Zm9v","value":"{}"}}"#, "QUFB".repeat(700_000));
    let large = post("/v3/kv/put", "", &large).await;
    assert!(large.starts_with("HTTP/1.1 429"), "{large}");
    let text = "grpc: received message larger than max (2100010 vs. 2097152)";
    assert!(large.contains(text), "{large}");
    let deep = r#"{"success":[{"request_txn":"#.repeat(10_000);
    let deep = post("/v3/kv/txn", "", &deep).await;
    assert!(deep.starts_with("HTTP/1.1 400"), "{deep}");
    let many = format!(r#"{{"success":[{}]}}"#, vec!["{}"; 100_000].join(","));
    let many = post("/v3/kv/txn", "", &many).await;
    assert!(many.starts_with("HTTP/1.1 429"), "{many}");
    let missing = served.get("/v3/kv/put").await;
    assert!(missing.starts_with("HTTP/1.1 405"), "{missing}");

    let metrics = served.get("/metrics").await;
    let method = r#"grpc_type="unary",grpc_service="etcdserverpb.KV",grpc_method="Put""#;
    for line in [
        format!("grpc_server_started_total{{{method}}} 3"),
        format!(r#"grpc_server_handled_total{{{method},grpc_code="OK"}} 1"#),
        format!(r#"grpc_server_handled_total{{{method},grpc_code="InvalidArgument"}} 1"#),
        format!(r#"grpc_server_handled_total{{{method},grpc_code="ResourceExhausted"}} 1"#),
        "etcd_mvcc_put_total 1".to_owned(),
        "etcd_mvcc_delete_total 0".to_owned(),
        "etcd_server_proposals_failed_total 0".to_owned(),
        "etcd_debugging_mvcc_watch_stream_total 0".to_owned(),
        "etcd_debugging_mvcc_slow_watcher_total 0".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    served.stop().await;
}

/// A page of any site can send such requests to any server that its reader's browser reaches.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_services_are_not_for_web_pages() {
    let served = serve().await;
    let message = PutRequest {
        key: "a".into(),
        ..PutRequest::default()
    };
    let message = message.encode_to_vec();
    let mut body = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
    body.extend_from_slice(&message);
    for kind in ["text/plain", "application/grpc"] {
        let mut request = format!(
            "POST /etcdserverpb.KV/Put HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\nTE: trailers\r\n\
             Connection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        request.push_str(std::str::from_utf8(&body).unwrap());
        let answer = served.http(&request).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{kind}: {answer}");
    }
    let read = RangeRequest {
        key: "a".into(),
        ..RangeRequest::default()
    };
    let found = KvClient::new(served.channel().await).range(read).await;
    assert_eq!(found.unwrap().into_inner().count, 0);
    served.stop().await;
}

/// What a client gets that says it wants a leader, from a member that has lost its cluster.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_want_a_leader_end_without_one() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let members = [0, 1].map(|n| {
        let url = format!("http://{}", listeners[n].local_addr().unwrap());
        (format!("n{n}"), [url])
    });
    let starting = listeners.into_iter().enumerate().map(|(n, listener)| {
        let builder = Node::builder()
            .name(format!("n{n}"))
            .data_dir(folders[n].path())
            .cluster(members.clone())
            .election_timeout(Duration::from_millis(500))
            .heartbeat_interval(Duration::from_millis(50));
        builder.peer_listener(listener).start()
    });
    let nodes = futures::future::try_join_all(starting).await.unwrap();
    let [node, other] = <[Node; 2]>::try_from(nodes).unwrap();
    node.wait_for_leader().await.unwrap();
    let server = Server::builder(node.clone()).listen("http://127.0.0.1:0");
    let server = server.start().await.unwrap();
    let address = server.local_addrs()[0];
    let served = Served {
        node,
        server,
        address,
    };
    let channel = served.channel().await;
    let wants_leader = |mut request: tonic::Request<()>| {
        let yes = tonic::metadata::MetadataValue::from_static("true");
        request.metadata_mut().insert("hasleader", yes);
        Ok(request)
    };
    let mut leases = LeaseClient::with_interceptor(channel.clone(), wants_leader);
    let granted = LeaseGrantRequest { ttl: 60, id: 7 };
    leases.lease_grant(granted).await.unwrap();
    let kept = async |asked: &[i64]| {
        let asked: Vec<_> = asked
            .iter()
            .map(|&id| LeaseKeepAliveRequest { id })
            .collect();
        let asked = tokio_stream::iter(asked).chain(tokio_stream::pending());
        LeaseClient::with_interceptor(channel.clone(), wants_leader)
            .lease_keep_alive(asked)
            .await
            .map(tonic::Response::into_inner)
    };
    let mut open = kept(&[7]).await.unwrap();
    assert_eq!(open.message().await.unwrap().unwrap().ttl, 60);
    other.shutdown().await;
    let no_leader = |status: Status| {
        let told = (status.code(), status.message().to_owned());
        assert_eq!(
            told,
            (Code::Unavailable, "etcdserver: no leader".to_owned())
        );
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), open.message());
    no_leader(ended.await.expect("an open stream ends").unwrap_err());
    no_leader(kept(&[]).await.map(drop).unwrap_err());
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let status = maintenance.status(StatusRequest::default()).await.unwrap();
    let status = status.into_inner();
    let told = (status.leader, status.errors);
    assert_eq!(told, (0, vec!["etcdserver: no leader".to_owned()]));
    let mut maintenance = MaintenanceClient::with_interceptor(channel.clone(), wants_leader);
    no_leader(
        maintenance
            .hash_kv(HashKvRequest::default())
            .await
            .map(drop)
            .unwrap_err(),
    );
    // Without that wish a member tells what it has.
    let mut maintenance = MaintenanceClient::new(channel.clone());
    maintenance.hash_kv(HashKvRequest::default()).await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_end_at_their_deadlines() {
    let served = serve().await;
    let watch = async |timeout: &str| {
        let body = r#"{"create_request":{"key":"Zm9v"}}"#;
        let length = body.len();
        let request = format!(
            "POST /v3/watch HTTP/1.1\r\nHost: x\r\nConnection: close\r\nGrpc-Timeout: {timeout}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let answered = tokio::time::timeout(Duration::from_secs(20), served.http(&request));
        answered.await.expect("the call ends")
    };
    let ended = watch("200m").await;
    assert!(ended.contains(r#""created":true"#), "{ended}");
    let told = r#"{"error":{"grpc_code":4,"http_code":504,"message":"context deadline exceeded""#;
    assert!(ended.contains(told), "{ended}");
    let malformed = watch("soon").await;
    assert!(malformed.starts_with("HTTP/1.1 400"), "{malformed}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_may_be_given_up_all_at_once() {
    let served = serve().await;
    let channel = served.channel().await;
    let mut answers = watch(&channel, "a").await;
    for _ in 0..20 {
        let calls = (0..100).map(|_| {
            let mut kv = KvClient::new(channel.clone());
            async move { drop(kv.put(put("b", 3)).await) }
        });
        let calls = futures::future::join_all(calls);
        drop(tokio::time::timeout(Duration::ZERO, calls).await);
    }
    KvClient::new(channel).put(put("a", 3)).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().events.len(), 1);
    served.stop().await;
}

/// A watch of one key that was created; its requests stay open.
async fn watch(channel: &Channel, key: &'static str) -> tonic::Streaming<WatchResponse> {
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: key.into(),
            ..Default::default()
        })),
    };
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let answers = WatchClient::new(channel.clone()).watch(requests).await;
    let mut answers = answers.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_requests_are_read_and_bounded() {
    let served = serve().await;
    let channel = served.channel().await;
    let mut kv = KvClient::new(channel).send_compressed(CompressionEncoding::Gzip);
    kv.put(put("a", 10_000)).await.unwrap();
    let refused = kv.put(put("a", 100_000_000)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    served.stop().await;
}

/// The client goes while it could still say more: nothing reads its end of the connection then.
#[tokio::test(flavor = "multi_thread")]
async fn watches_over_http_go_with_their_clients() {
    let served = serve().await;
    let create = r#"{"create_request":{"key":"Zm9v"}}"#;
    for rest in ["", "{}", "]", "x x"] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let request = format!(
            "POST /v3/watch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{create}{rest}\r\n",
            create.len() + rest.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut told = Vec::new();
        while !String::from_utf8_lossy(&told).contains(r#""created":true}}"#) {
            assert_ne!(
                stream.read_buf(&mut told).await.unwrap(),
                0,
                "the answer ended"
            );
        }
        drop(stream);
        let watchers = "etcd_debugging_mvcc_watcher_total 0\n";
        let gone = async {
            while !served.get("/metrics").await.contains(watchers) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let gone = tokio::time::timeout(Duration::from_secs(20), gone).await;
        gone.unwrap_or_else(|_| panic!("a watcher is left after {rest:?}"));
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_over_http_ends_with_the_server() {
    let served = serve().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let body = r#"{"create_request":{"key":"Zm9v"}}"#;
    let length = body.len();
    let request =
        format!("POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut told = Vec::new();
    while !String::from_utf8_lossy(&told).contains(r#""created":true}}"#) {
        assert_ne!(
            stream.read_buf(&mut told).await.unwrap(),
            0,
            "the answer ended"
        );
    }
    let mut kv = KvClient::new(served.channel().await);
    kv.put(put("foo", 3)).await.unwrap();
    while !String::from_utf8_lossy(&told).contains(r#""events":[{"kv":{"key":"Zm9v""#) {
        assert_ne!(
            stream.read_buf(&mut told).await.unwrap(),
            0,
            "the answer ended"
        );
    }
    let stopped = tokio::time::timeout(Duration::from_secs(3), served.server.stop());
    stopped
        .await
        .expect("an open watch does not hold up the stop");
    stream.read_to_end(&mut told).await.unwrap();
    let told = String::from_utf8_lossy(&told);
    let end = r#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: server stopped","http_status":"Service Unavailable"}}"#;
    assert!(told.contains(end), "{told}");
    served.node.shutdown().await;
}
