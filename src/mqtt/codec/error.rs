//! What can be wrong with a packet, the reason code to answer with, and the rule that says so.

use super::{property::PropertyId, reason::ReasonCode};

/// Why bytes were refused. The connection they came on is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Type 0, or AUTH in 3.1.1.
    #[error("reserved packet type {0}")]
    PacketType(u8),
    /// The fixed header's flags are not those of the packet type.
    #[error("wrong flags in the fixed header")]
    FixedHeaderFlags,
    /// A variable byte integer longer than four bytes, or longer than its value needs.
    #[error("bad variable byte integer")]
    VariableByteInteger,
    /// The packet is larger than the receiver takes; refused before its body is read.
    #[error("packet of {size} bytes, at most {limit} are taken")]
    PacketTooLarge {
        /// Bytes of the whole packet.
        size: usize,
        /// The limit it broke.
        limit: u32,
    },
    /// A field goes on past the end of its packet or property list.
    #[error("packet ends within a field")]
    Truncated,
    /// Bytes are left after the last field.
    #[error("bytes left over at the end of the packet")]
    TrailingBytes,
    /// The first packet is not CONNECT.
    #[error("first packet is not CONNECT")]
    FirstNotConnect,
    /// A CONNECT after the first packet.
    #[error("second CONNECT")]
    SecondConnect,
    /// A string is not UTF-8; surrogates are not.
    #[error("string is not UTF-8")]
    Utf8,
    /// A string holds U+0000.
    #[error("string holds U+0000")]
    NullCharacter,
    /// CONNECT names another protocol than MQTT.
    #[error("protocol name is not MQTT")]
    ProtocolName,
    /// CONNECT names a protocol level other than 4 and 5, or is that of MQTT 3.1. Up to level 4 the peer
    /// understands CONNACK with return code 0x01, above it CONNACK with reason 0x84.
    #[error("protocol level {level} is not served")]
    UnsupportedVersion {
        /// The level asked for.
        level: u8,
    },
    /// The reserved bit of the connect flags is set.
    #[error("reserved connect flag is set")]
    ConnectReservedFlag,
    /// Will QoS or will retain without a will.
    #[error("will QoS or retain without a will")]
    WillFlags,
    /// A password without a user name in 3.1.1.
    #[error("password without user name")]
    PasswordWithoutUserName,
    /// A reserved bit of CONNACK's flags is set.
    #[error("reserved CONNACK flag is set")]
    ConnAckFlags,
    /// A refusing CONNACK says that a session is present.
    #[error("session present in a refusal")]
    SessionPresentOnRefusal,
    /// QoS 3 in PUBLISH or a will.
    #[error("QoS 3")]
    Qos,
    /// DUP on QoS 0.
    #[error("DUP set on QoS 0")]
    DupOnQos0,
    /// A topic name with `+` or `#`.
    #[error("topic name holds a wildcard")]
    TopicWildcard,
    /// An empty topic name that no alias stands in for.
    #[error("empty topic name")]
    EmptyTopic,
    /// A response topic with `+` or `#`.
    #[error("response topic holds a wildcard")]
    ResponseTopicWildcard,
    /// Packet identifier 0.
    #[error("packet identifier is 0")]
    PacketIdZero,
    /// No filter in SUBSCRIBE or UNSUBSCRIBE, no code in SUBACK or UNSUBACK.
    #[error("no entry in the payload")]
    EmptyPayload,
    /// An empty topic filter.
    #[error("empty topic filter")]
    EmptyFilter,
    /// Reserved bits of the subscription options are set.
    #[error("reserved subscription option bits are set")]
    SubscriptionOptions,
    /// QoS 3 in subscription options.
    #[error("QoS 3 asked for in a subscription")]
    SubscriptionQos,
    /// Retain handling 3.
    #[error("retain handling is 3")]
    RetainHandling,
    /// No Local on a shared subscription.
    #[error("No Local on a shared subscription")]
    NoLocalOnShared,
    /// A code that is unknown or not listed for its packet.
    #[error("reason code 0x{0:02x} is not one for this packet")]
    ReasonCode(u8),
    /// An identifier that no property has.
    #[error("unknown property 0x{0:02x}")]
    UnknownProperty(u8),
    /// A property where it may not be.
    #[error("property {0:?} in a packet that may not have it")]
    PropertyNotAllowed(PropertyId),
    /// A property twice that may be there once.
    #[error("property {0:?} is there twice")]
    DuplicateProperty(PropertyId),
    /// A property with a value that it cannot have.
    #[error("property {0:?} has a value out of range")]
    PropertyValue(PropertyId),
    /// Authentication data, or an AUTH with properties, without an authentication method.
    #[error("authentication without a method")]
    NoAuthenticationMethod,
    /// More user properties than [`Limits`](super::Limits) has.
    #[error("too many user properties")]
    TooManyUserProperties,
    /// More subscription identifiers than [`Limits`](super::Limits) has.
    #[error("too many subscription identifiers")]
    TooManySubscriptionIds,
    /// More filters or codes than [`Limits`](super::Limits) has.
    #[error("too many entries in the payload")]
    TooManyFilters,
}

