//! The socket with what was read and is not decoded, and what is encoded and not written.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::io::{AsyncBufRead, AsyncReadExt, AsyncWrite};

use crate::counters::{Passed, Traffic};
use crate::mqtt::buffers::{Buffers, READ_BYTES};
use crate::mqtt::codec::{DecodeError, Decoder, Packet};
use crate::mqtt::frames::Form;
use crate::mqtt::out::Out;
use crate::mqtt::stream::{Layer, Stream};

/// A part of a packet that is smaller is kept in a buffer of its own while the rest is awaited.
const SMALL_PART: usize = 4 << 10;

/// See the module.
pub(super) struct Wire {
    stream: Stream,
    /// Has memory only while it has bytes.
    pub(super) input: BytesMut,
    pub(super) out: Out,
    pub(super) decoder: Decoder,
    traffic: Arc<Traffic>,
    /// Packets that were decoded, and bytes that were read, and are not counted yet.
    decoded: u32,
    read: u32,
}

/// What has happened on the socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Io {
    /// There is more to decode.
    Read,
    /// The peer has closed its side.
    Eof,
    /// Enough was written that there is room again.
    Wrote,
}

impl Wire {
    pub(super) fn new(stream: Stream, decoder: Decoder, traffic: Arc<Traffic>) -> Self {
        let (input, out) = (BytesMut::new(), Out::default());
        Self { stream, input, out, decoder, traffic, decoded: 0, read: 0 }
    }

    /// The next packet of what was read, if it is whole.
    pub(super) fn decode(&mut self) -> Result<Option<Packet>, DecodeError> {
        let packet = self.decoder.decode(&mut self.input)?;
        self.decoded += u32::from(packet.is_some());
        Ok(packet)
    }

    /// Counts what has passed since the last time.
    fn count(&mut self) {
        let received = Passed { messages: self.decoded.into(), bytes: self.read.into() };
        (self.decoded, self.read) = (0, 0);
        self.traffic.received(received);
        self.traffic.sent(self.out.passed());
    }

    /// Whether something lies over the socket that ends in its own way, not with the socket alone.
    pub(super) fn is_layered(&self) -> bool {
        matches!(self.stream, Stream::Layered { .. })
    }

    /// Writes what waits, and reads once if `reads`. Returns when something was read, or when no more than `low` bytes
    /// wait after more had. What cannot be written any more is dropped: the end is told by the reading side alone, after
    /// all that the peer said before it. Cancel safe: what was read is in `input`, what was written has left `out`.
    pub(super) async fn io(&mut self, buffers: &Buffers, reads: bool, low: usize) -> io::Result<Io> {
        poll_fn(|cx| self.poll_io(cx, buffers, reads, low)).await
    }

