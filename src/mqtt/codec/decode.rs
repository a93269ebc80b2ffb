//! Bytes to packets.

use bytes::{Buf, Bytes, BytesMut};
use bytestring::ByteString;
use smallvec::SmallVec;

use super::{
    error::DecodeError,
    frame::{FrameInfo, Limits, PacketType, peek_frame},
    packet::{
        Ack, Auth, ConnAck, Connect, Disconnect, Packet, Publish, Qos, RetainHandling, SubAck, Subscribe,
        SubscribeFilter, SubscribeOptions, UnsubAck, Unsubscribe, Version, Will,
    },
    property::{
        AuthProperties, ConnAckProperties, ConnectProperties, PublishProperties, ReadSet, WillProperties,
        read_set,
    },
    read::{Reader, scan},
    reason::ReasonCode,
};

/// Decodes what one peer sends. It keeps no bytes, only the version once it is known.
///
/// After an error the connection is to be closed; neither the decoder nor the buffer is of use then, except
/// that [`Decoder::version`] tells in which version to say why.
#[derive(Debug, Clone)]
pub struct Decoder {
    version: Option<Version>,
    limits: Limits,
}

impl Decoder {
    /// A server's decoder: the first packet must be CONNECT, which tells the version.
    #[must_use]
    pub const fn server(limits: Limits) -> Self {
        Self { version: None, limits }
    }

    /// A decoder for a connection whose CONNECT is already sent or read.
    #[must_use]
    pub const fn established(version: Version, limits: Limits) -> Self {
        Self { version: Some(version), limits }
    }

    /// The version, known once a CONNECT's protocol level was read, even if the CONNECT was then refused.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        self.version
    }

    /// The limits, to be raised once the peer has shown who it is.
    pub const fn limits_mut(&mut self) -> &mut Limits {
        &mut self.limits
    }

    /// Takes the next packet off the front of `buf`; `None` means that it is not there yet as a whole, and
    /// `buf` is as it was. The packet shares the buffer's memory.
    ///
    /// # Errors
    /// See [`DecodeError`]. What the fixed header shows is refused without waiting for the body.
    #[inline]
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        let Some(info) = self.peek(buf)? else { return Ok(None) };
        if buf.len() < info.total_len {
            return Ok(None);
        }
        let frame = buf.split_to(info.total_len).freeze();
        self.body(info, frame).map(Some)
    }

    /// Decodes one whole packet, for a caller that keeps the bytes to pass them on.
    ///
    /// # Errors
    /// As [`Decoder::decode`]; also [`DecodeError::Truncated`] and [`DecodeError::TrailingBytes`] when
    /// `frame` is not exactly one packet.
    #[inline]
    pub fn decode_frame(&mut self, frame: Bytes) -> Result<Packet, DecodeError> {
        let info = self.peek(&frame)?.ok_or(DecodeError::Truncated)?;
        match frame.len().cmp(&info.total_len) {
            std::cmp::Ordering::Less => Err(DecodeError::Truncated),
            std::cmp::Ordering::Greater => Err(DecodeError::TrailingBytes),
            std::cmp::Ordering::Equal => self.body(info, frame),
        }
    }

    #[inline]
    fn peek(&self, bytes: &[u8]) -> Result<Option<FrameInfo>, DecodeError> {
        // [MQTT-3.1.0-1] Seen in the first byte, before anything else of a stranger's packet is looked at.
        let is_connect = |first: &u8| first >> 4 == PacketType::Connect as u8;
        if self.version.is_none() && !bytes.first().is_none_or(is_connect) {
            return Err(DecodeError::FirstNotConnect);
        }
        peek_frame(bytes, &self.limits)
    }

    #[inline]
    fn body(&mut self, info: FrameInfo, mut frame: Bytes) -> Result<Packet, DecodeError> {
        frame.advance(info.header_len);
        let mut from = Reader::new(frame, &self.limits);
        let packet = match self.version {
            None => Packet::Connect(Box::new(connect(&mut from, &mut self.version)?)),
            Some(version) => packet(&mut from, info, version)?,
        };
        from.finish()?;
        Ok(packet)
    }
}

