//! One request: where it is, what was said to it, and the handle of whoever waits.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytestring::ByteString;
use parking_lot::Mutex;

use super::service::Service;
use super::shared::{NOT_READ, OVERHEAD, Shared, weight_of, weight_of_fault};
use super::{CallError, Calls, Counts, Fault, Missing, Reply, Request, Serve};
use crate::core::CoreError;
use crate::types::{Message, TopicName, clock};

/// Beyond the bound of their number.
pub(super) const TOO_MANY: &str = "too many calls in flight";

/// See the module.
#[derive(Debug)]
pub(super) struct Call {
    to: To,
    begun: Instant,
    weight: usize,
    calls: Arc<Calls>,
    slot: Mutex<Slot>,
}

/// What is asked, and of whom.
#[derive(Debug)]
pub(super) enum To {
    /// Of one responder.
    One(Request),
    /// Of many, each with a call of its own that is for it alone, what those of one service are asked.
    Many(Arc<Shared>, Arc<Request>),
    /// Of one responder each, in parts: this is one of the parts of the job with this number.
    Part(Arc<Shared>, u64, Request),
}

#[derive(Debug)]
struct Slot {
    /// Changed under the service's lock alone.
    place: Place,
    /// Responders that have seen it.
    tries: usize,
    /// Who had it last; of a part alone.
    holder: Option<ByteString>,
    /// Why it would be missing if all were over now.
    missing: Missing,
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
    /// In the line of the responder in this place.
    WaitingFor(usize),
    /// With the responder in this place, under this number.
    With(usize, u64),
    /// Nowhere any more.
    Over,
}

impl Call {
    /// # Errors
    /// [`CoreError::Limit`].
    pub(super) fn new(calls: &Arc<Calls>, to: To) -> Result<Self, CoreError> {
        let weight = match &to {
            To::One(request) => weight_of(&request.message),
            To::Many(..) | To::Part(..) => OVERHEAD,
        };
        let missing = if let To::Part(..) = to { Missing::NotAsked } else { Missing::Silent };
        calls.reserve(weight)?;
        let count = calls.counts.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        // From here on its drop gives back what it has taken.
        let call = Self {
            to,
            begun: clock::now(),
            weight,
            calls: Arc::clone(calls),
            slot: Mutex::new(Slot {
                place: Place::Over,
                tries: 0,
                holder: None,
                missing,
                said: VecDeque::new(),
                bytes: 0,
                answered: false,
                end: None,
                waker: None,
            }),
        };
        if count > calls.bounds.calls {
            return Err(calls.refused(TOO_MANY, "max_calls", calls.bounds.calls));
        }
        Ok(call)
    }

    pub(super) fn request(&self) -> &Request {
        match &self.to {
            To::One(request) | To::Part(_, _, request) => request,
            To::Many(_, request) => request,
        }
    }

    fn shared(&self) -> Option<&Shared> {
        match &self.to {
            To::One(_) => None,
            To::Many(shared, _) | To::Part(shared, ..) => Some(shared),
        }
    }

    /// Whether another responder may get it.
    pub(super) fn is_for_anyone(&self) -> bool {
        !matches!(self.to, To::Many(..))
    }

    /// The job that it is a part of.
    pub(super) fn job(&self) -> Option<u64> {
        match &self.to {
            To::Part(_, job, _) => Some(*job),
            _ => None,
        }
    }

    /// Who has it now; of a part.
    pub(super) fn held_by(&self, responder: &ByteString) {
        let mut slot = self.slot.lock();
        (slot.holder, slot.missing) = (Some(responder.clone()), Missing::Silent);
    }

    /// Why it is missing now.
    pub(super) fn missing(&self) -> Missing {
        self.slot.lock().missing
    }

    /// It waits again; who had it is to blame.
    pub(super) fn missed(&self, why: Missing) {
        self.slot.lock().missing = why;
    }

    /// Who had it last; of a part.
    pub(super) fn holder(&self) -> Option<ByteString> {
        self.slot.lock().holder.clone()
    }

    pub(super) fn place(&self) -> Place {
        self.slot.lock().place
    }

    pub(super) fn put(&self, place: Place) {
        self.slot.lock().place = place;
    }

    /// So many responders have seen the request when it was made before.
    pub(super) fn tried(self, before: usize) -> Self {
        self.slot.lock().tries = before;
        self
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
        self.is_for_anyone() && self.request().idempotent && !slot.answered && slot.tries < tries
    }

