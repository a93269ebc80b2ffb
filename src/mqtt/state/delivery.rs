//! Deliveries to the client, from their start to their last acknowledgement.

use std::num::NonZeroU16;

use super::outbound::{Flight, Origin, Step, Stored};
use super::{Effects, State};
use crate::core::SessionDelivery;
use crate::engine::{Nack, Outgoing, OutgoingState};
use crate::mqtt::codec::{Ack, Packet, PacketType, ReasonCode};
use crate::mqtt::violation::Violation;
use crate::types::Qos;

/// How a leased message is sent.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::mqtt) enum Start {
    /// As PUBLISH at QoS 0: it is settled by that.
    Unnumbered,
    /// As PUBLISH with this packet id.
    Publish {
        /// Given now, or earlier.
        packet_id: NonZeroU16,
        /// It may have been sent before.
        dup: bool,
    },
    /// As PUBLISH with this packet id when that is stored.
    Note(NonZeroU16, Outgoing),
    /// It was received: only PUBREL is left.
    Release(NonZeroU16),
    /// Its number is taken, or there is no room: later.
    Wait,
}

impl State {
    /// Decides how a leased message is sent; its PUBLISH would begin at `at` of all bytes that are written.
    pub(in crate::mqtt) fn start(&mut self, delivery: &SessionDelivery, at: u64) -> Start {
        let leased = &delivery.leased;
        let stored = Stored {
            source: delivery.source,
            sequence: leased.sequence,
            queue: leased.lease_expires.is_some(),
        };
        if leased.qos == Qos::AtMostOnce {
            return Start::Unnumbered;
        }
        let origin = Origin::Stored(stored);
        if let Some(Outgoing { packet_id, state }) = leased.outgoing
            && let Some(packet_id) = NonZeroU16::new(packet_id)
        {
            // 3.1.1 and 5: [MQTT-4.4.0-1]: with its old number.
            let (step, start) = match (state, leased.qos) {
                // 3.1.1: [MQTT-4.3.3-1]; 5: [MQTT-4.3.3-6].
                (OutgoingState::Received | OutgoingState::Settled, _) => {
                    (Step::Complete, Start::Release(packet_id))
                }
                (OutgoingState::Sent, Qos::ExactlyOnce) => {
                    (Step::Receive, Start::Publish { packet_id, dup: true })
                }
                (OutgoingState::Sent, _) => (Step::Acknowledge, Start::Publish { packet_id, dup: true }),
            };
            let fits = step == Step::Complete || self.window.room() > 0;
            let resumed = fits && self.window.resume(packet_id, Flight { origin, step, at, len: 0 });
            if !resumed {
                return Start::Wait;
            }
            self.window.weigh(packet_id, leased.message.weight());
            return start;
        }
        let Some(packet_id) = self.window.begin(leased.qos, origin, at) else { return Start::Wait };
        self.window.weigh(packet_id, leased.message.weight());
        if leased.qos == Qos::ExactlyOnce && self.is_durable() {
            if let Some(flight) = self.window.get_mut(packet_id) {
                flight.step = Step::Store;
            }
            let outgoing = Outgoing { packet_id: packet_id.get(), state: OutgoingState::Sent };
            return Start::Note(packet_id, outgoing);
        }
        // [MQTT-3.3.1-1]
        Start::Publish { packet_id, dup: leased.attempt > 1 || delivery.maybe_sent }
    }

    /// A delivery that had to wait is sent now, at `at`. False: the client acknowledged it unseen.
    pub(in crate::mqtt) fn started(&mut self, packet_id: NonZeroU16, at: u64) -> bool {
        let Some(flight) = self.window.get_mut(packet_id) else { return false };
        if flight.step == Step::Store {
            flight.step = Step::Receive;
        }
        flight.at = at;
        true
    }

    /// PUBACK.
    pub(super) fn acknowledged(&mut self, ack: &Ack, effects: &mut Effects) -> Result<(), Violation> {
        match self.window.get_mut(ack.packet_id).map(|flight| flight.step) {
            Some(Step::Acknowledge) => {
                self.count_refusal(ack);
                self.finish(ack, effects);
            }
            Some(_) => return Err(Violation::WrongAcknowledgement(PacketType::PubAck)),
            None => {}
        }
        Ok(())
    }

    /// PUBREC.
    pub(super) fn received(&mut self, ack: &Ack, effects: &mut Effects) -> Result<(), Violation> {
        let durable = self.is_durable();
        let id = ack.packet_id;
        let release = |reason| Packet::PubRel(Ack::new(id, reason));
        let Some(flight) = self.window.get_mut(id) else {
            effects.packets.push(release(ReasonCode::PacketIdentifierNotFound));
            return Ok(());
        };
        match (flight.step, &flight.origin) {
            // 5: [MQTT-4.4.0-2].
            (Step::Receive, _) if ack.reason.is_failure() => {
                self.count_refusal(ack);
                self.finish(ack, effects);
            }
            (Step::Receive, Origin::Stored(stored)) if durable => {
                let outgoing = Outgoing { packet_id: id.get(), state: OutgoingState::Received };
                effects.notes.push((*stored, outgoing));
                flight.step = Step::Release;
            }
            // 3.1.1: [MQTT-4.3.3-1]; 5: [MQTT-4.3.3-4].
            (Step::Receive | Step::Complete, _) => {
                flight.step = Step::Complete;
                effects.packets.push(release(ReasonCode::Success));
            }
            (Step::Release, _) => {}
            (Step::Acknowledge | Step::Store, _) => {
                return Err(Violation::WrongAcknowledgement(PacketType::PubRec));
            }
        }
        Ok(())
    }

    /// The PUBREC of a delivery is stored.
    pub(super) fn noted(&mut self, id: NonZeroU16, effects: &mut Effects) {
        if let Some(flight) = self.window.get_mut(id)
            && flight.step == Step::Release
        {
            flight.step = Step::Complete;
            effects.packets.push(Packet::PubRel(Ack::new(id, ReasonCode::Success)));
        }
    }

    /// PUBCOMP.
    pub(super) fn completed(&mut self, ack: &Ack, effects: &mut Effects) {
        if self.window.get_mut(ack.packet_id).is_some_and(|flight| flight.step == Step::Complete) {
            self.finish(ack, effects);
        }
    }

    /// To a bridge a refusal is a message that the other broker will never have.
    fn count_refusal(&self, ack: &Ack) {
        if ack.reason.is_failure()
            && let Some(client) = self.client()
        {
            client.refused_there(ack.reason);
        }
    }

    /// A delivery is at its end: a refusal of a message from a queue is a failed delivery, any other is its end too
    /// [5: MQTT-4.4.0-2, MQTT-4.8.2-6].
    fn finish(&mut self, ack: &Ack, effects: &mut Effects) {
        let Some(Flight { origin: Origin::Stored(stored), .. }) = self.window.forget(ack.packet_id) else {
            return;
        };
        if !stored.queue || !ack.reason.is_failure() {
            effects.settled.push(stored);
            return;
        }
        let said = ack.properties.as_ref().and_then(|properties| properties.reason_string.as_ref());
        let how = match ack.reason {
            ReasonCode::PayloadFormatInvalid => {
                let reason = said.map_or(ack.reason.name(), |said| &**said);
                Nack::DeadLetter(reason.into())
            }
            _ => Nack::Failed(said.cloned()),
        };
        effects.failed.push((stored, how));
    }
}
