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

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_timed_out_never_undoes_a_newer_one() {
    let cluster = Cluster::start().await;
    let (leader, follower) = cluster.roles().await;
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
