//! Calls and answers that are published: `$call/<service>` begins a call, `$reply` answers one.
//!
//! The answer to a call goes to the response topic of the request, published on the caller's behalf, with its correlation
//! data. An error is an answer too: the user property `stafett-error` says which (`NO_RESPONDERS`, `RESPONDER_LOST`,
//! `BAD_REPLY`, `LIMIT_REACHED`, or the name of a `google.rpc.Code`), the payload says it for people.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use super::call::TOO_MANY;
use super::device::{self, ERROR, REPLY_TOPIC};
use super::{CallError, Caller, Calling, Counts, Fault, Reply, Request, Said};
use crate::core::session::SessionKey;
use crate::core::{Broker, CoreError, Inbound, PublisherInfo};
use crate::types::{ClientId, Extras, Message, MessageId, Qos, TopicName, clock};

/// What begins the topic of a request.
const CALL_PREFIX: &str = "$call/";
/// The user property of a request that may be carried out more than once: `true`.
const IDEMPOTENT: &str = "stafett-idempotent";
/// Bytes of the text of a device's error.
const ERROR_BYTES: usize = 2048;
/// Names of `google.rpc.Code`, from 0.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The number of an error's name; one that is none is `UNKNOWN`.
pub(super) fn code_of(name: &str) -> i32 {
    let at = CODES.iter().skip(1).position(|code| *code == name);
    at.and_then(|at| i32::try_from(at + 1).ok()).unwrap_or(2)
}

/// What a device says of its error.
pub(super) fn error_text(payload: &[u8]) -> ByteString {
    let text = String::from_utf8_lossy(payload.get(..ERROR_BYTES).unwrap_or(payload));
    ByteString::from(text.into_owned())
}

/// Whose publish it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct By<'a> {
    pub(crate) session: Option<SessionKey>,
    pub(crate) name: Option<&'a ClientId>,
}

/// A place among the answers that are on their way to be published.
struct Answering(Arc<Broker>);

