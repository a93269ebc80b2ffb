//! What the client publishes: topic aliases, its packet ids at QoS 2, how much of it is unacknowledged.
//!
//! Invariants: a packet id at QoS 2 is published once between its PUBLISH and its PUBREL [3.1.1: MQTT-4.3.3-2; 5:
//! MQTT-4.3.3-10]; acknowledgements leave in the order of the publishes, as receipts come in that order; no more is
//! unacknowledged than was announced [5: MQTT-3.3.4-7].

use std::num::NonZeroU16;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::{Effects, State};
use crate::core::{CoreError, Inbound, Limits, Receipt};
use crate::mqtt::codec::{
    self, Ack, AckProperties, Packet, PacketType, PublishProperties, ReasonCode, Version,
};
use crate::mqtt::translate;
use crate::mqtt::violation::{self, Consequence, Violation};
use crate::types::{TopicName, UnixMillis};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Packet ids at QoS 2 from PUBLISH to PUBREL.
    ids: FxHashMap<u16, Arrival>,
    /// By alias from 1 on.
    aliases: Vec<Option<TopicName>>,
    /// Publishes above QoS 0 of this connection that are not acknowledged to the end.
    unacknowledged: usize,
    /// What was announced; `None` in 3.1.1, which has no such bound.
    receive_maximum: Option<u16>,
    topic_alias_maximum: u16,
    max_topic_bytes: usize,
    max_delay: Duration,
}

/// How far a publish at QoS 2 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// With the core: PUBREC follows.
    Handed,
    /// PUBREC was sent, on this connection or on an earlier one.
    Received { counted: bool },
    /// PUBREL has come, PUBCOMP follows when that is stored.
    Released { counted: bool },
}

/// What a receipt needs to become an acknowledgement: `[QoS: 16 bits][packet id: 16 bits]`.
fn tag(qos: codec::Qos, id: NonZeroU16) -> u64 {
    (qos as u64) << 16 | u64::from(id.get())
}

impl Incoming {
    pub(super) fn new(
        version: Version,
        receive_maximum: u16,
        topic_alias_maximum: u16,
        limits: &Limits,
        stored: Vec<u16>,
    ) -> Self {
        Self {
            ids: stored.into_iter().map(|id| (id, Arrival::Received { counted: false })).collect(),
            receive_maximum: (version == Version::V5).then_some(receive_maximum),
            topic_alias_maximum,
            max_topic_bytes: limits.max_topic_bytes,
            max_delay: limits.max_delay,
            ..Self::default()
        }
    }

    /// Gives memory back when nothing is on its way.
    pub(super) fn release(&mut self) {
        if self.ids.is_empty() && self.ids.capacity() > 0 {
            self.ids = FxHashMap::default();
        }
    }

    /// The topic that is meant.
    fn topic(&mut self, publish: &mut codec::Publish) -> Result<TopicName, Violation> {
        let named = std::mem::take(&mut publish.topic);
        let alias = publish.properties.as_ref().and_then(|properties| properties.topic_alias);
        let parse = |text| TopicName::parse(text).map_err(|_| Violation::TopicName(usize::from(u16::MAX)));
        let Some(alias) = alias.map(NonZeroU16::get) else { return parse(named) };
        if alias > self.topic_alias_maximum {
            return Err(Violation::TopicAliasAboveMaximum { alias, maximum: self.topic_alias_maximum });
        }
        let place = usize::from(alias) - 1;
        if named.is_empty() {
            let known = self.aliases.get(place).cloned().flatten();
            return known.ok_or(Violation::TopicAliasUnknown(alias));
        }
        let topic = parse(named)?;
        // It is held as long as the connection.
        if topic.as_str().len() > self.max_topic_bytes {
            return Err(Violation::TopicName(self.max_topic_bytes));
        }
        if self.aliases.len() <= place {
            self.aliases.resize(place + 1, None);
        }
        if let Some(known) = self.aliases.get_mut(place) {
            *known = Some(topic.detached()); // 5: [MQTT-3.3.2-12]
        }
        Ok(topic)
    }

