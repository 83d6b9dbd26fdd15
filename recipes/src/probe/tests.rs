//! Probers against targets that answer, do not, and are slow.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::client::Client;
use crate::clock::{self, Clock, LateClock};
use crate::store::MemStore;

const SECOND: Duration = Duration::from_secs(1);

fn client() -> Client {
    Client::builder(MemStore::new()).seed(1).build()
}

/// Decided by one answer, in no time.
fn quick(probe: Probe) -> Probe {
    let probe = probe.every(Duration::from_millis(5)).rise(1).fall(1);
    probe.damping(Duration::ZERO, Duration::ZERO)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(30 * SECOND, what).await;
    done.expect("it does not come")
}

#[tokio::test(start_paused = true)]
async fn checks_come_one_after_the_other_and_never_together() {
    let (under_way, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(vec![])));
    let probe = {
        let begun = Arc::clone(&begun);
        Probe::of(move || {
            let (under_way, begun) = (Arc::clone(&under_way), Arc::clone(&begun));
            async move {
                assert_eq!(under_way.fetch_add(1, Ordering::SeqCst), 0, "together");
                begun.lock().unwrap().push(clock::now());
                // Every third one takes longer than the interval.
                let slow = begun.lock().unwrap().len() % 3 == 0;
                let length = if slow { 15 * SECOND } else { SECOND };
                tokio::time::sleep(length).await;
                under_way.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, String>(())
            }
        })
    };
    let probe = probe.every(10 * SECOND).timeout(20 * SECOND);
    let prober = client().probe(probe).unwrap();
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(prober.state(), ProbeState::Up);
    drop(prober);
    tokio::time::sleep(SECOND).await;
    let begun = std::mem::take(&mut *begun.lock().unwrap());
    let pauses: Vec<_> = begun.windows(2).map(|two| two[1] - two[0]).collect();
    let quick = pauses.iter().filter(|pause| **pause < 14 * SECOND);
    let quick: Vec<_> = quick.collect();
    assert!(quick.len() > 20);
    assert!(quick.iter().all(|p| (9 * SECOND..11 * SECOND).contains(*p)));
    assert!(quick.iter().any(|p| **p < 10 * SECOND));
    assert!(quick.iter().any(|p| **p > 10 * SECOND));
    tokio::time::sleep(100 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_prober_asks_no_more() {
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let probe = Probe::of(move || {
        count.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, String>(()) }
    });
    let prober = client().probe(probe.every(SECOND)).unwrap();
    tokio::time::sleep(10 * SECOND).await;
    drop(prober);
    let so_far = asked.load(Ordering::SeqCst);
    assert!(so_far > 5);
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(asked.load(Ordering::SeqCst), so_far);
}

#[tokio::test(start_paused = true)]
async fn what_takes_too_long_and_what_panics_has_failed() {
    let calls = AtomicU64::new(0);
    let probe = Probe::of(move || {
        let call = calls.fetch_add(1, Ordering::SeqCst);
        async move {
            match call {
                0..3 => std::future::pending::<()>().await,
                3..6 => panic!("a broken check"),
                _ => {}
            }
            Ok::<_, String>(())
        }
    });
    let mut prober = client().probe(probe.every(10 * SECOND)).unwrap();
    let down = prober.wait_for(ProbeState::Down).await.unwrap();
    assert_eq!(
        (down.checks, down.reason.as_deref()),
        (3, Some("no answer within 2s"))
    );
    let up = prober.wait_for(ProbeState::Up).await.unwrap();
    assert_eq!(up.reason.as_deref(), Some("the check panicked"));
    assert_eq!(up.checks, 8);
}

#[tokio::test(start_paused = true)]
async fn the_clients_clock_decides() {
    let clock = Arc::new(LateClock::default());
    let store = MemStore::new();
    let client = Client::builder(store)
        .clock(Arc::clone(&clock) as _)
        .seed(1);
    let probe = Probe::of(|| async { Ok::<_, String>(()) }).every(SECOND);
    let mut prober = client.build().probe(probe).unwrap();
    prober.wait_for(ProbeState::Up).await.unwrap();
    clock.stop();
    let (before, at) = (prober.report().checks, clock.now());
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(prober.report().checks, before);
    assert_eq!(clock.now(), at);
    clock.go_on();
    tokio::time::sleep(10 * SECOND).await;
    assert!(prober.report().checks > before + 5);
}

#[tokio::test]
async fn tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut prober = client().probe(quick(Probe::tcp(&address))).unwrap();
    soon(prober.wait_for(ProbeState::Up)).await.unwrap();
    drop(listener);
    let down = soon(prober.wait_for(ProbeState::Down)).await.unwrap();
    assert!(down.reason.unwrap().contains("refused"));
    let _listener = TcpListener::bind(&address).await.unwrap();
    soon(prober.wait_for(ProbeState::Up)).await.unwrap();
}

/// Answers each connection with this, and gives what was asked first.
async fn serve(listener: TcpListener, answers: Arc<Mutex<&'static str>>) -> String {
    let mut first = None;
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            return first.unwrap_or_default();
        };
        let mut request = vec![0; 1024];
        let length = stream.read(&mut request).await.unwrap_or(0);
        let asked = String::from_utf8_lossy(&request[..length]).into_owned();
        if first.is_none() {
            assert!(
                asked.starts_with("GET /healthz?full=1 HTTP/1.1\r\n"),
                "{asked}"
            );
            assert!(asked.contains("host: 127.0.0.1:"), "{asked}");
        }
        first.get_or_insert(asked);
        let answer = *answers.lock().unwrap();
        drop(stream.write_all(answer.as_bytes()).await);
    }
}

