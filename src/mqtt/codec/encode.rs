//! Packets to bytes.
//!
//! A packet's body is described once, against a [`Sink`]; it runs a first time over a counter, which finds
//! the length and everything that does not fit, and a second time over the buffer. So lengths cannot
//! disagree with what is written, and nothing is written of a packet that is refused.

use bytes::{BufMut, BytesMut};

use super::{
    error::EncodeError,
    frame::{PacketType, VARINT_MAX},
    packet::{Ack, ConnAck, Connect, Packet, SubAck, SubscribeOptions, UnsubAck, Version, Will},
    property::WriteSet,
    publish::PublishRef,
    reason::ReasonCode,
};

impl Packet {
    /// Appends the packet to `out`. CONNECT goes in its own version, all others in `version`; properties
    /// are left out in 3.1.1.
    ///
    /// Strings are taken to be what a decoder accepts, topics without wildcards or U+0000; only what would
    /// break the packet's structure is checked.
    ///
    /// # Errors
    /// See [`EncodeError`]; `out` is then as it was.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        encode(self, version, out)
    }

    /// Bytes that [`Packet::encode`] would append, to be held against the receiver's Maximum Packet Size
    /// [5: MQTT-3.1.2-24].
    ///
    /// # Errors
    /// Those of [`Packet::encode`].
    pub fn encoded_len(&self, version: Version) -> Result<usize, EncodeError> {
        encoded_len(self, version)
    }
}

/// Where bytes go: a buffer, or a count of them.
pub(super) trait Sink {
    fn bytes(&mut self, bytes: &[u8]);

    #[inline]
    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    #[inline]
    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    #[inline]
    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    /// [MQTT-1.5.5-1] in the fewest bytes.
    #[inline]
    fn varint(&mut self, mut value: u32) -> Result<(), EncodeError> {
        if value > VARINT_MAX {
            return Err(EncodeError::PacketTooLarge);
        }
        while value > 0x7f {
            self.u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.u8(value as u8);
        Ok(())
    }

    /// A string or binary field, `[length: u16][bytes]`.
    #[inline]
    fn field(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.u16(u16::try_from(bytes.len()).map_err(|_| EncodeError::FieldTooLong(bytes.len()))?);
        self.bytes(bytes);
        Ok(())
    }
}

impl Sink for BytesMut {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.put_slice(bytes);
    }
}

/// Counts; saturating, so that no input can make it wrap into something that fits.
#[derive(Default)]
struct Count(usize);

impl Count {
    fn remaining_length(self) -> Result<u32, EncodeError> {
        u32::try_from(self.0).ok().filter(|len| *len <= VARINT_MAX).ok_or(EncodeError::PacketTooLarge)
    }
}

impl Sink for Count {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 = self.0.saturating_add(bytes.len());
    }
}

/// A packet without its fixed header's length.
pub(super) trait Body {
    fn first_byte(&self) -> u8;
    fn write<S: Sink>(&self, version: Version, to: &mut S) -> Result<(), EncodeError>;
}

#[inline]
pub(super) fn encode<B: Body>(body: &B, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
    let mut count = Count::default();
    body.write(version, &mut count)?;
    let len = count.remaining_length()?;
    out.reserve(len as usize + 5);
    out.put_u8(body.first_byte());
    out.varint(len)?;
    body.write(version, out)
}

/// A packet whose last `left_out` bytes are sent from elsewhere.
pub(super) fn encode_head<B: Body>(
    body: &B,
    left_out: usize,
    version: Version,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    let mut count = Count::default();
    body.write(version, &mut count)?;
    let here = count.0;
    let len = Count(here.saturating_add(left_out)).remaining_length()?;
    out.reserve(here + 5);
    out.put_u8(body.first_byte());
    out.varint(len)?;
    body.write(version, out)
}

#[inline]
pub(super) fn encoded_len<B: Body>(body: &B, version: Version) -> Result<usize, EncodeError> {
    let mut count = Count::default();
    body.write(version, &mut count)?;
    let len = count.remaining_length()?;
    let mut header = Count(1);
    header.varint(len)?;
    Ok(header.0 + len as usize)
}

