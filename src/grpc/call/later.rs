//! `CallAsync` and `AwaitReply`: what is asked for, and what has come of it.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::core::calls::ReplyTo;
use crate::core::{Broker, CoreError};
use crate::grpc::convert::optional_duration;
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::call_async_request;
use crate::grpc::status::{of_call, of_status};
use crate::types::{MessageId, QueueName};

use super::{reply_of, topic_named};

/// How long a call may take.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(30 * 86_400);
/// How long one may wait for its reply.
const WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// How long a call may take.
///
/// # Errors
/// [`CoreError::Invalid`] naming the field.
pub(super) fn timeout(given: Option<&prost_types::Duration>) -> Result<Duration, CoreError> {
    optional_duration("timeout", given, TIMEOUT)?
        .ok_or_else(|| CoreError::invalid("timeout", "must be given"))
}

/// Where the reply is to go.
///
/// # Errors
/// [`CoreError::Invalid`] and [`CoreError::TooLarge`] naming the field.
pub(super) fn reply_to(
    broker: &Broker,
    reply_to: Option<call_async_request::ReplyTo>,
) -> Result<ReplyTo, CoreError> {
    match reply_to {
        None => Ok(ReplyTo::Caller),
        Some(call_async_request::ReplyTo::Queue(queue)) => {
            let queue = QueueName::parse(queue).map_err(|error| CoreError::name("queue", &error))?;
            Ok(ReplyTo::Queue(queue))
        }
        Some(call_async_request::ReplyTo::Topic(topic)) => {
            let topic = topic_named(broker, "topic", topic)?;
            broker.check_reply_topic("topic", &topic)?;
            Ok(ReplyTo::Topic(topic))
        }
    }
}

/// Waits for a reply.
pub(super) async fn await_reply(
    broker: &Arc<Broker>,
    request: v1::AwaitReplyRequest,
) -> Result<v1::AwaitReplyResponse, CoreError> {
    let v1::AwaitReplyRequest { request_id, wait } = request;
    let Some(id) = MessageId::parse(&request_id) else {
        return Err(CoreError::invalid("request_id", "is none: CallAsync gives one of 26 characters"));
    };
    let wait = optional_duration("wait", wait.as_ref(), WAIT)?.unwrap_or_default();
    let reply = broker.await_reply(id, wait).await?.map(|said| match said {
        Ok(reply) => reply_of(reply),
        Err(error) => v1::Reply { error: Some(of_status(&of_call(&error))), ..Default::default() },
    });
    Ok(v1::AwaitReplyResponse { done: reply.is_some(), reply })
}
