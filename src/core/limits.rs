//! Every bound of the core in one place, each with its unit, its reason and what happens beyond it.

use std::time::Duration;

use super::CoreError;
use super::calls::TopicPair;
use crate::types::{Message, TopicFilter, TopicName};

/// The bounds of the core. Beyond a bound the request is refused with an error that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one payload. A message is held in memory whole, several times under load.
    pub max_payload_bytes: usize,
    /// Bytes of one topic name or filter.
    pub max_topic_bytes: usize,
    /// Levels of one topic name or filter. Matching walks them.
    pub max_topic_levels: usize,
    /// Properties of one message.
    pub max_properties: usize,
    /// Bytes of content type, reply topic, correlation data and properties of one message together.
    pub max_property_bytes: usize,
    /// Queues.
    pub max_queues: usize,
    /// Bindings of one queue.
    pub max_bindings: usize,
    /// Streams.
    pub max_streams: usize,
    /// Cursors of one stream; they are held in memory.
    pub max_cursors: usize,
    /// Streams that one connection of a session reads at once.
    pub session_streams: usize,
    /// Sessions that outlive their connection.
    pub max_sessions: usize,
    /// Subscriptions of one session.
    pub max_subscriptions: usize,
    /// Members of all share groups of one name and filter.
    pub max_group_members: usize,
    /// Retained values.
    pub max_retained: usize,
    /// Bytes of all retained values; they are held in memory.
    pub max_retained_bytes: usize,
    /// Messages that a session keeps while it is away; beyond it the new one is dropped and counted.
    pub session_messages: u64,
    /// Bytes of messages that a session keeps while it is away; beyond it the new one is dropped and counted.
    pub session_bytes: u64,
    /// The longest that a session outlives its connection.
    pub max_session_expiry: Duration,
    /// How long a connection that is ended has to give its session back; then the session is taken from it.
    pub release_within: Duration,
    /// Bytes of one will. It waits in memory after its connection is gone.
    pub max_will_bytes: usize,
    /// Calls that wait for their answer, over all services.
    pub max_calls: usize,
    /// Bytes of their requests, and of replies that their callers have not read.
    pub call_bytes: usize,
    /// Bytes of replies to one call that its caller has not read; beyond it the call ends. One reply may overdraw.
    pub call_reply_bytes: usize,
    /// Responders that one multicast asks; beyond it, it is refused.
    pub gather_responders: usize,
    /// Bytes of the replies of one multicast that its caller has not read, or that are gathered for it; beyond it a reply
    /// counts as refused. One may overdraw.
    pub gather_bytes: usize,
    /// Parts of one request; beyond it, it is refused.
    pub gather_parts: usize,
    /// Parts of requests that wait at one service; beyond it a request in parts is refused.
    pub parts_waiting: usize,
    /// Calls of one service, or requests of multicasts to one responder, that wait for room.
    pub calls_waiting: usize,
    /// How many responders are asked at most when each is lost with an idempotent call in hand.
    pub call_tries: usize,
    /// Responders of all services, subscribers that were called included.
    pub max_responders: usize,
    /// Requests that one subscriber has in hand, of one service; beyond it calls wait.
    pub device_calls: usize,
    /// How long a call that is published waits for its answer when it does not say, and how long a subscriber may have an
    /// asynchronous call.
    pub call_timeout: Duration,
    /// Asynchronous calls under way, and replies to them that are kept.
    pub async_calls: usize,
    /// Bytes of the requests of asynchronous calls, which are in memory and on disk; and as many of replies that are kept, on
    /// disk. Beyond the former a call is refused, beyond the latter it is answered with that.
    pub async_call_bytes: usize,
    /// How long a reply is kept for its caller.
    pub async_reply_ttl: Duration,
    /// Where clients answer that know no response topics.
    pub device_topics: Vec<TopicPair>,
    /// Messages of one publisher connection whose tickets are open; beyond it the connection is not read.
    pub publish_pending: usize,
    /// Bytes of all messages that wait for the writer; beyond it publishers wait.
    pub commit_pending_bytes: usize,
    /// A queue's lease when nobody says.
    pub default_lease: Duration,
    /// The shortest lease. A shorter one would end before its message is with the consumer.
    pub min_lease: Duration,
    /// The longest lease.
    pub max_lease: Duration,
    /// The longest delay of a message: a year, leap years too.
    pub max_delay: Duration,
    /// Messages of a queue that is created without a bound.
    pub queue_messages: u64,
    /// Bytes of a queue that is created without a bound.
    pub queue_bytes: u64,
    /// Messages of a stream that is created without a bound; the oldest go for newer ones.
    pub stream_messages: u64,
    /// Bytes of a stream that is created without a bound; the oldest go for newer ones.
    pub stream_bytes: u64,
}

