//! What calls and their replies take in memory, and what those of one multicast take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{CallError, Calls, Fault, Reply, Request, Said};
use crate::core::CoreError;
use crate::types::Message;

/// What one reply that is not read takes beside its weight, in bytes.
pub(super) const OVERHEAD: usize = 256;
/// Beyond the bound of their bytes.
const TOO_LARGE: &str = "too many bytes of calls in flight";
/// Beyond the bound of what is said to one who asks.
pub(super) const NOT_READ: &str = "too many bytes of replies are kept, or not read by the caller";

/// What the calls of one multicast take together.
#[derive(Debug)]
pub(super) struct Shared {
    /// Of what is asked.
    weight: usize,
    /// Of what was said and is not read, or is kept.
    bytes: AtomicUsize,
    /// Its parts wait until more of that is read.
    held: AtomicBool,
    calls: Arc<Calls>,
}

impl Shared {
    /// # Errors
    /// [`CoreError::Limit`].
    pub(super) fn new(calls: &Arc<Calls>, weight: usize) -> Result<Arc<Self>, CoreError> {
        calls.reserve(weight)?;
        let (bytes, held) = (AtomicUsize::new(0), AtomicBool::new(false));
        Ok(Arc::new(Self { weight, bytes, held, calls: Arc::clone(calls) }))
    }

    /// Whether so much is not read, or would not be with `out` replies that are awaited and one more of `each` bytes, that it
    /// may as well be read first. Who reads is then told by [`Self::is_freed`]. One reply alone always has room.
    pub(super) fn holds(&self, out: usize, each: usize) -> bool {
        let max = self.calls.bounds.gather_bytes;
        let full = || {
            let unread = self.bytes.load(Ordering::SeqCst);
            let will_be = unread.saturating_add(each.saturating_mul(out + 1));
            unread > max / 2 || (unread > 0 || out > 0) && will_be > max
        };
        if !full() {
            return false;
        }
        // Said before it is looked at again: what is read from now on finds it.
        self.held.store(true, Ordering::SeqCst);
        full()
    }

    /// Whether a reply finds room. One alone is within the bound of a payload, and may be larger than this bound.
    pub(super) fn has_room(&self, weight: usize) -> bool {
        let unread = self.bytes.load(Ordering::SeqCst);
        unread == 0 || unread + weight <= self.calls.bounds.gather_bytes
    }

    /// Whether more than half of what may be kept is.
    pub(super) fn is_half_full(&self) -> bool {
        self.bytes.load(Ordering::SeqCst) > self.calls.bounds.gather_bytes / 2
    }

    /// Takes room for what is said, until it is read.
    ///
    /// # Errors
    /// [`CoreError::Limit`]: nothing is taken.
    pub(super) fn keep(&self, weight: usize) -> Result<(), CoreError> {
        if !self.has_room(weight) {
            return Err(self.no_room());
        }
        self.calls.reserve(weight)?;
        self.bytes.fetch_add(weight, Ordering::SeqCst);
        Ok(())
    }

    /// A reply finds no room.
    pub(super) fn no_room(&self) -> CoreError {
        self.calls.refused(NOT_READ, "gather_bytes", self.calls.bounds.gather_bytes)
    }

    /// Whether parts may have waited for what was read.
    pub(super) fn is_freed(&self) -> bool {
        self.held.load(Ordering::SeqCst) && self.held.swap(false, Ordering::SeqCst)
    }

    /// That has gone to who asked.
    pub(super) fn read(&self, said: &Result<Reply, CallError>) {
        let weight = match said {
            Ok(reply) => weight_of(&reply.message),
            Err(CallError::Responder(fault)) => weight_of_fault(fault),
            Err(CallError::Broker(_)) => return,
        };
        self.bytes.fetch_sub(weight, Ordering::SeqCst);
        self.calls.counts.bytes.fetch_sub(weight, Ordering::Relaxed);
    }

    /// Nothing of what was said is kept any more; its calls may still lie in a line.
    pub(super) fn forget(&self) {
        self.calls.counts.bytes.fetch_sub(self.bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let weight = self.weight + *self.bytes.get_mut();
        self.calls.counts.bytes.fetch_sub(weight, Ordering::Relaxed);
    }
}

pub(super) fn weight_of(message: &Message) -> usize {
    message.weight() + OVERHEAD
}

/// What an answer takes; none if it is not kept.
pub(super) fn weight_of_said(said: &Said) -> Option<usize> {
    match said {
        Said::Last(message) => Some(weight_of(message)),
        Said::Fault(fault) => Some(weight_of_fault(fault)),
        Said::Part(_) | Said::Wrong(_) => None,
    }
}

pub(super) fn weight_of_fault(fault: &Fault) -> usize {
    fault.message.len() + fault.details.len() + OVERHEAD
}

impl Calls {
    /// Whether there is room for a request when there is no other.
    ///
    /// # Errors
    /// [`CoreError::Limit`].
    pub(super) fn fits(&self, request: &Request) -> Result<(), CoreError> {
        match weight_of(&request.message) > self.bounds.bytes {
            true => Err(self.refused(TOO_LARGE, "call_bytes", self.bounds.bytes)),
            false => Ok(()),
        }
    }

    /// # Errors
    /// [`CoreError::Limit`]: nothing is taken.
    pub(super) fn reserve(&self, weight: usize) -> Result<(), CoreError> {
        if self.counts.bytes.fetch_add(weight, Ordering::Relaxed) + weight > self.bounds.bytes {
            self.counts.bytes.fetch_sub(weight, Ordering::Relaxed);
            return Err(self.refused(TOO_LARGE, "call_bytes", self.bounds.bytes));
        }
        Ok(())
    }
}