impl DecodeError {
    /// The code for a DISCONNECT, or for a CONNACK when it was CONNECT that was refused. A 3.1.1 peer gets
    /// no answer, except to [`DecodeError::UnsupportedVersion`].
    #[must_use]
    pub const fn reason_code(&self) -> ReasonCode {
        self.verdict().0
    }

    /// The rule that was broken: numbers of the standard, or its section where it gives none.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        self.verdict().1
    }

    const fn verdict(&self) -> (ReasonCode, &'static str) {
        use ReasonCode as R;
        const MALFORMED: R = R::MalformedPacket;
        const PROTOCOL: R = R::ProtocolError;
        match self {
            Self::PacketType(_) => (MALFORMED, "3.1.1: section 2.2.1; 5: section 2.1.2"),
            Self::FixedHeaderFlags => (MALFORMED, "3.1.1: [MQTT-2.2.2-2]; 5: [MQTT-2.1.3-1]"),
            Self::VariableByteInteger => (MALFORMED, "3.1.1: section 2.2.3; 5: [MQTT-1.5.5-1]"),
            Self::PacketTooLarge { .. } => (R::PacketTooLarge, "5: [MQTT-3.2.2-15], section 3.1.2.11.4"),
            Self::Truncated => (MALFORMED, "3.1.1: [MQTT-4.8.0-1]; 5: section 4.13.1"),
            Self::TrailingBytes => (MALFORMED, "3.1.1: [MQTT-4.8.0-1]; 5: section 4.13.1"),
            Self::FirstNotConnect => (PROTOCOL, "[MQTT-3.1.0-1]"),
            Self::SecondConnect => (PROTOCOL, "[MQTT-3.1.0-2]"),
            Self::Utf8 => (MALFORMED, "3.1.1: [MQTT-1.5.3-1]; 5: [MQTT-1.5.4-1]"),
            Self::NullCharacter => (MALFORMED, "3.1.1: [MQTT-1.5.3-2]; 5: [MQTT-1.5.4-2]"),
            Self::ProtocolName => (R::UnsupportedProtocolVersion, "[MQTT-3.1.2-1]"),
            Self::UnsupportedVersion { .. } => (R::UnsupportedProtocolVersion, "[MQTT-3.1.2-2]"),
            Self::ConnectReservedFlag => (MALFORMED, "[MQTT-3.1.2-3]"),
            Self::WillFlags => (MALFORMED, "3.1.1: [MQTT-3.1.2-11]; 5: [MQTT-3.1.2-11], [MQTT-3.1.2-13]"),
            Self::PasswordWithoutUserName => (MALFORMED, "3.1.1: [MQTT-3.1.2-22]"),
            Self::ConnAckFlags => (MALFORMED, "3.1.1: section 3.2.2.1; 5: [MQTT-3.2.2-1]"),
            Self::SessionPresentOnRefusal => (PROTOCOL, "3.1.1: [MQTT-3.2.2-4]; 5: [MQTT-3.2.2-6]"),
            Self::Qos => {
                (MALFORMED, "[MQTT-3.3.1-4]; will, 3.1.1: [MQTT-3.1.2-14]; will, 5: [MQTT-3.1.2-12]")
            }
            Self::DupOnQos0 => (MALFORMED, "[MQTT-3.3.1-2]"),
            Self::TopicWildcard => {
                (MALFORMED, "[MQTT-3.3.2-2]; will, 3.1.1: [MQTT-4.7.1-1]; 5: [MQTT-4.7.0-1]")
            }
            Self::EmptyTopic => (PROTOCOL, "[MQTT-4.7.3-1]"),
            Self::ResponseTopicWildcard => (PROTOCOL, "5: [MQTT-3.3.2-14]"),
            Self::PacketIdZero => (PROTOCOL, "3.1.1: [MQTT-2.3.1-1]; 5: [MQTT-2.2.1-3], [MQTT-2.2.1-4]"),
            Self::EmptyPayload => (PROTOCOL, "[MQTT-3.10.3-2]; 3.1.1: [MQTT-3.8.3-3]; 5: [MQTT-3.8.3-2]"),
            Self::EmptyFilter => (MALFORMED, "[MQTT-4.7.3-1]"),
            Self::SubscriptionOptions => (MALFORMED, "3.1.1: [MQTT-3-8.3-4]; 5: [MQTT-3.8.3-5]"),
            Self::SubscriptionQos => (PROTOCOL, "3.1.1: [MQTT-3-8.3-4]; 5: section 3.8.3.1"),
            Self::RetainHandling => (PROTOCOL, "5: section 3.8.3.1"),
            Self::NoLocalOnShared => (PROTOCOL, "5: [MQTT-3.8.3-4]"),
            Self::ReasonCode(_) => (
                PROTOCOL,
                "3.1.1: section 3.2.2.3, [MQTT-3.9.3-2]; 5: [MQTT-3.2.2-8], [MQTT-3.4.2-1], [MQTT-3.5.2-1], \
                 [MQTT-3.6.2-1], [MQTT-3.7.2-1], [MQTT-3.9.3-2], [MQTT-3.11.3-2], [MQTT-3.14.2-1], [MQTT-3.15.2-1]",
            ),
            Self::UnknownProperty(_) | Self::PropertyNotAllowed(_) => (MALFORMED, "5: section 2.2.2.2"),
            Self::DuplicateProperty(_) => (PROTOCOL, "5: section 2.2.2.2"),
            Self::PropertyValue(PropertyId::TopicAlias) => (R::TopicAliasInvalid, "5: [MQTT-3.3.2-8]"),
            Self::PropertyValue(_) => (PROTOCOL, "5: section 2.2.2.2"),
            Self::NoAuthenticationMethod => (PROTOCOL, "5: section 3.1.2.11.10, [MQTT-4.12.0-5]"),
            Self::TooManyUserProperties | Self::TooManySubscriptionIds | Self::TooManyFilters => {
                (R::QuotaExceeded, "5: section 4.13.2")
            }
        }
    }
}

