//! A stream of batches into the broker, many in flight, acknowledged in order: `Produce` and `PublishStream`.
//!
//! Frames that are there together go in as one commit; commits that are done together are answered by one
//! acknowledgement. Invariant: batches are committed in the order in which they came, and acknowledged so.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream};
use smallvec::SmallVec;
use tonic::{Request, Status, Streaming};

use super::bounds::{MAX_ITEMS, Refused, intake, merged};
use super::convert::{Intake, optional_duration, published};
use super::proto::v1;
use super::status::{self, status};
use super::stream::{
    Bounds, End, Events, HEARTBEAT_RANGE, Life, NotOpened, Served, Tick, first_frame, must_open, run,
};
use crate::core::{Broker, CoreError, Published};
use crate::engine::EngineError;
use crate::types::{UnixMillis, clock};

/// One commit takes no more frames when it has so many messages.
const COMMIT_MESSAGES: usize = 4096;
/// The same in bytes of payload.
const COMMIT_BYTES: usize = 1 << 20;

/// Where the batches of one stream go, and what its frames are called.
pub(super) trait Feed: Sized + Send + 'static {
    /// A frame of the client.
    type Request: Send + 'static;
    /// A frame of the broker.
    type Response: Send + 'static;
    /// The first frame.
    type Open: Send;
    /// A message that may go in.
    type Item: Send;

    /// What the client says.
    fn read(request: Self::Request) -> Frame<Self::Open>;

    /// What the broker says.
    fn say(event: Event) -> Self::Response;

    /// Opens it.
    fn open(broker: &Arc<Broker>, open: Self::Open) -> Result<Opened<Self>, CoreError>;

    /// Whether there is room for another commit.
    fn accepts(&self) -> bool;

    /// Whether nothing is on its way.
    fn is_empty(&self) -> bool;

    /// Checks a message. Returns it and its bytes.
    fn take(&mut self, intake: Intake<'_>, message: v1::Message) -> Result<(Self::Item, usize), CoreError>;

    /// Hands in a commit.
    fn push(&mut self, items: Vec<Self::Item>, commit: Commit);

    /// The results of the oldest commit when it is done, one for each of its items. Waits for ever when nothing is on
    /// its way. Cancel safe.
    fn completed(&mut self) -> impl Future<Output = Result<(Results, Commit), EngineError>> + Send;
}

/// What became of the items of a commit, in their order.
pub(super) type Results = Vec<Result<Published, CoreError>>;

/// What a client says.
pub(super) enum Frame<O> {
    /// The first frame.
    Open(O),
    /// Messages.
    Batch(v1::PublishBatch),
    /// It is alive.
    Heartbeat,
    /// Nothing.
    None,
}

/// What the broker says.
pub(super) enum Event {
    /// The first event.
    Opened(v1::PublishStreamOpened),
    /// Batches are done.
    Ack(v1::PublishAck),
    /// The last event.
    Closing(v1::StreamClosing),
    /// It is alive.
    Heartbeat(v1::Heartbeat),
}

/// An open stream.
pub(super) struct Opened<F> {
    /// Where its batches go.
    pub(super) feed: F,
    /// Whether each message is answered.
    pub(super) want_details: bool,
    /// What the client says of heartbeats.
    pub(super) heartbeat: Option<prost_types::Duration>,
}

/// Serves one stream.
pub(super) fn serve<F: Feed>(
    broker: &Arc<Broker>,
    bounds: Bounds,
    request: Request<Streaming<F::Request>>,
) -> Pin<Box<dyn Stream<Item = Result<F::Response, Status>> + Send>> {
    let (_, extensions, frames) = request.into_parts();
    run(Feeding::<F> {
        life: Life::new(&extensions, bounds, broker.draining().clone()),
        broker: Arc::clone(broker),
        frames,
        bounds,
        open: None,
        events: Events::new(),
    })
}

struct Feeding<F: Feed> {
    broker: Arc<Broker>,
    life: Life,
    frames: Streaming<F::Request>,
    bounds: Bounds,
    open: Option<Open<F>>,
    events: Events<F::Response>,
}

/// What there is after the first frame.
struct Open<F: Feed> {
    feed: F,
    want_details: bool,
    last_batch: u64,
    gathered: Gathered<F::Item>,
    /// What is done and not said yet.
    ack: Option<v1::PublishAck>,
    end: Option<End>,
}

/// Messages of one commit to be.
struct Gathered<I> {
    items: Vec<I>,
    bytes: usize,
    commit: Commit,
    /// When the first of them came.
    now: Option<UnixMillis>,
}

impl<I> Gathered<I> {
    fn new() -> Self {
        Self { items: Vec::new(), bytes: 0, commit: Commit::default(), now: None }
    }