/// A property list with its length, where the version has them.
#[inline]
pub(super) fn write_set<T: WriteSet, S: Sink>(
    set: &T,
    version: Version,
    to: &mut S,
) -> Result<(), EncodeError> {
    if version == Version::V311 {
        return Ok(());
    }
    let mut count = Count::default();
    set.write_set(&mut count)?;
    to.varint(count.remaining_length()?)?;
    set.write_set(to)
}

impl<T: WriteSet> WriteSet for Option<Box<T>> {
    fn write_set<S: Sink>(&self, to: &mut S) -> Result<(), EncodeError> {
        self.as_ref().map_or(Ok(()), |set| set.write_set(to))
    }
}

impl Body for Packet {
    fn first_byte(&self) -> u8 {
        match self {
            Self::Publish(publish) => PublishRef::from(publish).first_byte(),
            other => {
                let kind = other.packet_type();
                (kind as u8) << 4 | kind.fixed_flags().unwrap_or(0)
            }
        }
    }

    fn write<S: Sink>(&self, version: Version, to: &mut S) -> Result<(), EncodeError> {
        let kind = self.packet_type();
        match self {
            Self::Connect(packet) => connect(packet, to),
            Self::ConnAck(packet) => connack(packet, version, to),
            Self::Publish(packet) => PublishRef::from(packet).write(version, to),
            Self::PubAck(packet) | Self::PubRec(packet) | Self::PubRel(packet) | Self::PubComp(packet) => {
                ack(packet, kind, version, to)
            }
            Self::Subscribe(packet) => {
                to.u16(packet.packet_id.get());
                write_set(&packet.properties, version, to)?;
                for entry in not_empty(&packet.filters)? {
                    topic(&entry.filter, to)?;
                    to.u8(subscribe_options(entry.options, version)?);
                }
                Ok(())
            }
            Self::Unsubscribe(packet) => {
                to.u16(packet.packet_id.get());
                write_set(&packet.properties, version, to)?;
                not_empty(&packet.filters)?.iter().try_for_each(|filter| topic(filter, to))
            }
            Self::SubAck(SubAck { packet_id, properties, codes })
            | Self::UnsubAck(UnsubAck { packet_id, properties, codes }) => {
                to.u16(packet_id.get());
                write_set(properties, version, to)?;
                write_codes(codes, kind, version, to)
            }
            Self::PingReq | Self::PingResp => Ok(()),
            Self::Disconnect(packet) if version == Version::V311 => match packet.reason {
                ReasonCode::Success => Ok(()),
                _ => Err(EncodeError::NotInVersion),
            },
            Self::Disconnect(packet) => tail(packet.reason, &packet.properties, kind, to),
            Self::Auth(_) if version == Version::V311 => Err(EncodeError::NotInVersion),
            Self::Auth(packet) => tail(packet.reason, &packet.properties, kind, to),
        }
    }
}

fn connect<S: Sink>(packet: &Connect, to: &mut S) -> Result<(), EncodeError> {
    let Connect { version, clean_start, keep_alive, client_id, will, username, password, properties } =
        packet;
    // 3.1.1: [MQTT-3.1.2-22].
    if *version == Version::V311 && password.is_some() && username.is_none() {
        return Err(EncodeError::NotInVersion);
    }
    to.field(b"MQTT")?;
    to.u8(version.level());
    let will_flags =
        will.as_ref().map_or(0, |will| u8::from(will.retain) << 5 | (will.qos as u8) << 3 | 1 << 2);
    to.u8(u8::from(username.is_some()) << 7
        | u8::from(password.is_some()) << 6
        | will_flags
        | u8::from(*clean_start) << 1);
    to.u16(*keep_alive);
    write_set(properties, *version, to)?;
    to.field(client_id.as_bytes())?;
    if let Some(Will { topic: name, payload, properties, .. }) = will {
        write_set(properties, *version, to)?;
        topic(name, to)?;
        to.field(payload)?;
    }
    if let Some(username) = username {
        to.field(username.as_bytes())?;
    }
    password.as_ref().map_or(Ok(()), |password| to.field(password))
}