#[tokio::test]
async fn http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/healthz?full=1", listener.local_addr().unwrap());
    let answer = Arc::new(Mutex::new("HTTP/1.1 204 No Content\r\n\r\n"));
    let serving = serve(listener, Arc::clone(&answer));
    let asking = async {
        let mut prober = client().probe(quick(Probe::http(url))).unwrap();
        let mut comes_to = async |text, state| {
            *answer.lock().unwrap() = text;
            soon(prober.wait_for(state)).await.unwrap().reason
        };
        comes_to("HTTP/1.1 204 No Content\r\n\r\n", ProbeState::Up).await;
        let why = comes_to(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 1\r\n\r\n.",
            ProbeState::Down,
        );
        assert_eq!(why.await.unwrap(), "answered with 503 Service Unavailable");
        comes_to(
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nless",
            ProbeState::Up,
        )
        .await;
        let why = comes_to(
            "HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n",
            ProbeState::Down,
        );
        assert_eq!(why.await.unwrap(), "answered with 302 Found");
        comes_to("HTTP/1.1 200 OK\r\n\r\n", ProbeState::Up).await;
        let why = comes_to("SSH-2.0-OpenSSH\r\n", ProbeState::Down).await;
        assert!(why.is_some());
    };
    tokio::select! {
        biased;
        () = asking => {}
        asked = serving => panic!("{asked}"),
    }
}

#[tokio::test]
async fn grpc() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (reporter, service) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    let asking = async {
        let probe = |service| {
            client()
                .probe(quick(Probe::grpc(&address, service)))
                .unwrap()
        };
        let mut whole = probe("");
        soon(whole.wait_for(ProbeState::Up)).await.unwrap();
        let mut one = probe("shop.Orders");
        let down = soon(one.wait_for(ProbeState::Down)).await.unwrap();
        assert!(down.reason.unwrap().starts_with("NotFound"));
        let serves = tonic_health::ServingStatus::Serving;
        reporter.set_service_status("shop.Orders", serves).await;
        soon(one.wait_for(ProbeState::Up)).await.unwrap();
        let serves = tonic_health::ServingStatus::NotServing;
        reporter.set_service_status("shop.Orders", serves).await;
        let down = soon(one.wait_for(ProbeState::Down)).await.unwrap();
        assert_eq!(down.reason.as_deref(), Some("NOT_SERVING"));
    };
    tokio::select! {
        biased;
        () = asking => {}
        ended = serving => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn command() {
    let folder = tempfile::tempdir().unwrap();
    let (ready, pid) = (folder.path().join("ready"), folder.path().join("pid"));
    let mut prober = client()
        .probe(quick(Probe::command(
            "test",
            [std::ffi::OsStr::new("-e"), ready.as_os_str()],
        )))
        .unwrap();
    let down = soon(prober.wait_for(ProbeState::Down)).await.unwrap();
    assert_eq!(down.reason.as_deref(), Some("exit status: 1"));
    std::fs::write(&ready, "").unwrap();
    soon(prober.wait_for(ProbeState::Up)).await.unwrap();
    drop(prober);
    // What it started is killed with it.
    let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    let probe = quick(Probe::command("sh", ["-c", &script])).timeout(SECOND / 2);
    let mut prober = client().probe(probe.every(1000 * SECOND)).unwrap();
    let down = soon(prober.wait_for(ProbeState::Down)).await.unwrap();
    assert_eq!(down.reason.as_deref(), Some("no answer within 500ms"));
    let child = std::fs::read_to_string(&pid).unwrap();
    let stat = format!("/proc/{}/stat", child.trim());
    let gone = async {
        // A zombie that nobody has waited for yet is as dead.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(gone).await;
    let missing = Probe::command("/nowhere/to/be/found", [""; 0]);
    let mut prober = client().probe(quick(missing)).unwrap();
    let down = soon(prober.wait_for(ProbeState::Down)).await.unwrap();
    assert!(down.reason.unwrap().starts_with("/nowhere/to/be/found: "));
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused() {
    let fine = Probe::of(|| async { Ok::<_, String>(()) });
    let wrong = [
        Probe::tcp("localhost"),
        Probe::tcp(":80"),
        Probe::tcp("h:0"),
        Probe::tcp("h:65536"),
        Probe::http("https://h/"),
        Probe::http("/healthz"),
        Probe::http("http://user:secret@h/"),
        Probe::http("no url"),
        Probe::grpc("https://h:1", ""),
        Probe::grpc("h 1", ""),
        Probe::command("", [""; 0]),
        fine.clone().every(Duration::ZERO),
        fine.clone().timeout(Duration::ZERO),
        fine.clone().rise(0),
        fine.clone().fall(0),
        fine.clone().damping(2 * SECOND, SECOND),
    ];
    for probe in wrong {
        let refused = client().probe(probe.clone());
        assert!(matches!(refused, Err(Error::Invalid(_))), "{probe:?}");
    }
    let far = fine.every(Duration::MAX).timeout(Duration::MAX);
    let far = far.damping(Duration::MAX, Duration::MAX).rise(1);
    let mut prober = client().probe(far).unwrap();
    soon(prober.wait_for(ProbeState::Up)).await.unwrap();
}