/// Why a packet cannot be written. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A string or binary field of more than 65535 bytes.
    #[error("field of {0} bytes, at most 65535 fit")]
    FieldTooLong(usize),
    /// More than 268435455 bytes after the fixed header.
    #[error("packet does not fit a remaining length")]
    PacketTooLarge,
    /// An empty topic that no alias stands in for, or an empty filter.
    #[error("empty topic")]
    EmptyTopic,
    /// A packet identifier on QoS 0, or none above it.
    #[error("packet identifier does not fit the QoS")]
    PacketId,
    /// DUP on QoS 0.
    #[error("DUP set on QoS 0")]
    DupOnQos0,
    /// A list that must have an entry has none.
    #[error("no entry in the payload")]
    EmptyPayload,
    /// The reason code is not listed for the packet, or CONNACK of 3.1.1 has no return code for it.
    #[error("{0} may not be said in this packet")]
    ReasonCode(ReasonCode),
    /// A refusing CONNACK that says that a session is present.
    #[error("session present in a refusal")]
    SessionPresentOnRefusal,
    /// 3.1.1 cannot say it, and leaving it out would say something else: a failed acknowledgement, a
    /// DISCONNECT with a reason, subscription options, a password alone, AUTH.
    #[error("not to be said in MQTT 3.1.1")]
    NotInVersion,
}
