//! What one door has left half done when another has the session.
//!
//! A packet id belongs to the door that gave it: there a delivery goes on where it was. A door without packet ids delivers
//! what has one again, counted. What it settles at QoS 2 is done with but for its number: the client may hold that for
//! the old message, and would take a new one with it for a repetition. So it stays until the door that gave it is back and
//! has it released.

use super::sources::is_settled;
use super::{Session, SessionDelivery};
use crate::core::CoreError;
use crate::engine::{EngineError, Op, Outgoing, OutgoingState, Ticket};
use crate::types::{Qos, Sequence, TargetId};

/// A delivery at QoS 2 with the number that another door has given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbered {
    /// Where it is leased.
    pub source: TargetId,
    /// Which message.
    pub sequence: Sequence,
    packet_id: u16,
}

impl SessionDelivery {
    /// How often it was given to the client, this time included, for a door without packet ids. After a crash a lower bound.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.leased.attempt.saturating_add(u32::from(self.leased.outgoing.is_some()))
    }

    /// Whether it is done with but for its number. For a door without packet ids there is nothing to deliver: it keeps the
    /// lease to its end.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        is_settled(&self.leased)
    }

    /// What a door without packet ids settles by [`Session::settle_numbered`] alone.
    #[must_use]
    pub fn numbered(&self) -> Option<Numbered> {
        let outgoing = self.leased.outgoing.filter(|_| self.leased.qos == Qos::ExactlyOnce)?;
        let (source, sequence, packet_id) = (self.source, self.leased.sequence, outgoing.packet_id);
        Some(Numbered { source, sequence, packet_id })
    }
}

impl Session {
    /// Takes deliveries out that another door has numbered, but for their numbers. The ticket completes when that is
    /// durable: they are not delivered again.
    ///
    /// # Errors
    /// [`CoreError::Precondition`] `SESSION_TAKEN_OVER`.
    pub fn settle_numbered(&self, deliveries: &[Numbered]) -> Result<Ticket<()>, CoreError> {
        for delivery in deliveries {
            // Whose lease it is.
            self.leases(delivery.source, &[delivery.sequence], false)?;
        }
        let op = |&Numbered { source: target, sequence, packet_id }: &Numbered| {
            let outgoing = Outgoing { packet_id, state: OutgoingState::Settled };
            Op::Outgoing { target, sequence, outgoing }
        };
        let stored = self.broker.engine.commit(deliveries.iter().map(op).collect());
        let (done, ticket) = Ticket::new();
        self.broker.tasks.spawn(async move {
            // One that was purged meanwhile is refused: it does not come again either.
            let result: Result<(), EngineError> = stored.await.map(drop);
            done.send(result).ok();
        });
        Ok(ticket)
    }
}
