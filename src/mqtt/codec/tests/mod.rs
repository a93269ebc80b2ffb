//! Tests of the codec: rules one by one, round trips and mutations. What other codecs say is in `tests/it/mqtt/differential`.

mod mutate;
mod packets;
mod roundtrip;
mod rules;

use bytes::{BufMut, BytesMut};

use super::*;

/// Hex digits, spaces ignored.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).expect("hex") as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A packet of this first byte and body, short enough for a remaining length of one byte.
fn frame(first: u8, body: &str) -> BytesMut {
    let body = hex(body);
    let mut out = BytesMut::new();
    out.put_u8(first);
    out.put_u8(u8::try_from(body.len()).ok().filter(|len| *len < 0x80).expect("short"));
    out.put_slice(&body);
    out
}

/// The decoder that can read a packet of this version.
fn decoder_for(packet: &Packet, version: Version) -> Decoder {
    match packet {
        Packet::Connect(_) => Decoder::server(Limits::default()),
        _ => Decoder::established(version, Limits::default()),
    }
}

fn encoded(packet: &Packet, version: Version) -> BytesMut {
    let mut out = BytesMut::new();
    packet.encode(version, &mut out).expect("valid packet");
    out
}
