//! How messages reach connections: what a door implements, and how a batch of publishes is fanned out.
//!
//! A door gives each connection an [`Outbox`]. Publishers call it from their own tasks, once per target and batch,
//! so an outbox never blocks: it appends to a buffer with a bound and wakes its writer.

use std::num::NonZeroU32;
use std::sync::Arc;

use crate::core::share::ShareGroup;
use crate::types::{Message, Qos};

/// Where the deliveries of one connection go. Called from publishers' tasks, possibly from several at once and
/// under a lock of the core: it must neither block nor call back into the core.
pub trait Outbox: Send + Sync {
    /// Takes deliveries in order, and returns how many it dropped.
    ///
    /// At QoS 0 what is beyond the bound is dropped. At QoS 1 and 2 a full outbox closes itself (0x97), and counts
    /// what it did not take as dropped.
    fn offer(&self, deliveries: &[Offer<'_>]) -> usize;

    /// Ends the connection. The door closes its [`Session`](crate::core::Session) soon after; calls after the first
    /// change nothing.
    fn close(&self, reason: CloseReason);

    /// How many deliveries wait or are unacknowledged: of a share group's members the one with the least is chosen.
    fn backlog(&self) -> usize {
        0
    }
}

/// One message for one target.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The message as published.
    pub message: &'a Message,
    /// The level of this delivery: the lower of what was published and what the subscription takes.
    pub qos: Qos,
    /// The retain flag of this delivery.
    pub retain: bool,
    /// The identifiers of all subscriptions that match.
    pub identifiers: &'a [NonZeroU32],
    /// The share group that chose this member. What a lost connection had not acknowledged at QoS 1 goes back with
    /// [`Session::hand_back`](crate::core::Session::hand_back).
    pub share: Option<&'a Arc<ShareGroup>>,
}

/// Why the core ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The same client connected again.
    TakenOver,
    /// Its session was deleted.
    Deleted,
    /// The server is about to stop.
    Draining,
}
