//! `Consume`: deliveries within a window, settled by number on the same stream.
//!
//! Deliveries that are there together leave as one frame; frames that settle are answered together, in their order,
//! when they are durable. Invariant: `acked_through` never passes a frame that is not done.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, Stream};
use tokio::time::Instant;
use tonic::{Request, Status, Streaming};

use crate::core::queues::consumer::{Handle, QueueConsumer, StreamFailures};
use crate::core::{Broker, CoreError};
use crate::engine::{Leased, Ticket};
use crate::grpc::acks::Acks;
use crate::grpc::bounds::{FRAME, told_window, window_of};
use crate::grpc::convert::{at_most, optional_duration};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::consume_request::Action;
use crate::grpc::proto::v1::consume_response::Event;
use crate::grpc::status::{self, status};
use crate::grpc::stream::{Bounds, End, Events, Life, NotOpened, Served, Tick, first_frame, must_open, run};
use crate::types::clock;

use super::definition::queue_of;
use super::{CONSUMER_ID_BYTES, deliver, leases, nack_of};

/// Frames of the client that are taken before deliveries have their turn.
const FRAMES: usize = 64;
/// Serves one stream.
pub(super) fn serve(
    broker: &Arc<Broker>,
    bounds: Bounds,
    request: Request<Streaming<v1::ConsumeRequest>>,
) -> Pin<Box<dyn Stream<Item = Result<v1::ConsumeResponse, Status>> + Send>> {
    let (_, extensions, frames) = request.into_parts();
    run(Consuming {
        life: Life::new(&extensions, bounds, broker.draining().clone()),
        broker: Arc::clone(broker),
        frames,
        open: None,
        events: Events::new(),
    })
}

struct Consuming {
    broker: Arc<Broker>,
    life: Life,
    frames: Streaming<v1::ConsumeRequest>,
    open: Option<Open>,
    events: Events<v1::ConsumeResponse>,
}

/// What there is after the first frame.
struct Open {
    consumer: QueueConsumer,
    /// Whether it is said that it may be given something.
    active: bool,
    want_tokens: bool,
    /// There may be something to take.
    hungry: bool,
    taken: Vec<Leased>,
    acks: Acks,
    end: Option<End>,
}

impl Served for Consuming {
    type Event = v1::ConsumeResponse;

    fn said(&mut self) -> &mut Events<v1::ConsumeResponse> {
        &mut self.events
    }

    async fn step(&mut self) {
        if self.open.is_none() {
            return self.opening().await;
        }
        self.read();
        self.answer();
        self.lose();
        self.activate();
        self.deliver();
        if self.events.is_due() {
            return;
        }
        let Some(open) = &mut self.open else { return };
        if open.acks.is_empty() {
            if let Some(end) = open.end.take() {
                return self.end(end);
            }
            if open.consumer.is_drained() {
                return self.end(End::Done);
            }
        }
        let reading = open.end.is_none() && !open.acks.is_full();
        let room = open.consumer.room(FRAME);
        let wanting = open.end.is_none() && room.messages > 0 && room.bytes > 0;
        let expiry = open.consumer.next_expiry().map(|at| Instant::now() + at.since(clock::unix_now()));
        tokio::select! {
            biased;
            frame = self.frames.message(), if reading => self.incoming(frame),
            done = open.acks.progress() => {
                if let Err(error) = done {
                    self.events.fail(status(&CoreError::Engine(error)));
                }
            }
            () = open.consumer.ready(), if wanting || !open.active => open.hungry = true,
            tick = self.life.next(expiry), if open.end.is_none() => match tick {
                Tick::Heartbeat(heartbeat) => self.say(Event::Heartbeat(heartbeat)),
                Tick::Closing(closing) => open.end = Some(End::Closing(closing)),
                Tick::Deadline(status) => {
                    open.consumer.end_clean();
                    self.events.fail(status);
                }
                Tick::Due => {}
            },
        }
    }
}

impl Consuming {
    fn say(&mut self, event: Event) {
        self.life.said();
        self.events.say(v1::ConsumeResponse { event: Some(event) });
    }

    async fn opening(&mut self) {
        let opened = match first_frame(&mut self.frames, &mut self.life).await {
            Ok(v1::ConsumeRequest { action: Some(Action::Open(open)) }) => {
                self.opened(&open).map_err(|error| status(&error))
            }
            Ok(_) => Err(must_open()),
            Err(NotOpened::Closing(closing)) => return self.end(End::Closing(closing)),
            Err(NotOpened::Failed(status)) => Err(status),
        };
        if let Err(status) = opened {
            self.events.fail(status);
        }
    }

    fn opened(&mut self, open: &v1::ConsumeOpen) -> Result<(), CoreError> {
        let queue = self.broker.queue_named("open.queue", &open.queue)?;
        at_most("open.consumer_id", open.consumer_id.len(), CONSUMER_ID_BYTES)?;
        let window = window_of("open.window", open.window.as_ref())?;
        let lease = optional_duration("open.lease", open.lease.as_ref(), leases(self.broker.limits()))?;
        let consumer = self.broker.consume(&queue, window, lease, open.consumer_priority)?;
        let active = consumer.is_active();
        self.open = Some(Open {
            consumer,
            active,
            want_tokens: open.want_tokens,
            hungry: true,
            taken: Vec::new(),
            acks: Acks::default(),
            end: None,
        });
        let window = told_window(window);
        let queue = Some(queue_of(&queue.spec()));
        self.say(Event::Opened(v1::ConsumeOpened { queue, active, window: Some(window) }));
        Ok(())
    }

    /// Takes the frames that are there.
    fn read(&mut self) {
        for _ in 0..FRAMES {
            let Some(open) = &self.open else { return };
            if open.end.is_some() || open.acks.is_full() {
                return;
            }
            match self.frames.message().now_or_never() {
                Some(frame) => self.incoming(frame),
                None => return,
            }
        }
    }

