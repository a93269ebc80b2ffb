//! Operations made ready for the writer: their bodies are encoded by who hands them in.

use bytes::{Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};

use super::body::{encode_alone, encode_message};
use super::format::LARGE_BYTES;
use super::hash::{Text, TextHash};
use super::lanes::{
    OnlyIf, Prepared, PreparedForward, PreparedMove, PreparedPublish, PreparedStreamAppend, Retained,
};
use crate::engine::{Append, Forward, Op, Publish, StreamAppend};
use crate::types::Message;

/// The operations of one ticket.
pub(super) fn prepare_all(ops: Vec<Op>, secret: &[u8; 16]) -> SmallVec<[Prepared; 1]> {
    let mut buffer = BytesMut::with_capacity(shared_bytes(&ops));
    ops.into_iter().map(|op| prepare(op, secret, &mut buffer)).collect()
}

fn prepare(op: Op, secret: &[u8; 16], buffer: &mut BytesMut) -> Prepared {
    match op {
        Op::Publish(publish) => Prepared::Publish(Box::new(prepare_publish(publish, secret, buffer))),
        Op::AppendAll(items) => {
            Prepared::All(items.into_iter().map(|item| prepare_append(item, secret, buffer)).collect())
        }
        Op::Move { from, sequence, view, to, message, priority } => {
            let (key, expires_at) = (key_of(&message, secret), message.expires_at);
            let (body, bounded, leaving) = (body(&message, buffer), true, false);
            let moved =
                PreparedMove { from, sequence, view, to, body, key, priority, expires_at, bounded, leaving };
            Prepared::Move(Box::new(moved))
        }
        Op::Forward(Forward { from, lease, messages }) => {
            let messages = messages.into_iter().map(|item| prepare_append(item, secret, buffer)).collect();
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

fn prepare_append(
    (message, append): (Message, Append),
    secret: &[u8; 16],
    buffer: &mut BytesMut,
) -> PreparedPublish {
    let targets = smallvec![append];
    let publish = Publish { message, targets, retain: false, newest_only: false, incoming: None };
    prepare_publish(publish, secret, buffer)
}

fn prepare_publish(publish: Publish, secret: &[u8; 16], buffer: &mut BytesMut) -> PreparedPublish {
    let message = &publish.message;
    let clear = message.payload.is_empty();
    let retained = publish.retain.then(|| Retained { topic: message.topic.clone(), clear });
    let stores = !publish.targets.is_empty() || (publish.retain && !clear);
    let dedup_id = message.extras.as_ref().and_then(|extras| extras.dedup_id.as_ref());
    PreparedPublish {
        dedup: dedup_id.map(|id| (TextHash::new(secret, Text::DedupId, id), message.id)),
        key: key_of(message, secret),
        body: if stores { body(message, buffer) } else { Bytes::new() },
        targets: publish.targets,
        expires_at: message.expires_at,
        retained,
        newest_only: publish.newest_only,
        incoming: publish.incoming,
    }
}

/// What a message is known by in queues that keep order by key.
pub(super) fn key_of(message: &Message, secret: &[u8; 16]) -> Option<TextHash> {
    let key = message.extras.as_ref()?.ordering_key.as_ref()?;
    Some(TextHash::new(secret, Text::OrderingKey, key))
}

/// What the stored form of a message has beside what [`Message::weight`] counts, about.
const ENVELOPE_BYTES: usize = 64;

/// The bytes of a ticket's bodies that lie in one buffer. What is alone has no need of one; what is large is kept in
/// memory by itself, and must not keep its neighbours there.
fn shared_bytes(ops: &[Op]) -> usize {
    let share =
        |message: &Message| Some(message.weight() + ENVELOPE_BYTES).filter(|&bytes| bytes <= LARGE_BYTES);
    let shares = |op: &Op| match op {
        Op::Publish(Publish { message, .. }) | Op::Move { message, .. } => share(message).unwrap_or(0),
        Op::AppendAll(items) => items.iter().filter_map(|(message, _)| share(message)).sum(),
        _ => 0,
    };
    let is_alone = |op: &Op| match op {
        Op::AppendAll(items) => items.len() == 1,
        _ => true,
    };
    match ops {
        [op] if is_alone(op) => 0,
        ops => ops.iter().map(shares).sum(),
    }
}

/// The stored form of a message.
fn body(message: &Message, buffer: &mut BytesMut) -> Bytes {
    if buffer.capacity() == 0 || message.weight() + ENVELOPE_BYTES > LARGE_BYTES {
        return encode_alone(message);
    }
    encode_message(message, buffer);
    buffer.split().freeze()
}
