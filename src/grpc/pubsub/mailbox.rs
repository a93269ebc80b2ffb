//! What waits for one stream of deliveries.
//!
//! Publishers append, encoded, and the stream takes. Invariant: no more than the bounds wait; what is beyond is dropped
//! and counted at QoS 0, and ends the stream above it.

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
use crate::grpc::deliveries::Outgoing;
use crate::grpc::proto::v1;
use crate::types::{ClientId, Message, Qos, UnixMillis};

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
    /// What waits, encoded, from `start` on.
    encoded: Vec<u8>,
    start: usize,
    /// Counted against the bound.
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
    /// Of this delivery.
    pub(super) qos: Qos,
    /// That of its message.
    pub(super) weight: usize,
    /// Its bytes among those that are encoded.
    len: usize,
    /// Of what few need more than their bytes.
    pub(super) kept: Option<Box<Kept>>,
}

/// A delivery that expires, and is encoded when it leaves, or that of a share group, which may go to another member.
#[derive(Debug)]
pub(super) struct Kept {
    message: Message,
    retain: bool,
    identifiers: SmallVec<[NonZeroU32; 1]>,
    /// The share group that chose this member.
    pub(super) share: Option<Arc<ShareGroup>>,
    publisher: Option<ClientId>,
    dropped_before: u64,
}

impl Kept {
    fn of(offer: &Offer<'_>, dropped_before: u64) -> Option<Box<Self>> {
        let needed = offer.share.is_some() || offer.message.expires_at.is_some();
        needed.then(|| {
            Box::new(Self {
                message: offer.message.clone(),
                retain: offer.retain,
                identifiers: SmallVec::from_slice(offer.identifiers),
                share: offer.share.cloned(),
                publisher: offer.publisher.cloned(),
                dropped_before,
            })
        })
    }

    fn expires(&self) -> bool {
        self.message.expires_at.is_some()
    }

    fn offer(&self, qos: Qos) -> Offer<'_> {
        Offer {
            message: &self.message,
            qos,
            retain: self.retain,
            identifiers: &self.identifiers,
            share: self.share.as_ref(),
            publisher: self.publisher.as_ref(),
        }
    }

    /// What goes back to its share group.
    pub(super) fn shared(self) -> Option<(Arc<ShareGroup>, Message)> {
        Some((self.share?, self.message))
    }
}

/// A live message, as it goes out.
fn outgoing<'a>(offer: &Offer<'a>, dropped_before: u64) -> Outgoing<'a> {
    Outgoing {
        message: offer.message,
        qos: offer.qos,
        retain: offer.retain,
        publisher: offer.publisher.map(ClientId::as_str),
        identifiers: offer.identifiers,
        attempt: 1,
        retained: offer.retain,
        dropped_before,
    }
}

