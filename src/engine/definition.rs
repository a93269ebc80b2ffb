//! What durable targets are made of, as an engine stores it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use bytestring::ByteString;

use crate::types::topic::FilterSpec;
use crate::types::{ClientId, Message, Qos, QueueName, TargetId, TopicFilter, UnixMillis};

/// A target that outlives connections, as stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Definition {
    /// Competing consumers, leases.
    Queue(QueueSpec),
    /// One subscriber that may be away.
    Session(SessionSpec),
    /// The backlog of one share group that has a member whose session outlives its connection.
    Group(GroupSpec),
}

/// The settings of a queue.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueSpec {
    /// Its name.
    pub name: QueueName,
    /// Every publish that one of them matches is copied into the queue.
    pub bindings: Vec<TopicFilter>,
    /// How long a consumer has a message when it does not say.
    pub lease: Duration,
    /// After that many counted deliveries a message is moved to `dead_letter`; none: without end.
    pub max_deliveries: Option<NonZeroU32>,
    /// Where messages go that were given up.
    pub dead_letter: Option<QueueName>,
    /// The time to live of messages that have none of their own.
    pub default_ttl: Option<Duration>,
    /// At most so many messages; beyond it a publish is refused whole.
    pub max_messages: u64,
    /// At most so many bytes of messages; beyond it a publish is refused whole.
    pub max_bytes: u64,
    /// Whether a higher priority is delivered first.
    pub priorities: bool,
    /// For people and their tools.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// A session that outlives its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSpec {
    /// Whose it is.
    pub client_id: ClientId,
    /// Who made it; nobody else may take it over.
    pub principal: ByteString,
    /// How long it outlives its connection; `Duration::MAX`: for ever.
    pub expiry: Duration,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it was last seen connected, as of the last checkpoint.
    pub last_connected: UnixMillis,
    /// Whether it was connected when this was written.
    pub connected: bool,
    /// At most so many messages wait; beyond it the new one is dropped and counted.
    pub max_messages: u64,
    /// At most so many bytes of messages wait; beyond it the new one is dropped and counted.
    pub max_bytes: u64,
}

/// A share group with a backlog of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    /// `$share/<group>/<filter>`.
    pub filter: FilterSpec,
    /// At most so many messages wait; beyond it the new one is dropped and counted.
    pub max_messages: u64,
    /// At most so many bytes of messages wait; beyond it the new one is dropped and counted.
    pub max_bytes: u64,
}

/// How a subscription wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// The highest level it takes.
    pub max_qos: Qos,
    /// Not what the same client published.
    pub no_local: bool,
    /// Hand on the retain flag as published.
    pub retain_as_published: bool,
    /// What of the retained values it gets when it subscribes.
    pub retain_handling: RetainHandling,
    /// Told with each delivery.
    pub identifier: Option<NonZeroU32>,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self {
            max_qos: Qos::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
            identifier: None,
        }
    }
}

/// What of the retained values a new subscription gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RetainHandling {
    /// All that match.
    Send = 0,
    /// All that match, if the subscription was not there before.
    SendIfNew = 1,
    /// None.
    DoNotSend = 2,
}

/// What a stored session brings along at start.
#[derive(Debug, Clone)]
pub struct StoredSession {
    /// Its target.
    pub id: TargetId,
    /// Its settings.
    pub spec: SessionSpec,
    /// What it subscribed to.
    pub subscriptions: Vec<(FilterSpec, SubscribeOptions)>,
    /// Packet ids of QoS 2 publishes that it has not released yet.
    pub incoming: Vec<u16>,
}

/// What the engine holds when it opens.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// All queues.
    pub queues: Vec<(TargetId, QueueSpec)>,
    /// All sessions with their subscriptions.
    pub sessions: Vec<StoredSession>,
    /// All share groups with a backlog.
    pub groups: Vec<(TargetId, GroupSpec)>,
    /// All retained values.
    pub retained: Vec<Message>,
}
