//! What a connection waits for besides its socket and its deliveries: answers of the core and of the store.

use std::collections::VecDeque;
use std::future::Future;
use std::num::NonZeroU16;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{FuturesOrdered, Stream};

use crate::core::{CoreError, SessionDelivery};
use crate::engine::{Outcome, Ticket};
use crate::mqtt::state::Input;

/// A future of the core with its answer.
pub(super) type Errand<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// See the module.
#[derive(Default)]
pub(super) struct Errands {
    /// SUBSCRIBE or UNSUBSCRIBE: the next packet waits for it.
    asked: Option<Errand<Input>>,
    /// How far deliveries are, on its way to the store. Tickets complete in order.
    notes: VecDeque<Note>,
    /// How many of them have a delivery.
    deliveries: usize,
    /// Deliveries whose packet id another one has, or for which there is no room.
    pub(super) parked: Vec<SessionDelivery>,
    /// Packet ids of the client that are released.
    released: FuturesOrdered<Errand<(NonZeroU16, Result<(), CoreError>)>>,
}

/// A step of a delivery on its way to the store.
pub(super) struct Note {
    pub(super) packet_id: NonZeroU16,
    /// To be sent after that; none: PUBREL is.
    pub(super) delivery: Option<Box<Waiting>>,
    pub(super) ticket: Ticket<Vec<Outcome>>,
}

/// A delivery that waits for its step, or for those before it.
pub(super) struct Waiting {
    pub(super) delivery: SessionDelivery,
    pub(super) dup: bool,
}

/// What came to its end.
pub(super) enum Done {
    Asked(Input),
    Noted(NonZeroU16, Option<Box<Waiting>>, Result<Vec<Outcome>, CoreError>),
    Released(NonZeroU16, Result<(), CoreError>),
}

impl Errands {
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_none() && self.notes.is_empty() && self.parked.is_empty() && self.released.is_empty()
    }

    /// Whether the next packet has to wait.
    pub(super) fn asks(&self) -> bool {
        self.asked.is_some()
    }

    pub(super) fn ask(&mut self, errand: Errand<Input>) {
        self.asked = Some(errand);
    }

    pub(super) fn note(&mut self, note: Note) {
        self.deliveries += usize::from(note.delivery.is_some());
        self.notes.push_back(note);
    }

    /// Whether a delivery waits to be sent: those after it have to wait too, to keep the order.
    pub(super) fn holds_deliveries(&self) -> bool {
        self.deliveries > 0
    }

    pub(super) fn release(&mut self, errand: Errand<(NonZeroU16, Result<(), CoreError>)>) {
        self.released.push_back(errand);
    }

    /// The next that ends. Pending as well when there is nothing to wait for.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        if let Some(asked) = &mut self.asked
            && let Poll::Ready(input) = asked.as_mut().poll(cx)
        {
            self.asked = None;
            return Poll::Ready(Done::Asked(input));
        }
        if let Some(note) = self.notes.front_mut()
            && let Poll::Ready(result) = Pin::new(&mut note.ticket).poll(cx)
            && let Some(Note { packet_id, delivery, .. }) = self.notes.pop_front()
        {
            self.deliveries -= usize::from(delivery.is_some());
            return Poll::Ready(Done::Noted(packet_id, delivery, result.map_err(CoreError::Engine)));
        }
        if let Poll::Ready(Some((packet_id, result))) = Pin::new(&mut self.released).poll_next(cx) {
            return Poll::Ready(Done::Released(packet_id, result));
        }
        Poll::Pending
    }
}
