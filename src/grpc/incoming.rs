//! Accepts connections within the budget.
//!
//! Invariant: a socket is served only while its permit is held; one beyond the budget is closed at once, unread. Accepting
//! goes on after every error, so that a shortage (of file handles, say) ends when the shortage does.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::connections::{ConnectionBudget, ConnectionPermit};

/// How long accepting rests after an error that is not the fault of one peer.
const REST_AFTER_ERROR: Duration = Duration::from_millis(50);

/// The connections of `listener`, for ever.
pub(super) fn connections(
    listener: TcpListener,
    budget: ConnectionBudget,
) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, budget), async |(listener, budget)| {
        let connection = next(&listener, &budget).await;
        Some((Ok(connection), (listener, budget)))
    })
}

async fn next(listener: &TcpListener, budget: &ConnectionBudget) -> Connection {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(permit) = budget.try_acquire() else {
                    tracing::debug!(%peer, limit = budget.limit(), "connection refused: all are taken");
                    continue;
                };
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "cannot switch off Nagle's algorithm");
                }
                return Connection { stream, _permit: permit };
            }
            Err(error) if is_peers_fault(&error) => {
                tracing::debug!(%error, "connection lost before it began")
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again");
                tokio::time::sleep(REST_AFTER_ERROR).await;
            }
        }
    }
}

fn is_peers_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// A socket and the permit to hold it.
pub(super) struct Connection {
    stream: TcpStream,
    _permit: ConnectionPermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
