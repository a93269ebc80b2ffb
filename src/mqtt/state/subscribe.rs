//! SUBSCRIBE and UNSUBSCRIBE: what is asked of the core, and its answers.

use std::num::NonZeroU16;

use smallvec::SmallVec;

use super::{Effects, State};
use crate::core::CoreError;
use crate::engine::SubscribeOptions;
use crate::mqtt::codec::{
    AckProperties, Packet, PacketType, ReasonCode, SubAck, Subscribe, UnsubAck, Unsubscribe, Version,
};
use crate::mqtt::terms::Denied;
use crate::mqtt::violation::Violation;
use crate::mqtt::{translate, violation};
use crate::types::Qos;
use crate::types::topic::FilterSpec;

/// What is asked of the core, one at a time.
#[derive(Debug)]
pub(in crate::mqtt) enum Ask {
    /// Then [`Input::Subscribed`].
    Subscribe(Subscribing, Vec<(FilterSpec, SubscribeOptions)>),
    /// Then [`Input::Unsubscribed`].
    Unsubscribe(Unsubscribing, Vec<FilterSpec>),
}

/// A SUBSCRIBE on its way: its packet id, and of each filter why it was refused, if it was.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::mqtt) struct Subscribing(NonZeroU16, Vec<Option<Refusal>>);

/// The same for UNSUBSCRIBE.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::mqtt) struct Unsubscribing(NonZeroU16, Vec<Option<Refusal>>);

/// Why a filter is refused.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Core(CoreError),
    Terms(Denied),
}

impl Refusal {
    fn code(&self, packet: PacketType) -> ReasonCode {
        match self {
            Self::Core(error) => violation::refusal(error, packet),
            Self::Terms(denied) => denied.code(),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Core(error) => error.to_string(),
            Self::Terms(denied) => denied.to_string(),
        }
    }
}

impl State {
    /// What a SUBSCRIBE asks of the core, as far as the listener grants it.
    pub(super) fn ask(&self, packet: Subscribe) -> Result<Ask, Violation> {
        let identifier = packet.properties.and_then(|properties| properties.subscription_id);
        self.terms.check_subscribe(identifier)?;
        let mut accepted = Vec::with_capacity(packet.filters.len());
        let mut refused = Vec::with_capacity(packet.filters.len());
        for asked in &packet.filters {
            match translate::subscription(asked, identifier) {
                Ok((filter, mut options)) => match self.terms.check_filter(&filter, self.version)? {
                    Ok(()) => {
                        options.max_qos = translate::qos(self.terms.granted(asked.options.qos));
                        options.upgrade_qos = self.terms.upgrade_outgoing_qos;
                        accepted.push((filter, options));
                        refused.push(None);
                    }
                    Err(denied) => refused.push(Some(Refusal::Terms(denied))),
                },
                Err(error) => refused.push(Some(Refusal::Core(error))),
            }
        }
        Ok(Ask::Subscribe(Subscribing(packet.packet_id, refused), accepted))
    }

    pub(super) fn subscribed(
        &mut self,
        asked: Subscribing,
        answers: Vec<Result<Qos, CoreError>>,
        effects: &mut Effects,
    ) {
        let Subscribing(packet_id, refused) = asked;
        let granted = |qos: Qos| translate::wire_qos(qos).granted();
        let (codes, properties) = self.codes(PacketType::SubAck, refused, answers, granted);
        // [MQTT-3.8.4-1], [MQTT-3.8.4-2]; 3.1.1: [MQTT-3.8.4-4], [MQTT-3.9.3-1]; 5: [MQTT-3.8.4-5], [MQTT-3.9.3-1].
        effects.packets.push(Packet::SubAck(SubAck { packet_id, properties, codes }));
    }

    pub(super) fn unsubscribed(
        &mut self,
        asked: Unsubscribing,
        answers: Vec<Result<bool, CoreError>>,
        effects: &mut Effects,
    ) {
        let Unsubscribing(packet_id, refused) = asked;
        if self.version == Version::V311 {
            // 3.1.1 cannot say that it was not done; the session is as it was, the client comes again.
            if let Some(error) = answers.into_iter().find_map(Result::err) {
                return effects.end(self.broken(ReasonCode::UnspecifiedError, error.to_string()));
            }
            // 3.1.1: [MQTT-3.10.4-4], [MQTT-3.10.4-5]
            let ack = UnsubAck { packet_id, properties: None, codes: Default::default() };
            return effects.packets.push(Packet::UnsubAck(ack));
        }
        let code = |existed| if existed { ReasonCode::Success } else { ReasonCode::NoSubscriptionExisted };
        let (codes, properties) = self.codes(PacketType::UnsubAck, refused, answers, code);
        // 5: [MQTT-3.10.4-4], [MQTT-3.10.4-5], [MQTT-3.11.3-1].
        effects.packets.push(Packet::UnsubAck(UnsubAck { packet_id, properties, codes }));
    }

    /// A code for each filter in its place, and why the first was refused.
    fn codes<T>(
        &self,
        packet: PacketType,
        refused: Vec<Option<Refusal>>,
        answers: Vec<Result<T, CoreError>>,
        granted: impl Fn(T) -> ReasonCode,
    ) -> (SmallVec<[ReasonCode; 8]>, Option<Box<AckProperties>>) {
        let mut answers = answers.into_iter();
        let mut why = None;
        let codes = refused
            .into_iter()
            .map(|refused| {
                let refusal = match refused {
                    Some(refusal) => refusal,
                    None => match answers.next() {
                        Some(Ok(answer)) => return granted(answer),
                        Some(Err(error)) => Refusal::Core(error),
                        // The core answers each: it does not come to this.
                        None => Refusal::Core(CoreError::Draining),
                    },
                };
                let code = refusal.code(packet);
                why.get_or_insert(refusal);
                code
            })
            .collect();
        let text = why.filter(|_| self.problem_information && self.version == Version::V5);
        let properties = text.map(|refusal| {
            Box::new(AckProperties { reason_string: Some(refusal.text().into()), ..AckProperties::default() })
        });
        (codes, properties)
    }
}

pub(super) fn ask_to_end(packet: Unsubscribe) -> Ask {
    let mut accepted = Vec::with_capacity(packet.filters.len());
    let mut refused = Vec::with_capacity(packet.filters.len());
    for text in &packet.filters {
        match translate::filter(text) {
            Ok(filter) => {
                accepted.push(filter);
                refused.push(None);
            }
            Err(error) => refused.push(Some(Refusal::Core(error))),
        }
    }
    Ask::Unsubscribe(Unsubscribing(packet.packet_id, refused), accepted)
}