    fn count_one(&mut self) -> Result<(), Violation> {
        match self.receive_maximum {
            Some(max) if self.unacknowledged >= usize::from(max) => Err(Violation::ReceiveMaximum(max)),
            _ => {
                self.unacknowledged += 1;
                Ok(())
            }
        }
    }

    fn uncount(&mut self, counted: bool) {
        self.unacknowledged -= usize::from(counted && self.unacknowledged > 0);
    }
}

impl State {
    /// PUBLISH.
    pub(super) fn publish(
        &mut self,
        mut publish: codec::Publish,
        now: UnixMillis,
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        // 5: [MQTT-3.3.4-6].
        let identified = |properties: &PublishProperties| !properties.subscription_ids.is_empty();
        if self.client.is_none() && publish.properties.as_deref().is_some_and(identified) {
            return Err(Violation::SubscriptionIdentifier);
        }
        // What we were told to grant binds those who connect to us.
        if self.client.is_none() {
            self.terms.check_publish(&publish)?;
        }
        let topic = self.incoming.topic(&mut publish)?;
        let (qos, id) = (publish.qos, publish.packet_id);
        if let Some(id) = id {
            if qos == codec::Qos::ExactlyOnce {
                match self.incoming.ids.get(&id.get()) {
                    // 3.1.1: [MQTT-4.3.3-2]; 5: [MQTT-4.3.3-10].
                    Some(Arrival::Received { .. }) => {
                        effects.packets.push(Packet::PubRec(Ack::new(id, ReasonCode::Success)));
                        return Ok(());
                    }
                    // PUBREC, or PUBCOMP, is on its way.
                    Some(Arrival::Handed | Arrival::Released { .. }) => return Ok(()),
                    None => {}
                }
            }
            self.incoming.count_one()?;
            if qos == codec::Qos::ExactlyOnce {
                self.incoming.ids.insert(id.get(), Arrival::Handed);
            }
        }
        let topic = match &self.client {
            None => topic,
            Some(client) => match client.map().inward(&topic) {
                Some(topic) => topic,
                None => {
                    client.pass_over(&topic);
                    if let Some(id) = id {
                        self.acknowledge(qos, id, ReasonCode::Success, effects);
                    }
                    return Ok(());
                }
            },
        };
        let asked = translate::delayed(topic).and_then(|(topic, delay)| {
            let mut message = translate::message(publish, topic, now);
            let wishes = translate::wishes(&mut message, delay, self.incoming.max_delay, now)?;
            Ok((message, wishes))
        });
        let (message, wishes) = match asked {
            Ok(asked) => asked,
            Err(error) => {
                if let Some(id) = id {
                    self.refused(qos, id, &error, effects);
                }
                return Ok(());
            }
        };
        let mut inbound = Inbound::new(message, id.map_or(0, |id| tag(qos, id)));
        inbound.receipt = id.is_some();
        inbound.priority = wishes.priority;
        inbound.not_before = wishes.not_before;
        if self.backlog.is_some() && qos == codec::Qos::ExactlyOnce {
            inbound.incoming = id.map(NonZeroU16::get);
        }
        effects.publishes.push(inbound);
        Ok(())
    }

    /// The core has answered a publish: 3.1.1: [MQTT-4.3.2-2], [MQTT-4.3.3-2]; 5: [MQTT-4.3.2-4], [MQTT-4.3.3-8].
    pub(super) fn receipt(&mut self, receipt: Receipt, effects: &mut Effects) {
        let id = NonZeroU16::new((receipt.tag & 0xffff) as u16);
        let (Some(id), Some(qos)) = (id, codec::Qos::from_u8((receipt.tag >> 16) as u8)) else { return };
        let published = match receipt.result {
            Ok(published) => published,
            Err(error) => return self.refused(qos, id, &error, effects),
        };
        // That nobody takes it is a server's to say.
        let code = if self.client.is_some() { ReasonCode::Success } else { violation::accepted(&published) };
        self.acknowledge(qos, id, code, effects);
    }

