//! What became of an operation, and why nothing of it was done.

use bytestring::ByteString;
use smallvec::SmallVec;

use crate::types::{MessageId, Sequence, TargetId};

/// What became of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// A publish is stored, or what was moved. The sequence numbers stand in the order of its targets; none: that target is
    /// full and drops what is new. One that has the message already, by its deduplication id, tells where it
    /// came to lie then.
    Published(SmallVec<[Option<Sequence>; 2]>),
    /// Every target has the message already, by its deduplication id: nothing is stored, the first is durable. It may be
    /// settled since. Of several targets the first one's.
    Duplicate {
        /// The message that was stored.
        id: MessageId,
        /// Its place.
        sequence: Sequence,
    },
    /// What became of each message of [`Op::AppendAll`](super::Op::AppendAll) or
    /// [`Op::Forward`](super::Op::Forward), in their order: published or a duplicate.
    All(Vec<Outcome>),
    /// Nothing of the operation was done.
    Refused(Refusal),
}

/// Why nothing of an operation was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A target that rejects has reached its bound.
    #[error("the queue is full: {bound}")]
    Full {
        /// Which of the publish's targets.
        target: TargetId,
        /// `max_messages 100` or `max_bytes 1000`.
        bound: String,
    },
    /// More than a stream keeps at all.
    #[error("more than the stream keeps: {bound}")]
    Oversize {
        /// The stream.
        target: TargetId,
        /// `max_messages 100` or `max_bytes 1000`.
        bound: String,
    },
    /// The stream goes on with another sequence than was expected.
    #[error("the next sequence is {}, not {}", next.0, expected.0)]
    OtherNext {
        /// The stream.
        target: TargetId,
        /// The one that it goes on with.
        next: Sequence,
        /// The one that was expected.
        expected: Sequence,
    },
    /// One of [`Op::AppendAll`](super::Op::AppendAll), the first that could not be stored.
    #[error("message {index}: {refusal}")]
    Item {
        /// Its place.
        index: usize,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// What was to be moved has a value of which the queue keeps the last, and has one already.
    #[error("the queue has a message with its value of {property:?}")]
    Newer {
        /// Where it was to go.
        target: TargetId,
        /// The queue's `last_value_key`.
        property: ByteString,
    },
    /// It was deleted meanwhile.
    #[error("the target is gone")]
    Gone(TargetId),
    /// The disk is nearly full: what takes room is refused, settlements go on.
    #[error("the disk is nearly full: {free_bytes} bytes are free, {watermark_bytes} are kept")]
    LowDisk {
        /// What is left.
        free_bytes: u64,
        /// What is kept.
        watermark_bytes: u64,
    },
    /// The message is not leased, or not any more; or not where it was to be taken from.
    #[error("the message is not leased")]
    NotLeased,
    /// The target that was to go only if it holds nothing holds something.
    #[error("{messages} messages are there")]
    NotEmpty {
        /// How many.
        messages: u64,
    },
    /// The target that was to go only if nobody uses it is used.
    #[error("it is in use")]
    InUse,
}