/// Every packet but the first of a server's connection.
#[inline]
fn packet(from: &mut Reader<'_>, info: FrameInfo, version: Version) -> Result<Packet, DecodeError> {
    let kind = info.packet_type;
    Ok(match kind {
        PacketType::Publish => Packet::Publish(publish(from, info.flags, version)?),
        // [MQTT-3.1.0-2]
        PacketType::Connect => return Err(DecodeError::SecondConnect),
        PacketType::ConnAck => Packet::ConnAck(Box::new(connack(from, version)?)),
        PacketType::PubAck => Packet::PubAck(ack(from, kind, version)?),
        PacketType::PubRec => Packet::PubRec(ack(from, kind, version)?),
        PacketType::PubRel => Packet::PubRel(ack(from, kind, version)?),
        PacketType::PubComp => Packet::PubComp(ack(from, kind, version)?),
        PacketType::Subscribe => Packet::Subscribe(subscribe(from, version)?),
        PacketType::SubAck => Packet::SubAck(SubAck {
            packet_id: from.packet_id()?,
            properties: properties(from, version)?,
            codes: codes(from, kind, version)?,
        }),
        PacketType::Unsubscribe => Packet::Unsubscribe(Unsubscribe {
            packet_id: from.packet_id()?,
            properties: properties(from, version)?,
            filters: entries(from, |from| from.topic_filter())?,
        }),
        PacketType::UnsubAck => Packet::UnsubAck(UnsubAck {
            packet_id: from.packet_id()?,
            properties: properties(from, version)?,
            codes: codes(from, kind, version)?,
        }),
        PacketType::PingReq => Packet::PingReq,
        PacketType::PingResp => Packet::PingResp,
        PacketType::Disconnect => {
            let (reason, properties) = tail(from, kind, version)?;
            Packet::Disconnect(Disconnect { reason, properties })
        }
        PacketType::Auth => auth(from, version)?,
    })
}

/// Properties where the version has them.
#[inline]
fn properties<T: ReadSet>(from: &mut Reader<'_>, version: Version) -> Result<Option<Box<T>>, DecodeError> {
    match version {
        Version::V311 => Ok(None),
        Version::V5 => read_set(from),
    }
}

fn connect(from: &mut Reader<'_>, known: &mut Option<Version>) -> Result<Connect, DecodeError> {
    let name = from.binary()?;
    let level = from.u8()?;
    // [MQTT-3.1.2-1], [MQTT-3.1.2-2]. MQTT 3.1, "MQIsdp" at level 3, is not served.
    let version = match (name.as_ref(), level) {
        (b"MQTT", _) => Version::from_level(level).ok_or(DecodeError::UnsupportedVersion { level })?,
        (b"MQIsdp", 3) => return Err(DecodeError::UnsupportedVersion { level }),
        _ => return Err(DecodeError::ProtocolName),
    };
    *known = Some(version);

    let flags = from.u8()?;
    let flag = |bit: u8| flags & (1 << bit) != 0;
    let (has_username, has_password, has_will) = (flag(7), flag(6), flag(2));
    // [MQTT-3.1.2-3]
    if flag(0) {
        return Err(DecodeError::ConnectReservedFlag);
    }
    // 3.1.1: [MQTT-3.1.2-14]; 5: [MQTT-3.1.2-12].
    let will_qos = Qos::from_u8(flags >> 3 & 3).ok_or(DecodeError::Qos)?;
    let will_retain = flag(5);
    // 3.1.1: [MQTT-3.1.2-11], [MQTT-3.1.2-13], [MQTT-3.1.2-15]; 5: [MQTT-3.1.2-11], [MQTT-3.1.2-13].
    if !has_will && (will_qos != Qos::AtMostOnce || will_retain) {
        return Err(DecodeError::WillFlags);
    }
    // 3.1.1: [MQTT-3.1.2-22]; 5 allows it.
    if version == Version::V311 && has_password && !has_username {
        return Err(DecodeError::PasswordWithoutUserName);
    }
    let keep_alive = from.u16()?;
    let properties: ConnectProperties = properties(from, version)?.map(|set| *set).unwrap_or_default();
    method_for(properties.authentication_method.as_ref(), properties.authentication_data.as_ref())?;

    // [MQTT-3.1.3-1] fixes the order; presence follows the flags, 3.1.1: [MQTT-3.1.2-18] to
    // [MQTT-3.1.2-21]; 5: [MQTT-3.1.2-16] to [MQTT-3.1.2-19]; both: [MQTT-3.1.2-9].
    Ok(Connect {
        version,
        clean_start: flag(1),
        keep_alive,
        client_id: from.string()?,
        will: has_will.then(|| will(from, version, will_qos, will_retain)).transpose()?,
        username: has_username.then(|| from.string()).transpose()?,
        password: has_password.then(|| from.binary()).transpose()?,
        properties,
    })
}

