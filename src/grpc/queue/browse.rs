//! Looking at a view page by page.

use std::sync::Arc;

use crate::core::queues::QueueEntry;
use crate::core::{Broker, CoreError};
use crate::engine::View;
use crate::grpc::bounds::{FRAME_BYTES, MAX_PAGE};
use crate::grpc::proto::v1;
use crate::types::{Sequence, clock};

use super::deliver;

/// Messages that are looked at at once, at first.
const BROWSE_MESSAGES: usize = 16;

/// Looks at a view page by page; bounded in bytes as far as the pages before tell.
pub(super) struct Pages {
    broker: Arc<Broker>,
    queue: Arc<QueueEntry>,
    view: View,
    from: Sequence,
    size: usize,
    pub(super) ended: bool,
}

impl Pages {
    /// From `from` on.
    pub(super) fn new(broker: Arc<Broker>, queue: Arc<QueueEntry>, view: View, from: Sequence) -> Self {
        Self { broker, queue, view, from, size: BROWSE_MESSAGES, ended: false }
    }

    /// At most `max` messages more; none at the end.
    pub(super) async fn next(&mut self, max: usize) -> Result<Option<Vec<v1::LeasedMessage>>, CoreError> {
        if self.ended {
            return Ok(None);
        }
        let size = self.size.min(max);
        let page = self.broker.browse(&self.queue, self.view, self.from, size).await?;
        self.ended = page.len() < size;
        let Some(last) = page.last() else { return Ok(None) };
        self.from = Sequence(last.sequence.0.saturating_add(1));
        let bytes: usize = page.iter().map(|browsed| browsed.message.weight()).sum();
        self.size = (FRAME_BYTES / (bytes / page.len() + 1).max(1)).clamp(1, MAX_PAGE);
        let now = clock::unix_now();
        Ok(Some(page.into_iter().map(|browsed| deliver::browsed(browsed, now)).collect()))
    }
}
