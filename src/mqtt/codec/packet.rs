//! The packets, the same for both versions.
//!
//! A packet moves from reader to state machine by value, so it is kept small: properties other than those
//! of CONNECT and CONNACK sit behind a pointer that is null when there are none.

use std::num::NonZeroU16;

use bytes::Bytes;
use bytestring::ByteString;
use smallvec::SmallVec;

use super::{
    frame::PacketType,
    property::{
        AckProperties, AuthProperties, ConnAckProperties, ConnectProperties, DisconnectProperties,
        PublishProperties, SubscribeProperties, UnsubscribeProperties, WillProperties,
    },
    reason::ReasonCode,
};

/// The protocol versions that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V311,
    /// MQTT 5.0, protocol level 5.
    V5,
}

impl Version {
    /// The protocol level in CONNECT.
    #[must_use]
    pub const fn level(self) -> u8 {
        match self {
            Self::V311 => 4,
            Self::V5 => 5,
        }
    }

    pub(super) const fn from_level(level: u8) -> Option<Self> {
        match level {
            4 => Some(Self::V311),
            5 => Some(Self::V5),
            _ => None,
        }
    }
}

/// Quality of service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Qos {
    /// QoS 0.
    #[default]
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

impl Qos {
    /// The QoS with this number; there is no 3.
    #[must_use]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }

    /// SUBACK's code for granting it.
    #[must_use]
    pub const fn granted(self) -> ReasonCode {
        match self {
            Self::AtMostOnce => ReasonCode::Success,
            Self::AtLeastOnce => ReasonCode::GrantedQos1,
            Self::ExactlyOnce => ReasonCode::GrantedQos2,
        }
    }
}

/// Any MQTT control packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Opens a session.
    Connect(Box<Connect>),
    /// Answers CONNECT.
    ConnAck(Box<ConnAck>),
    /// Carries a message.
    Publish(Publish),
    /// Acknowledges a PUBLISH at QoS 1.
    PubAck(Ack),
    /// Has taken a PUBLISH at QoS 2.
    PubRec(Ack),
    /// Gives the identifier of a PUBLISH at QoS 2 up.
    PubRel(Ack),
    /// Ends a delivery at QoS 2.
    PubComp(Ack),
    /// Asks for topics.
    Subscribe(Subscribe),
    /// Answers SUBSCRIBE.
    SubAck(SubAck),
    /// Gives topics up.
    Unsubscribe(Unsubscribe),
    /// Answers UNSUBSCRIBE.
    UnsubAck(UnsubAck),
    /// Shows that the client lives.
    PingReq,
    /// Answers PINGREQ.
    PingResp,
    /// Ends the connection.
    Disconnect(Disconnect),
    /// A step of enhanced authentication; 5.0 alone.
    Auth(Auth),
}

impl Packet {
    /// The packet's type.
    #[must_use]
    pub const fn packet_type(&self) -> PacketType {
        match self {
            Self::Connect(_) => PacketType::Connect,
            Self::ConnAck(_) => PacketType::ConnAck,
            Self::Publish(_) => PacketType::Publish,
            Self::PubAck(_) => PacketType::PubAck,
            Self::PubRec(_) => PacketType::PubRec,
            Self::PubRel(_) => PacketType::PubRel,
            Self::PubComp(_) => PacketType::PubComp,
            Self::Subscribe(_) => PacketType::Subscribe,
            Self::SubAck(_) => PacketType::SubAck,
            Self::Unsubscribe(_) => PacketType::Unsubscribe,
            Self::UnsubAck(_) => PacketType::UnsubAck,
            Self::PingReq => PacketType::PingReq,
            Self::PingResp => PacketType::PingResp,
            Self::Disconnect(_) => PacketType::Disconnect,
            Self::Auth(_) => PacketType::Auth,
        }
    }

    /// Drops reason string and user properties from an answer: what a sender does when the packet would
    /// otherwise be over the receiver's Maximum Packet Size, or, except for CONNACK and DISCONNECT, when
    /// the client did not ask for problem information [5: MQTT-3.1.2-29]. PUBLISH and requests stay as
    /// they are.
    pub fn omit_diagnostics(&mut self) {
        // 5: [MQTT-3.2.2-19], [MQTT-3.2.2-20], [MQTT-3.4.2-2], [MQTT-3.4.2-3], [MQTT-3.5.2-2],
        // [MQTT-3.5.2-3], [MQTT-3.6.2-2], [MQTT-3.6.2-3], [MQTT-3.7.2-2], [MQTT-3.7.2-3], [MQTT-3.9.2-1],
        // [MQTT-3.9.2-2], [MQTT-3.11.2-1], [MQTT-3.11.2-2], [MQTT-3.14.2-3], [MQTT-3.14.2-4],
        // [MQTT-3.15.2-2], [MQTT-3.15.2-3].
        match self {
            Self::ConnAck(packet) => {
                packet.properties.reason_string = None;
                packet.properties.user_properties.clear();
            }
            Self::PubAck(Ack { properties, .. })
            | Self::PubRec(Ack { properties, .. })
            | Self::PubRel(Ack { properties, .. })
            | Self::PubComp(Ack { properties, .. })
            | Self::SubAck(SubAck { properties, .. })
            | Self::UnsubAck(UnsubAck { properties, .. }) => *properties = None,
            Self::Disconnect(Disconnect { properties, .. }) => {
                if let Some(set) = properties {
                    set.reason_string = None;
                    set.user_properties.clear();
                }
                properties.take_if(|set| **set == DisconnectProperties::default());
            }
            // A method is always left.
            Self::Auth(Auth { properties: Some(set), .. }) => {
                set.reason_string = None;
                set.user_properties.clear();
            }
            _ => {}
        }
    }
}

/// CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// The version this connection speaks; it decides how the packet itself is encoded.
    pub version: Version,
    /// Clean Start; in 3.1.1 CleanSession.
    pub clean_start: bool,
    /// Keep alive in seconds, 0 for none.
    pub keep_alive: u16,
    /// Client identifier; empty asks the server for one.
    pub client_id: ByteString,
    /// What to publish when the connection is lost.
    pub will: Option<Will>,
    /// User name.
    pub username: Option<ByteString>,
    /// Password; in 3.1.1 never without a user name.
    pub password: Option<Bytes>,
    /// Properties.
    pub properties: ConnectProperties,
}

/// A will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// QoS to publish at.
    pub qos: Qos,
    /// Whether to publish as a retained message.
    pub retain: bool,
    /// Topic name, not empty, without wildcards.
    pub topic: ByteString,
    /// Payload, at most 65535 bytes.
    pub payload: Bytes,
    /// Properties of the will.
    pub properties: WillProperties,
}

/// CONNACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnAck {
    /// Whether the server resumes a session; false in a refusal.
    pub session_present: bool,
    /// Outcome. In 3.1.1 it goes as return code, see [`ReasonCode::to_return_code`].
    pub reason: ReasonCode,
    /// Properties.
    pub properties: ConnAckProperties,
}

/// PUBLISH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Whether this is a repetition; false at QoS 0.
    pub dup: bool,
    /// QoS.
    pub qos: Qos,
    /// Retain.
    pub retain: bool,
    /// Topic name without wildcards; empty only beside a topic alias.
    pub topic: ByteString,
    /// Packet identifier, exactly above QoS 0.
    pub packet_id: Option<NonZeroU16>,
    /// Properties, `None` when there are none.
    pub properties: Option<Box<PublishProperties>>,
    /// Payload.
    pub payload: Bytes,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Identifier of the PUBLISH it is about.
    pub packet_id: NonZeroU16,
    /// Outcome; always success in 3.1.1.
    pub reason: ReasonCode,
    /// Properties, `None` when there are none.
    pub properties: Option<Box<AckProperties>>,
}

impl Ack {
    /// An acknowledgement without properties.
    #[must_use]
    pub const fn new(packet_id: NonZeroU16, reason: ReasonCode) -> Self {
        Self { packet_id, reason, properties: None }
    }
}

/// SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Packet identifier.
    pub packet_id: NonZeroU16,
    /// Properties, `None` when there are none.
    pub properties: Option<Box<SubscribeProperties>>,
    /// What is asked for, at least one.
    pub filters: Vec<SubscribeFilter>,
}

/// One topic filter of a SUBSCRIBE with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeFilter {
    /// Topic filter; not empty, otherwise not validated.
    pub filter: ByteString,
    /// Options.
    pub options: SubscribeOptions,
}

/// Subscription options. 3.1.1 has the QoS alone; the others are off there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Highest QoS to be delivered at.
    pub qos: Qos,
    /// Not to be sent what this client published.
    pub no_local: bool,
    /// Whether forwarded messages keep the publisher's RETAIN.
    pub retain_as_published: bool,
    /// When retained messages are sent.
    pub retain_handling: RetainHandling,
}

/// When a SUBSCRIBE is answered with retained messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum RetainHandling {
    /// On every SUBSCRIBE; what 3.1.1 does.
    #[default]
    Send = 0,
    /// When the subscription is new.
    SendIfNew = 1,
    /// Never.
    DoNotSend = 2,
}

/// SUBACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubAck {
    /// Identifier of the SUBSCRIBE.
    pub packet_id: NonZeroU16,
    /// Properties, `None` when there are none.
    pub properties: Option<Box<AckProperties>>,
    /// One per filter, in order. In 3.1.1 every failure goes as 0x80.
    pub codes: SmallVec<[ReasonCode; 8]>,
}

/// UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Packet identifier.
    pub packet_id: NonZeroU16,
    /// Properties, `None` when there are none.
    pub properties: Option<Box<UnsubscribeProperties>>,
    /// Topic filters, at least one; not empty, otherwise not validated.
    pub filters: Vec<ByteString>,
}

/// UNSUBACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsubAck {
    /// Identifier of the UNSUBSCRIBE.
    pub packet_id: NonZeroU16,
    /// Properties, `None` when there are none.
    pub properties: Option<Box<AckProperties>>,
    /// One per filter, in order; 3.1.1 does not carry them.
    pub codes: SmallVec<[ReasonCode; 8]>,
}

/// DISCONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// Why; always 0x00 in 3.1.1.
    pub reason: ReasonCode,
    /// Properties, `None` when there are none.
    pub properties: Option<Box<DisconnectProperties>>,
}

impl Disconnect {
    /// A DISCONNECT without properties.
    #[must_use]
    pub const fn new(reason: ReasonCode) -> Self {
        Self { reason, properties: None }
    }
}

/// AUTH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// Which step this is.
    pub reason: ReasonCode,
    /// Properties. Only the bare AUTH, "success" and nothing else, comes without.
    pub properties: Option<Box<AuthProperties>>,
}
