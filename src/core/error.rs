//! What the broker refuses, and why: one enum for all doors, mapped to their words at one place in each.

use crate::engine::{EngineError, LeaseError, Refusal};
use crate::types::NameError;
use crate::types::topic::TopicError;

/// Why the broker did not do what it was asked.
///
/// A caller decides from the variant: mend the request ([`Invalid`](Self::Invalid), [`TooLarge`](Self::TooLarge),
/// [`Unsupported`](Self::Unsupported), [`OutOfRange`](Self::OutOfRange)), mend the state ([`NotFound`](Self::NotFound),
/// [`AlreadyExists`](Self::AlreadyExists), [`Precondition`](Self::Precondition), [`Lease`](Self::Lease)),
/// of several mend one ([`Item`](Self::Item)), wait ([`Full`](Self::Full), [`Limit`](Self::Limit), [`LowDisk`](Self::LowDisk), [`NoResponders`](Self::NoResponders),
/// [`Unread`](Self::Unread), [`Draining`](Self::Draining)), find out what has happened ([`OtherNext`](Self::OtherNext), [`ResponderLost`](Self::ResponderLost),
/// [`BadReply`](Self::BadReply)), or give up ([`Engine`](Self::Engine)).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// A part of the request is wrong.
    #[error("{field}: {what}")]
    Invalid {
        /// Which part, as the protocol calls it.
        field: String,
        /// What is wrong with it.
        what: String,
    },
    /// A part of the request is larger than its bound.
    #[error("{field} has {len} {unit}, at most {max} are allowed")]
    TooLarge {
        /// Which part.
        field: String,
        /// How much there is.
        len: u64,
        /// How much there may be.
        max: u64,
        /// Of what.
        unit: &'static str,
    },
    /// This broker does not do that.
    #[error("{0}")]
    Unsupported(String),
    /// There is no such thing.
    #[error("there is no {kind} `{name}`")]
    NotFound {
        /// `queue`, `session`, …
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// There is such a thing already, with other settings.
    #[error("the {kind} `{name}` exists{difference}")]
    AlreadyExists {
        /// `queue`, …
        kind: &'static str,
        /// Its name.
        name: String,
        /// How it differs from what was asked, or nothing.
        difference: String,
    },
    /// Not in this state.
    #[error("{what}")]
    Precondition {
        /// A word for programs: `QUEUE_NOT_EMPTY`, `SESSION_OF_ANOTHER`, …
        reason: &'static str,
        /// What stands in the way.
        what: String,
    },
    /// A place that is not there yet.
    #[error("{field}: {what}")]
    OutOfRange {
        /// Which part of the request names it, as the protocol calls it.
        field: String,
        /// What there is.
        what: String,
    },
    /// Somebody else was first: what was expected is not so any more.
    #[error("the stream `{stream}` goes on with sequence {next}, not with {expected}: nothing was stored")]
    OtherNext {
        /// Which stream.
        stream: String,
        /// What the next message gets.
        next: u64,
        /// What was expected.
        expected: u64,
    },
    /// The caller may not.
    #[error("{0}")]
    Denied(String),
    /// A lease could not be used.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A target that rejects is full: nothing was stored or offered anywhere.
    #[error("the queue `{queue}` is full ({bound}): nothing was stored")]
    Full {
        /// Which queue.
        queue: String,
        /// Which bound it has reached.
        bound: String,
    },
    /// The first of several that were to be stored together: none is.
    #[error("messages[{index}]: {error}")]
    Item {
        /// Its place.
        index: usize,
        /// Why.
        error: Box<CoreError>,
    },
    /// A bound of the server or of this client is reached.
    #[error("{what}: at most {max} are allowed")]
    Limit {
        /// What there are too many of.
        what: String,
        /// How many there may be.
        max: u64,
    },
    /// New messages are refused until there is room.
    #[error(
        "the disk is nearly full ({free_bytes} bytes free, {watermark_bytes} are kept): new messages are refused"
    )]
    LowDisk {
        /// What is left.
        free_bytes: u64,
        /// What is kept.
        watermark_bytes: u64,
    },
    /// Nobody can answer a call.
    #[error("nobody serves `{service}`")]
    NoResponders {
        /// What was called.
        service: String,
    },
    /// Who could answer a call does not read what it is sent.
    #[error("too much waits to be read by each responder of `{service}`")]
    Unread {
        /// What was called.
        service: String,
    },
    /// Who was to answer a call is gone; if it had the request, whether it has carried it out is not known.
    #[error("the responder `{responder}` of `{service}` is gone and has not answered")]
    ResponderLost {
        /// What was called.
        service: String,
        /// Who was asked.
        responder: String,
    },
    /// What a responder said cannot be passed on.
    #[error("the reply of `{responder}` was refused: {what}")]
    BadReply {
        /// Who was asked.
        responder: String,
        /// What is wrong with it.
        what: String,
    },
    /// The server is about to stop.
    #[error("the server is shutting down")]
    Draining,
    /// The store cannot go on.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl CoreError {
    /// A wrong part of a request.
    pub fn invalid(field: impl Into<String>, what: impl ToString) -> Self {
        Self::Invalid { field: field.into(), what: what.to_string() }
    }

    /// A wrong name.
    pub fn name(field: impl Into<String>, error: &NameError) -> Self {
        Self::invalid(field, error)
    }

    /// A wrong topic or filter.
    pub fn topic(field: impl Into<String>, error: &TopicError) -> Self {
        Self::invalid(field, error)
    }

    /// The same error of a part of `parent`: `payload` of `messages[3]` is `messages[3].payload`.
    #[must_use]
    pub fn within(self, parent: impl std::fmt::Display) -> Self {
        match self {
            Self::Invalid { field, what } => Self::Invalid { field: format!("{parent}.{field}"), what },
            Self::OutOfRange { field, what } => Self::OutOfRange { field: format!("{parent}.{field}"), what },
            Self::TooLarge { field, len, max, unit } => {
                Self::TooLarge { field: format!("{parent}.{field}"), len, max, unit }
            }
            other => other,
        }
    }

    /// The same error of one of several messages that were to be stored together; one that names its place stays as it is.
    #[must_use]
    pub fn of_item(self, index: usize) -> Self {
        match self {
            Self::Invalid { .. } | Self::TooLarge { .. } => self,
            error => Self::Item { index, error: Box::new(error) },
        }
    }

    /// A refusal of the engine; `queue` names its target.
    pub fn refused(refusal: Refusal, queue: impl FnOnce(crate::types::TargetId) -> String) -> Self {
        match refusal {
            Refusal::Full { target, bound } => Self::Full { queue: queue(target), bound },
            Refusal::Item { index, refusal } => Self::refused(*refusal, queue).of_item(index),
            Refusal::Newer { target, property } => Self::Precondition {
                reason: "NEWER_VALUE",
                what: format!(
                    "the queue `{}` keeps the last value of {property:?}, and has one",
                    queue(target)
                ),
            },
            Refusal::Gone(target) => Self::NotFound { kind: "queue", name: queue(target) },
            Refusal::LowDisk { free_bytes, watermark_bytes } => Self::LowDisk { free_bytes, watermark_bytes },
            Refusal::Oversize { target, bound } => Self::Precondition {
                reason: "STREAM_TOO_SMALL",
                what: format!(
                    "the stream `{}` cannot keep as much ({bound}): nothing was stored",
                    queue(target)
                ),
            },
            Refusal::OtherNext { target, next, expected } => {
                Self::OtherNext { stream: queue(target), next: next.0, expected: expected.0 }
            }
            Refusal::NotLeased => Self::Lease(LeaseError::Expired),
            Refusal::NotEmpty { messages } => {
                Self::Precondition { reason: "NOT_EMPTY", what: format!("{messages} messages are there") }
            }
            Refusal::InUse => Self::Precondition { reason: "IN_USE", what: "it is in use".to_owned() },
        }
    }
}
