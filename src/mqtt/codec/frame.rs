//! The fixed header: `[type: 4 bits][flags: 4 bits][remaining length: 1 to 4 bytes]`.
//!
//! What can be refused from these few bytes is refused here, before the body is waited for.

use super::error::DecodeError;

/// The largest value of a variable byte integer, and so of a packet's remaining length.
pub(super) const VARINT_MAX: u32 = 0x0fff_ffff;

/// What a peer may make us hold. Checked before anything is allocated for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest whole packet in bytes, fixed header included.
    pub max_packet_size: u32,
    /// Most user properties in one packet; a will's are counted apart from its CONNECT's. One costs 64
    /// bytes of memory for at least 5 on the wire.
    pub max_user_properties: usize,
    /// Most subscription identifiers in one PUBLISH.
    pub max_subscription_ids: usize,
    /// Most topic filters in one SUBSCRIBE or UNSUBSCRIBE, and most codes in one SUBACK or UNSUBACK.
    pub max_filters_per_packet: usize,
}

impl Default for Limits {
    /// 1 MiB packets, 64 user properties, 256 subscription identifiers, 1024 filters.
    fn default() -> Self {
        Self {
            max_packet_size: 1 << 20,
            max_user_properties: 64,
            max_subscription_ids: 256,
            max_filters_per_packet: 1024,
        }
    }
}

/// The kind of a packet; the discriminant is the number in the fixed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PacketType {
    /// Opens a session.
    Connect = 1,
    /// Answers CONNECT.
    ConnAck = 2,
    /// Carries a message.
    Publish = 3,
    /// Acknowledges QoS 1.
    PubAck = 4,
    /// First answer in QoS 2.
    PubRec = 5,
    /// Second step of the sender in QoS 2.
    PubRel = 6,
    /// Ends QoS 2.
    PubComp = 7,
    /// Asks for topics.
    Subscribe = 8,
    /// Answers SUBSCRIBE.
    SubAck = 9,
    /// Gives topics up.
    Unsubscribe = 10,
    /// Answers UNSUBSCRIBE.
    UnsubAck = 11,
    /// Shows that the client lives.
    PingReq = 12,
    /// Answers PINGREQ.
    PingResp = 13,
    /// Ends the connection.
    Disconnect = 14,
    /// Enhanced authentication, 5.0 alone.
    Auth = 15,
}

impl PacketType {
    const fn from_nibble(nibble: u8) -> Option<Self> {
        Some(match nibble {
            1 => Self::Connect,
            2 => Self::ConnAck,
            3 => Self::Publish,
            4 => Self::PubAck,
            5 => Self::PubRec,
            6 => Self::PubRel,
            7 => Self::PubComp,
            8 => Self::Subscribe,
            9 => Self::SubAck,
            10 => Self::Unsubscribe,
            11 => Self::UnsubAck,
            12 => Self::PingReq,
            13 => Self::PingResp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }

    /// The flags this type must have, or `None` for PUBLISH, where they mean something.
    pub(super) const fn fixed_flags(self) -> Option<u8> {
        match self {
            Self::Publish => None,
            Self::PubRel | Self::Subscribe | Self::Unsubscribe => Some(0b0010),
            _ => Some(0),
        }
    }

    pub(super) const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// The fixed header of a packet whose body may not have arrived yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameInfo {
    /// Type of the packet.
    pub packet_type: PacketType,
    /// Lower half of the first byte; validated for all types but PUBLISH.
    pub flags: u8,
    /// Bytes of the fixed header, 2 to 5.
    pub header_len: usize,
    /// Bytes of the whole packet, fixed header included; at most [`Limits::max_packet_size`].
    pub total_len: usize,
}

/// Reads the fixed header at the start of `bytes`; `None` means that more bytes are needed to know it.
///
/// # Errors
/// [`DecodeError::PacketType`], [`DecodeError::FixedHeaderFlags`], [`DecodeError::VariableByteInteger`] or
/// [`DecodeError::PacketTooLarge`], each as soon as the bytes show it.
#[inline]
pub fn peek_frame(bytes: &[u8], limits: &Limits) -> Result<Option<FrameInfo>, DecodeError> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    let packet_type = PacketType::from_nibble(first >> 4).ok_or(DecodeError::PacketType(first >> 4))?;
    let flags = first & 0x0f;
    // 3.1.1: [MQTT-2.2.2-2]; 5: [MQTT-2.1.3-1], [MQTT-3.14.1-1], [MQTT-3.15.1-1];
    // both: [MQTT-3.6.1-1], [MQTT-3.8.1-1], [MQTT-3.10.1-1].
    if packet_type.fixed_flags().is_some_and(|fixed| fixed != flags) {
        return Err(DecodeError::FixedHeaderFlags);
    }
    let Some((remaining, varint_len)) = read_varint(rest)? else { return Ok(None) };
    // At most 5 and 5 + VARINT_MAX: neither sum can overflow.
    let header_len = 1 + varint_len;
    let total_len = header_len + remaining as usize;
    if total_len > limits.max_packet_size as usize {
        return Err(DecodeError::PacketTooLarge { size: total_len, limit: limits.max_packet_size });
    }
    Ok(Some(FrameInfo { packet_type, flags, header_len, total_len }))
}

/// Reads a variable byte integer as (value, bytes used); `None` means that it goes on past `bytes`.
///
/// 3.1.1 does not forbid padding in so many words, but nobody who follows its encoding algorithm pads.
#[inline]
pub(super) fn read_varint(bytes: &[u8]) -> Result<Option<(u32, usize)>, DecodeError> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            // [MQTT-1.5.5-1] A last byte of zero could have been left out.
            let padded = byte == 0 && at > 0;
            return if padded { Err(DecodeError::VariableByteInteger) } else { Ok(Some((value, at + 1))) };
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(DecodeError::VariableByteInteger) }
}
