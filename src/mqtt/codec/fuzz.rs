//! What a fuzzer runs, here so that the tests run it too.

use bytes::BytesMut;

use super::{decode::Decoder, frame::Limits, packet::Version};

/// The body of a fuzz target. The first byte of `data` chooses the version, the rest is a stream; every
/// packet in it must survive being encoded and decoded again, in no more bytes than it came in.
pub fn fuzz_decode(data: &[u8]) {
    let Some((&choice, stream)) = data.split_first() else { return };
    let limits = Limits { max_packet_size: 1 << 16, ..Limits::default() };
    let mut decoder = match choice % 3 {
        0 => Decoder::server(limits),
        1 => Decoder::established(Version::V311, limits),
        _ => Decoder::established(Version::V5, limits),
    };
    let mut buf = BytesMut::from(stream);
    loop {
        let mut again = decoder.clone();
        let before = buf.len();
        let Ok(Some(packet)) = decoder.decode(&mut buf) else { return };
        let Some(version) = decoder.version() else { return };
        let mut out = BytesMut::new();
        assert_eq!(packet.encode(version, &mut out), Ok(()), "{packet:?}");
        assert_eq!(packet.encoded_len(version), Ok(out.len()), "{packet:?}");
        assert!(out.len() <= before - buf.len(), "{packet:?} grew");
        assert_eq!(again.decode(&mut out).as_ref(), Ok(&Some(packet)));
        assert!(out.is_empty());
    }
}

/// Breaks bytes in the ways that packets break. Seeded (xorshift64*): a failure is the same on every run.
#[derive(Debug)]
pub struct Mutator(u64);

impl Mutator {
    /// The seed is not 0.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }

    /// Breaks them in one place.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>) {
        const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x26, 0x0b, 0x23];
        if bytes.is_empty() {
            return;
        }
        let at = self.below(bytes.len());
        let (how, telling) = (self.below(6), TELLING.get(self.below(TELLING.len())).copied().unwrap_or(0));
        let bit = self.below(8);
        match (how, bytes.get_mut(at)) {
            (0, Some(byte)) => *byte ^= 1 << bit,
            (1, Some(byte)) => *byte = telling,
            (2, _) => bytes.truncate(at.max(1)),
            (3, _) => bytes.insert(at, telling),
            (4, _) => {
                let end = at + self.below(bytes.len() - at);
                let piece = bytes.get(at..end).unwrap_or_default().to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                bytes.remove(at);
                bytes.push(0);
            }
        }
    }
}
