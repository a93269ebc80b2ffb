//! One request: where it is, what was said to it, and the handle of whoever waits.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytestring::ByteString;
use parking_lot::Mutex;

use super::service::Service;
use super::{CallError, Calls, Counts, Reply, Request};
use crate::core::CoreError;
use crate::types::{Message, clock};

/// What one reply that is not read takes beside its weight, in bytes.
const OVERHEAD: usize = 256;
/// Beyond the bound of their number, and of their bytes.
pub(super) const TOO_MANY: &str = "too many calls in flight";
const TOO_LARGE: &str = "too many bytes of calls in flight";

/// See the module.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) request: Request,
    begun: Instant,
    weight: usize,
    calls: Arc<Calls>,
    slot: Mutex<Slot>,
}

#[derive(Debug)]
struct Slot {
    /// Changed under the service's lock alone.
    place: Place,
    /// Responders that have seen it.
    tries: usize,
    said: VecDeque<Reply>,
    /// Of what was said.
    bytes: usize,
    /// Some part was said: another responder would begin anew.
    answered: bool,
    end: Option<Result<(), CallError>>,
    waker: Option<Waker>,
}

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the service's line.
    Waiting,
    /// With the responder in this place, under this number.
    With(usize, u64),
    /// Nowhere any more.
    Over,
}

impl Call {
    /// # Errors
    /// [`CoreError::Limit`].
    pub(super) fn new(calls: &Arc<Calls>, request: Request) -> Result<Self, CoreError> {
        let weight = request.message.weight() + OVERHEAD;
        let bytes = calls.counts.bytes.fetch_add(weight, Ordering::Relaxed) + weight;
        let count = calls.counts.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        // From here on its drop gives back what it has taken.
        let call = Self {
            request,
            begun: clock::now(),
            weight,
            calls: Arc::clone(calls),
            slot: Mutex::new(Slot {
                place: Place::Over,
                tries: 0,
                said: VecDeque::new(),
                bytes: 0,
                answered: false,
                end: None,
                waker: None,
            }),
        };
        if count > calls.bounds.calls {
            return Err(calls.refused(TOO_MANY, calls.bounds.calls));
        }
        if bytes > calls.bounds.bytes {
            return Err(calls.refused(TOO_LARGE, calls.bounds.bytes));
        }
        Ok(call)
    }

    pub(super) fn place(&self) -> Place {
        self.slot.lock().place
    }

    pub(super) fn put(&self, place: Place) {
        self.slot.lock().place = place;
    }

    /// Another responder has seen it.
    pub(super) fn seen(&self) {
        self.slot.lock().tries += 1;
    }

    /// How many responders have seen it.
    pub(super) fn tries(&self) -> usize {
        self.slot.lock().tries
    }

    /// Whether another responder may be asked after one that has seen the request.
    pub(super) fn may_retry(&self, tries: usize) -> bool {
        let slot = self.slot.lock();
        self.request.idempotent && !slot.answered && slot.tries < tries
    }

    /// A part. The waker is to be called when no lock is held.
    ///
    /// # Errors
    /// [`CoreError::Limit`]: nothing was taken, as too much is not read.
    pub(super) fn say(
        &self,
        responder: &ByteString,
        message: Message,
        more: bool,
    ) -> Result<Option<Waker>, CoreError> {
        let weight = message.weight() + OVERHEAD;
        let mut slot = self.slot.lock();
        let Calls { bounds, counts, .. } = &*self.calls;
        // One part is within the bound of a payload, and taken however large it is.
        if slot.bytes > 0 && slot.bytes + weight > bounds.reply_bytes {
            let what = "too many bytes of the answer are not read by the caller";
            return Err(self.calls.refused(what, bounds.reply_bytes));
        }
        if counts.bytes.fetch_add(weight, Ordering::Relaxed) + weight > bounds.bytes {
            counts.bytes.fetch_sub(weight, Ordering::Relaxed);
            return Err(self.calls.refused(TOO_LARGE, bounds.bytes));
        }
        slot.bytes += weight;
        slot.answered = true;
        let latency = clock::now().saturating_duration_since(self.begun);
        slot.said.push_back(Reply { responder: responder.clone(), message, more, latency });
        if !more {
            slot.place = Place::Over;
            slot.end.get_or_insert(Ok(()));
        }
        Ok(slot.waker.take())
    }

    /// Nothing more will be said.
    pub(super) fn fail(&self, error: CallError) -> Option<Waker> {
        let mut slot = self.slot.lock();
        slot.place = Place::Over;
        slot.end.get_or_insert(Err(error));
        slot.waker.take()
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Option<Result<Reply, CallError>>> {
        let mut slot = self.slot.lock();
        if let Some(reply) = slot.said.pop_front() {
            let weight = reply.message.weight() + OVERHEAD;
            slot.bytes -= weight;
            self.calls.counts.bytes.fetch_sub(weight, Ordering::Relaxed);
            return Poll::Ready(Some(Ok(reply)));
        }
        match &mut slot.end {
            Some(end) => Poll::Ready(mem::replace(end, Ok(())).err().map(Err)),
            None => {
                if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    slot.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let counts = &self.calls.counts;
        counts.bytes.fetch_sub(self.weight + self.slot.get_mut().bytes, Ordering::Relaxed);
        counts.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call that was begun. Dropping it before its end cancels it, and its responder is told.
pub struct Calling {
    service: Arc<Service>,
    call: Arc<Call>,
}

impl Calling {
    pub(super) fn new(service: Arc<Service>, call: Arc<Call>) -> Self {
        Self { service, call }
    }

    /// The next part; `None` after the last one, or after an error. Cancel safe.
    ///
    /// # Errors
    /// [`CallError`]: nothing follows.
    pub async fn next(&mut self) -> Option<Result<Reply, CallError>> {
        poll_fn(|cx| self.call.poll(cx)).await
    }

    /// The answer of a call that takes one. Cancel safe.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn reply(&mut self) -> Result<Reply, CallError> {
        match self.next().await {
            Some(said) => said,
            // Only what was read before ends without a word.
            None => Err(CallError::Broker(CoreError::invalid("call", "was answered before"))),
        }
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        if self.call.place() != Place::Over && self.service.cancel(&self.call) {
            Counts::add(&self.call.calls.counts.cancelled);
        }
    }
}

impl fmt::Debug for Calling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calling").field("service", &self.service.name()).finish_non_exhaustive()
    }
}
