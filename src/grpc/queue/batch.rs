//! Messages that come in together: some may go in, some may not, and each keeps its place.

use std::collections::VecDeque;
use std::sync::Arc;

use tonic::{Status, Streaming};

use crate::core::queues::QueueEntry;
use crate::core::queues::enqueue::{Enqueue, Enqueued, EnqueuedBatch, Pipeline};
use crate::core::{Broker, CoreError};
use crate::grpc::convert::{Accepted, Intake};
use crate::grpc::proto::v1;
use crate::grpc::status::{self, status};
use crate::types::clock;

use super::intake;

/// Errors that a stream of many messages tells of.
const FIRST_ERRORS: usize = 100;

/// A message for a queue.
///
/// # Errors
/// [`CoreError::Invalid`] and [`CoreError::TooLarge`] with the field's path below the message.
pub(super) fn enqueue_of(
    queue: &QueueEntry,
    intake: Intake<'_>,
    message: v1::Message,
) -> Result<Enqueue, CoreError> {
    if message.retain {
        return Err(CoreError::invalid("retain", "is for topics: a queue retains nothing"));
    }
    let Accepted { message, priority, not_before } = intake.message(message, Some(queue.topic()))?;
    Ok(Enqueue { message, priority, not_before })
}

/// Messages that may go in, and those that may not, each with its place.
pub(super) type Sorted = (Vec<Enqueue>, VecDeque<(usize, CoreError)>);

/// Parts messages.
pub(super) fn sort(queue: &QueueEntry, intake: Intake<'_>, messages: Vec<v1::Message>) -> Sorted {
    let mut items = Vec::with_capacity(messages.len());
    let mut refused = VecDeque::new();
    for (place, message) in messages.into_iter().enumerate() {
        match enqueue_of(queue, intake, message) {
            Ok(item) => items.push(item),
            Err(error) => refused.push_back((place, error.within(format_args!("messages[{place}]")))),
        }
    }
    (items, refused)
}

/// The results of a batch with those that never came in, in their places.
pub(super) fn merged(
    batch: &EnqueuedBatch,
    mut refused: VecDeque<(usize, CoreError)>,
) -> impl Iterator<Item = Result<Enqueued, CoreError>> {
    let total = batch.len() + refused.len();
    let mut results = batch.results();
    (0..total).map(move |place| match refused.pop_front_if(|(at, _)| *at == place) {
        Some((_, error)) => Err(error),
        None => results.next().unwrap_or(Err(CoreError::Draining)),
    })
}

/// The sum of a stream of messages.
#[derive(Default)]
struct Sum {
    response: v1::EnqueueManyResponse,
    seen: u64,
}

impl Sum {
    fn add(&mut self, batch: &EnqueuedBatch, refused: VecDeque<(usize, CoreError)>) {
        for result in merged(batch, refused) {
            let index = self.seen;
            self.seen += 1;
            let Err(error) = result else {
                self.response.accepted += 1;
                continue;
            };
            self.response.rejected += 1;
            if self.response.first_errors.len() < FIRST_ERRORS {
                let error = Some(status::item(&error));
                self.response.first_errors.push(v1::IndexedError { index, error });
            }
        }
    }
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
                    sum.add(&batch, refused);
                }
                next = frames.message(), if pipeline.accepts() => match next? {
                    Some(frame) => break frame,
                    None => {
                        while !pipeline.is_empty() {
                            let (batch, refused) = pipeline.completed().await.map_err(engine)?;
                            sum.add(&batch, refused);
                        }
                        return Ok(sum.response);
                    }
                },
            }
        };
    }
}