impl Answering {
    fn begin(broker: &Arc<Broker>) -> Result<Self, CoreError> {
        let max = broker.limits.max_calls;
        let answering: &AtomicUsize = &broker.calls.counts.answering;
        let more = |count: usize| (count < max).then_some(count + 1);
        match answering.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Self(Arc::clone(broker))),
            Err(_) => Err(broker.calls.refused(TOO_MANY, "max_calls", max)),
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.calls.counts.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Broker {
    /// Does what a publish asks that is a call or an answer; `None` for every other topic. Never waits.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] naming what is wrong, [`CoreError::Unsupported`] if it is `delayed`, [`CoreError::Limit`], and
    /// those of an answer that nobody waits for.
    pub(crate) fn published_call(
        self: &Arc<Self>,
        message: &Message,
        by: By<'_>,
        delayed: bool,
    ) -> Option<Result<(), CoreError>> {
        let is_answer = message.topic.as_str() == REPLY_TOPIC;
        let service = message.topic.as_str().strip_prefix(CALL_PREFIX).filter(|_| !is_answer);
        match service {
            None if !is_answer => None,
            _ if delayed => {
                let what = format!(
                    "`{}` cannot be delayed: calls and their answers are made at once",
                    message.topic
                );
                Some(Err(CoreError::Unsupported(what)))
            }
            None => Some(self.published_answer(message, by)),
            Some(service) => Some(self.begin_published(message, service, by)),
        }
    }

    /// Takes a publish on an ordinary topic as the answer of a device too, where pairs of topics say so.
    pub(crate) fn published_on(&self, session: SessionKey, message: &Message) {
        let pairs = &self.limits.device_topics;
        if pairs.iter().any(|pair| pair.has_reply(&message.topic)) {
            self.calls.answer_on(session, &message.topic, || self.said(message));
        }
    }

    /// Checks whether a caller may have answers published there. Where it may not that is counted.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] naming `field`.
    pub fn check_reply_topic(&self, field: &str, topic: &TopicName) -> Result<(), CoreError> {
        if topic.is_reserved() {
            Counts::add(&self.calls.counts.reply_topics_refused);
            let what = format!("`{topic}`: names that begin with `$` are the server's");
            return Err(CoreError::invalid(field, what));
        }
        Ok(())
    }

    fn published_answer(&self, message: &Message, by: By<'_>) -> Result<(), CoreError> {
        let correlation = message.extras.as_ref().and_then(|extras| extras.correlation_data.as_deref());
        self.calls.answer(by.session, correlation, self.said(message))
    }

    /// What a device says with a message.
    fn said(&self, message: &Message) -> Said {
        match self.limits.check_message(message) {
            Ok(()) => device::said(message.detached()),
            Err(error) => Said::Wrong(error),
        }
    }

    fn begin_published(
        self: &Arc<Self>,
        message: &Message,
        service: &str,
        by: By<'_>,
    ) -> Result<(), CoreError> {
        self.limits.check_message(message)?;
        let service = TopicName::parse(ByteString::from(service));
        let service = service.map_err(|error| CoreError::topic("topic", &error))?;
        let extras = message.extras.as_deref();
        let Some(reply_to) = extras.and_then(|extras| extras.reply_to.as_ref()).map(TopicName::detached)
        else {
            return Err(CoreError::invalid("response topic", "must be given in a call"));
        };
        if service.is_reserved() {
            return Err(CoreError::invalid("topic", "names that begin with `$` are the server's"));
        }
        self.check_reply_topic("response topic", &reply_to)?;
        let answering = Answering::begin(self)?;
        let now = clock::unix_now();
        let deadline = message.expires_at.unwrap_or_else(|| now.after(self.limits.call_timeout));
        let mut asked = Message { topic: service, retain: false, expires_at: None, ..message.detached() };
        let mut correlation = None;
        let mut idempotent = false;
        if let Some(extras) = &mut asked.extras {
            extras.reply_to = None;
            correlation = extras.correlation_data.take();
            idempotent =
                extras.properties.iter().any(|(key, value)| *key == *IDEMPOTENT && *value == *"true");
        }
        let begun = self.call(Request {
            message: asked,
            deadline: Some(deadline),
            caller: Caller { client_id: by.name.cloned(), address: None },
            metadata: Arc::default(),
            idempotent,
            takes_parts: false,
            part: None,
        });
        let (broker, qos) = (Arc::clone(self), message.qos);
        self.tasks.spawn(async move {
            let said = answer(begun, deadline.since(now)).await;
            let mut message = match said {
                Ok(said) => Message { topic: reply_to, qos, ..said.message },
                Err(error) => error_message(&error, reply_to, qos),
            };
            if correlation.is_some() {
                message.extras_mut().correlation_data = correlation;
            }
            let info = PublisherInfo { topics: Some(1), ..PublisherInfo::default() };
            let mut publisher = broker.publisher(info);
            publisher.publish(vec![Inbound::new(message, 0)]);
            let mut receipts = Vec::new();
            publisher.completed(&mut receipts).await;
            if let Some(Err(error)) = receipts.pop().map(|receipt| receipt.result) {
                tracing::debug!(%error, "the answer to a call is not published");
            }
            drop(answering);
        });
        Ok(())
    }
}

/// The answer to a call for which so much time is left.
pub(super) async fn answer(begun: Result<Calling, CoreError>, left: Duration) -> Result<Reply, CallError> {
    let mut calling = begun.map_err(CallError::Broker)?;
    tokio::time::timeout(left, calling.reply()).await.unwrap_or_else(|_| Err(late()))
}

/// Its time is over.
pub(super) fn late() -> CallError {
    CallError::Responder(Fault {
        code: code_of("DEADLINE_EXCEEDED"),
        message: ByteString::from_static("the deadline of the call has passed"),
        details: Bytes::new(),
    })
}

/// An error as the answer to a call.
pub(super) fn error_message(error: &CallError, topic: TopicName, qos: Qos) -> Message {
    let (name, text) = match error {
        CallError::Responder(fault) => {
            let name = usize::try_from(fault.code).ok().and_then(|code| CODES.get(code));
            (*name.unwrap_or(&"UNKNOWN"), fault.message.to_string())
        }
        CallError::Broker(error) => {
            let name = match error {
                CoreError::NoResponders { .. } => "NO_RESPONDERS",
                CoreError::ResponderLost { .. } => "RESPONDER_LOST",
                CoreError::BadReply { .. } => "BAD_REPLY",
                CoreError::Limit { .. } | CoreError::Unread { .. } => "LIMIT_REACHED",
                CoreError::Draining => "UNAVAILABLE",
                CoreError::TooLarge { .. } => "INVALID_ARGUMENT",
                _ => "INTERNAL",
            };
            (name, error.to_string())
        }
    };
    Message {
        id: MessageId::from_u128(0),
        topic,
        payload: Bytes::from(text),
        qos,
        retain: false,
        expires_at: None,
        extras: Some(Box::new(Extras {
            payload_is_utf8: true,
            properties: vec![(ByteString::from_static(ERROR), ByteString::from_static(name))],
            ..Extras::default()
        })),
    }
}
