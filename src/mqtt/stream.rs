//! What a connection reads from and writes to: the socket as it is, or what lies over it.
//!
//! A plain socket says whether there is something to read before memory is lent for it, and is written vectored, without
//! a call through a pointer. What lies over it (TLS, WebSocket) has a buffer of its own to read from, and [`Base`] below it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

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
        early: Early,
    },
}

/// Has a [`Base`] read what has arrived though the runtime has not heard of it, as long as it is so.
#[derive(Clone, Debug, Default)]
pub(super) struct Early(Arc<AtomicBool>);

impl Early {
    pub(super) fn set(&self, early: bool) {
        self.0.store(early, Ordering::Relaxed);
    }
}

/// A socket below what lies over it.
#[derive(Debug)]
pub(super) struct Base {
    socket: Socket,
    early: Early,
}

impl Base {
    pub(super) fn new(socket: Socket) -> (Self, Early) {
        let early = Early::default();
        (Self { socket, early: early.clone() }, early)
    }
}

impl AsyncRead for Base {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(cx, buf);
        if read.is_ready() || !self.early.0.load(Ordering::Relaxed) {
            return read;
        }
        match self.socket.read_arrived_into(buf.initialize_unfilled()) {
            Ok(count) => {
                buf.advance(count);
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Base {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

impl From<Socket> for Stream {
    fn from(socket: Socket) -> Self {
        Self::Plain(socket)
    }
}

impl From<Base> for Stream {
    fn from(base: Base) -> Self {
        Self::Plain(base.socket)
    }
}

impl Stream {
    /// `early` is that of the socket below.
    pub(super) fn over(layer: impl Layer + 'static, early: Early) -> Self {
        Self::Layered { layer: Box::new(layer), unflushed: false, early }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Layered { layer, unflushed, .. } => {
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
            Self::Layered { layer, unflushed, .. } => {
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
            Self::Layered { layer, unflushed, .. } if *unflushed => {
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
