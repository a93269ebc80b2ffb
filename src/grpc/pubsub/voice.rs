//! How the two streams of deliveries say the same things, and what a delivery says.

use crate::engine::Leased;
use crate::grpc::convert::{message, origin};
use crate::grpc::proto::v1;
use crate::types::UnixMillis;

use super::mailbox::Waiting;

/// What both streams say.
pub(super) enum Said {
    /// The first event.
    Opened(v1::SubscribeOpened),
    /// Messages.
    Deliveries(v1::DeliveryBatch),
    /// The broker is alive.
    Heartbeat(v1::Heartbeat),
    /// The last event.
    Closing(v1::StreamClosing),
    /// Answers a frame that changes filters; on a stream with frames alone.
    Changed(v1::FiltersChanged),
    /// Answers frames that settle; on a stream with frames alone.
    Results(v1::AckResults),
}

/// A frame of one of them.
pub(super) trait Voice: Send + 'static {
    /// The frame that says it.
    fn say(said: Said) -> Self;
}

impl Voice for v1::SubscribeResponse {
    fn say(said: Said) -> Self {
        use v1::subscribe_response::Event;
        let event = match said {
            Said::Opened(opened) => Some(Event::Opened(opened)),
            Said::Deliveries(deliveries) => Some(Event::Deliveries(deliveries)),
            Said::Heartbeat(heartbeat) => Some(Event::Heartbeat(heartbeat)),
            Said::Closing(closing) => Some(Event::Closing(closing)),
            // A client that says nothing is answered nothing.
            Said::Changed(_) | Said::Results(_) => None,
        };
        Self { event }
    }
}

impl Voice for v1::SubscribeStreamResponse {
    fn say(said: Said) -> Self {
        use v1::subscribe_stream_response::Event;
        let event = match said {
            Said::Opened(opened) => Event::Opened(opened),
            Said::Deliveries(deliveries) => Event::Deliveries(deliveries),
            Said::Heartbeat(heartbeat) => Event::Heartbeat(heartbeat),
            Said::Closing(closing) => Event::Closing(closing),
            Said::Changed(changed) => Event::Changed(changed),
            Said::Results(results) => Event::AckResults(results),
        };
        Self { event: Some(event) }
    }
}

/// A live message.
pub(super) fn live(waiting: Waiting, delivery_id: u64, now: UnixMillis) -> v1::Delivery {
    let Waiting { message: mut stored, qos, retain, identifiers, publisher, dropped_before, .. } = waiting;
    stored.retain = retain;
    let mut origin = origin(&stored);
    if let Some(publisher) = publisher {
        origin.publisher_id = publisher.to_string();
    }
    v1::Delivery {
        message: Some(message(stored, qos, now)),
        origin: Some(origin),
        delivery_id,
        subscription_ids: identifiers.iter().map(|id| id.get()).collect(),
        delivery_attempt: 1,
        retained: retain,
        dropped_before,
    }
}

/// A stored message.
pub(super) fn stored(
    leased: Leased,
    identifiers: impl IntoIterator<Item = std::num::NonZeroU32>,
    delivery_id: u64,
    dropped_before: u64,
    now: UnixMillis,
) -> v1::Delivery {
    let Leased { attempt, qos, retain, message: mut stored, .. } = leased;
    stored.retain = retain;
    let origin = origin(&stored);
    v1::Delivery {
        message: Some(message(stored, qos, now)),
        origin: Some(origin),
        delivery_id,
        subscription_ids: identifiers.into_iter().map(|id| id.get()).collect(),
        delivery_attempt: attempt,
        retained: retain,
        dropped_before,
    }
}