    fn is_full(&self) -> bool {
        self.items.len() >= COMMIT_MESSAGES || self.bytes >= COMMIT_BYTES
    }
}

/// What one commit covers.
#[derive(Debug, Default)]
pub(super) struct Commit {
    /// Batches and how many messages each had.
    batches: SmallVec<[(u64, usize); 4]>,
    /// Messages that never came in, by their place in the commit.
    refused: Refused,
    messages: usize,
}

impl<F: Feed> Served for Feeding<F> {
    type Event = F::Response;

    fn said(&mut self) -> &mut Events<F::Response> {
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
        if open.feed.is_empty()
            && let Some(end) = open.end.take()
        {
            return self.events.finish(end, |closing| F::say(Event::Closing(closing)));
        }
        let reading = open.end.is_none() && open.feed.accepts();
        tokio::select! {
            biased;
            done = open.feed.completed() => self.completed(done),
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

impl<F: Feed> Feeding<F> {
    fn say(&mut self, event: Event) {
        self.life.said();
        self.events.say(F::say(event));
    }

    async fn opening(&mut self) {
        let opened = match first_frame(&mut self.frames, &mut self.life).await.map(F::read) {
            Ok(Frame::Open(open)) => self.opened(open).map_err(|error| status(&error)),
            Ok(_) => Err(must_open()),
            Err(NotOpened::Closing(closing)) => {
                return self.events.finish(End::Closing(closing), |closing| F::say(Event::Closing(closing)));
            }
            Err(NotOpened::Failed(status)) => Err(status),
        };
        if let Err(status) = opened {
            self.events.fail(status);
        }
    }

    fn opened(&mut self, open: F::Open) -> Result<(), CoreError> {
        let Opened { feed, want_details, heartbeat } = F::open(&self.broker, open)?;
        let heartbeat: Option<Duration> =
            optional_duration("open.heartbeat_interval", heartbeat.as_ref(), HEARTBEAT_RANGE)?;
        if let Some(heartbeat) = heartbeat {
            self.life.set_heartbeat(heartbeat);
        }
        self.open =
            Some(Open { feed, want_details, last_batch: 0, gathered: Gathered::new(), ack: None, end: None });
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
            if open.end.is_some() || !open.feed.accepts() || open.gathered.is_full() {
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
            let Gathered { items, commit, .. } = std::mem::replace(&mut open.gathered, Gathered::new());
            open.feed.push(items, commit);
        }
    }

    fn incoming(&mut self, frame: Result<Option<F::Request>, Status>) {
        let Some(open) = &mut self.open else { return };
        let invalid = |field: &str, what: &str| End::Fault(status(&CoreError::invalid(field, what)));
        let end = match frame.map(|frame| frame.map(F::read)) {
            Ok(Some(Frame::Batch(batch))) => match open.batch(&self.broker, batch) {
                Ok(()) => return,
                Err(error) => End::Fault(status(&error)),
            },
            Ok(Some(Frame::Heartbeat)) => return,
            Ok(Some(Frame::Open(_))) => invalid("open", "the stream is open already"),
            Ok(Some(Frame::None)) => invalid("action", "must be given"),
            Ok(None) => End::Done,
            Err(status) => End::Fault(status),
        };
        open.end = Some(end);
    }

    /// Says which batches are done.
    fn acknowledge(&mut self) {
        while let Some(open) = &mut self.open
            && let Some(done) = open.feed.completed().now_or_never()
        {
            self.completed(done);
        }
        if let Some(ack) = self.open.as_mut().and_then(|open| open.ack.take()) {
            self.say(Event::Ack(ack));
        }
    }

    fn completed(&mut self, done: Result<(Results, Commit), EngineError>) {
        let Some(open) = &mut self.open else { return };
        match done {
            Ok((results, commit)) => {
                let ack = open.ack.get_or_insert_default();
                commit.add_to(ack, results, open.want_details);
            }
            Err(error) => self.events.fail(status(&CoreError::Engine(error))),
        }
    }
}

impl<F: Feed> Open<F> {
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
        let Gathered { items, bytes, commit, now } = &mut self.gathered;
        let intake = intake(broker, *now.get_or_insert_with(clock::unix_now));
        for (index, message) in messages.into_iter().enumerate() {
            let taken =
                if count > MAX_ITEMS { Err(too_many(count)) } else { self.feed.take(intake, message) };
            match taken {
                Ok((item, size)) => {
                    *bytes += size;
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
    fn add_to(self, ack: &mut v1::PublishAck, results: Results, want_details: bool) {
        let places =
            self.batches.iter().flat_map(|&(batch_id, count)| (0..count).map(move |index| (batch_id, index)));
        for ((batch_id, index), result) in places.zip(merged(results.into_iter(), self.refused)) {
            match result {
                Ok(stored) if want_details => ack.details.push(published(&stored)),
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
