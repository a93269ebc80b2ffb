//! `Produce`: batches into one queue, many in flight, acknowledged in order.
//!
//! Frames that are there together go to the engine as one commit; commits that are done together are answered by one
//! acknowledgement. Invariant: batches are committed in the order in which they came, and acknowledged so.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{FutureExt, Stream};
use smallvec::SmallVec;
use tonic::{Request, Status, Streaming};

use crate::core::queues::enqueue::{Enqueue, EnqueuedBatch, Pipeline};
use crate::core::{Broker, CoreError};
use crate::engine::EngineError;
use crate::grpc::convert::{optional_duration, timestamp};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::produce_request::Action;
use crate::grpc::proto::v1::produce_response::Event;
use crate::grpc::status::{self, status};
use crate::grpc::stream::{Bounds, Events, HEARTBEAT_RANGE, Life, Served, Tick, closing_for, run};
use crate::types::{MessageId, clock};

use super::batch::{enqueue_of, merged};
use super::{MAX_ITEMS, intake};

/// One commit takes no more frames when it has so many messages.
const COMMIT_MESSAGES: usize = 4096;
/// The same in bytes of payload.
const COMMIT_BYTES: usize = 1 << 20;

/// Serves one stream.
pub(super) fn serve(
    broker: &Arc<Broker>,
    bounds: Bounds,
    request: Request<Streaming<v1::ProduceRequest>>,
) -> Pin<Box<dyn Stream<Item = Result<v1::ProduceResponse, Status>> + Send>> {
    let (_, extensions, frames) = request.into_parts();
    run(Producing {
        life: Life::new(&extensions, bounds, broker.draining().clone()),
        broker: Arc::clone(broker),
        frames,
        bounds,
        open: None,
        events: Events::new(),
    })
}

struct Producing {
    broker: Arc<Broker>,
    life: Life,
    frames: Streaming<v1::ProduceRequest>,
    bounds: Bounds,
    open: Option<Open>,
    events: Events<v1::ProduceResponse>,
}

/// What there is after the first frame.
struct Open {
    pipeline: Pipeline<Commit>,
    want_details: bool,
    last_batch: u64,
    gathered: Gathered,
    /// What is done and not said yet.
    ack: Option<v1::PublishAck>,
    end: Option<End>,
}

/// Why it reads no more; said when all that it has taken is acknowledged.
enum End {
    /// The client has sent all.
    Done,
    /// By plan.
    Closing(v1::StreamClosing),
    /// Something is wrong.
    Fault(Status),
}

/// Messages of one commit to be.
#[derive(Default)]
struct Gathered {
    items: Vec<Enqueue>,
    bytes: usize,
    commit: Commit,
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.items.len() >= COMMIT_MESSAGES || self.bytes >= COMMIT_BYTES
    }
}

/// What one commit covers.
#[derive(Default)]
struct Commit {
    /// Batches and how many messages each had.
    batches: SmallVec<[(u64, usize); 4]>,
    /// Messages that never came in, by their place in the commit.
    refused: VecDeque<(usize, CoreError)>,
    messages: usize,
}

impl Served for Producing {
    type Event = v1::ProduceResponse;

    fn said(&mut self) -> &mut Events<v1::ProduceResponse> {
        &mut self.events
    }

    async fn step(&mut self) {
        if self.open.is_none() {
            return self.opening().await;
        }
        self.acknowledge();
        self.gather();
        if self.events.is_due() {
            return;
        }
        let Some(open) = &mut self.open else { return };
        if open.pipeline.is_empty()
            && let Some(end) = open.end.take()
        {
            return self.end(end);
        }
        let reading = open.end.is_none() && open.pipeline.accepts();
        tokio::select! {
            biased;
            done = open.pipeline.completed() => self.completed(done),
            frame = self.frames.message(), if reading => self.incoming(frame),
            tick = self.life.next(None), if open.end.is_none() => match tick {
                Tick::Heartbeat(heartbeat) => self.say(Event::Heartbeat(heartbeat)),
                Tick::Closing(closing) => open.end = Some(End::Closing(closing)),
                Tick::Deadline(status) => self.events.fail(status),
                Tick::Due => {}
            },
        }
    }
}

impl Producing {
    fn say(&mut self, event: Event) {
        self.life.said();
        self.events.say(v1::ProduceResponse { event: Some(event) });
    }

    async fn opening(&mut self) {
        let first = tokio::select! {
            biased;
            first = self.frames.message() => first,
            tick = self.life.next(None) => {
                match tick {
                    Tick::Heartbeat(_) | Tick::Due => {}
                    Tick::Closing(closing) => {
                        self.say(Event::Closing(closing));
                        self.events.end();
                    }
                    Tick::Deadline(status) => self.events.fail(status),
                }
                return;
            }
        };
        let opened = match first {
            Ok(Some(v1::ProduceRequest { action: Some(Action::Open(open)) })) => self.opened(&open),
            Ok(_) => Err(status(&CoreError::invalid("open", "must be the first frame"))),
            Err(status) => Err(status),
        };
        if let Err(status) = opened {
            self.events.fail(status);
        }
    }

    fn opened(&mut self, open: &v1::ProduceOpen) -> Result<(), Status> {
        let checked = self.broker.queue_named("open.queue", &open.queue).and_then(|queue| {
            let given = open.heartbeat_interval.as_ref();
            Ok((queue, optional_duration("open.heartbeat_interval", given, HEARTBEAT_RANGE)?))
        });
        let (queue, heartbeat) = checked.map_err(|error| status(&error))?;
        if let Some(heartbeat) = heartbeat {
            self.life.set_heartbeat(heartbeat);
        }
        self.open = Some(Open {
            pipeline: Pipeline::new(&self.broker, &queue),
            want_details: open.want_details,
            last_batch: 0,
            gathered: Gathered::default(),
            ack: None,
            end: None,
        });
        let pending = self.broker.limits().publish_pending;
        self.say(Event::Opened(v1::PublishStreamOpened {
            max_batch_messages: u32::try_from(MAX_ITEMS).unwrap_or(u32::MAX),
            max_batch_bytes: self.bounds.max_frame_bytes,
            max_batches_in_flight: u32::try_from(pending).unwrap_or(u32::MAX),
        }));
        Ok(())
    }

