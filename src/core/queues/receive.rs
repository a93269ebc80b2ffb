//! Taking messages out one answer at a time, and settling by token from anywhere.

use std::time::Duration;

use bytes::Bytes;

use crate::core::token::{LeaseId, TokenKey};
use crate::core::{Broker, CoreError};
use crate::counters::Passed;
use crate::engine::{ConsumerOptions, LeaseError, LeaseRef, Leased, Nack, Settled};

use super::{QueueEntry, checked_lease, of_queue};

/// How long a receive that does not wait for messages waits for those that are there to be read from the disk.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// What one receive asks for.
#[derive(Debug, Clone, Copy)]
pub struct Receive {
    /// At most so many messages.
    pub max: usize,
    /// No more after so many bytes.
    pub max_bytes: usize,
    /// How long to wait for the first; zero: not at all, but for one that is there to be read from the disk.
    pub wait: Duration,
    /// How long it has them; none: the queue's lease.
    pub lease: Option<Duration>,
    /// They are settled before they are handed out: each comes at most once.
    pub auto_ack: bool,
}

/// Those of a list that could not be settled, by their place, and why.
pub type Failures = Vec<(usize, CoreError)>;

impl Broker {
    /// Leases messages. Comes back with none when the wait is over or the broker drains.
    ///
    /// Cancel safe until something is there; what was leased to an answer that nobody takes returns when its lease
    /// ends.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Invalid`] for the lease, [`CoreError::Precondition`] where there is a single
    /// active consumer, [`CoreError::Engine`].
    pub async fn receive(&self, queue: &QueueEntry, receive: Receive) -> Result<Vec<Leased>, CoreError> {
        let lease = match receive.lease {
            Some(lease) => checked_lease("lease", lease, &self.limits)?,
            None => queue.spec().lease,
        };
        if queue.spec().single_active_consumer {
            return Err(CoreError::Precondition {
                reason: "SINGLE_ACTIVE_CONSUMER",
                what: format!(
                    "the queue `{}` has a single active consumer: take from it by a stream",
                    queue.name()
                ),
            });
        }
        let options = ConsumerOptions { lease: Some(lease), keep_leases: true, ..ConsumerOptions::default() };
        let mut messages = Vec::new();
        {
            let consumer = self.engine.consumer(queue.id, options).map_err(|error| of_queue(queue, error))?;
            let waits = !receive.wait.is_zero();
            let patience = if waits { receive.wait } else { READ_WITHIN };
            let mut over = std::pin::pin!(tokio::time::sleep(patience));
            loop {
                consumer
                    .take(receive.max, receive.max_bytes, &mut messages)
                    .map_err(|error| of_queue(queue, error))?;
                if !messages.is_empty() || !waits && !consumer.is_reading() {
                    break;
                }
                tokio::select! {
                    () = consumer.ready().heard() => {}
                    () = over.as_mut() => break,
                    () = self.draining.cancelled() => break,
                }
            }
        }
        self.traffic.sent(given(&messages));
        if receive.auto_ack && !messages.is_empty() {
            let leases: Vec<_> = messages
                .iter()
                .map(|m| LeaseRef { attempt: Some(m.attempt), ..LeaseRef::of(m.sequence) })
                .collect();
            let settled = self.engine.settle(queue.id, &leases).map_err(|error| of_queue(queue, error))?;
            settled.durable.await?;
        }
        Ok(messages)
    }

    /// The token of a lease that this start of the broker gave.
    #[must_use]
    pub fn lease_token(&self, queue: &QueueEntry, leased: &Leased) -> [u8; TokenKey::TOKEN_BYTES] {
        let (sequence, attempt) = (leased.sequence, leased.attempt);
        self.tokens.seal(&LeaseId { boot: self.engine.boot(), target: queue.id, sequence, attempt })
    }

