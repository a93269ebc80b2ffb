//! One consumer of a queue that takes as a stream.
//!
//! A [`QueueConsumer`] belongs to one connection. It numbers its deliveries from 1 on, holds no more than its window
//! allows, and settles by number: a number costs a peer one or two bytes where a token costs 32. It has no task
//! and no timer: its owner calls it when [`QueueConsumer::ready`] wakes, when the peer says something, and when
//! [`QueueConsumer::next_expiry`] has come.
//!
//! Invariant: what is outstanding was leased by this consumer and neither settled, nor given back, nor lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::core::{Broker, CoreError};
use crate::engine::{Consumer, ConsumerOptions, LeaseError, LeaseRef, Leased, Nack, Settled, Ticket};
use crate::types::{Sequence, UnixMillis, clock};

use super::receive::given;
use super::{QueueEntry, checked_lease, of_queue};

/// How much may be outstanding, or come at once. One message may overdraw the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Messages.
    pub messages: usize,
    /// Bytes of them.
    pub bytes: usize,
}

/// What a peer names a delivery by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handle {
    /// Its number on this stream.
    Number(u64),
    /// The place of its token in the list that was handed in.
    Token(usize),
}

/// Deliveries that could not be settled, and why.
pub type StreamFailures = Vec<(Handle, CoreError)>;

#[derive(Debug, Clone, Copy)]
struct Held {
    sequence: Sequence,
    attempt: u32,
    bytes: usize,
    expires: Option<UnixMillis>,
}

/// See the [module](self). Dropping it gives back what is outstanding: uncounted after
/// [`QueueConsumer::end_clean`], otherwise counted as failed, since its peer was lost with it.
#[derive(Debug)]
pub struct QueueConsumer {
    broker: Arc<Broker>,
    queue: Arc<QueueEntry>,
    inner: Box<dyn Consumer>,
    window: Window,
    lease: Duration,
    held: FxHashMap<u64, Held>,
    held_bytes: usize,
    next: u64,
    /// No later than the first end of a lease that is outstanding.
    next_expiry: Option<UnixMillis>,
    draining: bool,
    clean: bool,
    /// The engine may wake it for what comes next.
    waiting: bool,
    // Kept to be filled again.
    refs: Vec<LeaseRef>,
    handles: Vec<Handle>,
}

impl Broker {
    /// Joins the consumers of a queue. Of several a higher `priority` is served first, as long as it has room.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Invalid`] for the lease, [`CoreError::Engine`].
    pub fn consume(
        self: &Arc<Self>,
        queue: &Arc<QueueEntry>,
        window: Window,
        lease: Option<Duration>,
        priority: i32,
    ) -> Result<QueueConsumer, CoreError> {
        let lease = match lease {
            Some(lease) => checked_lease("lease", lease, self.limits())?,
            None => queue.spec().lease,
        };
        let options = ConsumerOptions { lease: Some(lease), priority, ..ConsumerOptions::default() };
        let inner = self.engine().consumer(queue.id, options).map_err(|error| of_queue(queue, error))?;
        Ok(QueueConsumer {
            broker: Arc::clone(self),
            queue: Arc::clone(queue),
            inner,
            window,
            lease,
            held: FxHashMap::default(),
            held_bytes: 0,
            next: 1,
            next_expiry: None,
            draining: false,
            clean: false,
            waiting: false,
            refs: Vec::new(),
            handles: Vec::new(),
        })
    }
}

impl QueueConsumer {
    /// Whose consumer it is.
    #[must_use]
    pub fn queue(&self) -> &Arc<QueueEntry> {
        &self.queue
    }

    /// How much may be outstanding from now on.
    pub fn set_window(&mut self, window: Window) {
        self.window = window;
    }

