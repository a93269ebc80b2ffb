//! How the two streams of deliveries say the same things, and what a delivery says.

use crate::core::SessionDelivery;
use crate::grpc::deliveries::Outgoing;
use crate::grpc::proto::v1;

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

/// A stored message, as it goes out.
pub(super) fn stored(delivery: &SessionDelivery) -> Outgoing<'_> {
    let SessionDelivery { leased, identifiers, dropped_before, .. } = delivery;
    Outgoing {
        message: &leased.message,
        qos: leased.qos,
        retain: leased.retain,
        publisher: None,
        identifiers,
        attempt: delivery.attempt(),
        retained: leased.retain,
        dropped_before: *dropped_before,
    }
}