    /// Settles leases: when it returns, the rest is gone for good and durably so. `field` names the tokens in errors.
    ///
    /// Dropping the future may or may not have settled them.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Engine`]; the rest is told per token.
    pub async fn acknowledge(&self, queue: &QueueEntry, tokens: &[Bytes]) -> Result<Failures, CoreError> {
        let (leases, mut failures) = self.leases_of(queue, tokens);
        let settled = self.engine.settle(queue.id, &leases.refs).map_err(|error| of_queue(queue, error))?;
        let Settled { failed, durable } = settled;
        durable.await?;
        leases.put(failed, &mut failures);
        Ok(failures)
    }

    /// Gives leases back, due again after `delay`; none: as the queue says. Does not wait for the disk.
    ///
    /// # Errors
    /// As [`Broker::acknowledge`].
    pub fn nack(
        &self,
        queue: &QueueEntry,
        tokens: &[Bytes],
        how: Nack,
        delay: Option<Duration>,
    ) -> Result<Failures, CoreError> {
        let (leases, mut failures) = self.leases_of(queue, tokens);
        let nacked =
            self.engine.nack(queue.id, &leases.refs, how, delay).map_err(|error| of_queue(queue, error))?;
        leases.put(nacked.failed, &mut failures);
        Ok(failures)
    }

    /// Lets leases end `lease` from now; none: the queue's lease.
    ///
    /// # Errors
    /// As [`Broker::acknowledge`], and [`CoreError::Invalid`] for the lease.
    pub fn extend(
        &self,
        queue: &QueueEntry,
        tokens: &[Bytes],
        lease: Option<Duration>,
    ) -> Result<Failures, CoreError> {
        let lease = match lease {
            Some(lease) => checked_lease("lease", lease, &self.limits)?,
            None => queue.spec().lease,
        };
        let (leases, mut failures) = self.leases_of(queue, tokens);
        let failed =
            self.engine.extend(queue.id, &leases.refs, lease).map_err(|error| of_queue(queue, error))?;
        leases.put(failed, &mut failures);
        Ok(failures)
    }

    /// The lease that a token of this queue names.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for what is no token of this queue; `field` names it.
    pub(super) fn lease_of(
        &self,
        queue: &QueueEntry,
        token: &[u8],
        field: impl FnOnce() -> String,
    ) -> Result<LeaseRef, CoreError> {
        let lease = self.tokens.open(token).map_err(|error| CoreError::invalid(field(), error))?;
        if lease.target != queue.id {
            return Err(CoreError::Lease(LeaseError::Unknown));
        }
        Ok(LeaseRef {
            sequence: lease.sequence,
            attempt: Some(lease.attempt),
            earlier_boot: lease.boot != self.engine.boot(),
        })
    }

    fn leases_of(&self, queue: &QueueEntry, tokens: &[Bytes]) -> (Leases, Failures) {
        let mut failures = Vec::new();
        let mut leases =
            Leases { refs: Vec::with_capacity(tokens.len()), places: Vec::with_capacity(tokens.len()) };
        for (place, token) in tokens.iter().enumerate() {
            match self.lease_of(queue, token, || format!("lease_tokens[{place}]")) {
                Ok(lease) => {
                    leases.refs.push(lease);
                    leases.places.push(place);
                }
                Err(error) => failures.push((place, error)),
            }
        }
        (leases, failures)
    }
}

/// How much these are.
pub(in crate::core) fn given(messages: &[Leased]) -> Passed {
    Passed::of(messages.iter().map(|leased| leased.message.payload.len()))
}

/// Leases and the places that they had in the caller's list.
#[derive(Debug, Default)]
struct Leases {
    refs: Vec<LeaseRef>,
    places: Vec<usize>,
}

impl Leases {
    /// Adds what the engine could not use, by the caller's places, in order.
    fn put(&self, failed: Vec<(usize, LeaseError)>, failures: &mut Failures) {
        if failed.is_empty() {
            return;
        }
        let named = failed.into_iter().filter_map(|(at, error)| Some((*self.places.get(at)?, error.into())));
        failures.extend(named);
        failures.sort_by_key(|(place, _)| *place);
    }
}