    /// Takes the frames that are there and hands them in as one commit.
    fn gather(&mut self) {
        loop {
            let Some(open) = &self.open else { return };
            if open.end.is_some() || !open.pipeline.accepts() || open.gathered.is_full() {
                break;
            }
            match self.frames.message().now_or_never() {
                Some(frame) => self.incoming(frame),
                None => break,
            }
        }
        if let Some(open) = &mut self.open
            && open.gathered.commit.messages > 0
        {
            let Gathered { items, commit, .. } = std::mem::take(&mut open.gathered);
            open.pipeline.push(items, commit);
        }
    }

    fn incoming(&mut self, frame: Result<Option<v1::ProduceRequest>, Status>) {
        let Some(open) = &mut self.open else { return };
        let end = match frame {
            Ok(Some(v1::ProduceRequest { action: Some(Action::Batch(batch)) })) => {
                match open.batch(&self.broker, batch) {
                    Ok(()) => return,
                    Err(error) => End::Fault(status(&error)),
                }
            }
            Ok(Some(v1::ProduceRequest { action: Some(Action::Heartbeat(_)) })) => return,
            Ok(Some(v1::ProduceRequest { action: Some(Action::Open(_)) })) => {
                End::Fault(status(&CoreError::invalid("open", "the stream is open already")))
            }
            Ok(Some(v1::ProduceRequest { action: None })) => {
                End::Fault(status(&CoreError::invalid("action", "must be given")))
            }
            Ok(None) => End::Done,
            Err(status) => End::Fault(status),
        };
        open.end = Some(end);
    }

    /// Says which batches are done.
    fn acknowledge(&mut self) {
        while let Some(open) = &mut self.open
            && let Some(done) = open.pipeline.completed().now_or_never()
        {
            self.completed(done);
        }
        if let Some(ack) = self.open.as_mut().and_then(|open| open.ack.take()) {
            self.say(Event::Ack(ack));
        }
    }

    fn completed(&mut self, done: Result<(EnqueuedBatch, Commit), EngineError>) {
        let Some(open) = &mut self.open else { return };
        match done {
            Ok((batch, commit)) => {
                let ack = open.ack.get_or_insert_default();
                commit.add_to(ack, &batch, open.want_details);
            }
            Err(error) => self.events.fail(status(&CoreError::Engine(error))),
        }
    }

    fn end(&mut self, end: End) {
        match end {
            End::Done => self.events.end(),
            End::Closing(closing) => {
                self.say(Event::Closing(closing));
                self.events.end();
            }
            End::Fault(status) => {
                self.say(Event::Closing(closing_for(&status)));
                self.events.fail(status);
            }
        }
    }
}

impl Open {
    /// Takes one batch.
    fn batch(&mut self, broker: &Broker, batch: v1::PublishBatch) -> Result<(), CoreError> {
        let v1::PublishBatch { batch_id, messages } = batch;
        if batch_id <= self.last_batch {
            let what = format!("{batch_id} is not more than {}, that of the batch before", self.last_batch);
            return Err(CoreError::invalid("batch.batch_id", what));
        }
        if messages.is_empty() {
            return Err(CoreError::invalid("batch.messages", "is empty"));
        }
        self.last_batch = batch_id;
        let count = messages.len();
        let Gathered { items, bytes, commit } = &mut self.gathered;
        let intake = intake(broker, clock::unix_now());
        for (index, message) in messages.into_iter().enumerate() {
            let taken = if count > MAX_ITEMS {
                Err(too_many(count))
            } else {
                enqueue_of(self.pipeline.queue(), intake, message)
            };
            match taken {
                Ok(item) => {
                    *bytes += item.message.payload.len();
                    items.push(item);
                }
                Err(error) => {
                    let error = error.within(format_args!("messages[{index}]"));
                    commit.refused.push_back((commit.messages + index, error));
                }
            }
        }
        commit.batches.push((batch_id, count));
        commit.messages += count;
        Ok(())
    }
}

fn too_many(count: usize) -> CoreError {
    let (len, max) = (count as u64, MAX_ITEMS as u64);
    CoreError::TooLarge { field: "batch".to_owned(), len, max, unit: "messages" }
}

impl Commit {
    /// Adds what became of it to an acknowledgement.
    fn add_to(self, ack: &mut v1::PublishAck, stored: &EnqueuedBatch, want_details: bool) {
        let places =
            self.batches.iter().flat_map(|&(batch_id, count)| (0..count).map(move |index| (batch_id, index)));
        for ((batch_id, index), result) in places.zip(merged(stored, self.refused)) {
            match result {
                Ok(stored) if want_details => ack.details.push(details(stored.id)),
                Ok(_) => {}
                Err(error) => {
                    let error = Some(status::item(&error));
                    ack.errors.push(v1::BatchError { batch_id, index: index as u64, error });
                    if want_details {
                        ack.details.push(v1::PublishResponse::default());
                    }
                }
            }
        }
        if let Some(&(last, _)) = self.batches.last() {
            ack.through_batch_id = last;
        }
    }
}

fn details(id: MessageId) -> v1::PublishResponse {
    v1::PublishResponse {
        message_id: id.to_string(),
        publish_time: Some(timestamp(id.time())),
        matched_subscribers: 0,
        matched_queues: 1,
    }
}
