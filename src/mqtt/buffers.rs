//! Memory for reading and writing, lent to connections while they have something to read or write.
//!
//! An idle connection holds none of it, and a busy one does not ask the allocator for each read. Buffers that grew
//! large, and those of which a message still holds a part, are not kept.

use bytes::BytesMut;
use parking_lot::Mutex;

/// What one read may bring.
pub(super) const READ_BYTES: usize = 64 << 10;
/// A buffer with less is not worth keeping, one with more is too much to keep.
const KEPT: std::ops::RangeInclusive<usize> = READ_BYTES..=256 << 10;
/// At most so many are kept: more connections than this are not served at the same moment.
const SPARE: usize = 64;

/// The spare buffers of one door.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    spare: Mutex<Vec<BytesMut>>,
}

impl Buffers {
    /// A buffer to read into: empty, with room for [`READ_BYTES`].
    pub(super) fn to_read(&self) -> BytesMut {
        self.spare.lock().pop().unwrap_or_else(|| BytesMut::with_capacity(READ_BYTES))
    }

    /// A buffer to write into: empty, with any room or none. It grows with what is written, so that many connections
    /// with little to send take little.
    pub(super) fn to_write(&self) -> BytesMut {
        self.spare.lock().pop().unwrap_or_default()
    }

    /// Takes a buffer back; what is in it is of no use any more.
    pub(super) fn give_back(&self, mut buffer: BytesMut) {
        buffer.clear();
        // False as long as a message holds a part of it.
        if buffer.try_reclaim(READ_BYTES) && KEPT.contains(&buffer.capacity()) {
            let mut spare = self.spare.lock();
            if spare.len() < SPARE {
                spare.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare(buffers: &Buffers) -> usize {
        buffers.spare.lock().len()
    }

    #[test]
    fn a_buffer_is_lent_again_only_when_nobody_holds_a_part_of_it() {
        let buffers = Buffers::default();
        let mut buffer = buffers.to_read();
        buffer.extend_from_slice(b"abc");
        let held = buffer.split_to(2).freeze();
        buffers.give_back(buffer);
        assert_eq!((spare(&buffers), &held[..]), (0, &b"ab"[..]));

        let mut buffer = buffers.to_read();
        buffer.extend_from_slice(b"abc");
        drop(buffer.split_to(2).freeze());
        buffers.give_back(buffer);
        assert_eq!(spare(&buffers), 1);
        let buffer = buffers.to_read();
        assert!(buffer.is_empty() && buffer.capacity() >= READ_BYTES);
    }

    #[test]
    fn small_and_large_buffers_are_not_kept() {
        let buffers = Buffers::default();
        for capacity in [0, 100, 1 << 20] {
            buffers.give_back(BytesMut::with_capacity(capacity));
        }
        assert_eq!(spare(&buffers), 0);
        for _ in 0..2 * SPARE {
            buffers.give_back(BytesMut::with_capacity(READ_BYTES));
        }
        assert_eq!(spare(&buffers), SPARE);
    }
}
