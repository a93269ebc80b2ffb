//! Where publishers leave deliveries for one connection.
//!
//! Publishers' tasks append under a short lock and wake the connection once per batch, and only when nothing waited
//! before: the connection takes all there is. Bounded in bytes, and above QoS 0 in messages: beyond it QoS 0 is dropped
//! and counted, and above QoS 0 the connection is ended with 0x97, so that a slow subscriber slows nobody else.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::aliases::Aliases;
use super::buffers::Buffers;
use super::codec::{ReasonCode, Version};
use super::frames::{Form, Frames, fits};
use super::violation;
use crate::bell::Bell;
use crate::core::{Answers, CloseReason, Offer, Outbox, TooLarge};
use crate::types::Qos;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) bytes: usize,
    /// Above QoS 0.
    pub(super) messages: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Mailbox {
    form: Form,
    bounds: Bounds,
    buffers: Arc<Buffers>,
    waiting: Mutex<Waiting>,
    wake: Bell,
    /// What the connection has taken and is not acknowledged.
    in_flight: AtomicUsize,
    /// Deliveries above QoS 0 that wait here.
    above_qos0: AtomicUsize,
    /// The connection is to end.
    ends: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: Frames,
    /// Given out as frames are appended, which leave in that order; `None`: the client takes none.
    aliases: Option<Box<Aliases>>,
    closed: Option<ReasonCode>,
}

impl Mailbox {
    pub(super) fn new(
        form: Form,
        bounds: Bounds,
        aliases: Option<Box<Aliases>>,
        buffers: Arc<Buffers>,
    ) -> Arc<Self> {
        Arc::new(Self {
            form,
            bounds,
            buffers,
            waiting: Mutex::new(Waiting { aliases, ..Waiting::default() }),
            wake: Bell::default(),
            in_flight: AtomicUsize::new(0),
            above_qos0: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
        })
    }

    /// How the receiver takes its packets.
    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Rung when there is something to [`take`](Self::take).
    pub(super) fn wake(&self) -> &Bell {
        &self.wake
    }

    /// Moves all that waits into `frames`, if these are empty and have `room`. Says why the connection is to end.
    pub(super) fn take(&self, frames: &mut Frames, room: bool) -> Option<ReasonCode> {
        let mut waiting = self.waiting.lock();
        if room && frames.is_empty() && !waiting.frames.is_empty() {
            std::mem::swap(frames, &mut waiting.frames);
            self.above_qos0.store(0, Ordering::Relaxed);
        }
        waiting.closed
    }

    /// What the connection has taken and is not acknowledged.
    pub(super) fn set_in_flight(&self, count: usize) {
        self.in_flight.store(count, Ordering::Relaxed);
    }

    /// Whether [`take`](Self::take) will say that the connection is to end.
    pub(super) fn ends(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    /// Ends the connection; the first reason holds.
    pub(super) fn end(&self, reason: ReasonCode) {
        self.ends.store(true, Ordering::Release);
        self.waiting.lock().closed.get_or_insert(reason);
        self.wake.ring();
    }

    /// Takes nothing any more. Returns what waits.
    pub(super) fn shut(&self) -> Frames {
        let mut waiting = self.waiting.lock();
        waiting.closed.get_or_insert(ReasonCode::Success);
        std::mem::take(&mut waiting.frames)
    }
}

impl Outbox for Mailbox {
    fn offer(&self, deliveries: &[Offer<'_>]) -> usize {
        let mut waiting = self.waiting.lock();
        let Waiting { frames, aliases, closed } = &mut *waiting;
        if closed.is_some() {
            return deliveries.len();
        }
        let was_empty = frames.is_empty();
        let mut dropped = 0;
        for (at, offer) in deliveries.iter().enumerate() {
            let has_room = frames.weight() < self.bounds.bytes;
            if offer.qos == Qos::AtMostOnce {
                if has_room {
                    frames.push(offer, self.form, aliases.as_deref_mut(), &self.buffers);
                } else {
                    dropped += 1;
                }
            } else if has_room && frames.above_qos0() < self.bounds.messages {
                frames.push(offer, self.form, aliases.as_deref_mut(), &self.buffers);
            } else {
                self.ends.store(true, Ordering::Release);
                *closed = Some(ReasonCode::QuotaExceeded);
                dropped += deliveries.len() - at;
                break;
            }
        }
        self.above_qos0.store(frames.above_qos0(), Ordering::Relaxed);
        let wake = closed.is_some() || was_empty && !frames.is_empty();
        drop(waiting);
        if wake {
            self.wake.ring();
        }
        dropped
    }

    fn close(&self, reason: CloseReason) {
        self.end(violation::closed(reason));
    }

    fn answers(&self) -> Answers {
        match self.form.version {
            Version::V5 => Answers::ByProperties,
            Version::V311 => Answers::ByTopic,
        }
    }

    fn takes(&self, offer: &Offer<'_>) -> Result<(), TooLarge> {
        fits(offer, self.form)
    }

    fn backlog(&self) -> usize {
        self.above_qos0.load(Ordering::Relaxed) + self.in_flight.load(Ordering::Relaxed)
    }
}