impl Limits {
    /// Whether a message of a publisher is within the bounds.
    ///
    /// # Errors
    /// [`CoreError::TooLarge`] with the field of the message.
    pub fn check_message(&self, message: &Message) -> Result<(), CoreError> {
        at_most("payload", message.payload.len(), self.max_payload_bytes, "bytes")?;
        self.check_topic("topic", &message.topic)?;
        let Some(extras) = &message.extras else { return Ok(()) };
        if let Some(reply_to) = &extras.reply_to {
            self.check_topic("reply_to", reply_to)?;
        }
        at_most("properties", extras.properties.len(), self.max_properties, "entries")?;
        let rest = message.weight() - message.payload.len() - message.topic.as_str().len();
        at_most("properties", rest, self.max_property_bytes, "bytes")
    }

    /// Whether a topic name is within the bounds.
    ///
    /// # Errors
    /// [`CoreError::TooLarge`] naming `field`.
    pub fn check_topic(&self, field: &str, topic: &TopicName) -> Result<(), CoreError> {
        let len = topic.as_str().len();
        at_most(field, len, self.max_topic_bytes, "bytes")?;
        // Each level but the last takes a byte at least.
        if len < self.max_topic_levels {
            return Ok(());
        }
        at_most(field, topic.level_count(), self.max_topic_levels, "levels")
    }

    /// Whether a topic filter is within the bounds.
    ///
    /// # Errors
    /// [`CoreError::TooLarge`] naming `field`.
    pub fn check_filter(&self, field: &str, filter: &TopicFilter) -> Result<(), CoreError> {
        at_most(field, filter.as_str().len(), self.max_topic_bytes, "bytes")?;
        at_most(field, filter.level_count(), self.max_topic_levels, "levels")
    }
}

fn at_most(field: &str, len: usize, max: usize, unit: &'static str) -> Result<(), CoreError> {
    if len > max {
        return Err(CoreError::TooLarge { field: field.to_owned(), len: len as u64, max: max as u64, unit });
    }
    Ok(())
}

impl Default for Limits {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            max_payload_bytes: 4 << 20,
            max_topic_bytes: 4096,
            max_topic_levels: 64,
            max_properties: 64,
            max_property_bytes: 64 << 10,
            max_queues: 10_000,
            max_bindings: 1000,
            max_streams: 1000,
            max_cursors: 1000,
            session_streams: 16,
            max_sessions: 100_000,
            max_subscriptions: 10_000,
            max_group_members: 10_000,
            max_retained: 1_000_000,
            max_retained_bytes: 1 << 30,
            session_messages: 100_000,
            session_bytes: 256 << 20,
            max_session_expiry: DAY * 365,
            release_within: Duration::from_secs(5),
            max_will_bytes: 128 << 10,
            max_calls: 100_000,
            call_bytes: 256 << 20,
            call_reply_bytes: 4 << 20,
            gather_responders: 1000,
            gather_bytes: 16 << 20,
            gather_parts: 10_000,
            parts_waiting: 50_000,
            calls_waiting: 10_000,
            call_tries: 3,
            max_responders: 100_000,
            device_calls: 16,
            call_timeout: Duration::from_secs(30),
            async_calls: 100_000,
            async_call_bytes: 256 << 20,
            async_reply_ttl: Duration::from_secs(3600),
            device_topics: Vec::new(),
            publish_pending: 4096,
            commit_pending_bytes: 64 << 20,
            default_lease: Duration::from_secs(30),
            min_lease: Duration::from_secs(1),
            max_lease: Duration::from_secs(12 * 3600),
            max_delay: DAY * 366,
            queue_messages: 10_000_000,
            queue_bytes: 16 << 30,
            stream_messages: 10_000_000,
            stream_bytes: 16 << 30,
        }
    }
}
