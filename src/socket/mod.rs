//! Listening sockets and their connections, TCP and unix; every door takes them from here.
//!
//! Invariant: accepting goes on after every error, so that a shortage (of file handles, say) ends when the shortage does.

mod unix;

use std::fmt;
use std::io::{self, IoSlice, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use unix::UnixSocket;

/// How long accepting rests after an error that is not the fault of one peer.
const REST_AFTER_ERROR: Duration = Duration::from_millis(50);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// At a host (name, IPv4, or IPv6 in brackets) and port; port 0 takes any free one.
    Tcp {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// At a file.
    Unix(PathBuf),
}

/// `HOST:PORT`, or `unix:/PATH`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The text is neither `HOST:PORT` nor `unix:/PATH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be HOST:PORT with a port from 0 (any free one) to 65535, or unix: and a path from / on without spaces"
)]
pub struct NotAnAddress;

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(char::is_whitespace) {
            return Err(NotAnAddress);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into())).ok_or(NotAnAddress);
        }
        let (host, port) = text.rsplit_once(':').ok_or(NotAnAddress)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (host.contains(':') && !bracketed) {
            return Err(NotAnAddress);
        }
        Ok(Self::Tcp { host: host.to_owned(), port: port.parse().map_err(|_| NotAnAddress)? })
    }
}

/// Where a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// With the port that it got.
    Tcp(SocketAddr),
    /// The file.
    Unix(PathBuf),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// On this machine.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// A socket that takes connections.
#[derive(Debug)]
pub enum Listener {
    /// On TCP.
    Tcp(TcpListener),
    /// On a file, which is removed with it.
    Unix(UnixSocket),
}

/// After how much silence the system asks whether the peer is there, and how often.
const PROBES: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(60));

impl Listener {
    /// Listens at `address`. A file gets the permissions `mode`. A peer that has vanished without a word is found by the
    /// system.
    ///
    /// # Errors
    /// Why the address cannot be had. A file that nobody listens at any more is no reason.
    pub async fn bind(address: &Address, mode: u32) -> io::Result<Self> {
        Ok(match address {
            Address::Tcp { .. } => {
                let listener = TcpListener::bind(address.to_string()).await?;
                // What is accepted has them from the listener: four calls less for each.
                SockRef::from(&listener).set_tcp_nodelay(true)?;
                keep_alive(SockRef::from(&listener))?;
                Self::Tcp(listener)
            }
            Address::Unix(path) => Self::Unix(UnixSocket::bind(path, mode)?),
        })
    }

    /// Where it is.
    ///
    /// # Errors
    /// Those of the system.
    pub fn bound(&self) -> io::Result<Bound> {
        Ok(match self {
            Self::Tcp(listener) => Bound::Tcp(listener.local_addr()?),
            Self::Unix(socket) => Bound::Unix(socket.path().to_owned()),
        })
    }

    /// The next connection, with small writes sent at once. Cancel safe: a connection that was not returned yet stays in
    /// the listener's queue.
    pub async fn accept(&self) -> (Socket, Peer) {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = persist(|| listener.accept()).await;
                (Socket::Tcp(stream), Peer::Tcp(peer))
            }
            Self::Unix(socket) => (Socket::Unix(persist(|| socket.accept()).await), Peer::Unix),
        }
    }
}

/// Lets the system find out when the peer of a TCP socket has vanished without a word.
///
/// # Errors
/// Those of the system.
pub fn keep_alive(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBES.0).with_interval(PROBES.1))
}

/// The same from a plain TCP listener.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, peer) = persist(|| listener.accept()).await;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot switch off Nagle's algorithm");
    }
    (stream, peer)
}

/// Accepts until it succeeds.
async fn persist<T, F: Future<Output = io::Result<T>>>(accept: impl Fn() -> F) -> T {
    loop {
        match accept().await {
            Ok(accepted) => return accepted,
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

/// A connection.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a file.
    Unix(UnixStream),
}

/// Does the same with either kind of stream.
macro_rules! either {
    ($socket:expr, $stream:ident => $does:expr) => {
        match $socket {
            Socket::Tcp($stream) => $does,
            Socket::Unix($stream) => $does,
        }
    };
}

impl Socket {
    /// Whether there is something to read, or the end.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read_ready(cx))
    }

    /// Waits for something to read, or the end. Cancel safe.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn readable(&self) -> io::Result<()> {
        either!(self, stream => stream.readable().await)
    }

    /// Reads what is there, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, else those of the socket.
    pub fn try_read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        either!(self, stream => stream.try_read_buf(buffer))
    }

    /// Reads what has arrived, up to `most` bytes, though nobody may have been told of it yet: [`try_read_buf`] finds only
    /// what the runtime has heard of from the system.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, else those of the socket.
    ///
    /// [`try_read_buf`]: Self::try_read_buf
    pub fn read_arrived(&self, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
        let mut chunk = [0; 4 << 10];
        let mut read = 0;
        while read < most {
            let count = match self.read_arrived_into(&mut chunk) {
                Err(_) if read > 0 => break,
                count => count?,
            };
            buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
            read += count;
            if count < chunk.len() {
                break;
            }
        }
        Ok(read)
    }

    /// The same into a part of memory, once.
    ///
    /// # Errors
    /// As of [`read_arrived`](Self::read_arrived).
    pub fn read_arrived_into(&self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*either!(self, stream => SockRef::from(stream))).read(bytes)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        either!(self, stream => stream.is_write_vectored())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:1", "localhost:0", "[::1]:65535", "unix:/run/x.sock"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        for bad in ["", ":1", "1", "a:", "a:65536", "::1:2", "a b:1", "off", "unix:", "unix:x", "unix:/a b"] {
            assert_eq!(bad.parse::<Address>(), Err(NotAnAddress), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_is_accepted_sends_at_once_and_is_probed() {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap(), 0).await.unwrap();
        let Bound::Tcp(address) = listener.bound().unwrap() else { panic!("it is on TCP") };
        let (_client, (accepted, _)) = tokio::join!(TcpStream::connect(address), listener.accept());
        let Socket::Tcp(stream) = accepted else { panic!("it is on TCP") };
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!((socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap()), PROBES);
    }
}