    /// Takes nothing any more; what is outstanding may still be settled.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether it may be given something: not while another is the single active consumer of the queue. [`Self::ready`]
    /// wakes when it becomes active.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.inner.is_active()
    }

    /// Whether it takes nothing any more and nothing is outstanding.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.draining && self.held.is_empty()
    }

    /// Its end is in order: what is outstanding goes back uncounted when it is dropped.
    pub fn end_clean(&mut self) {
        self.clean = true;
    }

    /// How many deliveries are outstanding.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.held.len()
    }

    /// Appends deliveries within the window and `frame` to `out`, and gives the number of the first; the others
    /// follow it. When it appends nothing although there is [`QueueConsumer::room`], [`QueueConsumer::ready`] wakes as
    /// soon as there may be more.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] when the queue was deleted, [`CoreError::Engine`].
    pub fn take(&mut self, frame: Window, out: &mut Vec<Leased>) -> Result<u64, CoreError> {
        let first = self.next;
        let room = self.room(frame);
        let from = out.len();
        if room.messages == 0 || room.bytes == 0 {
            // What it would be woken for goes to another consumer.
            if std::mem::take(&mut self.waiting) {
                self.inner.take(0, 0, out).map_err(|error| of_queue(&self.queue, error))?;
            }
            return Ok(first);
        }
        self.inner.take(room.messages, room.bytes, out).map_err(|error| of_queue(&self.queue, error))?;
        self.waiting = out.len() - from < room.messages || self.inner.is_preferred();
        self.broker.traffic.sent(given(out.get(from..).unwrap_or_default()));
        for leased in out.get(from..).unwrap_or_default() {
            let bytes = leased.message.weight();
            let Leased { sequence, attempt, lease_expires: expires, .. } = *leased;
            self.held.insert(self.next, Held { sequence, attempt, bytes, expires });
            self.held_bytes += bytes;
            self.next += 1;
            self.note_expiry(expires);
        }
        Ok(first)
    }

    /// What [`QueueConsumer::take`] would ask for.
    #[must_use]
    pub fn room(&self, frame: Window) -> Window {
        if self.draining {
            return Window { messages: 0, bytes: 0 };
        }
        Window {
            messages: self.window.messages.saturating_sub(self.held.len()).min(frame.messages),
            bytes: self.window.bytes.saturating_sub(self.held_bytes).min(frame.bytes),
        }
    }

    /// Wakes when [`QueueConsumer::take`] may give more, or says that the queue is gone.
    ///
    /// Cancel safe.
    pub async fn ready(&self) {
        self.inner.ready().heard().await;
    }

    /// The end of the first lease that is outstanding, or a moment before it.
    #[must_use]
    pub fn next_expiry(&self) -> Option<UnixMillis> {
        self.next_expiry
    }

    /// Forgets the deliveries whose lease has ended and names them, in order; their room in the window is free again.
    pub fn lost(&mut self, now: UnixMillis) -> Vec<u64> {
        if self.next_expiry.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.next_expiry = None;
        let mut lost = Vec::new();
        let mut next: Option<UnixMillis> = None;
        self.held.retain(|&number, held| match held.expires {
            Some(at) if at <= now => {
                lost.push(number);
                self.held_bytes -= held.bytes;
                false
            }
            Some(at) => {
                next = Some(next.map_or(at, |next| next.min(at)));
                true
            }
            None => true,
        });
        self.next_expiry = next;
        lost.sort_unstable();
        lost
    }

    /// Settles deliveries by number or token. Their room is free at once; the ticket completes when they are gone
    /// for good. A number that was settled or lost before is a failure.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] when the queue was deleted, [`CoreError::Engine`].
    pub fn acknowledge(
        &mut self,
        numbers: &[u64],
        tokens: &[Bytes],
    ) -> Result<(StreamFailures, Ticket<()>), CoreError> {
        let mut failures = self.resolve(numbers, tokens, true);
        let settled = self.broker.engine().settle(self.queue.id, &self.refs);
        let Settled { failed, durable } = settled.map_err(|error| of_queue(&self.queue, error))?;
        self.put(failed, &mut failures);
        Ok((failures, durable))
    }

    /// Gives deliveries back, due again after `delay`; none: as the queue says. Their room is free at once; nobody waits for the disk.
    ///
    /// # Errors
    /// As [`QueueConsumer::acknowledge`].
    pub fn nack(
        &mut self,
        numbers: &[u64],
        tokens: &[Bytes],
        how: Nack,
        delay: Option<Duration>,
    ) -> Result<StreamFailures, CoreError> {
        let mut failures = self.resolve(numbers, tokens, true);
        let nacked = self.broker.engine().nack(self.queue.id, &self.refs, how, delay);
        self.put(nacked.map_err(|error| of_queue(&self.queue, error))?.failed, &mut failures);
        Ok(failures)
    }

    /// Lets leases end `lease` from now; none: as long as they were asked for when the stream began.
    ///
    /// # Errors
    /// As [`QueueConsumer::acknowledge`], and [`CoreError::Invalid`] for the lease.
    pub fn extend(
        &mut self,
        numbers: &[u64],
        tokens: &[Bytes],
        lease: Option<Duration>,
    ) -> Result<StreamFailures, CoreError> {
        let lease = match lease {
            Some(lease) => checked_lease("lease", lease, self.broker.limits())?,
            None => self.lease,
        };
        let mut failures = self.resolve(numbers, tokens, false);
        let expires = Some(clock::unix_now().after(lease));
        let failed = self.broker.engine().extend(self.queue.id, &self.refs, lease);
        let failed = failed.map_err(|error| of_queue(&self.queue, error))?;
        for handle in &self.handles {
            if let Handle::Number(number) = handle
                && let Some(held) = self.held.get_mut(number)
            {
                held.expires = expires;
            }
        }
        self.note_expiry(expires);
        self.put(failed, &mut failures);
        Ok(failures)
    }

    /// Fills `refs` and `handles` with what is named, and says what cannot be.
    fn resolve(&mut self, numbers: &[u64], tokens: &[Bytes], forget: bool) -> StreamFailures {
        self.refs.clear();
        self.handles.clear();
        let mut failures = Vec::new();
        for &number in numbers {
            let held = if forget { self.held.remove(&number) } else { self.held.get(&number).copied() };
            match held {
                Some(held) => {
                    if forget {
                        self.held_bytes -= held.bytes;
                    }
                    self.refs.push(LeaseRef { attempt: Some(held.attempt), ..LeaseRef::of(held.sequence) });
                    self.handles.push(Handle::Number(number));
                }
                None if number > 0 && number < self.next => {
                    failures.push((Handle::Number(number), LeaseError::Expired.into()));
                }
                None => {
                    let error =
                        CoreError::invalid("delivery_ids", format!("{number} was never delivered here"));
                    failures.push((Handle::Number(number), error));
                }
            }
        }
        if tokens.is_empty() {
            return failures;
        }
        let by_sequence: FxHashMap<_, _> =
            self.held.iter().map(|(&number, held)| (held.sequence, number)).collect();
        for (place, token) in tokens.iter().enumerate() {
            let lease = self.broker.lease_of(&self.queue, token, || format!("lease_tokens[{place}]"));
            match lease {
                Ok(lease) => {
                    if forget
                        && let Some(number) = by_sequence.get(&lease.sequence)
                        && let Some(held) = self.held.remove(number)
                    {
                        self.held_bytes -= held.bytes;
                    }
                    self.refs.push(lease);
                    self.handles.push(Handle::Token(place));
                }
                Err(error) => failures.push((Handle::Token(place), error)),
            }
        }
        failures
    }

    fn put(&self, failed: Vec<(usize, LeaseError)>, failures: &mut StreamFailures) {
        failures.extend(
            failed.into_iter().filter_map(|(at, error)| Some((*self.handles.get(at)?, error.into()))),
        );
    }

    fn note_expiry(&mut self, at: Option<UnixMillis>) {
        if let Some(at) = at {
            self.next_expiry = Some(self.next_expiry.map_or(at, |next| next.min(at)));
        }
    }
}

impl Drop for QueueConsumer {
    fn drop(&mut self) {
        self.inner.release_all(!self.clean);
    }
}
