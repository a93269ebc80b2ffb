//! Messages in the hands of consumers: how they are taken, named, and settled or given back.

use std::time::Duration;

use bytestring::ByteString;

use super::{Outgoing, Ticket};
use crate::types::{Message, Priority, Qos, Sequence, UnixMillis};

/// How a consumer takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConsumerOptions {
    /// How long it has a message; none: until it is settled or the consumer ends.
    pub lease: Option<Duration>,
    /// What it leased outlives it and comes back by time alone; for callers that settle by
    /// [`Engine::settle`](super::Engine::settle) later, from anywhere. Needs a `lease`.
    pub keep_leases: bool,
    /// Of consumers with different ones a higher one is served first, as long as it has room.
    pub priority: i32,
}

/// A message that one consumer has for a while.
#[derive(Debug, Clone)]
pub struct Leased {
    /// Its place in the target.
    pub sequence: Sequence,
    /// 1 the first time; counts failed and lost deliveries. After a crash a lower bound.
    pub attempt: u32,
    /// What the subscription granted.
    pub qos: Qos,
    /// The retain flag to hand on.
    pub retain: bool,
    /// Its priority here.
    pub priority: Priority,
    /// When another consumer may get it; none: not before this one ends.
    pub lease_expires: Option<UnixMillis>,
    /// What is known of an earlier delivery in this session.
    pub outgoing: Option<Outgoing>,
    /// It was stored by an earlier start of the engine: what became of it then may not be known.
    pub earlier_boot: bool,
    /// The message.
    pub message: Message,
}

/// Names one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRef {
    /// Which message.
    pub sequence: Sequence,
    /// Which delivery of it; none: whoever holds it.
    pub attempt: Option<u32>,
    /// The lease is of an earlier start of the engine: it holds only while the message is ready again.
    pub earlier_boot: bool,
}

impl LeaseRef {
    /// Whoever holds this message.
    #[must_use]
    pub const fn of(sequence: Sequence) -> Self {
        Self { sequence, attempt: None, earlier_boot: false }
    }
}

/// Why a lease could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// It ended: the message is ready again, leased to another, or settled.
    #[error("the lease has ended")]
    Expired,
    /// There is no such message any more.
    #[error("no such message: it was settled, expired or purged")]
    Unknown,
}

/// What became of leases that were handed in together.
#[derive(Debug)]
pub struct Settled {
    /// Those that could not be used, by their place in the list.
    pub failed: Vec<(usize, LeaseError)>,
    /// Completes when the rest is durable.
    pub durable: Ticket<()>,
}

/// How a lease is given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nack {
    /// Not counted.
    Release,
    /// Counted against the maximum of deliveries. Why is kept with the dead letter if it was the last.
    Failed(Option<ByteString>),
    /// The same, and its consumer was lost with it: see [`Consumer::take`](super::Consumer::take).
    Lost,
    /// To the dead letter queue at once, with this reason; where there is none it counts as failed.
    DeadLetter(ByteString),
}
