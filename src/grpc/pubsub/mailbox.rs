//! What waits for one stream of deliveries.
//!
//! Publishers append, the stream takes. Invariant: no more than the bounds wait; what is beyond is dropped and counted
//! at QoS 0, and ends the stream above it.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::core::queues::consumer::Window;
use crate::core::share::ShareGroup;
use crate::core::{CloseReason, Offer, Outbox};
use crate::types::{ClientId, Message, Qos};

/// What one waiting delivery takes beside its message's weight, in bytes.
const OVERHEAD: usize = 256;

/// See the module.
#[derive(Debug)]
pub(super) struct Mailbox {
    bounds: Window,
    state: Mutex<State>,
    /// Woken when something waits, or the stream is to end.
    changed: Notify,
    /// Deliveries that the client has not settled.
    unsettled: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// Dropped since the last that waits.
    dropped: u64,
    end: Option<Ended>,
}

/// Why a stream is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The core says so.
    Core(CloseReason),
    /// It does not keep up with what it must not lose.
    Overflow,
}

/// A delivery that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    /// As published.
    pub(super) message: Message,
    /// Of this delivery.
    pub(super) qos: Qos,
    /// Of this delivery.
    pub(super) retain: bool,
    /// Of the filters that match.
    pub(super) identifiers: SmallVec<[NonZeroU32; 1]>,
    /// The share group that chose this member.
    pub(super) share: Option<Arc<ShareGroup>>,
    /// Who published.
    pub(super) publisher: Option<ClientId>,
    /// How many were dropped before it.
    pub(super) dropped_before: u64,
}

impl Waiting {
    fn weight(&self) -> usize {
        self.message.weight() + OVERHEAD
    }
}

impl Mailbox {
    pub(super) fn new(bounds: Window) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            state: Mutex::default(),
            changed: Notify::new(),
            unsettled: AtomicUsize::new(0),
        })
    }

    /// Takes the next delivery if `wants` it.
    pub(super) fn take(&self, wants: impl FnOnce(&Waiting) -> bool) -> Option<Waiting> {
        let mut state = self.state.lock();
        state.waiting.front().filter(|next| wants(next))?;
        let next = state.waiting.pop_front()?;
        state.bytes -= next.weight();
        Some(next)
    }

    /// All that waits, when nobody takes any more.
    pub(super) fn clear(&self) -> VecDeque<Waiting> {
        let mut state = self.state.lock();
        state.bytes = 0;
        state.end.get_or_insert(Ended::Core(CloseReason::Deleted));
        std::mem::take(&mut state.waiting)
    }

    /// Whether the stream is to end, and why.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.state.lock().end
    }

    /// Whether something waits.
    pub(super) fn has_some(&self) -> bool {
        !self.state.lock().waiting.is_empty()
    }

    /// How many more may come in at once; at least one, so that what is large comes too.
    pub(super) fn room(&self) -> usize {
        self.bounds.messages.saturating_sub(self.state.lock().waiting.len()).max(1)
    }

    /// Says how many deliveries the client has not settled.
    pub(super) fn set_unsettled(&self, count: usize) {
        self.unsettled.store(count, Ordering::Relaxed);
    }

    /// Returns when something has come since the last look, or the end. Cancel safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Outbox for Mailbox {
    fn offer(&self, deliveries: &[Offer<'_>]) -> usize {
        let mut state = self.state.lock();
        let was_empty = state.waiting.is_empty();
        let mut dropped = 0;
        for offer in deliveries {
            let waiting = Waiting {
                message: offer.message.clone(),
                qos: offer.qos,
                retain: offer.retain,
                identifiers: SmallVec::from_slice(offer.identifiers),
                share: offer.share.cloned(),
                publisher: offer.publisher.cloned(),
                dropped_before: state.dropped,
            };
            let weight = waiting.weight();
            let full = state.waiting.len() >= self.bounds.messages
                || state.bytes + weight > self.bounds.bytes && !state.waiting.is_empty();
            if state.end.is_some() || full {
                if offer.qos > Qos::AtMostOnce {
                    state.end.get_or_insert(Ended::Overflow);
                }
                state.dropped += 1;
                dropped += 1;
                continue;
            }
            state.dropped = 0;
            state.bytes += weight;
            state.waiting.push_back(waiting);
        }
        let wake = was_empty || state.end.is_some();
        drop(state);
        if wake {
            self.changed.notify_one();
        }
        dropped
    }

    fn close(&self, reason: CloseReason) {
        self.state.lock().end.get_or_insert(Ended::Core(reason));
        self.changed.notify_one();
    }

    fn backlog(&self) -> usize {
        self.state.lock().waiting.len() + self.unsettled.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::MessageId;

    fn offer(mailbox: &Mailbox, count: usize, qos: Qos, payload: &'static [u8]) -> usize {
        let message = Message {
            id: MessageId::from_u128(0),
            topic: "t".parse().unwrap(),
            payload: Bytes::from_static(payload),
            qos,
            retain: false,
            expires_at: None,
            extras: None,
        };
        let offer =
            Offer { message: &message, qos, retain: false, identifiers: &[], share: None, publisher: None };
        mailbox.offer(&vec![offer; count])
    }

    #[test]
    fn what_is_beyond_the_bounds_is_dropped_and_counted() {
        let mailbox = Mailbox::new(Window { messages: 3, bytes: 1 << 20 });
        assert_eq!(offer(&mailbox, 5, Qos::AtMostOnce, b""), 2);
        assert_eq!((mailbox.backlog(), mailbox.ended()), (3, None));
        assert_eq!(mailbox.take(|_| true).unwrap().dropped_before, 0);
        assert_eq!(offer(&mailbox, 1, Qos::AtMostOnce, b""), 0);
        let counts: Vec<_> =
            std::iter::from_fn(|| mailbox.take(|_| true)).map(|w| w.dropped_before).collect();
        assert_eq!(counts, [0, 0, 2]);

        let mailbox = Mailbox::new(Window { messages: 9, bytes: 2 * OVERHEAD + 2 });
        assert_eq!(offer(&mailbox, 3, Qos::AtMostOnce, b""), 1);
        // One is taken however large it is.
        mailbox.clear();
        let mailbox = Mailbox::new(Window { messages: 9, bytes: 1 });
        assert_eq!(offer(&mailbox, 2, Qos::AtMostOnce, b"large"), 1);
    }

    #[test]
    fn what_must_not_be_lost_ends_the_stream() {
        let mailbox = Mailbox::new(Window { messages: 3, bytes: 1 << 20 });
        assert_eq!(offer(&mailbox, 5, Qos::AtLeastOnce, b""), 2);
        assert_eq!(mailbox.ended(), Some(Ended::Overflow));
        mailbox.close(CloseReason::TakenOver);
        assert_eq!(mailbox.ended(), Some(Ended::Overflow));
        assert_eq!(offer(&mailbox, 1, Qos::AtMostOnce, b""), 1);
    }
}
