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
