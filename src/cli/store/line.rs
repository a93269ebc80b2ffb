//! The lines of an export: what `export` writes and `import` reads, in one declaration.
//!
//! The first line has the [`VERSION`], the last one says how much stands between. A field that a thing does not have is
//! left out. A new field needs no new version: a program that does not know it says so and takes nothing.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

mod read;
mod write;

/// What this program writes, and the newest that it reads.
pub(super) const VERSION: u32 = 1;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Line {
    /// The first.
    Export(Header),
    Queue(Box<QueueLine>),
    Session(SessionLine),
    Group(GroupLine),
    Backlog(BacklogLine),
    Stream(StreamLine),
    Retained(Box<MessageLine>),
    Message(Box<MessageLine>),
    /// The last.
    End(End),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) version: u32,
}

/// What stands between the first line and the last.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    pub(super) targets: u64,
    pub(super) retained: u64,
    pub(super) messages: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueueLine {
    name: String,
    next_sequence: u64,
    bindings: Vec<String>,
    lease_seconds: f64,
    max_deliveries: Option<NonZeroU32>,
    dead_letter: Option<String>,
    dead_letter_expired: bool,
    retry_min_backoff_seconds: Option<f64>,
    retry_max_backoff_seconds: Option<f64>,
    default_ttl_seconds: Option<f64>,
    max_messages: u64,
    max_bytes: u64,
    overflow: OverflowWord,
    priorities: bool,
    ordered_by_key: bool,
    single_active_consumer: bool,
    dedup_window_seconds: Option<f64>,
    last_value_key: Option<String>,
    expires_after_seconds: Option<f64>,
    paused: bool,
    labels: BTreeMap<String, String>,
    created_at: String,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OverflowWord {
    Reject,
    DropOldest,
    DeadLetter,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SessionLine {
    name: String,
    next_sequence: u64,
    principal: String,
    /// Absent: for ever.
    expiry_seconds: Option<f64>,
    created_at: String,
    last_connected: String,
    connected: bool,
    max_messages: u64,
    max_bytes: u64,
    subscriptions: Vec<SubscriptionLine>,
    /// Publishes at QoS 2 that the client has not released.
    unreleased: Vec<UnreleasedLine>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnreleasedLine {
    packet_id: u16,
    sequence: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscriptionLine {
    filter: String,
    max_qos: u8,
    upgrade_qos: bool,
    no_local: bool,
    retain_as_published: bool,
    retain_handling: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    identifier: Option<NonZeroU32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupLine {
    filter: String,
    next_sequence: u64,
    max_messages: u64,
    max_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BacklogLine {
    name: String,
    next_sequence: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamLine {
    name: String,
    next_sequence: u64,
    filters: Vec<String>,
    max_age_seconds: Option<f64>,
    max_messages: u64,
    max_bytes: u64,
    created_at: String,
    cursors: Vec<CursorLine>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CursorLine {
    name: String,
    sequence: u64,
    committed_at: String,
}

/// A message that waits somewhere, or a retained value, which has only what the message itself has.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageLine {
    queue: Option<String>,
    session: Option<String>,
    group: Option<String>,
    backlog: Option<String>,
    stream: Option<String>,
    /// The number of a target whose definition is lost.
    target: Option<u32>,
    sequence: Option<u64>,
    attempts: Option<u32>,
    /// How many attempts ended with their consumer.
    losses: Option<u8>,
    priority: Option<u8>,
    granted_qos: Option<u8>,
    retain_flag: Option<bool>,
    not_before: Option<String>,
    /// It was given back, and was not sent to be delayed.
    rests: Option<bool>,
    /// To its stream.
    appended_at: Option<String>,
    /// What holds where it waits.
    expires_at: Option<String>,
    /// What its publisher said.
    message_expires_at: Option<String>,
    outgoing: Option<OutgoingLine>,
    message_id: String,
    /// Stands in the id too.
    published_at: Option<String>,
    topic: String,
    qos: u8,
    retain: bool,
    payload_base64: String,
    properties: Option<Vec<(String, String)>>,
    payload_is_utf8: Option<bool>,
    content_type: Option<String>,
    reply_to: Option<String>,
    correlation_data_base64: Option<String>,
    ordering_key: Option<String>,
    dedup_id: Option<String>,
    publisher: Option<String>,
    dead_letter: Option<DeadLetterLine>,
    /// The identifier of the one subscription that it waits for, 0 if that has none.
    subscription: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutgoingLine {
    packet_id: u16,
    state: OutgoingWord,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OutgoingWord {
    Sent,
    Received,
    /// By a door without packet ids, and not yet told over MQTT.
    Settled,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeadLetterLine {
    source: String,
    reason: String,
    attempts: u32,
    at: String,
}
