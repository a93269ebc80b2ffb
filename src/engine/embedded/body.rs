//! How a message is stored: protobuf, so that a field can be added without a new format.

use bytes::{BufMut, Bytes};
use bytestring::ByteString;
use prost::Message as _;

use super::format::FormatError;
use crate::types::topic::TopicName;
use crate::types::{ClientId, DeadLetter, Extras, Message, MessageId, Qos, QueueName, UnixMillis};

/// A body as stored. Field numbers are never used again.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredMessage {
    #[prost(fixed64, tag = "1")]
    id_high: u64,
    #[prost(fixed64, tag = "2")]
    id_low: u64,
    #[prost(bytes = "bytes", tag = "3")]
    topic: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    payload: Bytes,
    #[prost(uint32, tag = "5")]
    qos: u32,
    #[prost(bool, tag = "6")]
    retain: bool,
    #[prost(uint64, tag = "7")]
    expires_at: u64,
    #[prost(bool, tag = "8")]
    payload_is_utf8: bool,
    #[prost(bytes = "bytes", optional, tag = "9")]
    content_type: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "10")]
    reply_to: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "11")]
    correlation_data: Option<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "12")]
    properties: Vec<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "13")]
    publisher: Option<Bytes>,
    #[prost(message, optional, tag = "14")]
    dead_letter: Option<StoredDeadLetter>,
    #[prost(uint32, optional, tag = "15")]
    subscription: Option<u32>,
    #[prost(bytes = "bytes", optional, tag = "16")]
    ordering_key: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "17")]
    dedup_id: Option<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredDeadLetter {
    #[prost(bytes = "bytes", tag = "1")]
    source: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    reason: Bytes,
    #[prost(uint32, tag = "3")]
    attempts: u32,
    #[prost(uint64, tag = "4")]
    at: u64,
}

/// Of a body the topic alone.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredTopic {
    #[prost(bytes = "bytes", tag = "3")]
    topic: Bytes,
}

/// Appends a message's stored form.
pub(super) fn encode_message(message: &Message, out: &mut impl BufMut) {
    stored(message).encode_raw(out);
}

/// A message's stored form, in memory of exactly its size.
pub(super) fn encode_alone(message: &Message) -> Bytes {
    stored(message).encode_to_vec().into()
}

fn stored(message: &Message) -> StoredMessage {
    let id = message.id.to_u128();
    let mut stored = StoredMessage {
        id_high: (id >> 64) as u64,
        id_low: id as u64,
        topic: message.topic.to_byte_string().into_bytes(),
        payload: message.payload.clone(),
        qos: u32::from(message.qos as u8),
        retain: message.retain,
        expires_at: message.expires_at.map_or(0, |at| at.0),
        ..StoredMessage::default()
    };
    if let Some(extras) = &message.extras {
        stored.payload_is_utf8 = extras.payload_is_utf8;
        stored.content_type = extras.content_type.clone().map(ByteString::into_bytes);
        stored.reply_to = extras.reply_to.as_ref().map(|t| t.to_byte_string().into_bytes());
        stored.correlation_data = extras.correlation_data.clone();
        stored.properties = extras
            .properties
            .iter()
            .flat_map(|(k, v)| [k.clone().into_bytes(), v.clone().into_bytes()])
            .collect();
        stored.subscription = extras.subscription;
        stored.ordering_key = extras.ordering_key.clone().map(ByteString::into_bytes);
        stored.dedup_id = extras.dedup_id.clone().map(ByteString::into_bytes);
        stored.publisher = extras.publisher.as_ref().map(|id| id.to_byte_string().into_bytes());
        stored.dead_letter = extras.dead_letter.as_ref().map(|dead| StoredDeadLetter {
            source: dead.source.to_byte_string().into_bytes(),
            reason: dead.reason.clone().into_bytes(),
            attempts: dead.attempts,
            at: dead.at.0,
        });
    }
    stored
}

const WHAT: &str = "a message body";

fn wrong(error: &dyn std::fmt::Display) -> FormatError {
    FormatError::Invalid(WHAT, error.to_string())
}

