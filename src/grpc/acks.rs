//! Frames of a client that settle deliveries, until what they settle is durable.
//!
//! Invariant: `acked_through` never passes a frame that is not done, and never goes back.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::bounds::MAX_ITEMS;
use super::proto::v1;
use crate::core::CoreError;
use crate::engine::{EngineError, Ticket};

/// Frames that are not durable yet; beyond it the client is not read.
const PENDING: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Acks {
    last: u64,
    pending: VecDeque<Pending>,
    through: u64,
}

/// A frame, until it is durable.
#[derive(Debug)]
struct Pending {
    ack_id: u64,
    failures: Vec<v1::AckFailure>,
    durable: SmallVec<[Ticket<()>; 1]>,
}

impl Acks {
    /// Checks the number and the size of a frame.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for a number that does not ascend, [`CoreError::TooLarge`].
    pub(super) fn check(
        &mut self,
        field: &str,
        which: &v1::AckBatch,
        may_be_zero: bool,
    ) -> Result<(), CoreError> {
        let v1::AckBatch { ack_id, delivery_ids, lease_tokens } = which;
        let count = delivery_ids.len() + lease_tokens.len();
        if count > MAX_ITEMS {
            let (field, len, max) = (field.to_owned(), count as u64, MAX_ITEMS as u64);
            return Err(CoreError::TooLarge { field, len, max, unit: "deliveries" });
        }
        if *ack_id == 0 && may_be_zero {
            return Ok(());
        }
        if *ack_id <= self.last {
            let what = format!("{ack_id} is not more than {}, that of the frame before", self.last);
            return Err(CoreError::invalid(format!("{field}.ack_id"), what));
        }
        self.last = *ack_id;
        Ok(())
    }

    /// Adds a frame that is done when all tickets are.
    pub(super) fn push(
        &mut self,
        ack_id: u64,
        failures: Vec<v1::AckFailure>,
        durable: impl IntoIterator<Item = Ticket<()>>,
    ) {
        self.pending.push_back(Pending { ack_id, failures, durable: durable.into_iter().collect() });
    }

    /// Whether no more may be added.
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= PENDING
    }

    /// Whether all frames are done and said so.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Waits until a ticket of the oldest frame has completed. Cancel safe.
    pub(super) async fn progress(&mut self) -> Result<(), EngineError> {
        let Some(oldest) = self.pending.front_mut() else { return std::future::pending().await };
        let Some(ticket) = oldest.durable.first_mut() else { return Ok(()) };
        let result = ticket.await;
        drop(oldest.durable.remove(0));
        result
    }

    /// What is to be said of the frames that are done, if there are any.
    ///
    /// # Errors
    /// As the engine says.
    pub(super) fn results(&mut self) -> Result<Option<v1::AckResults>, EngineError> {
        let mut results: Option<v1::AckResults> = None;
        while let Some(oldest) = self.pending.front_mut() {
            while let Some(ticket) = oldest.durable.first_mut() {
                match ticket.try_now() {
                    None => return Ok(results),
                    Some(Err(error)) => return Err(error),
                    Some(Ok(())) => drop(oldest.durable.remove(0)),
                }
            }
            let Some(Pending { ack_id, failures, .. }) = self.pending.pop_front() else { break };
            if ack_id > 0 || !failures.is_empty() {
                self.through = self.through.max(ack_id);
                let results = results.get_or_insert_default();
                results.acked_through = self.through;
                results.failures.extend(failures);
            }
        }
        Ok(results)
    }
}