    /// Whether its part may be carried out again for an answer that finds no room. That is counted.
    pub(super) fn begins_anew(&self) -> bool {
        let again = self.may_retry(self.calls.bounds.tries);
        if again {
            Counts::add(&self.calls.counts.retried);
        }
        again
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
        let mut slot = self.slot.lock();
        self.keep(&mut slot, weight_of(&message))?;
        slot.answered = true;
        let latency = clock::now().saturating_duration_since(self.begun);
        slot.said.push_back(Reply { responder: responder.clone(), message, more, latency });
        if !more {
            slot.place = Place::Over;
            slot.end.get_or_insert(Ok(()));
        }
        Ok(slot.waker.take())
    }

    /// Takes room for what is said until it is read.
    fn keep(&self, slot: &mut Slot, weight: usize) -> Result<(), CoreError> {
        if let Some(shared) = self.shared() {
            return shared.keep(weight);
        }
        let max = self.calls.bounds.reply_bytes;
        if slot.bytes > 0 && slot.bytes + weight > max {
            return Err(self.calls.refused(NOT_READ, "call_reply_bytes", max));
        }
        self.calls.reserve(weight)?;
        slot.bytes += weight;
        Ok(())
    }

    /// The responder has said an error.
    pub(super) fn fault(&self, fault: Fault) -> Option<Waker> {
        // Where many answer, who asked may keep the errors of all.
        let kept = match self.shared() {
            Some(_) => self.keep(&mut self.slot.lock(), weight_of_fault(&fault)),
            None => Ok(()),
        };
        self.fail(match kept {
            Ok(()) => CallError::Responder(fault),
            Err(error) => CallError::Broker(error),
        })
    }

    /// Nothing more will be said.
    pub(super) fn fail(&self, error: CallError) -> Option<Waker> {
        let mut slot = self.slot.lock();
        slot.place = Place::Over;
        slot.missing = match &error {
            CallError::Broker(CoreError::ResponderLost { .. }) => Missing::Lost,
            // Who had it before, if anybody, is to blame.
            CallError::Broker(CoreError::NoResponders { .. } | CoreError::Draining) => slot.missing,
            CallError::Broker(_) => Missing::Refused,
            CallError::Responder(_) => Missing::Silent,
        };
        slot.end.get_or_insert(Err(error));
        slot.waker.take()
    }

    /// Its responder is not there any more.
    pub(super) fn lost(&self, responder: &Serve) -> Option<Waker> {
        Counts::add(&self.calls.counts.lost);
        let service = self.service().as_str().to_owned();
        let responder = responder.id.as_deref().unwrap_or_default().to_owned();
        self.fail(CallError::Broker(CoreError::ResponderLost { service, responder }))
    }

    /// Whoever could answer does not read.
    pub(super) fn unread(&self) -> Option<Waker> {
        self.fail(CallError::Broker(self.calls.unread(self.service())))
    }

    /// Nobody takes parts any more: that is said in the end, of all of them.
    pub(super) fn left_over(&self) -> Option<Waker> {
        let service = self.service().as_str().to_owned();
        let stops = self.calls.draining.is_cancelled();
        self.fail(CallError::Broker(match stops {
            true => CoreError::Draining,
            false => CoreError::NoResponders { service },
        }))
    }

    /// There is nobody any more who could answer.
    pub(super) fn nobody(&self) -> Option<Waker> {
        self.fail(CallError::Broker(self.calls.nobody(self.service())))
    }

    fn service(&self) -> &TopicName {
        &self.request().message.topic
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Option<Result<Reply, CallError>>> {
        let mut slot = self.slot.lock();
        if let Some(reply) = slot.said.pop_front() {
            if self.shared().is_none() {
                let weight = weight_of(&reply.message);
                slot.bytes -= weight;
                self.calls.counts.bytes.fetch_sub(weight, Ordering::Relaxed);
            }
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
        poll_fn(|cx| self.poll(cx)).await
    }

    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Reply, CallError>>> {
        self.call.poll(cx)
    }

    pub(super) fn call(&self) -> &Call {
        &self.call
    }

    /// Takes it away from a device that has had it for `limit`. Returns when to look again.
    pub(super) fn overdue(&self, limit: Duration) -> Duration {
        self.service.overdue(&self.call, limit)
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
