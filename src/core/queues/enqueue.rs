//! Putting messages straight into a queue.
//!
//! A batch is one call of the engine and one ticket; each message of it is stored or refused by itself. Callers
//! that pipeline keep the [`Enqueuing`] of several batches and await them in order.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use smallvec::smallvec;

use crate::core::admission::AdmittedTicket;
use crate::core::{Broker, CoreError};
use crate::engine::{EngineError, Op, Outcome, Publish, Refusal};
use crate::types::{Message, MessageId, Priority, Sequence, UnixMillis, clock};

use super::{QueueEntry, no_such_queue};

/// A message on its way into a queue.
#[derive(Debug, Clone)]
pub struct Enqueue {
    /// What is stored. Its topic is the queue's own ([`QueueEntry::topic`]) where nothing else was said.
    pub message: Message,
    /// Matters in queues with priorities.
    pub priority: Priority,
    /// Not delivered earlier.
    pub not_before: Option<UnixMillis>,
}

/// Where a message came to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// The message.
    pub id: MessageId,
    /// Its place.
    pub sequence: Sequence,
}

impl Broker {
    /// Puts messages into a queue, in their order. Waits only until their bytes may come in; what it returns
    /// completes when they are stored.
    ///
    /// Dropping the future before it returns enqueues nothing.
    pub async fn enqueue(&self, queue: &Arc<QueueEntry>, items: Vec<Enqueue>) -> Enqueuing {
        let bytes = items.iter().map(|item| item.message.weight()).sum();
        let admitted = self.admission.admit(bytes).await;
        let now = clock::unix_now();
        let ids = items.iter().map(|item| item.message.id).collect();
        let ops = items
            .into_iter()
            .map(|Enqueue { mut message, priority, not_before }| {
                let append = queue.append(&message, priority, not_before, now);
                message.expires_at = message.expires_at.or(append.expires_at);
                Op::Publish(Publish {
                    message,
                    targets: smallvec![append],
                    retain: false,
                    newest_only: false,
                    incoming: None,
                })
            })
            .collect();
        let ticket = admitted.until(self.engine.commit(ops));
        Enqueuing { queue: Arc::clone(queue), ids, ticket }
    }
}

/// Completes when a batch is stored. Dropping it changes nothing.
#[derive(Debug)]
#[must_use = "what is not awaited is not known to be stored"]
pub struct Enqueuing {
    queue: Arc<QueueEntry>,
    ids: Vec<MessageId>,
    ticket: AdmittedTicket,
}

impl Future for Enqueuing {
    type Output = Result<EnqueuedBatch, EngineError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcomes = ready!(Pin::new(&mut self.ticket).poll(cx))?;
        let ids = std::mem::take(&mut self.ids);
        Poll::Ready(Ok(EnqueuedBatch { queue: Arc::clone(&self.queue), ids, outcomes }))
    }
}

/// What became of a batch.
#[derive(Debug)]
pub struct EnqueuedBatch {
    queue: Arc<QueueEntry>,
    ids: Vec<MessageId>,
    outcomes: Vec<Outcome>,
}

impl EnqueuedBatch {
    /// How many messages it had.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it had none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// What became of each message, in their order.
    pub fn results(&self) -> impl Iterator<Item = Result<Enqueued, CoreError>> {
        let results = self.ids.iter().zip(&self.outcomes).map(|(&id, outcome)| self.result(id, outcome));
        // An engine answers each operation; one that does not has not stored it.
        let lost = self.ids.len().saturating_sub(self.outcomes.len());
        results.chain(std::iter::repeat_n(Err(CoreError::Engine(EngineError::Stopped)), lost))
    }

    /// Those that were refused, by their place in the batch.
    pub fn errors(&self) -> impl Iterator<Item = (usize, CoreError)> {
        self.results().enumerate().filter_map(|(at, result)| Some((at, result.err()?)))
    }

    fn result(&self, id: MessageId, outcome: &Outcome) -> Result<Enqueued, CoreError> {
        match outcome {
            Outcome::Published(sequences) => match sequences.first() {
                Some(&Some(sequence)) => Ok(Enqueued { id, sequence }),
                _ => Err(self.refused(Refusal::Full {
                    target: self.queue.id,
                    bound: "it drops what is new".to_owned(),
                })),
            },
            Outcome::Refused(refusal) => Err(self.refused(refusal.clone())),
            Outcome::Done => Err(no_such_queue(&self.queue.name)),
        }
    }

    fn refused(&self, refusal: Refusal) -> CoreError {
        CoreError::refused(refusal, |_| self.queue.name.to_string())
    }
}
