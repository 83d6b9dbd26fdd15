//! A follower whose connections go dead: nothing arrives, nothing is refused.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::cluster::Cluster;
use super::*;
use crate::peer::{Connection, Dial};

/// Dials TCP, as long as the way is open.
#[derive(Debug, Clone)]
struct Way(Arc<watch::Sender<bool>>);

/// A connection that swallows what is written, and brings nothing, once its way was closed.
struct OnTheWay {
    stream: TcpStream,
    open: watch::Receiver<bool>,
    cut: bool,
}

impl OnTheWay {
    fn is_cut(&mut self) -> bool {
        self.cut |= !*self.open.borrow();
        self.cut
    }
}

#[async_trait]
impl Dial for Way {
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        let open = self.0.subscribe();
        if !*open.borrow() {
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        let stream = TcpStream::connect((host, port)).await?;
        Ok(Box::new(OnTheWay {
            stream,
            open,
            cut: false,
        }))
    }
}

impl AsyncRead for OnTheWay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_cut() {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for OnTheWay {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Leads what `follower` sends to `leader` over a way that can be closed.
async fn way_to(cluster: &Cluster, leader: usize, follower: usize) -> Way {
    let url = cluster.peer_url(leader).replace("127.0.0.1", "localhost");
    let (leader, follower) = (cluster.node(leader), cluster.node(follower));
    let way = Way(Arc::new(watch::Sender::new(true)));
    let transport = follower.shared.transport.as_ref().unwrap();
    transport.dial_with(Arc::new(way.clone()));
    // Another address, so that the stream is opened again, this way.
    transport.set_peer(leader.member_id(), "leader", &[url]);
    follower.put(put("a", "before")).await.unwrap();
    eventually("the stream is up again", || async {
        transport.peer(leader.member_id()).unwrap().is_active()
    })
    .await;
    way
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_timed_out_never_undoes_a_newer_one() {
    let cluster = Cluster::start().await;
    let (leader, follower) = cluster.roles().await;
    let way = way_to(&cluster, leader, follower).await;
    let (leader, follower) = (cluster.node(leader), cluster.node(follower));

    way.0.send_replace(false);
    let answered = follower.put(put("a", "stale")).await;
    let error = answered.unwrap_err();
    assert!(error.kind().is_ambiguous(), "{error}");
    leader.put(put("a", "fresh")).await.unwrap();
    way.0.send_replace(true);
    // What was still to come would come before these.
    for round in 0..20 {
        eventually("the follower writes again", || async {
            follower.put(put("b", &round.to_string())).await.is_ok()
        })
        .await;
    }
    assert_eq!(values(&leader.range(get("a")).await.unwrap()), ["fresh"]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_on_a_write_takes_nobody_elses_with_him() {
    let cluster = Cluster::start().await;
    let (leader, follower) = cluster.roles().await;
    let way = way_to(&cluster, leader, follower).await;
    let follower = cluster.node(follower);
    let write = |key: &str| Box::pin(follower.put(put(key, "written")));
    let waiting = async |count: usize| {
        let pending = &follower.shared.pending;
        eventually("they are sent", || async { pending.len() == count }).await;
    };

    way.0.send_replace(false);
    // As many as are under way at once, so that what follows them is sent together.
    let mut under_way = Vec::new();
    for key in ["1", "2", "3", "4"] {
        under_way.push(write(key));
        assert!(futures::poll!(under_way.last_mut().unwrap()).is_pending());
        waiting(under_way.len()).await;
    }
    let (mut given_up, mut kept) = (write("given up"), write("kept"));
    assert!(futures::poll!(&mut given_up).is_pending());
    assert!(futures::poll!(&mut kept).is_pending());
    // The places of two are enough for them.
    under_way.truncate(2);
    waiting(4).await;
    drop(given_up);
    waiting(3).await;
    way.0.send_replace(true);
    kept.await.unwrap();
    for write in under_way {
        write.await.unwrap();
    }
    assert_eq!(
        values(&follower.range(get("kept")).await.unwrap()),
        ["written"]
    );
    cluster.shutdown().await;
}
