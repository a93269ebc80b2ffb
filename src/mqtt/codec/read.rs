//! A cursor over one packet's bytes. Every read is checked; none copies.

use std::num::NonZeroU16;

use bytes::{Buf, Bytes};
use bytestring::ByteString;

use super::{
    error::DecodeError,
    frame::{Limits, PacketType, read_varint},
    reason::ReasonCode,
};

pub(super) struct Reader<'a> {
    bytes: Bytes,
    pub(super) limits: &'a Limits,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: Bytes, limits: &'a Limits) -> Self {
        Self { bytes, limits }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    pub(super) fn finish(self) -> Result<(), DecodeError> {
        if self.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes) }
    }

    fn take(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        if len > self.bytes.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(self.bytes.split_to(len))
    }

    /// A reader over the next `len` bytes alone.
    pub(super) fn section(&mut self, len: u32) -> Result<Self, DecodeError> {
        Ok(Self { bytes: self.take(len as usize)?, limits: self.limits })
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.bytes.try_get_u8().map_err(|_| DecodeError::Truncated)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.bytes.try_get_u16().map_err(|_| DecodeError::Truncated)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.bytes.try_get_u32().map_err(|_| DecodeError::Truncated)
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u32, DecodeError> {
        let (value, used) = read_varint(&self.bytes)?.ok_or(DecodeError::Truncated)?;
        self.bytes.advance(used);
        Ok(value)
    }

    /// 3.1.1: [MQTT-2.3.1-1]; 5: [MQTT-2.2.1-3], [MQTT-2.2.1-4].
    #[inline]
    pub(super) fn packet_id(&mut self) -> Result<NonZeroU16, DecodeError> {
        NonZeroU16::new(self.u16()?).ok_or(DecodeError::PacketIdZero)
    }

    #[inline]
    pub(super) fn binary(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// 3.1.1: [MQTT-1.5.3-1]; 5: [MQTT-1.5.4-1]. A leading U+FEFF stays: 3.1.1 [MQTT-1.5.3-3], 5 [MQTT-1.5.4-3].
    #[inline]
    fn utf8(&mut self) -> Result<ByteString, DecodeError> {
        ByteString::try_from(self.binary()?).map_err(|_| DecodeError::Utf8)
    }

    pub(super) fn string(&mut self) -> Result<ByteString, DecodeError> {
        let string = self.utf8()?;
        // 3.1.1: [MQTT-1.5.3-2]; 5: [MQTT-1.5.4-2], [MQTT-1.5.7-1].
        if scan(&string).null { Err(DecodeError::NullCharacter) } else { Ok(string) }
    }

    /// A topic name; it may be empty, which is for the caller to judge.
    #[inline]
    pub(super) fn topic_name(&mut self) -> Result<ByteString, DecodeError> {
        let topic = self.utf8()?;
        let found = scan(&topic);
        // 3.1.1: [MQTT-4.7.3-2]; 5: [MQTT-4.7.3-2].
        if found.null {
            return Err(DecodeError::NullCharacter);
        }
        // [MQTT-3.3.2-2]
        if found.wildcard { Err(DecodeError::TopicWildcard) } else { Ok(topic) }
    }

    pub(super) fn topic_filter(&mut self) -> Result<ByteString, DecodeError> {
        let filter = self.string()?;
        // [MQTT-4.7.3-1]
        if filter.is_empty() { Err(DecodeError::EmptyFilter) } else { Ok(filter) }
    }

    /// A reason code that 5.0 lists for `packet`.
    pub(super) fn reason(&mut self, packet: PacketType) -> Result<ReasonCode, DecodeError> {
        let code = self.u8()?;
        ReasonCode::from_u8(code)
            .filter(|reason| reason.permitted_in(packet))
            .ok_or(DecodeError::ReasonCode(code))
    }
}

pub(super) struct Found {
    pub(super) null: bool,
    pub(super) wildcard: bool,
}

/// Looks at every byte without leaving early, so that the compiler can take many at once.
#[inline]
pub(super) fn scan(text: &str) -> Found {
    text.bytes().fold(Found { null: false, wildcard: false }, |found, byte| Found {
        null: found.null | (byte == 0),
        wildcard: found.wildcard | (byte == b'+') | (byte == b'#'),
    })
}
