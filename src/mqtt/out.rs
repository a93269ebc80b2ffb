//! The bytes that a connection is about to write: small frames copied one after the other, large payloads shared and
//! written from where they lie.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::buffers::Buffers;
use crate::counters::Passed;

/// From this size on a payload is shared instead of copied. Below it, copying costs less than one more part of a write.
pub(super) const SHARED_FROM: usize = 32 << 10;
/// Parts of one write.
const PARTS: usize = 16;

/// Bytes in order. Positions count from the first byte that the connection ever wrote.
#[derive(Debug, Default)]
pub(super) struct Out {
    bytes: BytesMut,
    /// Each stands in front of what is still to be written of `bytes` from that place on.
    shared: VecDeque<(u64, Bytes)>,
    /// Of all `bytes`, how many were written.
    copied_out: u64,
    shared_len: usize,
    written: u64,
    /// Packets that were appended, and bytes that were written, since somebody looked.
    packets: u32,
    passed: u32,
}

impl Out {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes wait.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.shared_len
    }

    /// How many bytes were written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.written + self.len() as u64
    }

    /// Notes that so many packets were appended.
    pub(super) fn count(&mut self, packets: u32) {
        self.packets = self.packets.saturating_add(packets);
    }

    /// Packets that were appended, and bytes that were written, since the last time.
    pub(super) fn passed(&mut self) -> Passed {
        let (messages, bytes) = (std::mem::take(&mut self.packets), std::mem::take(&mut self.passed));
        Passed { messages: messages.into(), bytes: bytes.into() }
    }

    /// Where frames are appended.
    pub(super) fn bytes(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// Appends all of `frames`, and takes the buffer when that spares copying it.
    pub(super) fn append(&mut self, frames: &mut BytesMut) {
        if self.bytes.is_empty() {
            std::mem::swap(&mut self.bytes, frames);
        } else {
            self.bytes.extend_from_slice(frames);
            frames.clear();
        }
    }

    /// Appends bytes without copying them.
    pub(super) fn share(&mut self, bytes: Bytes) {
        self.shared_len += bytes.len();
        self.shared.push_back((self.copied_out + self.bytes.len() as u64, bytes));
    }

    /// Writes what the socket takes now, at least one byte. Pends when it takes none.
    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut W,
    ) -> Poll<io::Result<()>> {
        let socket = Pin::new(socket);
        let written = if self.shared.is_empty() {
            ready!(socket.poll_write(cx, &self.bytes))?
        } else {
            let mut parts = [IoSlice::new(&[]); PARTS];
            let count = self.parts(&mut parts);
            ready!(socket.poll_write_vectored(cx, parts.get(..count).unwrap_or_default()))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(()))
    }

    /// Fills `parts` with what comes first. Returns how many.
    fn parts<'a>(&'a self, parts: &mut [IoSlice<'a>; PARTS]) -> usize {
        let mut all = parts.iter_mut();
        let mut count = 0;
        let mut put = |bytes: &'a [u8]| {
            if !bytes.is_empty()
                && let Some(part) = all.next()
            {
                *part = IoSlice::new(bytes);
                count += 1;
            }
        };
        let mut rest = &self.bytes[..];
        let mut at = self.copied_out;
        for (place, bytes) in &self.shared {
            let (before, after) = rest.split_at(usize::try_from(place - at).unwrap_or(0).min(rest.len()));
            put(before);
            put(bytes);
            (rest, at) = (after, *place);
        }
        put(rest);
        count
    }

    fn advance(&mut self, mut count: usize) {
        self.written += count as u64;
        self.passed = self.passed.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        while count > 0 {
            let before = match self.shared.front() {
                Some((place, _)) => usize::try_from(place - self.copied_out).unwrap_or(0),
                None => self.bytes.len(),
            };
            let step = count.min(before).min(self.bytes.len());
            if step > 0 {
                self.bytes.advance(step);
                self.copied_out += step as u64;
            } else if let Some((_, bytes)) = self.shared.front_mut() {
                let step = count.min(bytes.len());
                bytes.advance(step);
                self.shared_len -= step;
                if bytes.is_empty() {
                    self.shared.pop_front();
                }
                count -= step;
                continue;
            } else {
                return; // More than there was: no socket says so.
            }
            count -= step;
        }
    }

    /// Forgets what waits: it will never be written.
    pub(super) fn discard(&mut self) {
        self.bytes.clear();
        self.shared.clear();
        self.shared_len = 0;
    }

    /// Gives the memory back when nothing waits.
    pub(super) fn release(&mut self, buffers: &Buffers) {
        // An exhausted buffer says that its capacity is 0: it is not asked.
        if self.is_empty() {
            buffers.give_back(std::mem::take(&mut self.bytes));
            self.shared = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes at most so many bytes of each write.
    struct Narrow(usize, Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let count = buf.len().min(self.0);
            self.1.extend_from_slice(&buf[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let mut taken = 0;
            for part in bufs {
                let count = part.len().min(self.0 - taken);
                self.1.extend_from_slice(&part[..count]);
                taken += count;
            }
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn bytes_leave_in_order_whatever_the_socket_takes(
            steps in prop::collection::vec((0_u8..4, prop::collection::vec(any::<u8>(), 0..40)), 0..60),
            narrow in 1_usize..50,
        ) {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut socket = Narrow(narrow, Vec::new());
            let (mut out, mut expected) = (Out::default(), Vec::new());
            for (kind, bytes) in steps {
                if kind == 3 {
                    if !out.is_empty() {
                        prop_assert!(out.poll_write(&mut cx, &mut socket).is_ready());
                    }
                    continue;
                }
                expected.extend_from_slice(&bytes);
                match kind {
                    0 => out.bytes().extend_from_slice(&bytes),
                    1 => out.append(&mut BytesMut::from(&bytes[..])),
                    _ if bytes.is_empty() => {}
                    _ => out.share(Bytes::from(bytes)),
                }
                prop_assert_eq!(out.position(), expected.len() as u64);
            }
            while !out.is_empty() {
                prop_assert!(out.poll_write(&mut cx, &mut socket).is_ready());
            }
            prop_assert_eq!(out.written(), expected.len() as u64);
            prop_assert_eq!(socket.1, expected);
        }
    }
}