    /// A publish above QoS 0 was taken.
    fn acknowledge(&mut self, qos: codec::Qos, id: NonZeroU16, code: ReasonCode, effects: &mut Effects) {
        let ack = Ack::new(id, code);
        effects.packets.push(if qos == codec::Qos::ExactlyOnce {
            self.incoming.ids.insert(id.get(), Arrival::Received { counted: true });
            Packet::PubRec(ack)
        } else {
            self.incoming.uncount(true);
            Packet::PubAck(ack)
        });
    }

    /// A publish above QoS 0 was not taken.
    fn refused(&mut self, qos: codec::Qos, id: NonZeroU16, error: &CoreError, effects: &mut Effects) {
        // 5: [MQTT-4.3.3-9]: the number is free.
        if qos == codec::Qos::ExactlyOnce {
            self.incoming.ids.remove(&id.get());
        }
        self.incoming.uncount(true);
        let consequence = violation::consequence(error);
        if let Some(client) = &self.client {
            match consequence {
                // The other broker keeps it, and sends it again on the next connection.
                Consequence::Told(later) if !later.is_zero() => {
                    return effects.end(self.broken(ReasonCode::UnspecifiedError, error.to_string()));
                }
                Consequence::Told(_) => {
                    client.refused(error);
                    if self.version == Version::V311 {
                        // It has no word for never.
                        let ack = Ack::new(id, ReasonCode::Success);
                        effects.packets.push(match qos {
                            codec::Qos::ExactlyOnce => Packet::PubRec(ack),
                            _ => Packet::PubAck(ack),
                        });
                        return;
                    }
                }
                Consequence::Closed(_) => {}
            }
        }
        match consequence {
            Consequence::Closed(code) => effects.end(self.broken(code, error.to_string())),
            Consequence::Told(_) if self.version == Version::V5 => {
                let text = self.problem_information.then(|| error.to_string().into());
                let properties = text.map(|text| {
                    Box::new(AckProperties { reason_string: Some(text), ..AckProperties::default() })
                });
                let ack =
                    |packet| Ack { packet_id: id, reason: violation::refusal(error, packet), properties };
                effects.packets.push(match qos {
                    codec::Qos::ExactlyOnce => Packet::PubRec(ack(PacketType::PubRec)),
                    _ => Packet::PubAck(ack(PacketType::PubAck)),
                });
            }
            // Unacknowledged: the publisher keeps it and comes again.
            Consequence::Told(after) => {
                let mut ending = self.broken(ReasonCode::UnspecifiedError, error.to_string());
                ending.after = after;
                effects.end(ending);
            }
        }
    }

    /// PUBREL.
    pub(super) fn released(&mut self, ack: &Ack, effects: &mut Effects) {
        let id = ack.packet_id;
        match self.incoming.ids.get(&id.get()).copied() {
            Some(Arrival::Received { counted }) if self.backlog.is_some() => {
                self.incoming.ids.insert(id.get(), Arrival::Released { counted });
                effects.release.push(id);
            }
            Some(Arrival::Received { counted }) => {
                self.incoming.ids.remove(&id.get());
                self.incoming.uncount(counted);
                effects.packets.push(Packet::PubComp(Ack::new(id, ReasonCode::Success)));
            }
            // PUBREC, or PUBCOMP, is on its way.
            Some(Arrival::Handed | Arrival::Released { .. }) => {}
            None => {
                let reason = ReasonCode::PacketIdentifierNotFound;
                effects.packets.push(Packet::PubComp(Ack::new(id, reason)));
            }
        }
    }

    /// The end of a packet id is stored: 3.1.1: [MQTT-4.3.3-2]; 5: [MQTT-4.3.3-11], [MQTT-4.3.3-12].
    pub(super) fn release_stored(&mut self, id: NonZeroU16, effects: &mut Effects) {
        if let Some(Arrival::Released { counted }) = self.incoming.ids.remove(&id.get()) {
            self.incoming.uncount(counted);
        }
        effects.packets.push(Packet::PubComp(Ack::new(id, ReasonCode::Success)));
    }
}

/// How a publish at `qos` is acknowledged.
#[cfg(test)]
pub(super) fn receipt_tag(qos: codec::Qos, id: u16) -> u64 {
    tag(qos, NonZeroU16::new(id).unwrap())
}
