//! The retained value of each topic, in memory; the engine has them on disk.

use crate::core::{Broker, CoreError};
use crate::types::{Message, TopicFilter, TopicName};

impl Broker {
    /// The retained value of a topic.
    #[must_use]
    pub fn retained(&self, _topic: &TopicName) -> Option<Message> {
        None
    }

    /// The retained values that a filter matches, by topic in byte order, at most `limit`, after `after`.
    #[must_use]
    pub fn list_retained(
        &self,
        _filter: &TopicFilter,
        _after: Option<&TopicName>,
        _limit: usize,
    ) -> Vec<Message> {
        Vec::new()
    }

    /// Removes the retained values that a filter matches, and returns how many there were. Nobody is told.
    ///
    /// Dropping the future may leave some.
    ///
    /// # Errors
    /// [`CoreError::Engine`].
    pub async fn delete_retained(&self, _filter: &TopicFilter) -> Result<u64, CoreError> {
        Err(CoreError::Unsupported("not yet".into()))
    }
}
