//! What is seen of a target without consuming: its messages by where they are, and its counts.

use super::Ticket;
use crate::types::{Message, Priority, Sequence, UnixMillis};

/// Which messages of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// All.
    All,
    /// Waiting for a consumer.
    Ready,
    /// Not due yet.
    Delayed,
    /// With a consumer.
    Leased,
}

/// A message that is looked at, not taken.
#[derive(Debug, Clone)]
pub struct Browsed {
    /// Its place.
    pub sequence: Sequence,
    /// How often it was delivered and not settled.
    pub attempts: u32,
    /// Where it is.
    pub view: View,
    /// Its priority.
    pub priority: Priority,
    /// When it is due, or its lease ends.
    pub until: Option<UnixMillis>,
    /// The message.
    pub message: Message,
}

/// What was taken out without being consumed.
#[derive(Debug)]
pub struct Removed {
    /// Their places.
    pub sequences: Vec<Sequence>,
    /// Completes when that is durable.
    pub durable: Ticket<()>,
}

/// What one look at messages gave.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// In the order of their places.
    pub messages: Vec<Browsed>,
    /// Where to go on; none: there is nothing more.
    pub next: Option<Sequence>,
}

/// Counts of one target. Totals count from the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TargetStats {
    /// Waiting for a consumer.
    pub ready: u64,
    /// Not due yet.
    pub delayed: u64,
    /// With a consumer.
    pub leased: u64,
    /// Of all of these: [`Message::weight`] and what storing adds.
    pub bytes: u64,
    /// Stored.
    pub enqueued_total: u64,
    /// Settled by consumers.
    pub acked_total: u64,
    /// Moved to a dead letter queue.
    pub dead_lettered_total: u64,
    /// Dropped because their time was over.
    pub expired_total: u64,
    /// Dropped because the target was full.
    pub dropped_total: u64,
    /// Replaced by newer ones with the same value.
    pub replaced_total: u64,
    /// Who takes.
    pub consumers: u32,
    /// The last place that was given to a message; 0 is none.
    pub last: Sequence,
}

/// How much a target was used since the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// How many messages were stored.
    pub stored: u64,
    /// How many consumers have joined.
    pub joined: u64,
    /// Whether there is a consumer now, or somebody has a message.
    pub busy: bool,
}
