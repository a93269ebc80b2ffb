//! Counting a queue, and removing messages without consuming them.

use std::collections::BTreeSet;

use crate::core::{Broker, CoreError};
use crate::engine::{Removed, TargetStats, View};
use crate::types::{MessageId, Sequence, UnixMillis};

use super::select::{Select, Walk};
use super::{QueueEntry, of_queue};

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
        let mut walk = Walk::new(self, queue, view, select.clone())?;
        let mut purged = 0;
        while let Some(found) = walk.step(self, queue).await? {
            let sequences: Vec<_> = found.messages.iter().map(|browsed| browsed.sequence).collect();
            purged += self.remove(queue, view, &sequences).await?.len() as u64;
        }
        Ok(purged)
    }

    /// Removes those of these messages that wait in a view, by place or by id, and names their places: none of them is
    /// delivered from now on, durably so. The others are somewhere else, or gone.
    ///
    /// Ids are looked for among all messages of the view; of several with one id the first is removed. Dropping the future may or may not have removed them.
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
        let mut walk = Walk::new(self, queue, view, select)?;
        while !wanted.is_empty()
            && let Some(found) = walk.step(self, queue).await?
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
}
