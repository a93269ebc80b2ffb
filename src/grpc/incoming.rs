//! Accepts connections within the budget.
//!
//! Invariant: a socket is served only while its permit is held; one beyond the budget is closed at once, unread.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::connections::{ConnectionBudget, ConnectionPermit};
use crate::socket::accept;

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
        let (stream, peer) = accept(listener).await;
        match budget.try_acquire() {
            Some(permit) => return Connection { stream, _permit: permit },
            None => tracing::debug!(%peer, limit = budget.limit(), "connection refused: all are taken"),
        }
    }
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
