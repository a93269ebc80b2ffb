//! `Consume`: deliveries within a window, settled by number on the same stream.
//!
//! Deliveries that are there together leave as one frame; frames that settle are answered together, in their order,
//! when they are durable. Invariant: `acked_through` never passes a frame that is not done.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, Stream};
use tokio::time::Instant;
use tonic::{Request, Status, Streaming};

use crate::core::queues::consumer::{Handle, QueueConsumer, StreamFailures, Window};
use crate::core::{Broker, CoreError};
use crate::engine::{EngineError, Leased, Ticket};
use crate::grpc::convert::{at_most, optional_duration};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::consume_request::Action;
use crate::grpc::proto::v1::consume_response::Event;
use crate::grpc::status::{self, status};
use crate::grpc::stream::{Bounds, Events, Life, Served, Tick, closing_for, run};
use crate::types::clock;

use super::definition::queue_of;
use super::{CONSUMER_ID_BYTES, FRAME_BYTES, MAX_ITEMS, deliver, leases, nack_of};

/// The window when the client does not say.
const WINDOW: Window = Window { messages: 1000, bytes: 16 << 20 };
/// The widest window, in messages.
const WINDOW_MESSAGES: u32 = 65_535;
/// What one frame carries at most.
const FRAME: Window = Window { messages: 1000, bytes: FRAME_BYTES };
/// Frames of the client that are taken before deliveries have their turn.
const FRAMES: usize = 64;
/// Frames that settle and are not durable yet; beyond it the client is not read.
const PENDING: usize = 1024;

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
    want_tokens: bool,
    /// There may be something to take.
    hungry: bool,
    taken: Vec<Leased>,
    last_ack: u64,
    pending: VecDeque<Pending>,
    /// What is done and not said yet.
    results: Option<v1::AckResults>,
    through: u64,
    end: Option<End>,
}

/// A frame that settles, until it is durable.
struct Pending {
    ack_id: u64,
    failures: Vec<v1::AckFailure>,
    durable: Option<Ticket<()>>,
}

