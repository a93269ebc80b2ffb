//! Retained values take effect in the order of their commits.
//!
//! Tickets complete in order, but whoever waits for them wakes in any order. So what sets retained values waits in
//! one line for all publishers: a task takes the first, awaits its ticket, lets it take effect, and goes on. The task
//! is there only while something waits.
//!
//! Invariant: what is committed while the order is locked stands in the line in the order of the commits.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Retained, clear};
use crate::core::publisher::line::Line;
use crate::core::{Broker, CoreError};
use crate::engine::{EngineError, Op, Outcome, Ticket};
use crate::types::TopicName;

/// What waits, in the order of its commits.
#[derive(Default)]
pub(super) struct Order {
    waiting: VecDeque<(Ticket, Then)>,
    /// A task sees to it.
    seen_to: bool,
}

/// What takes effect after a ticket.
enum Then {
    /// The next of this publisher's batches with retained values.
    Publish(Arc<Line>),
    /// The removal of these values.
    Clear(Vec<TopicName>, oneshot::Sender<Result<u64, CoreError>>),
}

impl Retained {
    /// Commits a batch of a publisher, which is to call for its turn by [`Line::turn`].
    pub(crate) fn commit_in_order(&self, broker: &Arc<Broker>, ops: Vec<Op>, line: &Arc<Line>) {
        self.commit(broker, ops, Then::Publish(Arc::clone(line)));
    }

    fn commit(&self, broker: &Arc<Broker>, ops: Vec<Op>, then: Then) {
        let mut order = self.order.lock();
        order.waiting.push_back((broker.engine.commit(ops), then));
        if !std::mem::replace(&mut order.seen_to, true) {
            broker.tasks.spawn(see_to(Arc::clone(broker)));
        }
    }

    fn next(&self) -> Option<(Ticket, Then)> {
        let mut order = self.order.lock();
        let next = order.waiting.pop_front();
        order.seen_to = next.is_some();
        next
    }

    /// Removes values after that is durable. Returns how many were there.
    fn cleared(
        &self,
        topics: &[TopicName],
        stored: Result<Vec<Outcome>, EngineError>,
    ) -> Result<u64, CoreError> {
        let mut removed = 0;
        let mut refused = None;
        let mut outcomes = stored.clone().unwrap_or_default().into_iter();
        for topic in topics {
            let mut shard = self.shard(topic);
            shard.busy = shard.busy.saturating_sub(1);
            match outcomes.next() {
                Some(Outcome::Refused(refusal)) => refused = Some(refusal),
                Some(_) => removed += u64::from(self.remove(&mut shard, topic)),
                None => {}
            }
        }
        stored?;
        match refused {
            Some(refusal) => Err(CoreError::refused(refusal, |target| target.0.to_string())),
            None => Ok(removed),
        }
    }
}

/// Lets everything take effect that waits.
async fn see_to(broker: Arc<Broker>) {
    let retained = &broker.pubsub.retained;
    while let Some((ticket, then)) = retained.next() {
        let stored = ticket.await;
        match then {
            Then::Publish(line) => line.turn(stored),
            Then::Clear(topics, done) => {
                // Who asked may have gone.
                done.send(retained.cleared(&topics, stored)).ok();
            }
        }
    }
}

impl Broker {
    /// Removes the values of some topics, durably.
    pub(super) async fn clear_retained(self: &Arc<Self>, topics: Vec<TopicName>) -> Result<u64, CoreError> {
        let (done, result) = oneshot::channel();
        let retained = &self.pubsub.retained;
        let ops: Vec<_> = topics.iter().map(|topic| clear(topic.clone(), self)).collect();
        for topic in &topics {
            retained.shard(topic).busy += 1;
        }
        retained.commit(self, ops, Then::Clear(topics, done));
        result.await.unwrap_or(Err(CoreError::Engine(EngineError::Stopped)))
    }
}
