//! What one stream has delivered and the client has not settled.
//!
//! Invariant: a number stands for one delivery; it is gone when it is settled. Dropping it gives everything back: to
//! the session, counted as failed unless the end was clean, or to other members of a share group.

use std::sync::Arc;

use smallvec::SmallVec;

use super::mailbox::{Kept, Mailbox, Waiting};
use super::unsettled::Unsettled;
use crate::core::queues::consumer::Window;
use crate::core::{CoreError, Numbered, Session, SessionDelivery};
use crate::engine::{LeaseError, Nack, Settled, Ticket};
use crate::grpc::proto::v1;
use crate::grpc::status;
use crate::types::{Qos, Sequence, TargetId};

/// See the module.
pub(super) struct Held {
    pub(super) session: Session,
    pub(super) mailbox: Arc<Mailbox>,
    window: Window,
    deliveries: Unsettled<Delivered>,
    bytes: usize,
    next: u64,
    /// The end is in order.
    pub(super) clean: bool,
}

/// Completes when what was settled is gone for good.
pub(super) type Durable = SmallVec<[Ticket<()>; 1]>;

/// One delivery.
struct Delivered {
    what: What,
    bytes: usize,
}

enum What {
    /// Leased from a source.
    Stored(TargetId, Sequence),
    /// The same, numbered at another door.
    Numbered(Numbered),
    /// Live, and what is kept of it for a share group.
    Live(Option<Box<Kept>>),
}

/// Some numbers, and what they are leased as.
#[derive(Default)]
struct Leases {
    numbers: Vec<u64>,
    sequences: Vec<Sequence>,
}

impl Held {
    pub(super) fn new(session: Session, mailbox: Arc<Mailbox>, window: Window) -> Self {
        let deliveries = Unsettled::default();
        Self { session, mailbox, window, deliveries, bytes: 0, next: 1, clean: false }
    }

    /// What the window leaves.
    pub(super) fn room(&self) -> Window {
        Window {
            messages: self.window.messages.saturating_sub(self.deliveries.len()),
            bytes: self.window.bytes.saturating_sub(self.bytes),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        let room = self.room();
        room.messages > 0 && room.bytes > 0
    }

    fn hold(&mut self, what: What, bytes: usize) -> u64 {
        let number = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.deliveries.push(number, Delivered { what, bytes });
        self.mailbox.set_unsettled(self.deliveries.len());
        number
    }

    /// The number of a live delivery; 0 when there is nothing to settle.
    pub(super) fn live(&mut self, waiting: Waiting) -> u64 {
        if waiting.qos == Qos::AtMostOnce {
            return 0;
        }
        self.hold(What::Live(waiting.kept.filter(|kept| kept.share.is_some())), waiting.weight)
    }

    /// The number of a stored delivery; 0 when there is nothing to settle, since it was settled by being sent.
    pub(super) fn stored(&mut self, delivery: &SessionDelivery) -> u64 {
        let SessionDelivery { source, leased, .. } = delivery;
        if leased.qos == Qos::AtMostOnce {
            // Nobody waits for it, and one that cannot be settled comes again.
            drop(self.session.settle(*source, &[leased.sequence]));
            return 0;
        }
        let what = delivery.numbered().map_or(What::Stored(*source, leased.sequence), What::Numbered);
        self.hold(what, leased.message.weight())
    }

    /// Forgets a delivery.
    fn release(&mut self, number: u64) -> Option<What> {
        let Delivered { what, bytes } = self.deliveries.remove(number)?;
        self.bytes -= bytes;
        Some(what)
    }

    /// Settles deliveries. Returns those that could not be, and what completes when the rest is gone for good.
    ///
    /// # Errors
    /// [`CoreError::Engine`].
    pub(super) fn settle(
        &mut self,
        ack_id: u64,
        numbers: Vec<u64>,
    ) -> Result<(Vec<v1::AckFailure>, Durable), CoreError> {
        let failure = |delivery_id: u64, error: &CoreError| v1::AckFailure {
            ack_id,
            delivery_id,
            lease_token: Default::default(),
            error: Some(status::item(error)),
        };
        let mut failures = Vec::new();
        let mut numbered: Vec<(u64, Numbered)> = Vec::new();
        let mut sources: SmallVec<[(TargetId, Leases); 2]> = SmallVec::new();
        for number in numbers {
            match self.release(number) {
                None => failures.push(failure(number, &CoreError::Lease(LeaseError::Unknown))),
                Some(What::Live(_)) => {}
                Some(What::Numbered(delivery)) => numbered.push((number, delivery)),
                Some(What::Stored(source, sequence)) => {
                    let leases = of_source(&mut sources, source);
                    leases.numbers.push(number);
                    leases.sequences.push(sequence);
                }
            }
        }
        self.mailbox.set_unsettled(self.deliveries.len());
        let mut durable = Durable::new();
        if !numbered.is_empty() {
            let (numbers, deliveries): (Vec<u64>, Vec<Numbered>) = numbered.into_iter().unzip();
            match self.session.settle_numbered(&deliveries) {
                Ok(ticket) => durable.push(ticket),
                Err(error) => failures.extend(numbers.iter().map(|&number| failure(number, &error))),
            }
        }
        for (source, Leases { numbers, sequences }) in sources {
            match self.session.settle(source, &sequences) {
                Ok(Settled { failed, durable: ticket }) => {
                    durable.push(ticket);
                    let failed =
                        failed.into_iter().filter_map(|(at, error)| Some((*numbers.get(at)?, error)));
                    failures.extend(failed.map(|(number, error)| failure(number, &CoreError::Lease(error))));
                }
                Err(error @ CoreError::Engine(_)) => return Err(error),
                Err(error) => failures.extend(numbers.iter().map(|&number| failure(number, &error))),
            }
        }
        Ok((failures, durable))
    }
}

fn of_source(sources: &mut SmallVec<[(TargetId, Leases); 2]>, source: TargetId) -> &mut Leases {
    let at = sources.iter().position(|(other, _)| *other == source).unwrap_or_else(|| {
        sources.push((source, Leases::default()));
        sources.len() - 1
    });
    // It was found, or pushed last.
    #[expect(clippy::indexing_slicing, reason = "the place of the source")]
    &mut sources[at].1
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut sources: SmallVec<[(TargetId, Leases); 2]> = SmallVec::new();
        let mut shared = Vec::new();
        for Delivered { what, .. } in self.deliveries.drain() {
            match what {
                What::Stored(source, sequence) | What::Numbered(Numbered { source, sequence, .. }) => {
                    of_source(&mut sources, source).sequences.push(sequence);
                }
                What::Live(kept) => shared.extend(kept.and_then(|kept| kept.shared())),
            }
        }
        let waiting = self.mailbox.clear().into_iter().filter(|waiting| waiting.qos > Qos::AtMostOnce);
        shared.extend(waiting.filter_map(|waiting| waiting.kept?.shared()));
        if !shared.is_empty() {
            self.session.hand_back(shared);
        }
        for (source, Leases { sequences, .. }) in sources {
            // What was in the session's own backlog has come before, whatever the end; elsewhere an end in order is no loss.
            if !self.clean || self.session.target() == Some(source) {
                // What cannot be given back any more is back already.
                drop(self.session.nack(source, &sequences, Nack::Lost, None));
            }
        }
    }
}
