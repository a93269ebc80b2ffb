//! Looking at a queue without consuming, emptying it, and sending what was given up back to where it came from.

use std::sync::Arc;

use crate::core::{Broker, CoreError};
use crate::engine::{Browsed, ConsumerOptions, Leased, Op, Outcome, Refusal, TargetStats, View};
use crate::types::{Message, Sequence};

use super::{QueueEntry, of_queue};

/// Messages that are moved by one call of the engine.
const MOVE_MESSAGES: usize = 256;
/// No more after so many bytes.
const MOVE_BYTES: usize = 1 << 20;

impl Broker {
    /// Looks at messages in the order of their places, from `from` on.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Engine`].
    pub async fn browse(
        &self,
        queue: &QueueEntry,
        view: View,
        from: Sequence,
        max: usize,
    ) -> Result<Vec<Browsed>, CoreError> {
        self.engine.browse(queue.id, view, from, max).await.map_err(|error| of_queue(queue, error))
    }

    /// Counts of a queue.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Engine`].
    pub fn queue_stats(&self, queue: &QueueEntry) -> Result<TargetStats, CoreError> {
        self.engine.stats(queue.id).map_err(|error| of_queue(queue, error))
    }

    /// Removes messages, durably so when it returns, and says how many.
    ///
    /// Dropping the future does not stop it.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Engine`].
    pub async fn purge(&self, queue: &QueueEntry, view: View) -> Result<u64, CoreError> {
        let purging = self.engine.purge(queue.id, view).map_err(|error| of_queue(queue, error))?;
        Ok(purging.await?)
    }

    /// Moves messages that are ready in a dead letter queue into `destination`, or else each into the queue that gave
    /// it up, and says how many. At most `max`, and no more than were ready when it began. Each move is one act:
    /// the message is never in both queues and never in none.
    ///
    /// Dropping the future stops it; moves that were handed in are made.
    ///
    /// # Errors
    /// When none was moved: [`CoreError::Precondition`] if their queues do not exist, [`CoreError::Full`],
    /// [`CoreError::LowDisk`]. Always: [`CoreError::NotFound`], [`CoreError::Engine`].
    pub async fn redrive(
        &self,
        from: &QueueEntry,
        destination: Option<&Arc<QueueEntry>>,
        max: Option<u64>,
    ) -> Result<u64, CoreError> {
        if destination.is_some_and(|to| to.id == from.id) {
            return Err(CoreError::invalid("destination", "is the queue that messages are taken from"));
        }
        let mut left = self.queue_stats(from)?.ready.min(max.unwrap_or(u64::MAX));
        let consumer = self
            .engine
            .consumer(from.id, ConsumerOptions::default())
            .map_err(|error| of_queue(from, error))?;
        let (mut moved, mut stay) = (0, None);
        let mut taken = Vec::new();
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(MOVE_MESSAGES);
            consumer.take(count, MOVE_BYTES, &mut taken).map_err(|error| of_queue(from, error))?;
            if taken.is_empty() {
                break;
            }
            left -= taken.len() as u64;
            let bytes = taken.iter().map(|leased| leased.message.weight()).sum();
            let mut ops = Vec::with_capacity(taken.len());
            for leased in taken.drain(..) {
                match self.way_back(&leased.message, destination) {
                    Ok(to) => ops.push(back(from, to.as_ref(), leased)),
                    Err(error) => stay = Some(error),
                }
            }
            let admitted = self.admission.admit(bytes).await;
            for outcome in admitted.until(self.engine.commit(ops)).await? {
                match outcome {
                    // Settled, expired or purged meanwhile: not there to be moved.
                    Outcome::Refused(Refusal::NotLeased) => {}
                    Outcome::Refused(refusal) => {
                        stay = Some(CoreError::refused(refusal, |id| self.queue_name_of(id)));
                        left = 0;
                    }
                    Outcome::Done | Outcome::Published(_) | Outcome::Duplicate { .. } | Outcome::All(_) => {
                        moved += 1;
                    }
                }
            }
        }
        match stay {
            Some(error) if moved == 0 => Err(error),
            _ => Ok(moved),
        }
    }

    fn way_back(
        &self,
        message: &Message,
        destination: Option<&Arc<QueueEntry>>,
    ) -> Result<Arc<QueueEntry>, CoreError> {
        if let Some(to) = destination {
            return Ok(Arc::clone(to));
        }
        let refuse = |what| CoreError::Precondition { reason: "NO_WAY_BACK", what };
        let Some(dead) = message.extras.as_ref().and_then(|extras| extras.dead_letter.as_ref()) else {
            return Err(refuse(
                "the messages were not moved here from another queue: name a destination".to_owned(),
            ));
        };
        self.queues.get(dead.source.as_str()).ok_or_else(|| {
            refuse(format!("the queue `{}` does not exist any more: name a destination", dead.source))
        })
    }
}

fn back(from: &QueueEntry, to: &QueueEntry, leased: Leased) -> Op {
    let Leased { sequence, priority, mut message, .. } = leased;
    if let Some(extras) = &mut message.extras {
        extras.dead_letter = None;
    }
    Op::Move { from: from.id, sequence, to: to.id, message, priority }
}
