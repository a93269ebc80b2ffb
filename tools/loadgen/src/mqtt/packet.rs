//! Packets of MQTT 3.1.1, as few as the generator writes and reads.

use anyhow::{Result, ensure};
use bytes::{BufMut, BytesMut};

pub fn put_len(b: &mut BytesMut, mut n: usize) {
    loop {
        let d = (n % 128) as u8;
        n /= 128;
        b.put_u8(if n > 0 { d | 0x80 } else { d });
        if n == 0 {
            return;
        }
    }
}

pub fn put_str(b: &mut BytesMut, s: &str) {
    b.put_u16(s.len() as u16);
    b.put_slice(s.as_bytes());
}

pub fn put_connect(b: &mut BytesMut, id: &str, clean: bool, keepalive: u16) {
    b.put_u8(0x10);
    put_len(b, 10 + 2 + id.len());
    put_str(b, "MQTT");
    b.put_u8(4);
    b.put_u8(if clean { 2 } else { 0 });
    b.put_u16(keepalive);
    put_str(b, id);
}

pub fn put_subscribe(b: &mut BytesMut, pid: u16, filters: &[String], qos: u8) {
    b.put_u8(0x82);
    put_len(b, 2 + filters.iter().map(|f| f.len() + 3).sum::<usize>());
    b.put_u16(pid);
    for f in filters {
        put_str(b, f);
        b.put_u8(qos);
    }
}

#[inline]
pub fn put_ack(b: &mut BytesMut, first: u8, pid: u16) {
    b.put_slice(&[first, 2, (pid >> 8) as u8, pid as u8]);
}

/// (first byte, header length, body length) of the packet at the start of `b`, once complete.
#[inline]
pub fn frame(b: &[u8]) -> Result<Option<(u8, usize, usize)>> {
    if b.len() < 2 {
        return Ok(None);
    }
    let (mut n, mut shift, mut i) = (0usize, 0, 1);
    loop {
        let Some(d) = b.get(i) else { return Ok(None) };
        n |= ((d & 0x7f) as usize) << shift;
        i += 1;
        if d & 0x80 == 0 {
            break;
        }
        shift += 7;
        ensure!(shift <= 21, "bad remaining length");
    }
    Ok((b.len() >= i + n).then_some((b[0], i, n)))
}
