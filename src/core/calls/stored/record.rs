//! How calls that are stored, and their replies, look: a message as it was said, and in its correlation data, which no call
//! has, the rest as protobuf, so that a field can be added without a new format.
//!
//! Field numbers are never used again for something else.

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use crate::core::CoreError;
use crate::core::calls::{CallError, Caller, Fault, Reply, ReplyTo, Request};
use crate::types::{ClientId, Extras, Message, MessageId, Qos, QueueName, TopicName, UnixMillis};

#[derive(Clone, PartialEq, prost::Message)]
struct CallRecord {
    #[prost(uint64, tag = "1")]
    deadline: u64,
    #[prost(bool, tag = "2")]
    idempotent: bool,
    #[prost(string, tag = "3")]
    caller_id: String,
    #[prost(string, tag = "4")]
    caller_address: String,
    #[prost(message, repeated, tag = "5")]
    metadata: Vec<Pair>,
    /// Empty: none.
    #[prost(string, tag = "6")]
    reply_topic: String,
    /// Empty: none.
    #[prost(string, tag = "7")]
    reply_queue: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReplyRecord {
    #[prost(uint64, tag = "1")]
    until: u64,
    #[prost(string, tag = "2")]
    responder: String,
    #[prost(uint64, tag = "3")]
    latency_ms: u64,
    #[prost(message, optional, tag = "4")]
    error: Option<ErrorRecord>,
    /// Where it is still to be published; empty: nowhere.
    #[prost(string, tag = "5")]
    topic: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ErrorRecord {
    #[prost(enumeration = "ErrorKind", tag = "1")]
    kind: i32,
    /// Of a fault.
    #[prost(int32, tag = "2")]
    code: i32,
    #[prost(string, tag = "3")]
    what: String,
    /// Of a fault.
    #[prost(bytes = "bytes", tag = "4")]
    details: Bytes,
    /// Who was lost, or said what is wrong.
    #[prost(string, tag = "5")]
    responder: String,
    /// Of a bound.
    #[prost(uint64, tag = "6")]
    max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum ErrorKind {
    Fault = 0,
    Lost = 1,
    BadReply = 2,
    Limit = 3,
}

/// What is stored is not what was written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotReadable(String);

fn wrong(error: impl ToString) -> NotReadable {
    NotReadable(error.to_string())
}

/// A reply that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// Of which call.
    pub(super) id: MessageId,
    /// What was called.
    pub(super) service: TopicName,
    /// How long it is kept.
    pub(super) until: UnixMillis,
    /// What was said.
    pub(super) said: Result<Reply, CallError>,
    /// Where it is still to be published.
    pub(super) topic: Option<TopicName>,
}

fn with_record(mut message: Message, record: &impl prost::Message) -> Message {
    message.extras_mut().correlation_data = Some(record.encode_to_vec().into());
    message
}

fn record_of<T: prost::Message + Default>(message: &mut Message) -> Result<T, NotReadable> {
    let record = message.extras.as_mut().and_then(|extras| extras.correlation_data.take());
    T::decode(record.unwrap_or_default()).map_err(wrong)
}

/// The stored form of a call.
pub(super) fn call_message(request: &Request, reply_to: &ReplyTo) -> Message {
    let Caller { client_id, address } = &request.caller;
    let pair =
        |(key, value): &(ByteString, ByteString)| Pair { key: key.to_string(), value: value.to_string() };
    let (reply_topic, reply_queue) = match reply_to {
        ReplyTo::Caller => (String::new(), String::new()),
        ReplyTo::Topic(topic) => (topic.to_string(), String::new()),
        ReplyTo::Queue(queue) => (String::new(), queue.to_string()),
    };
    let record = CallRecord {
        deadline: request.deadline.map_or(u64::MAX, |at| at.0),
        idempotent: request.idempotent,
        caller_id: client_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        caller_address: address.as_deref().unwrap_or_default().to_owned(),
        metadata: request.metadata.iter().map(pair).collect(),
        reply_topic,
        reply_queue,
    };
    with_record(request.message.clone(), &record)
}

/// Reads the stored form of a call.
pub(super) fn call_of(message: &Message) -> Result<(Request, ReplyTo), NotReadable> {
    // What waits keeps no more of what was read than it needs.
    let mut message = message.detached();
    let record: CallRecord = record_of(&mut message)?;
    let reply_to = match (record.reply_topic, record.reply_queue) {
        (topic, queue) if topic.is_empty() && queue.is_empty() => ReplyTo::Caller,
        (topic, _) if !topic.is_empty() => ReplyTo::Topic(TopicName::parse(topic.into()).map_err(wrong)?),
        (_, queue) => ReplyTo::Queue(QueueName::parse(queue).map_err(wrong)?),
    };
    let client_id = match record.caller_id {
        id if id.is_empty() => None,
        id => Some(ClientId::parse(id).map_err(wrong)?),
    };
    let address = Some(ByteString::from(record.caller_address)).filter(|address| !address.is_empty());
    let request = Request {
        message,
        deadline: Some(UnixMillis(record.deadline)),
        caller: Caller { client_id, address },
        metadata: record.metadata.into_iter().map(|pair| (pair.key.into(), pair.value.into())).collect(),
        idempotent: record.idempotent,
        takes_parts: false,
        part: None,
    };
    Ok((request, reply_to))
}

/// The stored form of a reply.
pub(super) fn reply_message(kept: &Kept) -> Message {
    let empty = || Message {
        id: kept.id,
        topic: kept.service.clone(),
        payload: Bytes::new(),
        qos: Qos::AtLeastOnce,
        retain: false,
        expires_at: None,
        extras: None,
    };
    let (message, responder, latency, error) = match &kept.said {
        Ok(reply) => {
            let message = Message {
                payload: reply.message.payload.clone(),
                extras: reply.message.extras.clone(),
                ..empty()
            };
            (message, reply.responder.to_string(), reply.latency, None)
        }
        Err(error) => (empty(), String::new(), Duration::ZERO, Some(error_record(error))),
    };
    let record = ReplyRecord {
        until: kept.until.0,
        responder,
        latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
        error,
        topic: kept.topic.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    with_record(message, &record)
}

/// Reads the stored form of a reply.
pub(super) fn reply_of(mut message: Message) -> Result<Kept, NotReadable> {
    let record: ReplyRecord = record_of(&mut message)?;
    let topic = match record.topic {
        topic if topic.is_empty() => None,
        topic => Some(TopicName::parse(topic.into()).map_err(wrong)?),
    };
    if message.extras.as_deref() == Some(&Extras::default()) {
        message.extras = None;
    }
    let (id, service) = (message.id, message.topic.clone());
    let said = match record.error {
        Some(error) => Err(error_of(error, service.to_string())),
        None => Ok(Reply {
            responder: record.responder.into(),
            message,
            more: false,
            latency: Duration::from_millis(record.latency_ms),
        }),
    };
    Ok(Kept { id, service, until: UnixMillis(record.until), said, topic })
}

fn error_record(error: &CallError) -> ErrorRecord {
    let record = |kind: ErrorKind, what: &str| ErrorRecord {
        kind: kind.into(),
        what: what.to_owned(),
        ..ErrorRecord::default()
    };
    match error {
        CallError::Responder(Fault { code, message, details }) => {
            ErrorRecord { code: *code, details: details.clone(), ..record(ErrorKind::Fault, message) }
        }
        CallError::Broker(CoreError::ResponderLost { responder, .. }) => {
            ErrorRecord { responder: responder.clone(), ..record(ErrorKind::Lost, "") }
        }
        CallError::Broker(CoreError::BadReply { responder, what }) => {
            ErrorRecord { responder: responder.clone(), ..record(ErrorKind::BadReply, what) }
        }
        CallError::Broker(CoreError::Limit { what, max }) => {
            ErrorRecord { max: *max, ..record(ErrorKind::Limit, what) }
        }
        CallError::Broker(large @ CoreError::TooLarge { .. }) => {
            ErrorRecord { code: INVALID_ARGUMENT, ..record(ErrorKind::Fault, &large.to_string()) }
        }
        CallError::Broker(other) => {
            ErrorRecord { code: INTERNAL, ..record(ErrorKind::Fault, &other.to_string()) }
        }
    }
}

/// As `google.rpc.Code` counts them.
const INVALID_ARGUMENT: i32 = 3;
const INTERNAL: i32 = 13;

fn error_of(record: ErrorRecord, service: String) -> CallError {
    let (kind, ErrorRecord { code, what, details, responder, max, .. }) = (record.kind(), record);
    match kind {
        ErrorKind::Fault => CallError::Responder(Fault { code, message: what.into(), details }),
        ErrorKind::Lost => CallError::Broker(CoreError::ResponderLost { service, responder }),
        ErrorKind::BadReply => CallError::Broker(CoreError::BadReply { responder, what }),
        ErrorKind::Limit => CallError::Broker(CoreError::Limit { what, max }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &'static str) -> Message {
        Message {
            id: MessageId::from_u128(7),
            topic: TopicName::parse("math/square".into()).unwrap(),
            payload: Bytes::from_static(payload.as_bytes()),
            qos: Qos::AtLeastOnce,
            retain: false,
            expires_at: None,
            extras: None,
        }
    }

    #[test]
    fn a_call_comes_back_as_it_was_made() {
        let mut asked = message("3");
        asked.extras_mut().properties = vec![("k".into(), "v".into())];
        let request = Request {
            message: asked,
            deadline: Some(UnixMillis(9)),
            caller: Caller {
                client_id: Some(ClientId::parse("c").unwrap()),
                address: Some("[::1]:1".into()),
            },
            metadata: [("x-a".into(), "1".into())].into(),
            idempotent: true,
            takes_parts: false,
            part: None,
        };
        for to in [
            ReplyTo::Caller,
            ReplyTo::Topic(TopicName::parse("a/b".into()).unwrap()),
            ReplyTo::Queue(QueueName::parse("q").unwrap()),
        ] {
            let (back, reply_to) = call_of(&call_message(&request, &to)).unwrap();
            assert_eq!((format!("{back:?}"), reply_to), (format!("{request:?}"), to));
        }
    }

    #[test]
    fn replies_and_errors_come_back() {
        let (service, responder) = ("math/square".to_owned(), "r".to_owned());
        let fault = Fault { code: 5, message: "none".into(), details: Bytes::from_static(b"\x08\x05") };
        let reply = Reply {
            responder: "r".into(),
            message: message("9"),
            more: false,
            latency: Duration::from_millis(12),
        };
        for said in [
            Ok(reply),
            Err(CallError::Responder(fault)),
            Err(CallError::Broker(CoreError::ResponderLost { service, responder: responder.clone() })),
            Err(CallError::Broker(CoreError::BadReply { responder, what: "too large".to_owned() })),
            Err(CallError::Broker(CoreError::Limit { what: "too much".to_owned(), max: 3 })),
        ] {
            let topic = said.is_ok().then(|| TopicName::parse("a".into()).unwrap());
            let (id, service) = (MessageId::from_u128(7), message("").topic);
            let kept = Kept { id, service, until: UnixMillis(5), said, topic };
            let stored = reply_message(&kept);
            assert_eq!(reply_of(stored), Ok(kept));
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let mut broken = message("");
        broken.extras_mut().correlation_data = Some(Bytes::from_static(b"\xff\xff"));
        assert!(call_of(&broken).is_err() && reply_of(broken).is_err());
    }
}