/// Why it takes and reads no more; said when all answers are given.
enum End {
    /// The client is done.
    Done,
    /// By plan.
    Closing(v1::StreamClosing),
    /// Something is wrong.
    Fault(Status),
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
        self.deliver();
        if self.events.is_due() {
            return;
        }
        let Some(open) = &mut self.open else { return };
        if open.pending.is_empty() {
            if let Some(end) = open.end.take() {
                return self.end(end);
            }
            if open.consumer.is_drained() {
                return self.end(End::Done);
            }
        }
        let reading = open.end.is_none() && open.pending.len() < PENDING;
        let room = open.consumer.room(FRAME);
        let wanting = open.end.is_none() && room.messages > 0 && room.bytes > 0;
        let expiry = open.consumer.next_expiry().map(|at| Instant::now() + at.since(clock::unix_now()));
        tokio::select! {
            biased;
            frame = self.frames.message(), if reading => self.incoming(frame),
            done = first(&mut open.pending), if !open.pending.is_empty() => {
                if let Err(error) = done {
                    self.events.fail(status(&CoreError::Engine(error)));
                }
            }
            () = open.consumer.ready(), if wanting => open.hungry = true,
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

/// Waits until the oldest frame is durable. Cancel safe.
async fn first(pending: &mut VecDeque<Pending>) -> Result<(), EngineError> {
    if let Some(oldest) = pending.front_mut()
        && let Some(durable) = &mut oldest.durable
    {
        let result = durable.await;
        oldest.durable = None;
        return result;
    }
    Ok(())
}

impl Consuming {
    fn say(&mut self, event: Event) {
        self.life.said();
        self.events.say(v1::ConsumeResponse { event: Some(event) });
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
            Ok(Some(v1::ConsumeRequest { action: Some(Action::Open(open)) })) => {
                self.opened(&open).map_err(|error| status(&error))
            }
            Ok(_) => Err(status(&CoreError::invalid("open", "must be the first frame"))),
            Err(status) => Err(status),
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
        let consumer = self.broker.consume(&queue, window, lease)?;
        self.open = Some(Open {
            consumer,
            want_tokens: open.want_tokens,
            hungry: true,
            taken: Vec::new(),
            last_ack: 0,
            pending: VecDeque::new(),
            results: None,
            through: 0,
            end: None,
        });
        let window = v1::Window {
            max_outstanding_messages: u32::try_from(window.messages).unwrap_or(u32::MAX),
            max_outstanding_bytes: window.bytes as u64,
        };
        let queue = Some(queue_of(&queue.spec()));
        self.say(Event::Opened(v1::ConsumeOpened { queue, window: Some(window) }));
        Ok(())
    }

    /// Takes the frames that are there.
    fn read(&mut self) {
        for _ in 0..FRAMES {
            let Some(open) = &self.open else { return };
            if open.end.is_some() || open.pending.len() >= PENDING {
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
        while let Some(oldest) = open.pending.front_mut() {
            match oldest.durable.as_mut().map_or(Some(Ok(())), Ticket::try_now) {
                None => break,
                Some(Err(error)) => {
                    self.events.fail(status(&CoreError::Engine(error)));
                    return;
                }
                Some(Ok(())) => {}
            }
            let Some(Pending { ack_id, failures, .. }) = open.pending.pop_front() else { break };
            if ack_id > 0 || !failures.is_empty() {
                open.through = open.through.max(ack_id);
                let results = open.results.get_or_insert_default();
                results.acked_through = open.through;
                results.failures.extend(failures);
            }
        }
        if let Some(results) = open.results.take() {
            self.say(Event::Results(results));
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
                self.number("ack", &which, false)?;
                let v1::AckBatch { ack_id, delivery_ids, lease_tokens } = which;
                let (failures, durable) = self.consumer.acknowledge(&delivery_ids, &lease_tokens)?;
                self.done(ack_id, failures, &lease_tokens, Some(durable));
            }
            Some(Action::Nack(nack)) => {
                let kind = nack.kind();
                let which = nack.which.unwrap_or_default();
                self.number("nack.which", &which, true)?;
                let queue = self.consumer.queue();
                let how = nack_of(queue, broker.limits(), kind, nack.delay.as_ref(), nack.reason);
                let (how, delay) = how.map_err(|error| error.within("nack"))?;
                let v1::AckBatch { ack_id, delivery_ids, lease_tokens } = which;
                let failures = self.consumer.nack(&delivery_ids, &lease_tokens, how, delay)?;
                self.done(ack_id, failures, &lease_tokens, None);
            }
            Some(Action::Extend(extend)) => {
                let which = extend.which.unwrap_or_default();
                self.number("extend.which", &which, true)?;
                let lease =
                    optional_duration("extend.lease", extend.lease.as_ref(), leases(broker.limits()))?;
                let v1::AckBatch { ack_id, delivery_ids, lease_tokens } = which;
                let failures = self.consumer.extend(&delivery_ids, &lease_tokens, lease)?;
                self.done(ack_id, failures, &lease_tokens, None);
            }
        }
        Ok(())
    }

    /// Checks the number and the size of a frame that settles.
    fn number(&mut self, field: &str, which: &v1::AckBatch, may_be_zero: bool) -> Result<(), CoreError> {
        let v1::AckBatch { ack_id, delivery_ids, lease_tokens } = which;
        let count = delivery_ids.len() + lease_tokens.len();
        if count > MAX_ITEMS {
            let (field, len, max) = (field.to_owned(), count as u64, MAX_ITEMS as u64);
            return Err(CoreError::TooLarge { field, len, max, unit: "deliveries" });
        }
        if *ack_id == 0 && may_be_zero {
            return Ok(());
        }
        if *ack_id <= self.last_ack {
            let what = format!("{ack_id} is not more than {}, that of the frame before", self.last_ack);
            return Err(CoreError::invalid(format!("{field}.ack_id"), what));
        }
        self.last_ack = *ack_id;
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
        self.pending.push_back(Pending { ack_id, failures, durable });
    }
}

fn window_of(field: &str, window: Option<&v1::Window>) -> Result<Window, CoreError> {
    let Some(window) = window else { return Ok(WINDOW) };
    let messages = match window.max_outstanding_messages {
        0 => WINDOW.messages,
        messages if messages <= WINDOW_MESSAGES => messages as usize,
        messages => {
            let field = format!("{field}.max_outstanding_messages");
            return Err(CoreError::invalid(field, format!("{messages} is more than {WINDOW_MESSAGES}")));
        }
    };
    let bytes = match window.max_outstanding_bytes {
        0 => WINDOW.bytes,
        bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
    };
    Ok(Window { messages, bytes })
}