fn will(from: &mut Reader<'_>, version: Version, qos: Qos, retain: bool) -> Result<Will, DecodeError> {
    let properties: WillProperties = properties(from, version)?.map(|set| *set).unwrap_or_default();
    response_topic(properties.response_topic.as_ref())?;
    let topic = from.topic_name()?;
    // [MQTT-4.7.3-1]
    if topic.is_empty() {
        return Err(DecodeError::EmptyTopic);
    }
    Ok(Will { qos, retain, topic, payload: from.binary()?, properties })
}

fn connack(from: &mut Reader<'_>, version: Version) -> Result<ConnAck, DecodeError> {
    let flags = from.u8()?;
    // 5: [MQTT-3.2.2-1].
    if flags & !1 != 0 {
        return Err(DecodeError::ConnAckFlags);
    }
    let session_present = flags == 1;
    let reason = match version {
        Version::V311 => {
            let code = from.u8()?;
            ReasonCode::from_return_code(code).ok_or(DecodeError::ReasonCode(code))?
        }
        // 5: [MQTT-3.2.2-8].
        Version::V5 => from.reason(PacketType::ConnAck)?,
    };
    // 3.1.1: [MQTT-3.2.2-4]; 5: [MQTT-3.2.2-6].
    if session_present && reason != ReasonCode::Success {
        return Err(DecodeError::SessionPresentOnRefusal);
    }
    let properties: ConnAckProperties = properties(from, version)?.map(|set| *set).unwrap_or_default();
    method_for(properties.authentication_method.as_ref(), properties.authentication_data.as_ref())?;
    Ok(ConnAck { session_present, reason, properties })
}

#[inline]
fn publish(from: &mut Reader<'_>, flags: u8, version: Version) -> Result<Publish, DecodeError> {
    // [MQTT-3.3.1-4]
    let qos = Qos::from_u8(flags >> 1 & 3).ok_or(DecodeError::Qos)?;
    let dup = flags & 8 != 0;
    // [MQTT-3.3.1-2]
    if dup && qos == Qos::AtMostOnce {
        return Err(DecodeError::DupOnQos0);
    }
    let topic = from.topic_name()?;
    // 3.1.1: [MQTT-2.3.1-5]; 5: [MQTT-2.2.1-2].
    let packet_id = match qos {
        Qos::AtMostOnce => None,
        Qos::AtLeastOnce | Qos::ExactlyOnce => Some(from.packet_id()?),
    };
    let properties: Option<Box<PublishProperties>> = properties(from, version)?;
    let mut alias = None;
    if let Some(properties) = &properties {
        alias = properties.topic_alias;
        response_topic(properties.response_topic.as_ref())?;
    }
    // [MQTT-4.7.3-1]; 5 lets an alias stand in for the topic.
    if topic.is_empty() && alias.is_none() {
        return Err(DecodeError::EmptyTopic);
    }
    Ok(Publish { dup, qos, retain: flags & 1 != 0, topic, packet_id, properties, payload: from.rest() })
}

fn ack(from: &mut Reader<'_>, kind: PacketType, version: Version) -> Result<Ack, DecodeError> {
    let packet_id = from.packet_id()?;
    let (reason, properties) = tail(from, kind, version)?;
    Ok(Ack { packet_id, reason, properties })
}

/// `[reason][properties]`, either of which may be left out from the end: no reason is success, no property
/// length is no properties. AUTH leaves out both or neither.
fn tail<T: ReadSet>(
    from: &mut Reader<'_>,
    kind: PacketType,
    version: Version,
) -> Result<(ReasonCode, Option<Box<T>>), DecodeError> {
    if version == Version::V311 || from.is_empty() {
        return Ok((ReasonCode::Success, None));
    }
    // 5: [MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], [MQTT-3.7.2-1], [MQTT-3.14.2-1], [MQTT-3.15.2-1].
    let reason = from.reason(kind)?;
    if from.is_empty() && kind != PacketType::Auth {
        return Ok((reason, None));
    }
    Ok((reason, read_set(from)?))
}

