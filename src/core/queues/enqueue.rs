//! Putting messages straight into a queue.
//!
//! A batch is one call of the engine and one ticket; each message of it is stored or refused by itself, but for one that is
//! stored [whole](Broker::enqueue_all) or not at all. A
//! [`Pipeline`] keeps many batches of one caller on their way, in order.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use smallvec::smallvec;

use crate::core::admission::{Admitted, AdmittedTicket};
use crate::core::{Broker, CoreError};
use crate::counters::Passed;
use crate::engine::{Append, EngineError, Op, Outcome, Publish, Refusal};
use crate::types::{Message, MessageId, Priority, Sequence, UnixMillis, clock};

use super::{QueueEntry, no_such_queue};

/// What a message on its way takes beside its weight, in bytes.
const OVERHEAD: usize = 256;

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
    /// Both are those of an earlier message with the same deduplication id: nothing was stored now.
    pub duplicate: bool,
}

impl Enqueued {
    /// What became of a message for one queue, if it is stored there.
    pub(super) fn of(id: MessageId, outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Published(sequences) => {
                let sequence = (*sequences.first()?)?;
                Some(Self { id, sequence, duplicate: false })
            }
            &Outcome::Duplicate { id, sequence } => Some(Self { id, sequence, duplicate: true }),
            _ => None,
        }
    }
}

impl Broker {
    /// Puts messages into a queue, in their order. Waits only until their bytes may come in; what it returns
    /// completes when they are stored.
    ///
    /// Dropping the future before it returns enqueues nothing.
    pub async fn enqueue(&self, queue: &Arc<QueueEntry>, items: Vec<Enqueue>) -> Enqueuing {
        let admitted = self.admission().admit(bytes_of(&items)).await;
        self.enqueue_admitted(queue, items, admitted)
    }

    fn enqueue_admitted(
        &self,
        queue: &Arc<QueueEntry>,
        items: Vec<Enqueue>,
        admitted: Admitted,
    ) -> Enqueuing {
        let ids = items.iter().map(|item| item.message.id).collect();
        let mut publishes = self.appends(queue, items).map(|(message, append)| Publish {
            message,
            targets: smallvec![append],
            retain: false,
            newest_only: false,
            incoming: None,
        });
        let ticket = match publishes.next() {
            Some(only) if publishes.len() == 0 => self.engine().commit_alone(only),
            first => self.engine().commit(first.into_iter().chain(publishes).map(Op::Publish).collect()),
        };
        let ticket = admitted.until(ticket);
        Enqueuing { queue: Arc::clone(queue), ids, ticket }
    }

    /// Puts messages into a queue, all or none, and waits until they are stored.
    ///
    /// Dropping the future before its bytes may come in enqueues nothing; later they are stored or not.
    ///
    /// # Errors
    /// [`CoreError::Item`] for the first that is refused, [`CoreError::NotFound`], [`CoreError::LowDisk`],
    /// [`CoreError::Engine`].
    pub async fn enqueue_all(
        &self,
        queue: &Arc<QueueEntry>,
        items: Vec<Enqueue>,
    ) -> Result<Vec<Enqueued>, CoreError> {
        let admitted = self.admission().admit(bytes_of(&items)).await;
        let ids = items.iter().map(|item| item.message.id).collect();
        let op = Op::AppendAll(self.appends(queue, items).collect());
        let outcome = admitted.until(self.engine().commit(vec![op])).await?.pop();
        let queue = Arc::clone(queue);
        match outcome {
            Some(Outcome::All(outcomes)) => EnqueuedBatch { queue, ids, outcomes }.results().collect(),
            Some(Outcome::Refused(refusal)) => Err(CoreError::refused(refusal, |_| queue.name().to_string())),
            _ => Err(CoreError::Engine(EngineError::Stopped)),
        }
    }

    /// The messages with their places, counted as received.
    fn appends(
        &self,
        queue: &Arc<QueueEntry>,
        items: Vec<Enqueue>,
    ) -> impl ExactSizeIterator<Item = (Message, Append)> {
        let now = clock::unix_now();
        self.traffic.received(Passed::of(items.iter().map(|item| item.message.payload.len())));
        let queue = Arc::clone(queue);
        items.into_iter().map(move |Enqueue { mut message, priority, not_before }| {
            let append = queue.append(&message, priority, not_before, now);
            message.expires_at = message.expires_at.or(append.expires_at);
            (message, append)
        })
    }
}

