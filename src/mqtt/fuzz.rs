//! What a fuzzer runs on a whole connection, here so that the tests run it too.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;

use super::codec::{Decoder, Limits, Packet, Version};

/// Longer than any broker takes to end a connection whose peer has closed its side.
const WAIT: Duration = Duration::from_secs(20);

/// The body of a fuzz target: sends `data` to the broker at `address` and closes its side. The broker answers with whole
/// packets, CONNACK first and once, nothing after DISCONNECT, and ends. The first byte says in which pieces the rest is
/// sent. Blocks.
pub fn fuzz_connection(address: SocketAddr, data: &[u8]) {
    let Some((&pieces, data)) = data.split_first() else { return };
    let stream = TcpStream::connect(address);
    assert!(stream.is_ok(), "no broker at {address}");
    let Ok(mut stream) = stream else { return };
    let bounded = stream.set_read_timeout(Some(WAIT)).and(stream.set_write_timeout(Some(WAIT)));
    assert!(bounded.is_ok());
    for piece in data.chunks(usize::from(pieces).max(1) * 16) {
        // The broker may have ended it: what it said then is still to be read.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    stream.shutdown(Shutdown::Write).ok();
    let (mut answer, mut buffer) = (BytesMut::new(), vec![0; 64 << 10]);
    let reset = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break false,
            Ok(count) => answer.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) => {
                let late =
                    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                assert!(!late, "the connection does not end");
                break true;
            }
        }
    };
    check(data, answer, reset);
}

fn check(data: &[u8], mut answer: BytesMut, reset: bool) {
    let mut asked = Decoder::server(Limits::default());
    let connect = asked.decode(&mut BytesMut::from(data));
    // A peer whose version is not served is answered in one that it may know.
    let Some(version) = asked.version() else { return };
    let largest = match &connect {
        Ok(Some(Packet::Connect(connect))) if version == Version::V5 => {
            connect.properties.maximum_packet_size
        }
        _ => None,
    };
    let limits = Limits { max_packet_size: u32::MAX, ..Limits::default() };
    let mut decoder = Decoder::established(version, limits);
    let (mut first, mut ended) = (true, false);
    while !answer.is_empty() {
        let before = answer.len();
        let packet = match decoder.decode(&mut answer) {
            Ok(Some(packet)) => packet,
            // The end came while the answer was written.
            Ok(None) => return,
            Err(error) => return assert!(reset, "{error} in the answer to {data:02x?}"),
        };
        assert_eq!(first, matches!(packet, Packet::ConnAck(_)), "CONNACK first and once: {packet:?}");
        assert!(!ended, "{packet:?} after DISCONNECT");
        let len = before - answer.len();
        assert!(largest.is_none_or(|largest| len <= largest.get() as usize), "{len} bytes: {packet:?}");
        ended = matches!(packet, Packet::Disconnect(_));
        first = false;
    }
}