fn auth(from: &mut Reader<'_>, version: Version) -> Result<Packet, DecodeError> {
    if version == Version::V311 {
        return Err(DecodeError::PacketType(PacketType::Auth as u8));
    }
    let bare = from.is_empty();
    let (reason, properties) = tail::<AuthProperties>(from, PacketType::Auth, version)?;
    // 5: [MQTT-4.12.0-5], but section 3.15.2.1 permits the bare form.
    let named = properties.as_ref().is_some_and(|set| set.authentication_method.is_some());
    if !bare && !named {
        return Err(DecodeError::NoAuthenticationMethod);
    }
    Ok(Packet::Auth(Auth { reason, properties }))
}

fn subscribe(from: &mut Reader<'_>, version: Version) -> Result<Subscribe, DecodeError> {
    Ok(Subscribe {
        packet_id: from.packet_id()?,
        properties: properties(from, version)?,
        filters: entries(from, |from| {
            let filter = from.topic_filter()?;
            let options = subscribe_options(from.u8()?, version)?;
            // 5: [MQTT-3.8.3-4].
            if options.no_local && filter.starts_with("$share/") {
                return Err(DecodeError::NoLocalOnShared);
            }
            Ok(SubscribeFilter { filter, options })
        })?,
    })
}

/// 3.1.1: `[000000][QoS: 2]`; 5: `[00][retain handling: 2][retain as published][no local][QoS: 2]`.
fn subscribe_options(bits: u8, version: Version) -> Result<SubscribeOptions, DecodeError> {
    let reserved = match version {
        Version::V311 => 0b1111_1100,
        Version::V5 => 0b1100_0000,
    };
    // 3.1.1: [MQTT-3-8.3-4]; 5: [MQTT-3.8.3-5].
    if bits & reserved != 0 {
        return Err(DecodeError::SubscriptionOptions);
    }
    Ok(SubscribeOptions {
        qos: Qos::from_u8(bits & 3).ok_or(DecodeError::SubscriptionQos)?,
        no_local: bits & 4 != 0,
        retain_as_published: bits & 8 != 0,
        retain_handling: match bits >> 4 {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DoNotSend,
            _ => return Err(DecodeError::RetainHandling),
        },
    })
}

/// The list that ends SUBSCRIBE and UNSUBSCRIBE: at least one entry, up to the end of the packet.
fn entries<T>(
    from: &mut Reader<'_>,
    mut read: impl FnMut(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let mut entries = Vec::new();
    while !from.is_empty() {
        if entries.len() >= from.limits.max_filters_per_packet {
            return Err(DecodeError::TooManyFilters);
        }
        entries.push(read(from)?);
    }
    // [MQTT-3.10.3-2]; 3.1.1: [MQTT-3.8.3-3]; 5: [MQTT-3.8.3-2].
    if entries.is_empty() { Err(DecodeError::EmptyPayload) } else { Ok(entries) }
}

/// The codes that end SUBACK and UNSUBACK, a byte each. UNSUBACK has none in 3.1.1.
fn codes(
    from: &mut Reader<'_>,
    kind: PacketType,
    version: Version,
) -> Result<SmallVec<[ReasonCode; 8]>, DecodeError> {
    let mut codes = SmallVec::new();
    if version == Version::V311 && kind == PacketType::UnsubAck {
        return Ok(codes);
    }
    while !from.is_empty() {
        if codes.len() >= from.limits.max_filters_per_packet {
            return Err(DecodeError::TooManyFilters);
        }
        // [MQTT-3.9.3-2]; 5: [MQTT-3.11.3-2].
        let code = from.reason(kind)?;
        // 3.1.1 knows one failure, 0x80.
        if version == Version::V311 && code > ReasonCode::UnspecifiedError {
            return Err(DecodeError::ReasonCode(code as u8));
        }
        codes.push(code);
    }
    if codes.is_empty() { Err(DecodeError::EmptyPayload) } else { Ok(codes) }
}

/// 5: section 3.1.2.11.10, no data without a method.
fn method_for(method: Option<&ByteString>, data: Option<&Bytes>) -> Result<(), DecodeError> {
    if data.is_some() && method.is_none() { Err(DecodeError::NoAuthenticationMethod) } else { Ok(()) }
}

fn response_topic(topic: Option<&ByteString>) -> Result<(), DecodeError> {
    match topic {
        // [MQTT-4.7.3-1]
        Some(topic) if topic.is_empty() => Err(DecodeError::EmptyTopic),
        // 5: [MQTT-3.3.2-14].
        Some(topic) if scan(topic).wildcard => Err(DecodeError::ResponseTopicWildcard),
        _ => Ok(()),
    }
}
