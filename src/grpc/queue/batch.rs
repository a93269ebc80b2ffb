//! Messages that come in together: some may go in, some may not, and each keeps its place.

use std::sync::Arc;

use tonic::{Status, Streaming};

use crate::core::queues::QueueEntry;
use crate::core::queues::enqueue::{Enqueue, Pipeline};
use crate::core::{Broker, CoreError};
use crate::grpc::bounds::{Refused, Sum, intake, merged};
use crate::grpc::convert::{Accepted, Intake};
use crate::grpc::proto::v1;
use crate::grpc::status::status;
use crate::types::clock;

/// A message for a queue.
///
/// # Errors
/// [`CoreError::Invalid`] and [`CoreError::TooLarge`] with the field's path below the message; [`CoreError::Precondition`]
/// for what the queue cannot do.
pub(super) fn enqueue_of(
    queue: &QueueEntry,
    intake: Intake<'_>,
    message: v1::Message,
) -> Result<Enqueue, CoreError> {
    if message.retain {
        return Err(CoreError::invalid("retain", "is for topics: a queue retains nothing"));
    }
    let Accepted { message, priority, not_before } = intake.message(message, Some(queue.topic()))?;
    queue.check_asked(&message)?;
    Ok(Enqueue { message, priority, not_before })
}

/// Messages that may go in, and those that may not, each with its place.
pub(super) type Sorted = (Vec<Enqueue>, Refused);

/// Parts messages.
pub(super) fn sort(queue: &QueueEntry, intake: Intake<'_>, messages: Vec<v1::Message>) -> Sorted {
    let mut items = Vec::with_capacity(messages.len());
    let mut refused = Refused::new();
    for (place, message) in messages.into_iter().enumerate() {
        match enqueue_of(queue, intake, message) {
            Ok(item) => items.push(item),
            Err(error) => refused.push_back((place, error.within(format_args!("messages[{place}]")))),
        }
    }
    (items, refused)
}

/// Takes a stream of messages to its end. Batches are on their way while the next is read.
pub(super) async fn enqueue_many(
    broker: &Arc<Broker>,
    mut frames: Streaming<v1::EnqueueManyRequest>,
) -> Result<v1::EnqueueManyResponse, Status> {
    let Some(mut frame) = frames.message().await? else {
        return Err(status(&CoreError::invalid("queue", "must be given in the first frame")));
    };
    let queue = broker.queue_named("queue", &frame.queue).map_err(|error| status(&error))?;
    let mut pipeline = Pipeline::new(broker, &queue);
    let mut sum = Sum::default();
    let engine = |error| status(&CoreError::Engine(error));
    loop {
        if !frame.queue.is_empty() && frame.queue != queue.name().as_str() {
            return Err(status(&CoreError::invalid("queue", "must be the same in every frame")));
        }
        let (items, refused) = sort(&queue, intake(broker, clock::unix_now()), frame.messages);
        pipeline.push(items, refused);
        frame = loop {
            tokio::select! {
                biased;
                done = pipeline.completed() => {
                    let (batch, refused) = done.map_err(engine)?;
                    sum.add(merged(batch.results(), refused));
                }
                next = frames.message(), if pipeline.accepts() => match next? {
                    Some(frame) => break frame,
                    None => {
                        while !pipeline.is_empty() {
                            let (batch, refused) = pipeline.completed().await.map_err(engine)?;
                            sum.add(merged(batch.results(), refused));
                        }
                        let Sum { accepted, rejected, first_errors } = sum;
                        return Ok(v1::EnqueueManyResponse { accepted, rejected, first_errors });
                    }
                },
            }
        };
    }
}
