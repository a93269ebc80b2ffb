//! Streams: logs of what was published that are kept for a while and read again and again.
//!
//! A stream is a target without consumers: nobody leases or settles what lies there. What is appended has the next
//! sequence of the stream, and goes when the stream's retention says so, the oldest first.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::EngineError;
use crate::bell::Bell;
use crate::types::{CursorName, Message, Sequence, StreamName, TargetId, TopicFilter, UnixMillis};

/// The settings of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamSpec {
    /// Its name.
    pub name: StreamName,
    /// Every publish that one of them matches is appended.
    pub filters: Vec<TopicFilter>,
    /// What was appended longer ago goes, within a second or so; none: age is no reason.
    pub max_age: Option<Duration>,
    /// At most so many messages: one more takes the place of the oldest.
    pub max_messages: u64,
    /// At most so many bytes of messages: the oldest go for a new one. One that is larger by itself is refused.
    pub max_bytes: u64,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// How far a reader is, as it said itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// It is done with everything up to this one.
    pub sequence: Sequence,
    /// When it said so.
    pub committed_at: UnixMillis,
}

/// What a stored stream brings along at start.
#[derive(Debug, Clone)]
pub struct StoredStream {
    /// Its target.
    pub id: TargetId,
    /// Its settings.
    pub spec: StreamSpec,
    /// Its cursors.
    pub cursors: Vec<(CursorName, Cursor)>,
}

/// Messages for the end of one stream: all of them in a row, or none.
#[derive(Debug, Clone)]
pub struct StreamAppend {
    /// The stream.
    pub target: TargetId,
    /// What is stored, in this order.
    pub messages: Vec<Message>,
    /// The first of them gets this sequence, or nothing is stored.
    pub expected: Option<Sequence>,
}

/// Where a stream begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamEnds {
    /// The oldest message that is kept; without any it is `next`.
    pub first: Sequence,
    /// What the next one will get.
    pub next: Sequence,
}

/// What is known of a stream without reading it. Totals count from the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamStats {
    /// Where it begins and ends.
    pub ends: StreamEnds,
    /// How many messages are kept.
    pub messages: u64,
    /// Their bytes, as they are stored.
    pub bytes: u64,
    /// When the oldest was appended, to a tenth of a second.
    pub first_at: Option<UnixMillis>,
    /// The same of the newest.
    pub last_at: Option<UnixMillis>,
    /// How many were appended.
    pub appended_total: u64,
    /// How many went because of their age.
    pub aged_total: u64,
    /// How many went to make room, or because a bound was lowered.
    pub displaced_total: u64,
    /// Who reads.
    pub readers: u32,
}

/// One message of a stream.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Its place.
    pub sequence: Sequence,
    /// When it was appended, up to a tenth of a second later. Never earlier than the one before.
    pub appended_at: UnixMillis,
    /// The message.
    pub message: Message,
}

/// What is at one place of a stream.
#[derive(Debug, Clone)]
pub enum Found {
    /// A message that is wanted.
    Message(Logged),
    /// One that is not.
    PassedOver(Sequence),
    /// One that cannot be read; those behind it can.
    Unreadable(Sequence),
}

impl Found {
    /// Which place.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        match self {
            Self::Message(logged) => logged.sequence,
            Self::PassedOver(sequence) | Self::Unreadable(sequence) => *sequence,
        }
    }
}

/// What one look at a stream gave.
#[derive(Debug, Clone, Default)]
pub struct StreamPage {
    /// In the order of their places, every one that there is.
    pub found: Vec<Found>,
    /// Where the stream begins and ended just before.
    pub ends: StreamEnds,
}

/// One who reads a stream, wherever he likes.
pub trait StreamReader: Send + Sync + fmt::Debug {
    /// Looks at the messages from `from` on, or from the oldest that is kept: at most `max`, and no more after `max_bytes` as
    /// they are stored (one may overdraw). Never waits. When it gives nothing, [`StreamReader::ready`] is woken as soon as there may be
    /// more; it may give less than asked though there is more.
    ///
    /// What is not in memory is read by threads of the engine, a page at a time for each reader, and is not kept there.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`] when the stream was deleted, [`EngineError::Failed`] when the store cannot be read.
    fn read(&self, from: Sequence, max: usize, max_bytes: usize) -> Result<StreamPage, EngineError>;

    /// Woken after a look that gave nothing: when something was appended or read, or its settings were changed; and when the
    /// stream is gone.
    fn ready(&self) -> &Arc<Bell>;
}
