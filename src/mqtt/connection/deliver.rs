//! Deliveries of a connection: from the mailbox and the session's stores into the room of the client's window.

use std::num::NonZeroU16;

use super::errands::{Note, Waiting};
use super::live::{LOW_WATER, Live};
use super::wire::Wire;
use crate::core::{CoreError, SessionDelivery};
use crate::engine::Ticket;
use crate::mqtt::codec::{Ack, Packet, ReasonCode};
use crate::mqtt::frames::encode;
use crate::mqtt::state::{Input, Start, Stored};
use crate::mqtt::translate::Delivery;
use crate::types::{Qos, UnixMillis, clock};

/// Stored messages taken at once.
const TAKE_MESSAGES: usize = 256;
/// Bytes of stored messages taken at once.
const TAKE_BYTES: usize = 256 << 10;

impl Live {
    /// Fills the room in the client's window.
    pub(super) fn deliver(&mut self, wire: &mut Wire) -> Result<(), CoreError> {
        let room = wire.out.len() <= LOW_WATER;
        // An end that comes up during a turn is for the next: the client is heard out before. It wakes for it.
        let closed = self.mailbox.take(&mut self.busy.get_or_insert_default().frames, room);
        if let Some(code) = closed.filter(|_| self.heard_out) {
            if self.asks() {
                // Behind a SUBSCRIBE that waits for its answer there may be a DISCONNECT.
                return Ok(());
            }
            if code == ReasonCode::QuotaExceeded {
                self.session.count_cut();
            }
            self.handle(Input::Closed(code));
            return Ok(());
        }
        if room {
            if self.parks() {
                for delivery in std::mem::take(&mut self.errands().parked) {
                    self.start(delivery, wire);
                }
            }
            self.take(wire)?;
            // What held up the rest may have been sent: nobody wakes for what waits already.
            let Self { busy, state, aliases, mailbox, form, .. } = self;
            let frames = &mut busy.get_or_insert_default().frames;
            while !frames.is_empty() {
                frames.send(*form, state.window(), aliases.as_deref_mut(), &mut wire.out);
                if !frames.is_empty() || wire.out.len() > LOW_WATER {
                    break;
                }
                mailbox.take(frames, true);
            }
        }
        self.mailbox.set_in_flight(self.state.window().in_flight());
        Ok(())
    }

    /// Takes and sends stored messages.
    fn take(&mut self, wire: &mut Wire) -> Result<(), CoreError> {
        let mut taken = Vec::new();
        while self.more && !self.parks() && wire.out.len() <= LOW_WATER {
            let room = self.state.window().room();
            if room == 0 {
                break;
            }
            self.session.take(room.min(TAKE_MESSAGES), TAKE_BYTES, &mut taken)?;
            self.waits = true;
            self.more = !taken.is_empty();
            if let Some(client) = self.state.client() {
                let settled = &mut self.busy.get_or_insert_default().effects.settled;
                taken.retain_mut(|delivery| {
                    let goes = client.make_out(&mut delivery.leased);
                    if !goes {
                        settled.push(stored(delivery));
                    }
                    goes
                });
            }
            // 3.1.1 and 5: [MQTT-4.4.0-1]: what has a number already comes first, so that no other gets it.
            if taken.iter().any(|delivery| delivery.leased.outgoing.is_some()) {
                taken.sort_by_key(|delivery| delivery.leased.outgoing.is_none());
            }
            for delivery in taken.drain(..) {
                self.start(delivery, wire);
            }
        }
        Ok(())
    }

    /// What this connection would be woken for goes to others as long as it does not listen.
    pub(super) fn stand_back(&mut self) {
        if std::mem::take(&mut self.waits) {
            // Gives nothing, and what fails is seen when there is room.
            self.session.take(0, 0, &mut Vec::new()).ok();
        }
    }

    fn start(&mut self, delivery: SessionDelivery, wire: &mut Wire) {
        match self.state.start(&delivery, wire.out.position()) {
            Start::Unnumbered => {
                self.send(&delivery, Qos::AtMostOnce, None, false, wire);
                self.busy().effects.settled.push(stored(&delivery));
            }
            Start::Publish { packet_id, dup } => {
                // 3.1.1 and 5: [MQTT-4.6.0-1]: what is sent again is sent in the order of the first time.
                if self.errands.as_ref().is_some_and(|errands| errands.holds_deliveries()) {
                    let ticket = Ticket::ready(Ok(Vec::new()));
                    let delivery = Some(Box::new(Waiting { delivery, dup }));
                    self.errands().note(Note { packet_id, delivery, ticket });
                } else {
                    self.send_numbered(&delivery, packet_id, dup, wire);
                }
            }
            Start::Note(packet_id, outgoing) => {
                let ticket = self.session.outgoing(delivery.source, delivery.leased.sequence, outgoing);
                // [MQTT-3.3.1-1]: it may have come before at a door without packet ids.
                let dup = delivery.leased.attempt > 1;
                let delivery = Some(Box::new(Waiting { delivery, dup }));
                self.errands().note(Note { packet_id, delivery, ticket });
            }
            Start::Release(packet_id) => {
                self.busy().effects.packets.push(Packet::PubRel(Ack::new(packet_id, ReasonCode::Success)));
            }
            Start::Wait => self.errands().parked.push(delivery),
        }
    }

    /// Sends a delivery above QoS 0. What is not sent, its time being over or its size too large, is done with
    /// [MQTT-3.3.2-5, MQTT-3.1.2-25].
    pub(super) fn send_numbered(
        &mut self,
        delivery: &SessionDelivery,
        packet_id: NonZeroU16,
        dup: bool,
        wire: &mut Wire,
    ) {
        if !self.send(delivery, delivery.leased.qos, Some(packet_id), dup, wire) {
            self.state.window().forget(packet_id);
            self.busy().effects.settled.push(stored(delivery));
            if let Some(client) = self.state.client() {
                client.not_sent();
            }
        }
    }

    fn send(
        &mut self,
        delivery: &SessionDelivery,
        qos: Qos,
        packet_id: Option<NonZeroU16>,
        dup: bool,
        wire: &mut Wire,
    ) -> bool {
        let SessionDelivery { leased, identifiers, .. } = delivery;
        let message = &leased.message;
        let delivery = Delivery { message, qos, retain: leased.retain, dup, packet_id, identifiers };
        let now = if message.expires_at.is_some() { clock::unix_now() } else { UnixMillis(0) };
        // 5: [MQTT-4.3.3-7]: once it was sent at QoS 2, its time does not matter.
        let remaining = match delivery.remaining(now) {
            None if dup && qos == Qos::ExactlyOnce => Some(Some(0)),
            remaining => remaining,
        };
        let aliases = self.aliases.as_deref_mut();
        remaining.is_some_and(|expiry| encode(&delivery, expiry, self.form, aliases, &mut wire.out))
    }
}

fn stored(delivery: &SessionDelivery) -> Stored {
    Stored {
        source: delivery.source,
        sequence: delivery.leased.sequence,
        queue: delivery.leased.lease_expires.is_some(),
    }
}
