//! Looking at a view page by page.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::core::queues::QueueEntry;
use crate::core::queues::select::Select;
use crate::core::{Broker, CoreError};
use crate::engine::View;
use crate::grpc::proto::v1;
use crate::types::{Sequence, clock};

use super::deliver;

/// A page is sent after so long at the latest, if only to say how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Looks at what is meant of a view; what a page holds is bounded by what is looked at together.
pub(super) struct Pages {
    broker: Arc<Broker>,
    queue: Arc<QueueEntry>,
    view: View,
    select: Select,
    /// None at the end.
    next: Option<Sequence>,
    /// How many messages are still to be shown.
    left: usize,
}

impl Pages {
    /// At most `max` messages in all.
    pub(super) fn new(
        broker: Arc<Broker>,
        queue: Arc<QueueEntry>,
        view: View,
        select: Select,
        max: usize,
    ) -> Self {
        let next = Some(select.from).filter(|_| max > 0);
        Self { broker, queue, view, select, next, left: max }
    }

    /// Some messages, or none when it took long; `None` at the end. After an error there is nothing more.
    pub(super) async fn next(&mut self) -> Result<Option<v1::BrowseResponse>, CoreError> {
        let began = Instant::now();
        while let Some(from) = self.next.take() {
            let mut found = self.broker.look(&self.queue, self.view, &self.select, from, self.left).await?;
            if found.messages.len() >= self.left {
                found.messages.truncate(self.left);
                found.next = None;
                found.through = found.messages.last().map_or(found.through, |last| last.sequence);
            }
            self.left -= found.messages.len();
            self.next = found.next;
            if !found.messages.is_empty() || self.next.is_some() && began.elapsed() >= TELL_EVERY {
                let now = clock::unix_now();
                let messages =
                    found.messages.into_iter().map(|browsed| deliver::browsed(browsed, now)).collect();
                return Ok(Some(v1::BrowseResponse { messages, through_sequence: found.through.0 }));
            }
        }
        Ok(None)
    }
}
