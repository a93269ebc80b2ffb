//! Queues: named durable buffers with competing consumers.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::engine::{Append, QueueSpec};
use crate::types::{Message, Priority, QueueName, TargetId, UnixMillis};

/// A queue as the router knows it.
#[derive(Debug)]
pub struct QueueEntry {
    id: TargetId,
    name: QueueName,
    spec: ArcSwap<QueueSpec>,
}

impl QueueEntry {
    /// What the engine knows it by.
    #[must_use]
    pub fn id(&self) -> TargetId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &QueueName {
        &self.name
    }

    /// Its settings now; for short use.
    #[must_use]
    pub fn spec(&self) -> Guard<Arc<QueueSpec>> {
        self.spec.load()
    }

    /// The place of `message` in this queue, by its settings.
    #[must_use]
    pub fn append(
        &self,
        message: &Message,
        priority: Priority,
        not_before: Option<UnixMillis>,
        now: UnixMillis,
    ) -> Append {
        let expires_at = match message.expires_at {
            Some(_) => None,
            None => self.spec.load().default_ttl.map(|ttl| now.after(ttl)),
        };
        Append { priority, not_before, expires_at, ..Append::to(self.id) }
    }
}

/// All queues.
#[derive(Debug, Default)]
pub struct Queues {}

impl Queues {
    /// The queue of this name.
    #[must_use]
    pub fn get(&self, _name: &str) -> Option<Arc<QueueEntry>> {
        None
    }
}
