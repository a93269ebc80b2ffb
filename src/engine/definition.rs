//! What durable targets are made of, as an engine stores it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use bytestring::ByteString;

use super::stream::{StoredStream, StreamSpec};
use crate::types::topic::FilterSpec;
use crate::types::{
    ClientId, Message, Qos, QueueName, StreamName, TargetId, TopicFilter, TopicName, UnixMillis,
};

/// A target that outlives connections, as stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Definition {
    /// Competing consumers, leases.
    Queue(QueueSpec),
    /// One subscriber that may be away.
    Session(SessionSpec),
    /// The backlog of one share group that has a member whose session outlives its connection.
    Group(GroupSpec),
    /// Something of the broker's own.
    Backlog(BacklogSpec),
    /// A log without consumers.
    Stream(StreamSpec),
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
    /// How long a message rests after its first failed delivery, about twice as long after each further one; none: not
    /// at all.
    pub retry_min_backoff: Option<Duration>,
    /// No rest is longer; none: [`QueueSpec::MAX_BACKOFF`], or the shortest where that is longer.
    pub retry_max_backoff: Option<Duration>,
    /// The time to live of messages that have none of their own.
    pub default_ttl: Option<Duration>,
    /// At most so many messages.
    pub max_messages: u64,
    /// At most so many bytes of messages.
    pub max_bytes: u64,
    /// What happens when one more would be beyond them.
    pub overflow: Overflow,
    /// Whether a higher priority is delivered first.
    pub priorities: bool,
    /// Whether messages with the same ordering key come one at a time, in their order.
    pub ordered_by_key: bool,
    /// One of its consumers gets messages, until it ends.
    pub single_active_consumer: bool,
    /// How long it remembers the deduplication ids of what it took; none: not at all.
    pub dedup_window: Option<Duration>,
    /// Of the messages that say the same of this property the newest is kept.
    pub last_value_key: Option<ByteString>,
    /// For people and their tools.
    pub labels: BTreeMap<String, String>,
    /// Its consumers get nothing.
    pub paused: bool,
    /// When it was made.
    pub created_at: UnixMillis,
    /// What expires goes to `dead_letter`, instead of being dropped.
    pub dead_letter_expired: bool,
    /// It is deleted when nobody has used it for so long; none: never.
    pub expires_after: Option<Duration>,
}

/// What happens when a message comes to a queue that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Overflow {
    /// Its publish is refused whole.
    #[default]
    Reject = 0,
    /// The oldest ready messages of the lowest priority are dropped, in one act with its storing. When there are not enough
    /// of them it is refused.
    DropOldest = 1,
    /// They go to the dead letter queue instead, each by an act of its own, soon after. Until then they count no more.
    DeadLetter = 2,
}

impl QueueSpec {
    /// The longest rest of which nothing was said.
    pub const MAX_BACKOFF: Duration = Duration::from_secs(600);

    /// One without bounds, of which nothing else was said.
    #[must_use]
    pub fn new(name: QueueName, lease: Duration, created_at: UnixMillis) -> Self {
        Self {
            name,
            bindings: Vec::new(),
            lease,
            max_deliveries: None,
            dead_letter: None,
            retry_min_backoff: None,
            retry_max_backoff: None,
            default_ttl: None,
            max_messages: u64::MAX,
            max_bytes: u64::MAX,
            overflow: Overflow::Reject,
            priorities: false,
            ordered_by_key: false,
            single_active_consumer: false,
            dedup_window: None,
            last_value_key: None,
            labels: BTreeMap::new(),
            paused: false,
            created_at,
            dead_letter_expired: false,
            expires_after: None,
        }
    }
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

/// A target of the broker itself, that nobody subscribes to. It has no bounds: whoever puts something in keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BacklogSpec {
    /// What it is for.
    pub name: ByteString,
}

/// How a subscription wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// The highest level it takes.
    pub max_qos: Qos,
    /// It takes everything at that level, what was published below it too.
    pub upgrade_qos: bool,
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
            upgrade_qos: false,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
            identifier: None,
        }
    }
}

/// Between which levels deliveries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// What was published below it is delivered at this one.
    pub at_least: Qos,
    /// What was published above it is delivered at this one.
    pub at_most: Qos,
}

impl SubscribeOptions {
    /// Between which levels the subscription takes its messages.
    #[must_use]
    pub fn levels(&self) -> Levels {
        let at_least = if self.upgrade_qos { self.max_qos } else { Qos::AtMostOnce };
        Levels { at_least, at_most: self.max_qos }
    }
}

impl Levels {
    /// The level of a delivery of what was published at `qos`.
    #[must_use]
    pub fn of(self, qos: Qos) -> Qos {
        qos.min(self.at_most).max(self.at_least)
    }

    /// Of two subscriptions that take the same message: the higher of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { at_least: self.at_least.max(other.at_least), at_most: self.at_most.max(other.at_most) }
    }

    /// No higher than `most`.
    #[must_use]
    pub fn within(self, most: Qos) -> Self {
        Self { at_least: self.at_least.min(most), at_most: self.at_most.min(most) }
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
    /// All streams.
    pub streams: Vec<StoredStream>,
    /// What the broker has for itself.
    pub backlogs: Vec<(TargetId, BacklogSpec)>,
    /// All retained values.
    pub retained: Vec<Message>,
}

/// The topic under which a message that was put straight into a queue is known. Always there: a queue name has
/// no character that a topic may not have.
#[must_use]
pub fn queue_topic(queue: &QueueName) -> Option<TopicName> {
    TopicName::parse(ByteString::from(format!("$queue/{queue}"))).ok()
}

/// The topic of what was put straight into a stream and says no other.
#[must_use]
pub fn stream_topic(stream: &StreamName) -> Option<TopicName> {
    TopicName::parse(ByteString::from(format!("$stream/{stream}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_of_a_delivery_is_between_those_of_the_subscriptions() {
        const ALL: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];
        let levels = |max_qos, upgrade_qos| {
            SubscribeOptions { max_qos, upgrade_qos, ..SubscribeOptions::default() }.levels()
        };
        for (published, subscribed) in ALL.into_iter().flat_map(|published| ALL.map(|max| (published, max))) {
            assert_eq!(levels(subscribed, false).of(published), published.min(subscribed));
            assert_eq!(levels(subscribed, true).of(published), subscribed);
            assert_eq!(levels(subscribed, true).within(published).of(published), published.min(subscribed));
        }
        let both = levels(Qos::ExactlyOnce, false).and(levels(Qos::AtLeastOnce, true));
        assert_eq!(ALL.map(|qos| both.of(qos)), [Qos::AtLeastOnce, Qos::AtLeastOnce, Qos::ExactlyOnce]);
    }
}