fn text(bytes: Bytes) -> Result<ByteString, FormatError> {
    ByteString::try_from(bytes).map_err(|e| wrong(&e))
}

fn topic(bytes: Bytes) -> Result<TopicName, FormatError> {
    TopicName::parse(text(bytes)?).map_err(|e| wrong(&e))
}

/// Reads the topic of a message's stored form, and nothing else of it.
pub(super) fn decode_topic(bytes: Bytes) -> Result<TopicName, FormatError> {
    topic(StoredTopic::decode(bytes).map_err(|e| wrong(&e))?.topic)
}

/// Reads a message's stored form; text and payload are slices of `bytes`.
pub(super) fn decode_message(bytes: Bytes) -> Result<Message, FormatError> {
    let stored = StoredMessage::decode(bytes).map_err(|e| wrong(&e))?;
    let mut extras = Extras {
        payload_is_utf8: stored.payload_is_utf8,
        content_type: stored.content_type.map(text).transpose()?,
        reply_to: stored.reply_to.map(topic).transpose()?,
        correlation_data: stored.correlation_data,
        ordering_key: stored.ordering_key.map(text).transpose()?,
        dedup_id: stored.dedup_id.map(text).transpose()?,
        properties: Vec::with_capacity(stored.properties.len() / 2),
        publisher: stored
            .publisher
            .map(|id| ClientId::parse(text(id)?).map_err(|e| wrong(&e)))
            .transpose()?,
        dead_letter: None,
        subscription: stored.subscription,
    };
    let mut properties = stored.properties.into_iter();
    while let (Some(key), Some(value)) = (properties.next(), properties.next()) {
        extras.properties.push((text(key)?, text(value)?));
    }
    if let Some(dead) = stored.dead_letter {
        extras.dead_letter = Some(DeadLetter {
            source: QueueName::parse(text(dead.source)?).map_err(|e| wrong(&e))?,
            reason: text(dead.reason)?,
            attempts: dead.attempts,
            at: UnixMillis(dead.at),
        });
    }
    Ok(Message {
        id: MessageId::from_u128((u128::from(stored.id_high) << 64) | u128::from(stored.id_low)),
        topic: topic(stored.topic)?,
        payload: stored.payload,
        qos: u8::try_from(stored.qos).ok().and_then(Qos::from_u8).ok_or(FormatError::Unknown {
            what: WHAT,
            kind: "qos",
            value: stored.qos.into(),
        })?,
        retain: stored.retain,
        expires_at: Some(stored.expires_at).filter(|&at| at != 0).map(UnixMillis),
        extras: (extras != Extras::default()).then(|| Box::new(extras)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        let mut message = Message {
            id: MessageId::from_u128(u128::MAX - 5),
            topic: TopicName::parse("a/b".into()).unwrap(),
            payload: Bytes::from_static(b"payload"),
            qos: Qos::ExactlyOnce,
            retain: true,
            expires_at: Some(UnixMillis(5)),
            extras: None,
        };
        for with_extras in [false, true] {
            if with_extras {
                *message.extras_mut() = Extras {
                    payload_is_utf8: true,
                    content_type: Some("text/plain".into()),
                    reply_to: Some(TopicName::parse("r".into()).unwrap()),
                    correlation_data: Some(Bytes::from_static(&[0, 255])),
                    ordering_key: Some("key".into()),
                    dedup_id: Some("once".into()),
                    properties: vec![("k".into(), "v".into()), ("k".into(), String::new().into())],
                    publisher: Some(ClientId::parse("me").unwrap()),
                    dead_letter: Some(DeadLetter {
                        source: QueueName::parse("q").unwrap(),
                        reason: "r".into(),
                        attempts: 3,
                        at: UnixMillis(9),
                    }),
                    subscription: Some(0),
                };
            }
            let mut out = Vec::new();
            encode_message(&message, &mut out);
            let body = Bytes::from(out);
            assert_eq!(decode_topic(body.clone()).unwrap(), message.topic);
            assert_eq!(decode_message(body).unwrap(), message);
        }
    }
}
