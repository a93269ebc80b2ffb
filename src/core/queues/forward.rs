//! Settling here and enqueuing there as one act, for pipelines: what a step has made is stored exactly when what it was made
//! from is settled.

use std::sync::Arc;

use bytes::Bytes;

use crate::core::{Broker, CoreError};
use crate::counters::Passed;
use crate::engine::{EngineError, Forward, Op, Outcome};
use crate::types::clock;

use super::QueueEntry;
use super::enqueue::{Enqueue, Enqueued, bytes_of};

/// A delivery that is settled, and what follows from it.
#[derive(Debug)]
pub struct ForwardItem {
    /// Of the delivery.
    pub token: Bytes,
    /// What is stored, each in its queue, in this order.
    pub messages: Vec<(Arc<QueueEntry>, Enqueue)>,
}

/// Where the messages of one item came to lie, in their order; or why nothing of the item was done.
pub type Forwarded = Result<Vec<Enqueued>, CoreError>;

impl Broker {
    /// Settles each delivery of `queue` and stores what follows from it: of one item all or nothing, durably so when it
    /// returns. A delivery whose messages cannot be stored stays leased.
    ///
    /// Dropping the future may or may not have done it.
    ///
    /// # Errors
    /// [`CoreError::Engine`]; the rest is told per item.
    pub async fn forward(
        &self,
        queue: &QueueEntry,
        items: Vec<ForwardItem>,
    ) -> Result<Vec<Forwarded>, CoreError> {
        let now = clock::unix_now();
        let mut ops = Vec::with_capacity(items.len());
        let mut results = Vec::with_capacity(items.len());
        let mut bytes = 0;
        for ForwardItem { token, messages } in items {
            let lease = match self.lease_of(queue, &token, || "lease_token".to_owned()) {
                Ok(lease) => lease,
                Err(error) => {
                    results.push(Err(error));
                    continue;
                }
            };
            bytes += bytes_of(messages.iter().map(|(_, item)| item));
            self.traffic.received(Passed::of(messages.iter().map(|(_, item)| item.message.payload.len())));
            let mut ids = Vec::with_capacity(messages.len());
            let messages = messages.into_iter().map(|(to, Enqueue { mut message, priority, not_before })| {
                let append = to.append(&message, priority, not_before, now);
                message.expires_at = message.expires_at.or(append.expires_at);
                ids.push(message.id);
                (message, append)
            });
            let messages = messages.collect();
            ops.push(Op::Forward(Forward { from: queue.id, lease, messages }));
            results.push(Ok(ids));
        }
        let outcomes = if ops.is_empty() {
            Vec::new()
        } else {
            let admitted = self.admission.admit(bytes).await;
            admitted.until(self.engine.commit(ops)).await?
        };
        let mut outcomes = outcomes.into_iter();
        let told = results.into_iter().map(|result| {
            let ids = result?;
            match outcomes.next() {
                Some(Outcome::All(outcomes)) => {
                    let stored = ids.into_iter().zip(&outcomes);
                    Ok(stored.filter_map(|(id, outcome)| Enqueued::of(id, outcome)).collect())
                }
                Some(Outcome::Refused(refusal)) => {
                    Err(CoreError::refused(refusal, |id| self.target_name(id)))
                }
                // An engine answers each operation; one that does not has not done it.
                Some(Outcome::Done | Outcome::Published(_) | Outcome::Duplicate { .. }) | None => {
                    Err(CoreError::Engine(EngineError::Stopped))
                }
            }
        });
        Ok(told.collect())
    }
}
