//! Looking at a queue without consuming, emptying it, and sending what was given up back to where it came from.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::core::{Broker, CoreError};
use crate::engine::{ConsumerOptions, Leased, Op, Outcome, Refusal, Removed, TargetStats, View};
use crate::types::{Message, MessageId, Sequence, UnixMillis};

use super::select::{Select, Walk};
use super::{QueueEntry, of_queue};

/// Messages that are moved by one call of the engine.
const MOVE_MESSAGES: usize = 256;
/// No more after so many bytes.
const MOVE_BYTES: usize = 1 << 20;

/// What is counted of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueStats {
    /// At this moment, and in all.
    pub counts: TargetStats,
    /// When the message was accepted that has the first place of all.
    pub oldest: Option<UnixMillis>,
}

impl Broker {
    /// Counts of a queue, and when its oldest message came.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Engine`].
    pub async fn queue_stats(&self, queue: &QueueEntry) -> Result<QueueStats, CoreError> {
        let oldest = self.engine.oldest(queue.id).await.map_err(|error| of_queue(queue, error))?;
        Ok(QueueStats { counts: self.counts(queue)?, oldest })
    }

    fn counts(&self, queue: &QueueEntry) -> Result<TargetStats, CoreError> {
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

    /// Removes those messages of a view that are meant, durably so when it returns, and says how many. What a consumer
    /// holds stays.
    ///
    /// Dropping the future stops it; what was removed stays removed.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Engine`].
    pub async fn purge_some(
        &self,
        queue: &QueueEntry,
        view: View,
        select: &Select,
    ) -> Result<u64, CoreError> {
        if *select == Select::default() {
            return self.purge(queue, view).await;
        }
        let mut walk = Walk::new(self, queue, view, select)?;
        let mut purged = 0;
        while let Some(found) = walk.next().await? {
            let sequences: Vec<_> = found.messages.iter().map(|browsed| browsed.sequence).collect();
            purged += self.remove(queue, view, &sequences).await?.len() as u64;
        }
        Ok(purged)
    }

    /// Removes those of these messages that wait in a view, by place or by id, and names their places: none of them is
    /// delivered from now on, durably so. The others are somewhere else, or gone.
    ///
    /// Ids are looked for among all messages of the view. Dropping the future may or may not have removed them.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Engine`].
    pub async fn delete_messages(
        &self,
        queue: &QueueEntry,
        view: View,
        sequences: &[Sequence],
        ids: &[MessageId],
    ) -> Result<Vec<Sequence>, CoreError> {
        let mut deleted = self.remove(queue, view, sequences).await?;
        let mut wanted: BTreeSet<_> = ids.iter().copied().collect();
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return Ok(deleted) };
        let before = Some(UnixMillis(last.time().0.saturating_add(1)));
        let select = Select { since: Some(first.time()), before, ..Select::default() };
        let mut walk = Walk::new(self, queue, view, &select)?;
        while !wanted.is_empty()
            && let Some(found) = walk.next().await?
        {
            let meant = found.messages.iter().filter(|browsed| wanted.remove(&browsed.message.id));
            let sequences: Vec<_> = meant.map(|browsed| browsed.sequence).collect();
            deleted.extend(self.remove(queue, view, &sequences).await?);
        }
        deleted.sort_unstable();
        Ok(deleted)
    }

    async fn remove(
        &self,
        queue: &QueueEntry,
        view: View,
        sequences: &[Sequence],
    ) -> Result<Vec<Sequence>, CoreError> {
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let removed = self.engine.remove(queue.id, view, sequences);
        let Removed { sequences, durable } = removed.map_err(|error| of_queue(queue, error))?;
        durable.await?;
        Ok(sequences)
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
        let mut left = self.counts(from)?.ready.min(max.unwrap_or(u64::MAX));
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
                    Outcome::Done | Outcome::Published(_) => moved += 1,
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