    fn incoming(&mut self, frame: Result<Option<v1::ConsumeRequest>, Status>) {
        let Some(open) = &mut self.open else { return };
        match frame {
            Ok(Some(v1::ConsumeRequest { action })) => {
                if let Err(error) = open.action(&self.broker, action) {
                    open.end = Some(End::Fault(status(&error)));
                }
            }
            Ok(None) => open.end = Some(End::Done),
            // The client is lost: what it had counts as failed.
            Err(status) => self.events.fail(status),
        }
    }

    /// Says which frames that settle are done.
    fn answer(&mut self) {
        let Some(open) = &mut self.open else { return };
        match open.acks.results() {
            Ok(Some(results)) => self.say(Event::Results(results)),
            Ok(None) => {}
            Err(error) => self.events.fail(status(&CoreError::Engine(error))),
        }
    }

    /// Says which leases have ended.
    fn lose(&mut self) {
        let Some(open) = &mut self.open else { return };
        if open.consumer.next_expiry().is_none() {
            return;
        }
        let delivery_ids = open.consumer.lost(clock::unix_now());
        if !delivery_ids.is_empty() {
            open.hungry = true;
            self.say(Event::LeaseLost(v1::LeaseLost { delivery_ids }));
        }
    }

    /// Says that it is its turn.
    fn activate(&mut self) {
        let Some(open) = &mut self.open else { return };
        if !open.active && open.end.is_none() && open.consumer.is_active() {
            open.active = true;
            self.say(Event::BecameActive(v1::BecameActive {}));
        }
    }

    /// Says what is there.
    fn deliver(&mut self) {
        let Some(open) = &mut self.open else { return };
        if !open.hungry || open.end.is_some() {
            return;
        }
        let first = match open.consumer.take(FRAME, &mut open.taken) {
            Ok(first) => first,
            Err(error) => {
                open.end = Some(End::Fault(status(&error)));
                return;
            }
        };
        if open.taken.is_empty() {
            open.hungry = false;
            return;
        }
        let now = clock::unix_now();
        let queue = open.consumer.queue();
        let messages = (first..).zip(open.taken.drain(..)).map(|(number, leased)| {
            let token = if open.want_tokens {
                Bytes::copy_from_slice(&self.broker.lease_token(queue, &leased))
            } else {
                Bytes::new()
            };
            deliver::leased(leased, number, token, now)
        });
        let messages = messages.collect();
        self.say(Event::Messages(v1::LeasedMessages { messages }));
    }

    fn end(&mut self, end: End) {
        if let Some(open) = &mut self.open {
            open.consumer.end_clean();
        }
        self.events.finish(end, |closing| v1::ConsumeResponse { event: Some(Event::Closing(closing)) });
        // What is outstanding goes back now, not when the client has read the end.
        self.open = None;
    }
}

impl Open {
    fn action(&mut self, broker: &Broker, action: Option<Action>) -> Result<(), CoreError> {
        match action {
            None => return Err(CoreError::invalid("action", "must be given")),
            Some(Action::Open(_)) => return Err(CoreError::invalid("open", "the stream is open already")),
            Some(Action::Heartbeat(_)) => {}
            Some(Action::Window(window)) => {
                self.consumer.set_window(window_of("window", Some(&window))?);
                self.hungry = true;
            }
            Some(Action::Drain(_)) => {
                self.consumer.drain();
                self.hungry = true;
            }
            Some(Action::Ack(which)) => {
                self.acks.check("ack", &which, false)?;
                let v1::AckBatch { ack_id, delivery_ids, lease_tokens } = which;
                let (failures, durable) = self.consumer.acknowledge(&delivery_ids, &lease_tokens)?;
                self.done(ack_id, failures, &lease_tokens, Some(durable));
            }
            Some(Action::Nack(nack)) => {
                let kind = nack.kind();
                let which = nack.which.unwrap_or_default();
                self.acks.check("nack.which", &which, true)?;
                let queue = self.consumer.queue();
                let how = nack_of(queue, broker.limits(), kind, nack.delay.as_ref(), nack.reason);
                let (how, delay) = how.map_err(|error| error.within("nack"))?;
                let v1::AckBatch { ack_id, delivery_ids, lease_tokens } = which;
                let failures = self.consumer.nack(&delivery_ids, &lease_tokens, how, delay)?;
                self.done(ack_id, failures, &lease_tokens, None);
            }
            Some(Action::Extend(extend)) => {
                let which = extend.which.unwrap_or_default();
                self.acks.check("extend.which", &which, true)?;
                let lease =
                    optional_duration("extend.lease", extend.lease.as_ref(), leases(broker.limits()))?;
                let v1::AckBatch { ack_id, delivery_ids, lease_tokens } = which;
                let failures = self.consumer.extend(&delivery_ids, &lease_tokens, lease)?;
                self.done(ack_id, failures, &lease_tokens, None);
            }
        }
        Ok(())
    }

    fn done(&mut self, ack_id: u64, failures: StreamFailures, tokens: &[Bytes], durable: Option<Ticket<()>>) {
        self.hungry = true;
        let failure = |(handle, error): (Handle, CoreError)| {
            let (delivery_id, lease_token) = match handle {
                Handle::Number(number) => (number, Bytes::new()),
                Handle::Token(place) => (0, tokens.get(place).cloned().unwrap_or_default()),
            };
            v1::AckFailure { ack_id, delivery_id, lease_token, error: Some(status::item(&error)) }
        };
        let failures = failures.into_iter().map(failure).collect();
        self.acks.push(ack_id, failures, durable);
    }
}
