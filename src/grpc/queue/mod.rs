//! `QueueService`.
//!
//! `service` has the methods, `calls` what the unary ones do, `definition` a queue's settings, `deliver` what a delivery
//! says, `produce` and `consume` the two streams, `watch` the counts as they change. Invariant: nothing is kept here but the broker.

mod batch;
mod browse;
mod calls;
mod consume;
mod definition;
mod deliver;
mod forward;
mod produce;
mod redrive;
mod select;
mod service;
mod watch;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use crate::core::queues::QueueEntry;
use crate::core::queues::receive::Failures;
use crate::core::{Broker, CoreError, Limits};
use crate::engine::{Nack, View};
use crate::types::clock;

use super::bounds::intake;
use super::convert::{Intake, at_most, optional_duration};
use super::proto::v1;
use super::status;
use super::stream::Bounds;

/// The longest wait for a first message.
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// Bytes of a reason that is kept with a dead letter.
const REASON_BYTES: usize = 1024;
/// Bytes of a consumer's name.
const CONSUMER_ID_BYTES: usize = 256;

/// The service.
#[derive(Debug)]
pub(super) struct QueueService {
    broker: Arc<Broker>,
    streams: Bounds,
}

impl QueueService {
    /// Serves the queues of `broker`.
    pub(super) fn new(broker: Arc<Broker>, streams: Bounds) -> Self {
        Self { broker, streams }
    }

    fn queue(&self, name: &str) -> Result<Arc<QueueEntry>, CoreError> {
        self.broker.queue_named("queue", name)
    }

    fn intake(&self) -> Intake<'_> {
        intake(&self.broker, clock::unix_now())
    }
}

fn leases(limits: &Limits) -> RangeInclusive<Duration> {
    limits.min_lease..=limits.max_lease
}

/// How deliveries are given back, and for how long they rest.
fn nack_of(
    queue: &QueueEntry,
    limits: &Limits,
    kind: v1::NackKind,
    delay: Option<&prost_types::Duration>,
    reason: String,
) -> Result<(Nack, Option<Duration>), CoreError> {
    at_most("reason", reason.len(), REASON_BYTES)?;
    let delay = optional_duration("delay", delay, Duration::ZERO..=limits.max_lease)?;
    let how = match kind {
        v1::NackKind::Unspecified => return Err(CoreError::invalid("kind", "must be given")),
        v1::NackKind::Release => Nack::Release,
        v1::NackKind::Failed => {
            Nack::Failed(Some(reason).filter(|reason| !reason.is_empty()).map(Into::into))
        }
        v1::NackKind::DeadLetter if delay.is_some_and(|delay| !delay.is_zero()) => {
            return Err(CoreError::invalid("delay", "is not for dead letters"));
        }
        v1::NackKind::DeadLetter if queue.spec().dead_letter.is_none() => {
            return Err(CoreError::Precondition {
                reason: "NO_DEAD_LETTER_QUEUE",
                what: format!("the queue `{}` has no dead letter queue", queue.name()),
            });
        }
        v1::NackKind::DeadLetter if reason.is_empty() => {
            Nack::DeadLetter(ByteString::from_static("rejected"))
        }
        v1::NackKind::DeadLetter => Nack::DeadLetter(reason.into()),
    };
    Ok((how, delay))
}

/// What is to be looked at.
fn view_of(view: v1::QueueView) -> View {
    match view {
        v1::QueueView::Unspecified | v1::QueueView::Ready => View::Ready,
        v1::QueueView::Delayed => View::Delayed,
        v1::QueueView::Leased => View::Leased,
        v1::QueueView::All => View::All,
    }
}

/// What could not be done, by token.
fn failures_of(tokens: &[Bytes], failures: Failures) -> Vec<v1::AckFailure> {
    let failure = |(place, error): (usize, CoreError)| v1::AckFailure {
        ack_id: 0,
        delivery_id: 0,
        lease_token: tokens.get(place).cloned().unwrap_or_default(),
        error: Some(status::item(&error)),
    };
    failures.into_iter().map(failure).collect()
}