impl State {
    /// Makes the place of what has left free again.
    fn tidy(&mut self) {
        if self.waiting.is_empty() {
            self.encoded.clear();
            self.start = 0;
        } else if self.start > self.encoded.len() / 2 {
            self.encoded.drain(..self.start);
            self.start = 0;
        }
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

    /// Puts the next deliveries into a frame: no more than there is place for, in `place`, and of those to be settled no
    /// more than the client has `room` for; one may overdraw the bytes of either. `number` names each; it is called with
    /// the mailbox locked. Returns how much was put in.
    pub(super) fn fill(
        &self,
        frame: &mut v1::DeliveryBatch,
        place: Window,
        mut room: Window,
        now: UnixMillis,
        mut number: impl FnMut(Waiting) -> u64,
    ) -> Window {
        let mut filled = Window { messages: 0, bytes: 0 };
        let mut late = Vec::new();
        let mut state = self.state.lock();
        frame.reserve((state.encoded.len() - state.start).min(place.bytes));
        while filled.messages < place.messages && filled.bytes < place.bytes {
            let State { waiting, encoded, start, bytes, .. } = &mut *state;
            let has_room = room.messages > 0 && room.bytes > 0;
            let Some(next) = waiting.pop_front_if(|next| next.qos == Qos::AtMostOnce || has_room) else {
                break;
            };
            let end = *start + next.len;
            let early = encoded.get(*start..end).unwrap_or_default();
            *start = end;
            *bytes -= next.weight + OVERHEAD;
            let encoded = match next.kept.as_deref().filter(|kept| kept.expires()) {
                Some(kept) if kept.message.is_expired(now) => continue,
                Some(kept) => {
                    late.clear();
                    outgoing(&kept.offer(next.qos), kept.dropped_before).encode(now, &mut late);
                    &late
                }
                None => early,
            };
            filled.messages += 1;
            filled.bytes += next.weight;
            if next.qos > Qos::AtMostOnce {
                room.messages -= 1;
                room.bytes = room.bytes.saturating_sub(next.weight);
            }
            frame.push(encoded, number(next));
        }
        state.tidy();
        filled
    }

    /// All that waits, when nobody takes any more.
    pub(super) fn clear(&self) -> VecDeque<Waiting> {
        let mut state = self.state.lock();
        state.bytes = 0;
        state.end.get_or_insert(Ended::Core(CloseReason::Deleted));
        state.encoded = Vec::new();
        state.start = 0;
        std::mem::take(&mut state.waiting)
    }

    /// Gives back the memory that nothing needs: for a stream that has been silent.
    pub(super) fn shrink(&self) {
        let mut state = self.state.lock();
        state.encoded.shrink_to_fit();
        state.waiting.shrink_to_fit();
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
            let weight = offer.message.weight();
            let full = state.waiting.len() >= self.bounds.messages
                || state.bytes + weight + OVERHEAD > self.bounds.bytes && !state.waiting.is_empty();
            if state.end.is_some() || full {
                if offer.qos > Qos::AtMostOnce {
                    state.end.get_or_insert(Ended::Overflow);
                }
                state.dropped += 1;
                dropped += 1;
                continue;
            }
            let State { waiting, encoded, bytes, dropped, .. } = &mut *state;
            let dropped_before = std::mem::take(dropped);
            let kept = Kept::of(offer, dropped_before);
            let before = encoded.len();
            if !kept.as_deref().is_some_and(Kept::expires) {
                outgoing(offer, dropped_before).encode(offer.message.id.time(), encoded);
            }
            *bytes += weight + OVERHEAD;
            waiting.push_back(Waiting { qos: offer.qos, weight, len: encoded.len() - before, kept });
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
    use std::time::Duration;

    use bytes::Bytes;
    use prost::Message as _;

    use super::*;
    use crate::types::MessageId;

    const ANY: Window = Window { messages: usize::MAX, bytes: usize::MAX };
    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn message(payload: &'static [u8]) -> Message {
        Message {
            id: MessageId::from_u128(0),
            topic: "t".parse().unwrap(),
            payload: Bytes::from_static(payload),
            qos: Qos::AtLeastOnce,
            retain: false,
            expires_at: None,
            extras: None,
        }
    }

    fn offer(mailbox: &Mailbox, count: usize, qos: Qos, message: &Message) -> usize {
        let offer = Offer { message, qos, retain: false, identifiers: &[], share: None, publisher: None };
        mailbox.offer(&vec![offer; count])
    }

    /// What a client would read.
    fn take(mailbox: &Mailbox, place: Window, room: Window, now: UnixMillis) -> Vec<v1::Delivery> {
        let mut frame = v1::DeliveryBatch::default();
        let mut number = 0;
        let filled = mailbox.fill(&mut frame, place, room, now, |_| {
            number += 1;
            number
        });
        let deliveries = v1::DeliveryBatch::decode(&frame.encode_to_vec()[..]).unwrap().deliveries;
        assert_eq!(deliveries.len(), filled.messages);
        deliveries
    }

    fn payloads(deliveries: &[v1::Delivery]) -> Vec<Bytes> {
        deliveries.iter().map(|delivery| delivery.message.clone().unwrap().payload).collect()
    }

    #[test]
    fn what_is_beyond_the_bounds_is_dropped_and_counted() {
        let mailbox = Mailbox::new(Window { messages: 3, bytes: 1 << 20 });
        assert_eq!(offer(&mailbox, 5, Qos::AtMostOnce, &message(b"")), 2);
        assert_eq!((mailbox.backlog(), mailbox.ended()), (3, None));
        let one = take(&mailbox, Window { messages: 1, ..ANY }, ANY, NOW);
        assert_eq!(one.iter().map(|d| d.dropped_before).collect::<Vec<_>>(), [0]);
        assert_eq!(offer(&mailbox, 1, Qos::AtMostOnce, &message(b"")), 0);
        let counts: Vec<_> = take(&mailbox, ANY, ANY, NOW).iter().map(|d| d.dropped_before).collect();
        assert_eq!(counts, [0, 0, 2]);

        let mailbox = Mailbox::new(Window { messages: 9, bytes: 2 * OVERHEAD + 2 });
        assert_eq!(offer(&mailbox, 3, Qos::AtMostOnce, &message(b"")), 1);
        // One is taken however large it is.
        mailbox.clear();
        let mailbox = Mailbox::new(Window { messages: 9, bytes: 1 });
        assert_eq!(offer(&mailbox, 2, Qos::AtMostOnce, &message(b"large")), 1);
    }

    #[test]
    fn what_is_to_be_settled_waits_for_room() {
        let mailbox = Mailbox::new(Window { messages: 9, bytes: 1 << 20 });
        offer(&mailbox, 1, Qos::AtMostOnce, &message(b"0"));
        for payload in [b"1", b"2", b"3"] {
            offer(&mailbox, 1, Qos::AtLeastOnce, &message(payload));
        }
        let none = Window { messages: 0, bytes: 0 };
        assert_eq!(payloads(&take(&mailbox, none, ANY, NOW)), [""; 0]);
        assert_eq!(payloads(&take(&mailbox, ANY, none, NOW)), ["0"]);
        assert_eq!(payloads(&take(&mailbox, ANY, Window { messages: 1, ..ANY }, NOW)), ["1"]);
        // Topic and payload have two bytes: one overdraws.
        assert_eq!(payloads(&take(&mailbox, Window { bytes: 1, ..ANY }, ANY, NOW)), ["2"]);
        assert_eq!(payloads(&take(&mailbox, ANY, Window { bytes: 1, ..ANY }, NOW)), ["3"]);
        assert_eq!((mailbox.has_some(), mailbox.state.lock().bytes), (false, 0));
    }

    #[test]
    fn what_expires_leaves_with_what_is_left_or_not_at_all() {
        let mailbox = Mailbox::new(Window { messages: 9, bytes: 1 << 20 });
        let expiring = Message { expires_at: Some(NOW.after(Duration::from_secs(9))), ..message(b"expires") };
        for _ in 0..2 {
            offer(&mailbox, 1, Qos::AtLeastOnce, &expiring);
            offer(&mailbox, 1, Qos::AtLeastOnce, &message(b"stays"));
        }
        let later = NOW.after(Duration::from_secs(4));
        let first = take(&mailbox, Window { messages: 2, ..ANY }, ANY, later);
        assert_eq!(payloads(&first), ["expires", "stays"]);
        assert_eq!(first[0].message.as_ref().unwrap().ttl.unwrap().seconds, 5);
        let too_late = NOW.after(Duration::from_secs(9));
        assert_eq!(payloads(&take(&mailbox, ANY, ANY, too_late)), ["stays"]);
        assert_eq!((mailbox.has_some(), mailbox.state.lock().bytes), (false, 0));
    }

    #[test]
    fn the_memory_of_what_has_left_is_given_back() {
        let mailbox = Mailbox::new(Window { messages: 10_000, bytes: 64 << 20 });
        let large = message(&[7; 1000]);
        offer(&mailbox, 5000, Qos::AtMostOnce, &large);
        for left in (0..5000).rev().step_by(10).map(|left| left - 9) {
            assert_eq!(take(&mailbox, Window { messages: 10, ..ANY }, ANY, NOW).len(), 10);
            let state = mailbox.state.lock();
            assert_eq!(state.waiting.len(), left);
            assert!(state.start <= state.encoded.len() - state.start);
        }
        mailbox.shrink();
        let state = mailbox.state.lock();
        assert_eq!((state.encoded.capacity(), state.waiting.capacity()), (0, 0));
    }

    #[test]
    fn what_must_not_be_lost_ends_the_stream() {
        let mailbox = Mailbox::new(Window { messages: 3, bytes: 1 << 20 });
        assert_eq!(offer(&mailbox, 5, Qos::AtLeastOnce, &message(b"")), 2);
        assert_eq!(mailbox.ended(), Some(Ended::Overflow));
        mailbox.close(CloseReason::TakenOver);
        assert_eq!(mailbox.ended(), Some(Ended::Overflow));
        assert_eq!(offer(&mailbox, 1, Qos::AtMostOnce, &message(b"")), 1);
    }
}
