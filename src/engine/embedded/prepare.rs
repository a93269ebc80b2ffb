//! Operations made ready for the writer: their bodies are encoded by who hands them in.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::body::{encode_alone, encode_message};
use super::format::LARGE_BYTES;
use super::lanes::{
    OnlyIf, Prepared, PreparedAppend, PreparedForward, PreparedMove, PreparedPublish, PreparedStreamAppend,
    Retained,
};
use crate::engine::{Append, Forward, Op, Publish, StreamAppend};
use crate::types::Message;

/// The operations of one ticket.
pub(super) fn prepare_all(ops: Vec<Op>) -> SmallVec<[Prepared; 1]> {
    let mut buffer = BytesMut::with_capacity(shared_bytes(&ops));
    ops.into_iter().map(|op| prepare(op, &mut buffer)).collect()
}

fn prepare(op: Op, buffer: &mut BytesMut) -> Prepared {
    match op {
        Op::Publish(publish) => {
            let message = &publish.message;
            let clear = message.payload.is_empty();
            let retained = publish.retain.then(|| Retained { topic: message.topic.clone(), clear });
            let stores = !publish.targets.is_empty() || (publish.retain && !clear);
            Prepared::Publish(Box::new(PreparedPublish {
                body: if stores { body(message, buffer) } else { Bytes::new() },
                targets: publish.targets,
                expires_at: message.expires_at,
                retained,
                newest_only: publish.newest_only,
                incoming: publish.incoming,
            }))
        }
        Op::Move { from, sequence, view, to, message, priority } => {
            let (body, expires_at) = (body(&message, buffer), message.expires_at);
            let bounded = true;
            let moved = PreparedMove {
                from,
                sequence,
                view,
                to,
                body,
                priority,
                expires_at,
                bounded,
                leaving: false,
            };
            Prepared::Move(Box::new(moved))
        }
        Op::Forward(Forward { from, lease, messages }) => {
            let append = |(message, append): (Message, Append)| {
                let expires_at = [append.expires_at, message.expires_at].into_iter().flatten().min();
                PreparedAppend { body: body(&message, buffer), append: Append { expires_at, ..append } }
            };
            let messages = messages.into_iter().map(append).collect();
            Prepared::Forward(Box::new(PreparedForward { from, lease, messages }))
        }
        Op::AppendStream(StreamAppend { target, messages, expected }) => {
            let bodies = messages.iter().map(|message| body(message, buffer)).collect();
            Prepared::AppendStream(Box::new(PreparedStreamAppend { target, bodies, expected }))
        }
        Op::SetCursor(stream, name, cursor) => Prepared::SetCursor(stream, name, cursor),
        Op::Outgoing { target, sequence, outgoing } => Prepared::Outgoing { target, sequence, outgoing },
        Op::ReleaseIncoming { session, packet_id } => Prepared::ReleaseIncoming { session, packet_id },
        Op::Define(id, definition) => Prepared::Define(id, Box::new(definition)),
        Op::Delete(id) => Prepared::Delete { id, only: None },
        Op::DeleteEmpty(id) => Prepared::Delete { id, only: Some(OnlyIf::Empty) },
        Op::DeleteUnused(id, usage) => Prepared::Delete { id, only: Some(OnlyIf::Unused(usage)) },
        Op::Subscribe(session, filter, options) => Prepared::Subscribe(session, filter, options),
        Op::Unsubscribe(session, filter) => Prepared::Unsubscribe(session, filter),
    }
}

/// What the stored form of a message has beside what [`Message::weight`] counts, about.
const ENVELOPE_BYTES: usize = 64;

/// The bytes of a ticket's bodies that lie in one buffer. What is alone has no need of one; what is large is kept in
/// memory by itself, and must not keep its neighbours there.
fn shared_bytes(ops: &[Op]) -> usize {
    let shares = |op: &Op| match op {
        Op::Publish(Publish { message, .. }) | Op::Move { message, .. } => {
            Some(message.weight() + ENVELOPE_BYTES).filter(|&bytes| bytes <= LARGE_BYTES)
        }
        _ => None,
    };
    if ops.len() == 1 { 0 } else { ops.iter().filter_map(shares).sum() }
}

/// The stored form of a message.
fn body(message: &Message, buffer: &mut BytesMut) -> Bytes {
    if buffer.capacity() == 0 || message.weight() + ENVELOPE_BYTES > LARGE_BYTES {
        return encode_alone(message);
    }
    encode_message(message, buffer);
    buffer.split().freeze()
}
