//! PUBLISH to bytes, from borrowed parts: the one packet that is written more often than it is read.

use std::num::NonZeroU16;

use bytes::BytesMut;

use super::{
    encode::{Body, Sink, encode, encode_head, encoded_len, write_set},
    error::EncodeError,
    frame::PacketType,
    packet::{Publish, Qos, Version},
    property::{PayloadFormat, SubscriptionId, UserProperty, writable_set},
};

/// A PUBLISH whose parts are borrowed, for fan-out: one message to many receivers, each with its own QoS,
/// identifier, alias and subscription identifiers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublishRef<'a> {
    /// Whether this is a repetition; false at QoS 0.
    pub dup: bool,
    /// QoS.
    pub qos: Qos,
    /// Retain.
    pub retain: bool,
    /// Topic name; empty only beside a topic alias.
    pub topic: &'a str,
    /// Packet identifier, exactly above QoS 0.
    pub packet_id: Option<NonZeroU16>,
    /// What the payload is.
    pub payload_format: Option<PayloadFormat>,
    /// Seconds the message is still good for.
    pub message_expiry: Option<u32>,
    /// Number that stands for the topic on this connection.
    pub topic_alias: Option<NonZeroU16>,
    /// Topic name for the response.
    pub response_topic: Option<&'a str>,
    /// Returned with the response.
    pub correlation_data: Option<&'a [u8]>,
    /// Subscriptions that matched.
    pub subscription_ids: &'a [SubscriptionId],
    /// Content type.
    pub content_type: Option<&'a str>,
    /// User properties.
    pub user_properties: &'a [UserProperty],
    /// Payload.
    pub payload: &'a [u8],
}

impl PublishRef<'_> {
    /// Appends the packet to `out`, as [`Packet::encode`](super::Packet::encode) does.
    ///
    /// # Errors
    /// See [`EncodeError`]; `out` is then as it was.
    #[inline]
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        encode(self, version, out)
    }

    /// As [`PublishRef::encode`], but leaves the payload itself out, for a caller that sends a large one from where
    /// it lies.
    ///
    /// # Errors
    /// Those of [`PublishRef::encode`]; `out` is then as it was.
    pub fn encode_head(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        let head = PublishRef { payload: &[], ..*self };
        encode_head(&head, self.payload.len(), version, out)
    }

    /// Bytes that [`PublishRef::encode`] would append.
    ///
    /// # Errors
    /// Those of [`PublishRef::encode`].
    #[inline]
    pub fn encoded_len(&self, version: Version) -> Result<usize, EncodeError> {
        encoded_len(self, version)
    }
}

impl<'a> From<&'a Publish> for PublishRef<'a> {
    fn from(publish: &'a Publish) -> Self {
        let plain = Self {
            dup: publish.dup,
            qos: publish.qos,
            retain: publish.retain,
            topic: &publish.topic,
            packet_id: publish.packet_id,
            payload: &publish.payload,
            ..Self::default()
        };
        let Some(properties) = publish.properties.as_deref() else { return plain };
        Self {
            payload_format: properties.payload_format,
            message_expiry: properties.message_expiry,
            topic_alias: properties.topic_alias,
            response_topic: properties.response_topic.as_deref(),
            correlation_data: properties.correlation_data.as_deref(),
            subscription_ids: &properties.subscription_ids,
            content_type: properties.content_type.as_deref(),
            user_properties: &properties.user_properties,
            ..plain
        }
    }
}

writable_set! {
    PublishRef<'_> {
        payload_format = PayloadFormatIndicator,
        message_expiry = MessageExpiryInterval,
        topic_alias = TopicAlias,
        response_topic = ResponseTopic,
        correlation_data = CorrelationData,
        subscription_ids = SubscriptionIdentifier,
        content_type = ContentType,
        user_properties = UserProperty,
    }
}

impl Body for PublishRef<'_> {
    #[inline]
    fn first_byte(&self) -> u8 {
        (PacketType::Publish as u8) << 4
            | u8::from(self.dup) << 3
            | (self.qos as u8) << 1
            | u8::from(self.retain)
    }

    #[inline]
    fn write<S: Sink>(&self, version: Version, to: &mut S) -> Result<(), EncodeError> {
        // [MQTT-3.3.1-2]
        if self.dup && self.qos == Qos::AtMostOnce {
            return Err(EncodeError::DupOnQos0);
        }
        // [MQTT-4.7.3-1]; 5 lets an alias stand in for the topic.
        if self.topic.is_empty() && (version == Version::V311 || self.topic_alias.is_none()) {
            return Err(EncodeError::EmptyTopic);
        }
        to.field(self.topic.as_bytes())?;
        // 3.1.1: [MQTT-2.3.1-1], [MQTT-2.3.1-5]; 5: [MQTT-2.2.1-2], [MQTT-2.2.1-4].
        match (self.qos, self.packet_id) {
            (Qos::AtMostOnce, None) => {}
            (Qos::AtLeastOnce | Qos::ExactlyOnce, Some(id)) => to.u16(id.get()),
            _ => return Err(EncodeError::PacketId),
        }
        write_set(self, version, to)?;
        to.bytes(self.payload);
        Ok(())
    }
}
