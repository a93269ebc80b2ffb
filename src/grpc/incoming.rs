//! Accepts connections within the budget, and shakes hands with them where the door has TLS.
//!
//! Invariant: a socket is served only while its permit is held; one beyond the budget is closed at once, unread. A
//! handshake holds up nobody else, and has a bounded time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytestring::ByteString;
use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::server::Connected;

use crate::connections::{ConnectionBudget, ConnectionPermit};
use crate::counters::{Passed, Traffic};
use crate::rate::ConnectRate;
use crate::socket::accept;
use crate::tls::{Tls, TlsStream};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The connections of `listener`, for ever.
pub(super) fn connections(
    listener: TcpListener,
    budget: ConnectionBudget,
    tls: Option<Arc<Tls>>,
    rate: ConnectRate,
    traffic: Arc<Traffic>,
) -> impl Stream<Item = io::Result<Connection>> {
    let incoming = Incoming { listener, budget, tls, rate, traffic, handshakes: JoinSet::new() };
    stream::unfold(incoming, async |mut incoming| Some((Ok(incoming.next().await), incoming)))
}

struct Incoming {
    listener: TcpListener,
    budget: ConnectionBudget,
    tls: Option<Arc<Tls>>,
    rate: ConnectRate,
    traffic: Arc<Traffic>,
    /// As many as the budget allows.
    handshakes: JoinSet<Option<Connection>>,
}

impl Incoming {
    async fn next(&mut self) -> Connection {
        loop {
            let (stream, peer) = tokio::select! {
                accepted = accept(&self.listener) => accepted,
                Some(shaken) = self.handshakes.join_next() => match shaken {
                    Ok(Some(connection)) => return connection,
                    // A handshake that came to nothing has said so.
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::error!(%error, "a handshake failed");
                        continue;
                    }
                },
            };
            if !self.rate.admits(peer.ip()) {
                tracing::debug!(%peer, "connection refused: its address connects too often");
                continue;
            }
            let Some(permit) = self.budget.try_acquire() else {
                tracing::debug!(%peer, limit = self.budget.limit(), "connection refused: all are taken");
                continue;
            };
            let traffic = Arc::clone(&self.traffic);
            let Some(tls) = self.tls.clone() else {
                return Connection { stream: Carrier::Plain(stream), traffic, _permit: permit };
            };
            self.handshakes.spawn(async move {
                match timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let stream = Carrier::Secure(Box::new(stream));
                        return Some(Connection { stream, traffic, _permit: permit });
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                    Err(_) => tracing::debug!(%peer, "no TLS within the time for it"),
                }
                None
            });
        }
    }
}

/// A socket and the permit to hold it.
pub(super) struct Connection {
    stream: Carrier,
    traffic: Arc<Traffic>,
    _permit: ConnectionPermit,
}

enum Carrier {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

/// Does the same with either kind of stream.
macro_rules! either {
    ($connection:expr, $stream:ident => $does:expr) => {
        match $connection {
            Carrier::Plain($stream) => $does,
            Carrier::Secure($stream) => $does,
        }
    };
}

impl Connection {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = written {
            self.traffic.sent(bytes(count));
        }
        written
    }
}

/// Nothing but bytes is counted here: what a frame carries is the core's.
fn bytes(count: usize) -> Passed {
    Passed { messages: 0, bytes: count as u64 }
}

/// Where a connection comes from, in words; in the extensions of its calls.
#[derive(Clone, Debug)]
pub(super) struct CallerAddress(pub(super) Option<ByteString>);

impl Connected for Connection {
    type ConnectInfo = CallerAddress;

    fn connect_info(&self) -> CallerAddress {
        let address = match &self.stream {
            Carrier::Plain(stream) => stream.peer_addr(),
            Carrier::Secure(stream) => stream.get_ref().0.peer_addr(),
        };
        CallerAddress(address.ok().map(|address| address.to_string().into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = either!(&mut self.stream, stream => Pin::new(stream).poll_read(cx, buf));
        self.traffic.received(bytes(buf.filled().len() - before));
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = either!(&mut self.stream, stream => Pin::new(stream).poll_write(cx, buf));
        self.count(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut self.stream, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut self.stream, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = either!(&mut self.stream, stream => Pin::new(stream).poll_write_vectored(cx, bufs));
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        either!(&self.stream, stream => stream.is_write_vectored())
    }
}
