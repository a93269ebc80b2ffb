//! A message as every layer below the doors knows it.
//!
//! Cloning is cheap: text and payload are shared. What few messages carry (properties, reply topic, …) lives
//! behind one pointer, so that the usual message stays small.

use bytes::Bytes;
use bytestring::ByteString;

use super::clock::UnixMillis;
use super::ids::{ClientId, MessageId, QueueName};
use super::topic::TopicName;

/// What a publisher asks for, or a subscriber is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Qos {
    /// Accepted by the process, nothing more.
    AtMostOnce = 0,
    /// Stored for every durable target before the acknowledgement.
    AtLeastOnce = 1,
    /// Stored, and handed on once between two sessions that both outlive their connections.
    ExactlyOnce = 2,
}

impl Qos {
    /// The level with this number.
    #[must_use]
    pub const fn from_u8(level: u8) -> Option<Self> {
        match level {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// The lowest (0) to the highest (9) priority of a message in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

impl Priority {
    /// How many levels there are.
    pub const LEVELS: usize = 10;

    /// The priority with this number, if it is 0 to 9.
    #[must_use]
    pub const fn new(level: u8) -> Option<Self> {
        if (level as usize) < Self::LEVELS { Some(Self(level)) } else { None }
    }

    /// 0 to 9.
    #[must_use]
    pub const fn level(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self(4)
    }
}

/// A message: what its publisher said and what the broker added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Given by the broker when it accepted the message; holds the time of that.
    pub id: MessageId,
    /// Where it was published; `$queue/<name>` for what was put straight into a queue.
    pub topic: TopicName,
    /// The content.
    pub payload: Bytes,
    /// As published.
    pub qos: Qos,
    /// As published.
    pub retain: bool,
    /// From then on nobody receives it.
    pub expires_at: Option<UnixMillis>,
    /// What few messages carry.
    pub extras: Option<Box<Extras>>,
}

/// The parts of a message that few messages carry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extras {
    /// The publisher says that the payload is UTF-8 (MQTT 5: payload format indicator).
    pub payload_is_utf8: bool,
    /// What the payload is.
    pub content_type: Option<ByteString>,
    /// Where an answer is expected (MQTT 5: response topic).
    pub reply_to: Option<TopicName>,
    /// Returned with the answer.
    pub correlation_data: Option<Bytes>,
    /// Messages with the same one come one at a time from queues that keep order by key.
    pub ordering_key: Option<ByteString>,
    /// Its producer's name for it, by which queues know it when it comes again.
    pub dedup_id: Option<ByteString>,
    /// Key and value, in order, keys may repeat (MQTT 5: user properties).
    pub properties: Vec<(ByteString, ByteString)>,
    /// The client that published, where it has a name.
    pub publisher: Option<ClientId>,
    /// Why this message lies in a dead letter queue.
    pub dead_letter: Option<DeadLetter>,
    /// Lies in a session's backlog for one subscription alone: that one's identifier, 0 if it has none.
    pub subscription: Option<u32>,
}

/// Why and when a message was moved to a dead letter queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The queue that gave it up.
    pub source: QueueName,
    /// `max deliveries`, or what the consumer said.
    pub reason: ByteString,
    /// How often it was delivered there.
    pub attempts: u32,
    /// When it was moved.
    pub at: UnixMillis,
}

impl Message {
    /// What counts against bounds in bytes: topic, payload and properties, without overhead.
    #[must_use]
    pub fn weight(&self) -> usize {
        let extras = self.extras.as_ref().map_or(0, |extras| {
            extras.properties.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>()
                + extras.content_type.as_ref().map_or(0, |t| t.len())
                + extras.reply_to.as_ref().map_or(0, |t| t.as_str().len())
                + extras.correlation_data.as_ref().map_or(0, Bytes::len)
                + extras.ordering_key.as_ref().map_or(0, |key| key.len())
                + extras.dedup_id.as_ref().map_or(0, |id| id.len())
        });
        self.topic.as_str().len() + self.payload.len() + extras
    }

    /// A copy with bytes of its own, for keepers: the message may be a part of a much larger read buffer.
    #[must_use]
    pub fn detached(&self) -> Self {
        let text = |text: &ByteString| ByteString::from(&**text);
        let extras = self.extras.as_ref().map(|extras| {
            Box::new(Extras {
                payload_is_utf8: extras.payload_is_utf8,
                content_type: extras.content_type.as_ref().map(text),
                reply_to: extras.reply_to.as_ref().map(TopicName::detached),
                correlation_data: extras.correlation_data.as_deref().map(Bytes::copy_from_slice),
                ordering_key: extras.ordering_key.as_ref().map(text),
                dedup_id: extras.dedup_id.as_ref().map(text),
                properties: extras.properties.iter().map(|(key, value)| (text(key), text(value))).collect(),
                publisher: extras.publisher.clone(),
                dead_letter: extras.dead_letter.clone(),
                subscription: extras.subscription,
            })
        });
        Self { topic: self.topic.detached(), payload: Bytes::copy_from_slice(&self.payload), extras, ..*self }
    }

    /// Whether nobody may receive it any more.
    #[must_use]
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// The rare parts, to change.
    pub fn extras_mut(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }
}
