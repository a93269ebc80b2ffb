//! What a message of a queue says on its way out.

use bytes::Bytes;

use crate::engine::{Browsed, Leased, View};
use crate::grpc::convert::{message, origin, timestamp};
use crate::grpc::proto::v1;
use crate::types::{DeadLetter, Message, Priority, Qos, Sequence, UnixMillis};

/// A delivery. `delivery_id` is 0 outside of streams; an empty `token` is none.
pub(super) fn leased(leased: Leased, delivery_id: u64, token: Bytes, now: UnixMillis) -> v1::LeasedMessage {
    let Leased { sequence, attempt, qos, priority, lease_expires, message, .. } = leased;
    v1::LeasedMessage {
        delivery_id,
        lease_token: token,
        delivery_attempt: attempt,
        lease_expires: lease_expires.map(timestamp),
        ..shown(message, qos, sequence, priority, now)
    }
}

/// A message that is looked at.
pub(super) fn browsed(browsed: Browsed, now: UnixMillis) -> v1::LeasedMessage {
    let Browsed { sequence, attempts, view, priority, until, message } = browsed;
    let qos = message.qos;
    let mut shown = shown(message, qos, sequence, priority, now);
    let state = match view {
        View::All | View::Ready => v1::QueueView::Ready,
        View::Delayed => v1::QueueView::Delayed,
        View::Leased => v1::QueueView::Leased,
    };
    shown.state = state.into();
    // One that was not delivered yet has had no attempt; one that is with a consumer is in one that is not counted.
    shown.delivery_attempt = attempts + u32::from(view == View::Leased);
    match (view, until) {
        (View::Leased, until) => shown.lease_expires = until.map(timestamp),
        (View::Delayed, Some(until)) => {
            if let Some(message) = &mut shown.message {
                message.schedule = Some(v1::message::Schedule::DeliverAt(timestamp(until)));
            }
        }
        _ => {}
    }
    shown
}

fn shown(
    stored: Message,
    qos: Qos,
    sequence: Sequence,
    priority: Priority,
    now: UnixMillis,
) -> v1::LeasedMessage {
    let dead = stored.extras.as_ref().and_then(|extras| extras.dead_letter.as_ref()).map(dead_letter);
    let origin = origin(&stored);
    let mut message = message(stored, qos, now);
    message.priority = Some(priority.level().into()).filter(|_| priority != Priority::default());
    v1::LeasedMessage {
        message: Some(message),
        origin: Some(origin),
        delivery_id: 0,
        lease_token: Bytes::new(),
        sequence: sequence.0,
        delivery_attempt: 0,
        lease_expires: None,
        dead_letter: dead,
        state: v1::QueueView::Unspecified.into(),
    }
}

fn dead_letter(dead: &DeadLetter) -> v1::DeadLetter {
    v1::DeadLetter {
        source_queue: dead.source.to_string(),
        reason: dead.reason.to_string(),
        attempts: dead.attempts,
        time: Some(timestamp(dead.at)),
    }
}