    /// The same for one task, which is woken when it is so.
    pub(super) fn poll_io(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &Buffers,
        reads: bool,
        low: usize,
    ) -> Poll<io::Result<Io>> {
        let waited = self.out.len();
        while !self.out.is_empty() {
            match self.out.poll_write(cx, &mut self.stream) {
                Poll::Ready(Ok(())) => {}
                // The peer has left with data unread. What it said before still holds, its DISCONNECT above all, and may
                // not have been announced yet.
                Poll::Ready(Err(_)) => self.out.discard(),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(_)) = Pin::new(&mut self.stream).poll_flush(cx) {
            self.out.discard();
        }
        self.count();
        self.out.release(buffers);
        if reads && let Poll::Ready(io) = self.poll_read(cx, buffers)? {
            return Poll::Ready(Ok(io));
        }
        if waited > low && self.out.len() <= low { Poll::Ready(Ok(Io::Wrote)) } else { Poll::Pending }
    }

    /// Reads what is there without waiting, once, whether or not the runtime has heard of it. An error is told by the
    /// next look.
    pub(super) fn read_now(&mut self, buffers: &Buffers) {
        let read = match &self.stream {
            Stream::Plain(socket) => socket.read_arrived(&mut self.input, READ_BYTES).ok(),
            Stream::Layered { early, .. } => {
                let early = early.clone();
                early.set(true);
                // It is done though the task has had its share of this round.
                let read = tokio::task::unconstrained(poll_fn(|cx| self.poll_read(cx, buffers)));
                drop(read.now_or_never());
                early.set(false);
                return;
            }
        };
        self.count_read(read.unwrap_or_default());
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffers: &Buffers) -> Poll<io::Result<Io>> {
        let read = match &mut self.stream {
            Stream::Plain(socket) => {
                // Nothing is lent to a connection that has nothing to read.
                let ready = socket.poll_read_ready(cx)?;
                if ready.is_ready() {
                    make_room(&mut self.input, buffers);
                    pin!(socket.read_buf(&mut self.input)).poll(cx)
                } else {
                    Poll::Pending
                }
            }
            Stream::Layered { layer, .. } => read_layer(layer, &mut self.input, cx, buffers),
        };
        if read.is_pending() {
            self.stash(buffers);
            return Poll::Pending;
        }
        read.map_ok(|count| {
            self.count_read(count);
            if count == 0 { Io::Eof } else { Io::Read }
        })
    }

    fn count_read(&mut self, bytes: usize) {
        self.read = self.read.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Gives the buffer back but for a small part of a packet.
    fn stash(&mut self, buffers: &Buffers) {
        if self.input.is_empty() {
            buffers.give_back(std::mem::take(&mut self.input));
        } else if self.input.len() < SMALL_PART && self.input.capacity() >= READ_BYTES / 2 {
            let part = BytesMut::from(&self.input[..]);
            buffers.give_back(std::mem::replace(&mut self.input, part));
        }
    }

    /// Appends a packet, without what makes it larger than the receiver takes. False: it is too large nevertheless.
    pub(super) fn send(&mut self, mut packet: Packet, form: Form) -> bool {
        let fits = |packet: &Packet| {
            form.max_packet == usize::MAX
                || packet.encoded_len(form.version).is_ok_and(|len| len <= form.max_packet)
        };
        if !fits(&packet) {
            packet.omit_diagnostics();
            // 5: [MQTT-3.1.2-24].
            if !fits(&packet) {
                return false;
            }
        }
        if let Err(error) = packet.encode(form.version, self.out.bytes()) {
            tracing::error!(%error, packet = ?packet.packet_type(), "a packet of our own cannot be encoded");
            return false;
        }
        self.out.count(1);
        true
    }

    /// Writes all that waits and closes our side.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        poll_fn(|cx| {
            while !self.out.is_empty() {
                ready!(self.out.poll_write(cx, &mut self.stream))?;
            }
            Poll::Ready(io::Result::Ok(()))
        })
        .await?;
        poll_fn(|cx| Pin::new(&mut self.stream).poll_shutdown(cx)).await
    }

    /// Reads and drops what the peer still sends, until it closes its side: data that nobody reads would reset the
    /// connection, and with it what it was told last.
    pub(super) async fn drain(&mut self, buffers: &Buffers) {
        let socket = match &mut self.stream {
            Stream::Plain(socket) => socket,
            Stream::Layered { layer, .. } => {
                while let Ok(count @ 1..) =
                    poll_fn(|cx| Pin::new(&mut *layer).poll_fill_buf(cx).map_ok(<[u8]>::len)).await
                {
                    Pin::new(&mut *layer).consume(count);
                }
                return;
            }
        };
        while socket.readable().await.is_ok() {
            let mut bytes = buffers.to_read();
            let read = socket.try_read_buf(&mut bytes);
            buffers.give_back(bytes);
            match read {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.count();
    }
}

/// Lends memory for one read, unless there is enough.
fn make_room(input: &mut BytesMut, buffers: &Buffers) {
    if input.len() >= SMALL_PART {
        input.reserve(READ_BYTES);
    } else if input.capacity() - input.len() < READ_BYTES / 2 {
        let mut buffer = buffers.to_read();
        buffer.extend_from_slice(input);
        buffers.give_back(std::mem::replace(input, buffer));
    }
}

/// Takes what a layer has, up to about [`READ_BYTES`]. An end or an error after that comes again.
fn read_layer(
    layer: &mut Box<dyn Layer>,
    input: &mut BytesMut,
    cx: &mut Context<'_>,
    buffers: &Buffers,
) -> Poll<io::Result<usize>> {
    let mut read = 0;
    while read < READ_BYTES {
        let bytes = match Pin::new(&mut *layer).poll_fill_buf(cx) {
            Poll::Ready(Ok(bytes)) if !bytes.is_empty() => bytes,
            _ if read > 0 => break,
            end => return end.map_ok(<[u8]>::len),
        };
        make_room(input, buffers);
        let count = bytes.len().min(READ_BYTES);
        input.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Pin::new(&mut *layer).consume(count);
        read += count;
    }
    Poll::Ready(Ok(read))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::mqtt::codec::Limits;
    use crate::mqtt::stream::Base;
    use crate::socket::Socket;

    /// What a client says last is heard though it leaves with data unread, which resets the connection while we write.
    #[tokio::test]
    async fn what_was_said_before_a_reset_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"unread").await.unwrap();
        peer.readable().await.unwrap();
        peer.write_all(b"last").await.unwrap();
        drop(peer);

        let mut wire =
            Wire::new(Socket::Tcp(stream).into(), Decoder::server(Limits::default()), Arc::default());
        let buffers = Buffers::default();
        for reads in [false, true] {
            wire.out.bytes().extend_from_slice(b"nobody takes this");
            let io = wire.io(&buffers, reads, 0).await;
            assert_eq!(io.unwrap(), if reads { Io::Read } else { Io::Wrote });
        }
        assert_eq!(wire.input, &b"last"[..]);
        // What is not written is no end: that is for the reading side to tell.
        wire.out.bytes().extend_from_slice(b"nor this");
        let ended = async { while matches!(wire.io(&buffers, true, 0).await, Ok(Io::Wrote)) {} };
        tokio::time::timeout(std::time::Duration::from_secs(30), ended).await.unwrap();
        assert_eq!(wire.input, &b"last"[..]);
    }

    /// As TLS and WebSocket lie over a socket.
    fn layered(socket: Socket) -> Stream {
        let (base, early) = Base::new(socket);
        Stream::over(BufReader::new(base), early)
    }

    /// The runtime hears of nothing here: the test does not yield.
    async fn is_read_before_it_is_announced(stream: impl FnOnce(Socket) -> Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let stream = stream(Socket::Tcp(accepted));
        let mut wire = Wire::new(stream, Decoder::server(Limits::default()), Arc::default());
        let buffers = Buffers::default();
        // There is nothing yet: the runtime remembers that.
        assert!(poll_fn(|cx| Poll::Ready(wire.poll_read(cx, &buffers).is_pending())).await);
        for said in [&b"first"[..], b"last"] {
            std::io::Write::write_all(&mut peer, said).unwrap();
            wire.read_now(&buffers);
        }
        assert_eq!(wire.input, &b"firstlast"[..]);
        // Nothing is there, and the end is told by the next look.
        wire.read_now(&buffers);
        assert_eq!(wire.input, &b"firstlast"[..]);
        drop(peer);
        wire.read_now(&buffers);
        assert_eq!(wire.io(&buffers, true, 0).await.unwrap(), Io::Eof);
    }

    #[tokio::test]
    async fn what_has_arrived_is_read_before_it_is_announced() {
        is_read_before_it_is_announced(Stream::from).await;
    }

    #[tokio::test]
    async fn what_has_arrived_below_a_layer_is_read_before_it_is_announced() {
        is_read_before_it_is_announced(layered).await;
    }
}
