//! Properties of 5.0: a typed set per packet, so that a property stands only where it may.
//!
//! On the wire a set is `[length: variable byte integer]([id][value])*` in any order. Sets keep user
//! properties in order and repeated, as they have to be forwarded [5: MQTT-3.3.2-18].

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use bytestring::ByteString;
use smallvec::SmallVec;

use super::{
    encode::Sink,
    error::{DecodeError, EncodeError},
    field::ReadField,
    frame::VARINT_MAX,
    read::Reader,
};

macro_rules! property_ids {
    ($($name:ident = $value:literal),+ $(,)?) => {
        /// Identifies a property on the wire.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum PropertyId {
            $(#[doc = concat!("Property `", stringify!($value), "`.")] $name = $value,)+
        }

        impl PropertyId {
            /// All are below 0x80, so the variable byte integer that holds one is a single byte.
            const fn from_u8(value: u8) -> Option<Self> {
                match value { $($value => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

property_ids! {
    PayloadFormatIndicator = 0x01, MessageExpiryInterval = 0x02, ContentType = 0x03, ResponseTopic = 0x08,
    CorrelationData = 0x09, SubscriptionIdentifier = 0x0b, SessionExpiryInterval = 0x11,
    AssignedClientIdentifier = 0x12, ServerKeepAlive = 0x13, AuthenticationMethod = 0x15,
    AuthenticationData = 0x16, RequestProblemInformation = 0x17, WillDelayInterval = 0x18,
    RequestResponseInformation = 0x19, ResponseInformation = 0x1a, ServerReference = 0x1c,
    ReasonString = 0x1f, ReceiveMaximum = 0x21, TopicAliasMaximum = 0x22, TopicAlias = 0x23,
    MaximumQos = 0x24, RetainAvailable = 0x25, UserProperty = 0x26, MaximumPacketSize = 0x27,
    WildcardSubscriptionAvailable = 0x28, SubscriptionIdentifierAvailable = 0x29,
    SharedSubscriptionAvailable = 0x2a,
}

/// Name and value; both may repeat.
pub type UserProperty = (ByteString, ByteString);

/// The identifiers of the subscriptions that a PUBLISH was matched by.
pub type SubscriptionIds = SmallVec<[SubscriptionId; 2]>;

/// A subscription identifier, 1 to 268435455.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(NonZeroU32);

impl SubscriptionId {
    /// `None` when `id` is out of range.
    #[must_use]
    pub const fn new(id: u32) -> Option<Self> {
        match NonZeroU32::new(id) {
            Some(id) if id.get() <= VARINT_MAX => Some(Self(id)),
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// What a payload is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PayloadFormat {
    /// Bytes; what the lack of the property means too.
    Bytes = 0,
    /// UTF-8 text; the codec does not check it.
    Utf8 = 1,
}

/// The highest QoS of a server that does not do all; one that does leaves the property out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MaximumQos {
    /// QoS 0 alone.
    AtMostOnce = 0,
    /// QoS 0 and 1.
    AtLeastOnce = 1,
}

/// A set that can be read property by property.
pub(super) trait ReadSet: Default {
    fn read_one(&mut self, id: PropertyId, from: &mut Reader<'_>) -> Result<(), DecodeError>;
}

/// A set that can be written, without its length.
pub(super) trait WriteSet {
    fn write_set<S: Sink>(&self, to: &mut S) -> Result<(), EncodeError>;
}

/// Reads a property list with its length; `None` when it is empty.
#[inline]
pub(super) fn read_set<T: ReadSet>(from: &mut Reader<'_>) -> Result<Option<Box<T>>, DecodeError> {
    let len = from.varint()?;
    if len == 0 {
        return Ok(None);
    }
    let mut list = from.section(len)?;
    let mut set = Box::<T>::default();
    while !list.is_empty() {
        let id = list.u8()?;
        let id = PropertyId::from_u8(id).ok_or(DecodeError::UnknownProperty(id))?;
        set.read_one(id, &mut list)?;
    }
    Ok(Some(set))
}

macro_rules! readable_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $id:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)+ }

        impl ReadSet for $name {
            fn read_one(&mut self, id: PropertyId, from: &mut Reader<'_>) -> Result<(), DecodeError> {
                match id {
                    $(PropertyId::$id => ReadField::read(&mut self.$field, id, from),)+
                    _ => Err(DecodeError::PropertyNotAllowed(id)),
                }
            }
        }
    };
}

macro_rules! writable_set {
    ($name:ty { $($field:ident = $id:ident,)+ }) => {
        impl $crate::mqtt::codec::property::WriteSet for $name {
            fn write_set<S: $crate::mqtt::codec::encode::Sink>(
                &self,
                to: &mut S,
            ) -> Result<(), $crate::mqtt::codec::EncodeError> {
                use $crate::mqtt::codec::{field::WriteField, property::PropertyId};
                $(WriteField::write(&self.$field, PropertyId::$id, to)?;)+
                Ok(())
            }
        }
    };
}
pub(super) use writable_set;

macro_rules! property_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $id:ident,)+ }) => {
        readable_set! { $(#[$doc])* $name { $($(#[$field_doc])* $field: $type = $id,)+ } }
        writable_set! { $name { $($field = $id,)+ } }
    };
}

property_set! {
    /// Properties of CONNECT.
    ConnectProperties {
        /// Seconds the session outlives the connection; without it 0, 0xffffffff for ever.
        session_expiry: Option<u32> = SessionExpiryInterval,
        /// Most QoS 1 and 2 messages the client takes at once; without it 65535.
        receive_maximum: Option<NonZeroU16> = ReceiveMaximum,
        /// Largest packet in bytes the client takes.
        maximum_packet_size: Option<NonZeroU32> = MaximumPacketSize,
        /// Highest topic alias the client takes; without it 0.
        topic_alias_maximum: Option<u16> = TopicAliasMaximum,
        /// Whether CONNACK may have response information; without it not.
        request_response_information: Option<bool> = RequestResponseInformation,
        /// Whether any answer may have a reason string and user properties; without it so.
        request_problem_information: Option<bool> = RequestProblemInformation,
        /// Method of enhanced authentication.
        authentication_method: Option<ByteString> = AuthenticationMethod,
        /// Its data, never without a method.
        authentication_data: Option<Bytes> = AuthenticationData,
        /// User properties.
        user_properties: Vec<UserProperty> = UserProperty,
    }
}

property_set! {
    /// Properties of a will.
    WillProperties {
        /// Seconds between the connection's end and the publishing; without it 0.
        delay: Option<u32> = WillDelayInterval,
        /// What the payload is.
        payload_format: Option<PayloadFormat> = PayloadFormatIndicator,
        /// Seconds the message is good for after it was published.
        message_expiry: Option<u32> = MessageExpiryInterval,
        /// Content type.
        content_type: Option<ByteString> = ContentType,
        /// Topic name for the response.
        response_topic: Option<ByteString> = ResponseTopic,
        /// Returned with the response.
        correlation_data: Option<Bytes> = CorrelationData,
        /// User properties.
        user_properties: Vec<UserProperty> = UserProperty,
    }
}

property_set! {
    /// Properties of CONNACK. What may be "available" is so unless said otherwise.
    ConnAckProperties {
        /// Seconds the server keeps the session, when not what was asked for.
        session_expiry: Option<u32> = SessionExpiryInterval,
        /// Most QoS 1 and 2 messages the server takes at once; without it 65535.
        receive_maximum: Option<NonZeroU16> = ReceiveMaximum,
        /// Highest QoS, when not 2.
        maximum_qos: Option<MaximumQos> = MaximumQos,
        /// Whether the server keeps retained messages.
        retain_available: Option<bool> = RetainAvailable,
        /// Largest packet in bytes the server takes.
        maximum_packet_size: Option<NonZeroU32> = MaximumPacketSize,
        /// The client id, when the server chose it.
        assigned_client_id: Option<ByteString> = AssignedClientIdentifier,
        /// Highest topic alias the server takes; without it 0.
        topic_alias_maximum: Option<u16> = TopicAliasMaximum,
        /// For a human, not for a program.
        reason_string: Option<ByteString> = ReasonString,
        /// Whether filters may have wildcards.
        wildcard_subscription_available: Option<bool> = WildcardSubscriptionAvailable,
        /// Whether subscriptions may have identifiers.
        subscription_ids_available: Option<bool> = SubscriptionIdentifierAvailable,
        /// Whether subscriptions may be shared.
        shared_subscription_available: Option<bool> = SharedSubscriptionAvailable,
        /// Keep alive in seconds, when the server chose it.
        server_keep_alive: Option<u16> = ServerKeepAlive,
        /// From which the client makes its response topics.
        response_information: Option<ByteString> = ResponseInformation,
        /// Another server to use.
        server_reference: Option<ByteString> = ServerReference,
        /// Method of enhanced authentication.
        authentication_method: Option<ByteString> = AuthenticationMethod,
        /// Its data, never without a method.
        authentication_data: Option<Bytes> = AuthenticationData,
        /// User properties.
        user_properties: Vec<UserProperty> = UserProperty,
    }
}

// Written through `PublishRef`, which borrows the same fields.
readable_set! {
    /// Properties of PUBLISH.
    PublishProperties {
        /// What the payload is.
        payload_format: Option<PayloadFormat> = PayloadFormatIndicator,
        /// Seconds the message is good for.
        message_expiry: Option<u32> = MessageExpiryInterval,
        /// Number that stands for the topic on this connection.
        topic_alias: Option<NonZeroU16> = TopicAlias,
        /// Topic name for the response.
        response_topic: Option<ByteString> = ResponseTopic,
        /// Returned with the response.
        correlation_data: Option<Bytes> = CorrelationData,
        /// Subscriptions that matched, from server to client alone.
        subscription_ids: SubscriptionIds = SubscriptionIdentifier,
        /// Content type.
        content_type: Option<ByteString> = ContentType,
        /// User properties.
        user_properties: Vec<UserProperty> = UserProperty,
    }
}

property_set! {
    /// Properties of PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK and UNSUBACK.
    AckProperties {
        /// For a human, not for a program.
        reason_string: Option<ByteString> = ReasonString,
        /// User properties.
        user_properties: Vec<UserProperty> = UserProperty,
    }
}

property_set! {
    /// Properties of SUBSCRIBE.
    SubscribeProperties {
        /// Identifier of all subscriptions of the packet.
        subscription_id: Option<SubscriptionId> = SubscriptionIdentifier,
        /// User properties.
        user_properties: Vec<UserProperty> = UserProperty,
    }
}

property_set! {
    /// Properties of UNSUBSCRIBE.
    UnsubscribeProperties {
        /// User properties.
        user_properties: Vec<UserProperty> = UserProperty,
    }
}

property_set! {
    /// Properties of DISCONNECT.
    DisconnectProperties {
        /// Replaces the session expiry of CONNECT; from the client alone.
        session_expiry: Option<u32> = SessionExpiryInterval,
        /// For a human, not for a program.
        reason_string: Option<ByteString> = ReasonString,
        /// Another server to use; from the server alone.
        server_reference: Option<ByteString> = ServerReference,
        /// User properties.
        user_properties: Vec<UserProperty> = UserProperty,
    }
}

property_set! {
    /// Properties of AUTH.
    AuthProperties {
        /// Method of enhanced authentication, that of CONNECT.
        authentication_method: Option<ByteString> = AuthenticationMethod,
        /// Its data.
        authentication_data: Option<Bytes> = AuthenticationData,
        /// For a human, not for a program.
        reason_string: Option<ByteString> = ReasonString,
        /// User properties.
        user_properties: Vec<UserProperty> = UserProperty,
    }
}
