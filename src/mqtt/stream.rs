//! What a connection reads from and writes to: the socket as it is, or what lies over it.
//!
//! A plain socket says whether there is something to read before memory is lent for it, and is written vectored, without
//! a call through a pointer. What lies over it (TLS, WebSocket) has a buffer of its own to read from.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncWrite};

use crate::socket::Socket;

/// A stream of bytes over a socket.
pub(super) trait Layer: AsyncBufRead + AsyncWrite + Send + Unpin {}

impl<L: AsyncBufRead + AsyncWrite + Send + Unpin> Layer for L {}

/// See the module.
pub(super) enum Stream {
    Plain(Socket),
    Layered {
        layer: Box<dyn Layer>,
        /// Something was written since the last flush.
        unflushed: bool,
    },
}

impl From<Socket> for Stream {
    fn from(socket: Socket) -> Self {
        Self::Plain(socket)
    }
}

impl Stream {
    pub(super) fn over(layer: impl Layer + 'static) -> Self {
        Self::Layered { layer: Box::new(layer), unflushed: false }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Layered { layer, unflushed } => {
                *unflushed = true;
                Pin::new(layer).poll_write(cx, buf)
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Layered { layer, unflushed } => {
                *unflushed = true;
                Pin::new(layer).poll_write_vectored(cx, bufs)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Layered { layer, .. } => layer.is_write_vectored(),
        }
    }

    /// Does nothing when nothing was written since the last time.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Layered { layer, unflushed } if *unflushed => {
                let flushed = Pin::new(layer).poll_flush(cx);
                *unflushed = flushed.is_pending();
                flushed
            }
            Self::Plain(_) | Self::Layered { .. } => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Layered { layer, .. } => Pin::new(layer).poll_shutdown(cx),
        }
    }
}