/// What messages on their way take, in bytes.
pub(super) fn bytes_of<'a>(items: impl IntoIterator<Item = &'a Enqueue>) -> usize {
    items.into_iter().map(|item| item.message.weight() + OVERHEAD).sum()
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

    fn result(&self, id: MessageId, outcome: &Outcome) -> Result<Enqueued, CoreError> {
        if let Some(enqueued) = Enqueued::of(id, outcome) {
            return Ok(enqueued);
        }
        match outcome {
            Outcome::Published(_) | Outcome::Duplicate { .. } => {
                let bound = "it drops what is new".to_owned();
                Err(self.refused(Refusal::Full { target: self.queue.id(), bound }))
            }
            Outcome::Refused(refusal) => Err(self.refused(refusal.clone())),
            Outcome::Done | Outcome::All(_) => Err(no_such_queue(self.queue.name())),
        }
    }

    fn refused(&self, refusal: Refusal) -> CoreError {
        CoreError::refused(refusal, |_| self.queue.name().to_string())
    }
}

/// Batches of one caller on their way into one queue, in order; each carries a `T` of the caller's.
///
/// Invariant: a batch is handed to the engine only after those before it.
pub struct Pipeline<T> {
    broker: Arc<Broker>,
    queue: Arc<QueueEntry>,
    /// Those whose bytes may not come in yet.
    waiting: VecDeque<(Vec<Enqueue>, T)>,
    /// Waits for the bytes of the first of them.
    admitting: Option<Pin<Box<dyn Future<Output = Admitted> + Send>>>,
    open: VecDeque<(Enqueuing, T)>,
}

impl<T> Pipeline<T> {
    /// An empty one.
    #[must_use]
    pub fn new(broker: &Arc<Broker>, queue: &Arc<QueueEntry>) -> Self {
        Self {
            broker: Arc::clone(broker),
            queue: Arc::clone(queue),
            waiting: VecDeque::new(),
            admitting: None,
            open: VecDeque::new(),
        }
    }

    /// Where it leads.
    #[must_use]
    pub fn queue(&self) -> &Arc<QueueEntry> {
        &self.queue
    }

    /// Whether there is room for another batch: fewer than [`publish_pending`](crate::core::Limits) are on their
    /// way, and none waits for its bytes.
    #[must_use]
    pub fn accepts(&self) -> bool {
        self.waiting.is_empty() && self.open.len() < self.broker.limits().publish_pending
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.open.is_empty()
    }

    /// Adds a batch; who watches [`Pipeline::accepts`] bounds how many there are.
    pub fn push(&mut self, items: Vec<Enqueue>, tag: T) {
        if self.waiting.is_empty()
            && let Some(admitted) = self.broker.admission().try_admit(bytes_of(&items))
        {
            self.open.push_back((self.broker.enqueue_admitted(&self.queue, items, admitted), tag));
        } else {
            self.waiting.push_back((items, tag));
        }
    }

    /// The oldest batch, when it is stored; waits for ever when nothing is on its way.
    ///
    /// Cancel safe. Must be polled while the caller waits for anything: it also brings in the batch that waits.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn completed(&mut self) -> Result<(EnqueuedBatch, T), EngineError> {
        poll_fn(|cx| self.poll_completed(cx)).await
    }

    fn poll_completed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(EnqueuedBatch, T), EngineError>> {
        while let Some((items, _)) = self.waiting.front() {
            let bytes = bytes_of(items);
            let broker = &self.broker;
            let admitting = self.admitting.get_or_insert_with(|| {
                let broker = Arc::clone(broker);
                Box::pin(async move { broker.admission().admit(bytes).await })
            });
            let Poll::Ready(admitted) = admitting.as_mut().poll(cx) else { break };
            self.admitting = None;
            if let Some((items, tag)) = self.waiting.pop_front() {
                self.open.push_back((self.broker.enqueue_admitted(&self.queue, items, admitted), tag));
            }
        }
        let Some((oldest, _)) = self.open.front_mut() else { return Poll::Pending };
        let result = ready!(Pin::new(oldest).poll(cx));
        match self.open.pop_front() {
            Some((_, tag)) => Poll::Ready(result.map(|batch| (batch, tag))),
            None => Poll::Pending,
        }
    }
}

impl<T> std::fmt::Debug for Pipeline<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline")
            .field("queue", &self.queue)
            .field("open", &self.open.len())
            .finish_non_exhaustive()
    }
}
