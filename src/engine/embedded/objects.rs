//! How definitions and subscriptions are stored: protobuf, so that a field can be added without a new format.
//!
//! Field numbers are never used again for something else.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use bytestring::ByteString;
use prost::Message as _;

use super::format::FormatError;
use crate::engine::{
    BacklogSpec, Cursor, Definition, GroupSpec, Overflow, QueueSpec, RetainHandling, SessionSpec, StreamSpec,
    SubscribeOptions,
};
use crate::types::topic::FilterSpec;
use crate::types::{ClientId, CursorName, Qos, QueueName, Sequence, StreamName, TopicFilter, UnixMillis};

#[derive(Clone, PartialEq, prost::Message)]
struct Object {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Queue(StoredQueue),
    #[prost(message, tag = "2")]
    Session(StoredSession),
    #[prost(message, tag = "3")]
    Group(StoredGroup),
    #[prost(message, tag = "4")]
    Backlog(StoredBacklog),
    #[prost(message, tag = "5")]
    Stream(StoredStream),
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredQueue {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "2")]
    bindings: Vec<String>,
    #[prost(uint64, tag = "3")]
    lease_ms: u64,
    #[prost(uint32, tag = "4")]
    max_deliveries: u32,
    #[prost(string, optional, tag = "5")]
    dead_letter: Option<String>,
    #[prost(uint64, optional, tag = "6")]
    default_ttl_ms: Option<u64>,
    #[prost(uint64, tag = "7")]
    max_messages: u64,
    #[prost(uint64, tag = "8")]
    max_bytes: u64,
    #[prost(bool, tag = "9")]
    priorities: bool,
    #[prost(btree_map = "string, string", tag = "10")]
    labels: BTreeMap<String, String>,
    #[prost(uint64, tag = "11")]
    created_at: u64,
    // From 20 on: 20 and the number of the field in the contract.
    #[prost(uint64, optional, tag = "26")]
    retry_min_backoff_ms: Option<u64>,
    #[prost(uint64, optional, tag = "27")]
    retry_max_backoff_ms: Option<u64>,
    #[prost(uint32, tag = "31")]
    overflow: u32,
    #[prost(bool, tag = "33")]
    ordered_by_key: bool,
    #[prost(bool, tag = "34")]
    single_active_consumer: bool,
    #[prost(uint64, optional, tag = "35")]
    dedup_window_ms: Option<u64>,
    #[prost(string, optional, tag = "36")]
    last_value_key: Option<String>,
    #[prost(bool, tag = "38")]
    dead_letter_expired: bool,
    #[prost(uint64, optional, tag = "39")]
    expires_after_ms: Option<u64>,
    #[prost(bool, tag = "40")]
    paused: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredSession {
    #[prost(string, tag = "1")]
    client_id: String,
    #[prost(string, tag = "2")]
    principal: String,
    /// Absent: for ever.
    #[prost(uint64, optional, tag = "3")]
    expiry_ms: Option<u64>,
    #[prost(uint64, tag = "4")]
    created_at: u64,
    #[prost(uint64, tag = "5")]
    last_connected: u64,
    #[prost(uint64, tag = "6")]
    max_messages: u64,
    #[prost(uint64, tag = "7")]
    max_bytes: u64,
    #[prost(bool, tag = "8")]
    connected: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredGroup {
    #[prost(string, tag = "1")]
    filter: String,
    #[prost(uint64, tag = "2")]
    max_messages: u64,
    #[prost(uint64, tag = "3")]
    max_bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredBacklog {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredStream {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "2")]
    filters: Vec<String>,
    #[prost(uint64, optional, tag = "3")]
    max_age_ms: Option<u64>,
    #[prost(uint64, tag = "4")]
    max_messages: u64,
    #[prost(uint64, tag = "5")]
    max_bytes: u64,
    #[prost(uint64, tag = "6")]
    created_at: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredCursor {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(uint64, tag = "2")]
    committed_at: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredSubscription {
    #[prost(uint32, tag = "1")]
    max_qos: u32,
    #[prost(bool, tag = "2")]
    no_local: bool,
    #[prost(bool, tag = "3")]
    retain_as_published: bool,
    #[prost(uint32, tag = "4")]
    retain_handling: u32,
    #[prost(uint32, tag = "5")]
    identifier: u32,
    #[prost(bool, tag = "6")]
    upgrade_qos: bool,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The row of a definition.
pub(super) fn encode(definition: &Definition) -> Vec<u8> {
    let kind = match definition {
        Definition::Queue(queue) => Kind::Queue(StoredQueue {
            name: queue.name.to_string(),
            bindings: queue.bindings.iter().map(ToString::to_string).collect(),
            lease_ms: millis(queue.lease),
            max_deliveries: queue.max_deliveries.map_or(0, NonZeroU32::get),
            dead_letter: queue.dead_letter.as_ref().map(ToString::to_string),
            default_ttl_ms: queue.default_ttl.map(millis),
            max_messages: queue.max_messages,
            max_bytes: queue.max_bytes,
            priorities: queue.priorities,
            labels: queue.labels.clone(),
            created_at: queue.created_at.0,
            retry_min_backoff_ms: queue.retry_min_backoff.map(millis),
            retry_max_backoff_ms: queue.retry_max_backoff.map(millis),
            overflow: u32::from(queue.overflow as u8),
            ordered_by_key: queue.ordered_by_key,
            single_active_consumer: queue.single_active_consumer,
            dedup_window_ms: queue.dedup_window.map(millis),
            last_value_key: queue.last_value_key.as_ref().map(ToString::to_string),
            dead_letter_expired: queue.dead_letter_expired,
            expires_after_ms: queue.expires_after.map(millis),
            paused: queue.paused,
        }),
        Definition::Session(session) => Kind::Session(StoredSession {
            client_id: session.client_id.to_string(),
            principal: session.principal.to_string(),
            expiry_ms: (session.expiry != Duration::MAX).then(|| millis(session.expiry)),
            created_at: session.created_at.0,
            last_connected: session.last_connected.0,
            max_messages: session.max_messages,
            max_bytes: session.max_bytes,
            connected: session.connected,
        }),
        Definition::Group(group) => Kind::Group(StoredGroup {
            filter: group.filter.to_string(),
            max_messages: group.max_messages,
            max_bytes: group.max_bytes,
        }),
        Definition::Backlog(backlog) => Kind::Backlog(StoredBacklog { name: backlog.name.to_string() }),
        Definition::Stream(stream) => Kind::Stream(StoredStream {
            name: stream.name.to_string(),
            filters: stream.filters.iter().map(ToString::to_string).collect(),
            max_age_ms: stream.max_age.map(millis),
            max_messages: stream.max_messages,
            max_bytes: stream.max_bytes,
            created_at: stream.created_at.0,
        }),
    };
    Object { kind: Some(kind) }.encode_to_vec()
}

const WHAT: &str = "a definition";

fn wrong(error: impl ToString) -> FormatError {
    FormatError::Invalid(WHAT, error.to_string())
}

fn filters(texts: Vec<String>) -> Result<Vec<TopicFilter>, FormatError> {
    texts.into_iter().map(|filter| TopicFilter::parse(filter.into()).map_err(wrong)).collect()
}

/// Reads the row of a definition.
pub(super) fn decode(row: &[u8]) -> Result<Definition, FormatError> {
    let object = Object::decode(row).map_err(wrong)?;
    Ok(match object.kind.ok_or_else(|| wrong("it has no kind that this program knows"))? {
        Kind::Queue(queue) => Definition::Queue(QueueSpec {
            name: QueueName::parse(queue.name).map_err(wrong)?,
            bindings: filters(queue.bindings)?,
            lease: Duration::from_millis(queue.lease_ms),
            max_deliveries: NonZeroU32::new(queue.max_deliveries),
            dead_letter: queue.dead_letter.map(|name| QueueName::parse(name).map_err(wrong)).transpose()?,
            retry_min_backoff: queue.retry_min_backoff_ms.map(Duration::from_millis),
            retry_max_backoff: queue.retry_max_backoff_ms.map(Duration::from_millis),
            default_ttl: queue.default_ttl_ms.map(Duration::from_millis),
            max_messages: queue.max_messages,
            max_bytes: queue.max_bytes,
            overflow: match queue.overflow {
                0 => Overflow::Reject,
                1 => Overflow::DropOldest,
                2 => Overflow::DeadLetter,
                value => {
                    return Err(FormatError::Unknown { what: WHAT, kind: "overflow", value: value.into() });
                }
            },
            priorities: queue.priorities,
            ordered_by_key: queue.ordered_by_key,
            single_active_consumer: queue.single_active_consumer,
            dedup_window: queue.dedup_window_ms.map(Duration::from_millis),
            last_value_key: queue.last_value_key.map(ByteString::from),
            labels: queue.labels,
            paused: queue.paused,
            created_at: UnixMillis(queue.created_at),
            dead_letter_expired: queue.dead_letter_expired,
            expires_after: queue.expires_after_ms.map(Duration::from_millis),
        }),
        Kind::Session(session) => Definition::Session(SessionSpec {
            client_id: ClientId::parse(session.client_id).map_err(wrong)?,
            principal: session.principal.into(),
            expiry: session.expiry_ms.map_or(Duration::MAX, Duration::from_millis),
            created_at: UnixMillis(session.created_at),
            last_connected: UnixMillis(session.last_connected),
            connected: session.connected,
            max_messages: session.max_messages,
            max_bytes: session.max_bytes,
        }),
        Kind::Group(group) => Definition::Group(GroupSpec {
            filter: FilterSpec::parse(&group.filter.into()).map_err(wrong)?,
            max_messages: group.max_messages,
            max_bytes: group.max_bytes,
        }),
        Kind::Backlog(backlog) => Definition::Backlog(BacklogSpec { name: backlog.name.into() }),
        Kind::Stream(stream) => Definition::Stream(StreamSpec {
            name: StreamName::parse(stream.name).map_err(wrong)?,
            filters: filters(stream.filters)?,
            max_age: stream.max_age_ms.map(Duration::from_millis),
            max_messages: stream.max_messages,
            max_bytes: stream.max_bytes,
            created_at: UnixMillis(stream.created_at),
        }),
    })
}

/// The row of a cursor.
pub(super) fn encode_cursor(cursor: Cursor) -> Vec<u8> {
    StoredCursor { sequence: cursor.sequence.0, committed_at: cursor.committed_at.0 }.encode_to_vec()
}

/// Reads the key (behind its stream) and the row of a cursor.
pub(super) fn decode_cursor(name: &[u8], row: &[u8]) -> Result<(CursorName, Cursor), FormatError> {
    let name = CursorName::parse(std::str::from_utf8(name).map_err(wrong)?.to_owned()).map_err(wrong)?;
    let StoredCursor { sequence, committed_at } = StoredCursor::decode(row).map_err(wrong)?;
    Ok((name, Cursor { sequence: Sequence(sequence), committed_at: UnixMillis(committed_at) }))
}

/// The row of a subscription.
pub(super) fn encode_subscription(options: &SubscribeOptions) -> Vec<u8> {
    StoredSubscription {
        max_qos: u32::from(options.max_qos as u8),
        upgrade_qos: options.upgrade_qos,
        no_local: options.no_local,
        retain_as_published: options.retain_as_published,
        retain_handling: u32::from(options.retain_handling as u8),
        identifier: options.identifier.map_or(0, NonZeroU32::get),
    }
    .encode_to_vec()
}

/// Reads the key (behind its session) and the row of a subscription.
pub(super) fn decode_subscription(
    filter: &[u8],
    row: &[u8],
) -> Result<(FilterSpec, SubscribeOptions), FormatError> {
    let filter = std::str::from_utf8(filter).map_err(wrong)?;
    let stored = StoredSubscription::decode(row).map_err(wrong)?;
    let unknown = |kind, value: u32| FormatError::Unknown { what: WHAT, kind, value: value.into() };
    let options = SubscribeOptions {
        max_qos: u8::try_from(stored.max_qos)
            .ok()
            .and_then(Qos::from_u8)
            .ok_or_else(|| unknown("qos", stored.max_qos))?,
        upgrade_qos: stored.upgrade_qos,
        no_local: stored.no_local,
        retain_as_published: stored.retain_as_published,
        retain_handling: match stored.retain_handling {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DoNotSend,
            value => return Err(unknown("retain handling", value)),
        },
        identifier: NonZeroU32::new(stored.identifier),
    };
    Ok((FilterSpec::parse(&ByteString::from(filter)).map_err(wrong)?, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_come_back() {
        for definition in [
            Definition::Queue(QueueSpec {
                name: QueueName::parse("orders").unwrap(),
                bindings: vec![TopicFilter::parse("shop/+/orders".into()).unwrap()],
                lease: Duration::from_secs(30),
                max_deliveries: NonZeroU32::new(5),
                dead_letter: Some(QueueName::parse("dead").unwrap()),
                retry_min_backoff: Some(Duration::from_millis(100)),
                retry_max_backoff: Some(Duration::from_secs(60)),
                default_ttl: Some(Duration::from_millis(1500)),
                max_messages: 7,
                max_bytes: 8,
                overflow: Overflow::DeadLetter,
                priorities: true,
                ordered_by_key: true,
                single_active_consumer: true,
                dedup_window: Some(Duration::from_secs(60)),
                last_value_key: Some("sensor".into()),
                labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
                paused: true,
                created_at: UnixMillis(9),
                dead_letter_expired: true,
                expires_after: Some(Duration::from_secs(7)),
            }),
            Definition::Session(SessionSpec {
                client_id: ClientId::parse("c").unwrap(),
                principal: "p".into(),
                expiry: Duration::MAX,
                created_at: UnixMillis(1),
                last_connected: UnixMillis(2),
                connected: true,
                max_messages: 3,
                max_bytes: 4,
            }),
            Definition::Group(GroupSpec {
                filter: FilterSpec::parse(&"$share/g/a/#".into()).unwrap(),
                max_messages: 3,
                max_bytes: 4,
            }),
            Definition::Backlog(BacklogSpec { name: "calls".into() }),
            Definition::Stream(StreamSpec {
                name: StreamName::parse("readings").unwrap(),
                filters: vec![TopicFilter::parse("site/#".into()).unwrap()],
                max_age: Some(Duration::from_secs(60)),
                max_messages: 7,
                max_bytes: 8,
                created_at: UnixMillis(9),
            }),
        ] {
            assert_eq!(decode(&encode(&definition)).unwrap(), definition);
        }
    }

    #[test]
    fn cursors_come_back() {
        let cursor = Cursor { sequence: Sequence(u64::MAX), committed_at: UnixMillis(7) };
        let (name, back) = decode_cursor(b"billing", &encode_cursor(cursor)).unwrap();
        assert_eq!((name.as_str(), back), ("billing", cursor));
        assert!(decode_cursor(b"a b", &encode_cursor(cursor)).is_err());
    }

    #[test]
    fn subscriptions_come_back() {
        let options = SubscribeOptions {
            max_qos: Qos::ExactlyOnce,
            upgrade_qos: true,
            no_local: true,
            retain_as_published: true,
            retain_handling: RetainHandling::SendIfNew,
            identifier: NonZeroU32::new(268_435_455),
        };
        let (filter, back) = decode_subscription(b"a/+/b", &encode_subscription(&options)).unwrap();
        assert_eq!((filter.to_string().as_str(), back), ("a/+/b", options));
    }
}
