//! What callers and responders say to each other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use crate::core::CoreError;
use crate::types::{ClientId, Message, TopicName, UnixMillis};

/// What is asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// The request; its topic is the name of the service.
    pub message: Message,
    /// When nobody waits any more. Told to the responder; whoever waits keeps it.
    pub deadline: Option<UnixMillis>,
    /// Who asks.
    pub caller: Caller,
    /// What the caller's protocol says beside the message.
    pub metadata: Arc<[(ByteString, ByteString)]>,
    /// Another responder may be asked when one is lost with it.
    pub idempotent: bool,
    /// The answer may come in parts.
    pub takes_parts: bool,
    /// It is one of the parts of a larger request.
    pub part: Option<Part>,
}

/// Which part of a request one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

/// Who asks.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Its name, if it has one.
    pub client_id: Option<ClientId>,
    /// Where its connection comes from.
    pub address: Option<ByteString>,
}

/// An answer, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Who said it.
    pub responder: ByteString,
    /// What was said; its topic has no meaning.
    pub message: Message,
    /// Whether further parts follow.
    pub more: bool,
    /// From the request's arrival.
    pub latency: Duration,
}

/// A responder's error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// As `google.rpc.Code` counts them; not 0.
    pub code: i32,
    /// For people.
    pub message: ByteString,
    /// What else it says, in the form of its door; may be empty.
    pub details: Bytes,
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// The broker says so.
    Broker(CoreError),
    /// The responder says so.
    Responder(Fault),
}

/// What a responder says to one request.
#[derive(Debug)]
pub struct Answer {
    /// As the request was numbered.
    pub number: u64,
    /// What it says.
    pub said: Said,
}

/// See [`Answer`].
#[derive(Debug)]
pub enum Said {
    /// A part; further ones follow.
    Part(Message),
    /// The last part, or the only one.
    Last(Message),
    /// An error.
    Fault(Fault),
    /// Something that cannot be passed on, and why: the call fails.
    Wrong(CoreError),
}

/// Why nobody got what a responder said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplyRefused {
    /// The request was never sent to this responder.
    #[error("there was no request {0} on this stream")]
    Unknown(u64),
    /// The caller has left, or its deadline has passed.
    #[error("the request {0} is over: its caller waits no more")]
    Over(u64),
    /// It was answered for good before.
    #[error("the request {0} is answered already")]
    Answered(u64),
    /// A part where one reply is due; the call still waits.
    #[error("the request {0} takes one reply, not parts")]
    OneReply(u64),
    /// It cannot be passed on, and the call has failed.
    #[error("the reply to the request {number}: {error}")]
    Wrong {
        /// The request.
        number: u64,
        /// What is wrong.
        error: CoreError,
    },
}

/// What a responder offers.
#[derive(Debug, Clone)]
pub struct Serve {
    /// The service.
    pub service: TopicName,
    /// Its group; may be empty.
    pub group: ByteString,
    /// Its name; none: one is made up.
    pub id: Option<ByteString>,
    /// How many requests it takes at the same time.
    pub credit: usize,
    /// Shown to those who look.
    pub metadata: Vec<(ByteString, ByteString)>,
}

/// A responder as it is shown.
#[derive(Debug, Clone)]
pub struct ResponderFacts {
    /// Ascending over all responders of the process.
    pub key: u64,
    /// What it offers, with its name.
    pub serve: Serve,
    /// Requests in hand.
    pub in_flight: usize,
    /// Answered, errors included.
    pub served: u64,
    /// Answered with an error.
    pub errors: u64,
    /// Of all that it answered together.
    pub busy: Duration,
    /// It gets no more requests.
    pub draining: bool,
    /// It is a subscriber.
    pub device: bool,
}

impl ReplyRefused {
    /// A word for programs; none if the reply itself was wrong.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "UNKNOWN_REQUEST",
            Self::Over(_) => "REQUEST_OVER",
            Self::Answered(_) => "ANSWERED_ALREADY",
            Self::OneReply(_) => "ONE_REPLY",
            Self::Wrong { .. } => "",
        }
    }
}