fn connack<S: Sink>(packet: &ConnAck, version: Version, to: &mut S) -> Result<(), EncodeError> {
    let ConnAck { session_present, reason, properties } = packet;
    // 3.1.1: [MQTT-3.2.2-4]; 5: [MQTT-3.2.2-6].
    if *session_present && *reason != ReasonCode::Success {
        return Err(EncodeError::SessionPresentOnRefusal);
    }
    to.u8(u8::from(*session_present));
    match version {
        Version::V311 => to.u8(reason.to_return_code().ok_or(EncodeError::ReasonCode(*reason))?),
        Version::V5 => to.u8(permitted(*reason, PacketType::ConnAck)?),
    }
    write_set(properties, version, to)
}

fn ack<S: Sink>(packet: &Ack, kind: PacketType, version: Version, to: &mut S) -> Result<(), EncodeError> {
    to.u16(packet.packet_id.get());
    match version {
        // Without its reason a failed PUBACK or PUBREC would say that the message was taken. PUBREL and
        // PUBCOMP end the exchange whether the identifier was found or not.
        Version::V311 if matches!(kind, PacketType::PubAck | PacketType::PubRec) => said(packet.reason),
        Version::V311 => Ok(()),
        Version::V5 => tail(packet.reason, &packet.properties, kind, to),
    }
}

/// `[reason][properties]` of 5.0 in the shortest form: nothing for bare success, no property length without
/// properties. AUTH leaves out both or neither.
fn tail<T: WriteSet, S: Sink>(
    reason: ReasonCode,
    properties: &Option<Box<T>>,
    kind: PacketType,
    to: &mut S,
) -> Result<(), EncodeError> {
    let code = permitted(reason, kind)?;
    let mut count = Count::default();
    properties.write_set(&mut count)?;
    let bare = count.0 == 0;
    if bare && reason == ReasonCode::Success {
        return Ok(());
    }
    to.u8(code);
    if bare && kind != PacketType::Auth { Ok(()) } else { write_set(properties, Version::V5, to) }
}

fn write_codes<S: Sink>(
    codes: &[ReasonCode],
    kind: PacketType,
    version: Version,
    to: &mut S,
) -> Result<(), EncodeError> {
    if version == Version::V311 && kind == PacketType::UnsubAck {
        return codes.iter().try_for_each(|code| said(*code));
    }
    for &code in not_empty(codes)? {
        let code = permitted(code, kind)?;
        // 3.1.1: [MQTT-3.9.3-2] has one failure.
        to.u8(if version == Version::V311 { code.min(ReasonCode::UnspecifiedError as u8) } else { code });
    }
    Ok(())
}

fn subscribe_options(options: SubscribeOptions, version: Version) -> Result<u8, EncodeError> {
    let SubscribeOptions { qos, no_local, retain_as_published, retain_handling } = options;
    let bits = (retain_handling as u8) << 4
        | u8::from(retain_as_published) << 3
        | u8::from(no_local) << 2
        | qos as u8;
    if version == Version::V311 && bits != qos as u8 { Err(EncodeError::NotInVersion) } else { Ok(bits) }
}

/// [MQTT-4.7.3-1]
fn topic<S: Sink>(topic: &str, to: &mut S) -> Result<(), EncodeError> {
    if topic.is_empty() { Err(EncodeError::EmptyTopic) } else { to.field(topic.as_bytes()) }
}

fn not_empty<T>(entries: &[T]) -> Result<&[T], EncodeError> {
    if entries.is_empty() { Err(EncodeError::EmptyPayload) } else { Ok(entries) }
}

/// 5: [MQTT-3.2.2-8], [MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], [MQTT-3.7.2-1], [MQTT-3.9.3-2],
/// [MQTT-3.11.3-2], [MQTT-3.14.2-1], [MQTT-3.15.2-1].
fn permitted(reason: ReasonCode, packet: PacketType) -> Result<u8, EncodeError> {
    if reason.permitted_in(packet) { Ok(reason as u8) } else { Err(EncodeError::ReasonCode(reason)) }
}

/// What 3.1.1 says by an acknowledgement without a code.
fn said(reason: ReasonCode) -> Result<(), EncodeError> {
    if reason.is_failure() { Err(EncodeError::NotInVersion) } else { Ok(()) }
}
