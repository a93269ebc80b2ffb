//! `Subscribe` and `SubscribeStream`: deliveries within a window, settled by number on the same stream.
//!
//! What is live waits in a mailbox; what is stored is taken from the session when the window has room. Deliveries that
//! are there together leave as one frame. `Subscribe` is the same without frames of the client: all comes at most
//! once, so nothing is to be settled.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream};
use tonic::{Extensions, Request, Status, Streaming};

use crate::core::queues::consumer::Window;
use crate::core::{Broker, CloseReason, CoreError, OpenSession, Opened, SessionDelivery};
use crate::grpc::acks::Acks;
use crate::grpc::bounds::{FRAME, at_most_items, some_items, told_window, window_of};
use crate::grpc::convert::optional_duration;
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::subscribe_stream_request::Action;
use crate::grpc::status::status;
use crate::grpc::stream::{Bounds, End, Events, Life, NotOpened, Served, Tick, first_frame, must_open, run};
use crate::types::{ClientId, Qos, clock};

use super::filters::{Wanted, spec_of, told, wanted_of};
use super::held::Held;
use super::mailbox::{Ended, Mailbox};
use super::voice::{Said, Voice, live, stored};
use super::{ANYONE, MAX_FILTERS};

/// Frames of the client that are taken before deliveries have their turn.
const FRAMES: usize = 64;

type Deliveries<V> = Pin<Box<dyn Stream<Item = Result<V, Status>> + Send>>;

/// Serves one `Subscribe`; its filters are active when this returns.
///
/// # Errors
/// The first error of a filter: then nothing is subscribed.
pub(super) async fn subscribe(
    broker: &Arc<Broker>,
    bounds: Bounds,
    request: Request<v1::SubscribeRequest>,
) -> Result<Deliveries<v1::SubscribeResponse>, CoreError> {
    let (_, extensions, request) = request.into_parts();
    some_items("filters", request.filters.len(), MAX_FILTERS)?;
    let mut wanted = Vec::with_capacity(request.filters.len());
    for (at, filter) in request.filters.iter().enumerate() {
        let (spec, mut options) =
            wanted_of(filter).map_err(|error| error.within(format_args!("filters[{at}]")))?;
        options.max_qos = Qos::AtMostOnce;
        wanted.push((spec, options));
    }
    let mut receiving = Receiving::<v1::SubscribeResponse>::new(broker, bounds, &extensions, None);
    let open = v1::OpenSession::default();
    let (mut opened, mut held) = open_session(broker, bounds, &open, ANY_WINDOW).await?;
    let results = held.held.session.subscribe(wanted).await;
    for (at, (filter, result)) in request.filters.into_iter().zip(results).enumerate() {
        let granted = result.map_err(|error| error.within(format_args!("filters[{at}]")))?;
        opened.filters.push(told(filter.filter, filter.share_group, Ok(Some(granted))));
    }
    held.hungry = true;
    receiving.open = Some(held);
    receiving.say(Said::Opened(opened));
    Ok(run(receiving))
}

/// What is settled by being sent needs no window.
const ANY_WINDOW: Window = Window { messages: usize::MAX, bytes: usize::MAX };

/// Serves one `SubscribeStream`.
pub(super) fn subscribe_stream(
    broker: &Arc<Broker>,
    bounds: Bounds,
    request: Request<Streaming<v1::SubscribeStreamRequest>>,
) -> Deliveries<v1::SubscribeStreamResponse> {
    let (_, extensions, frames) = request.into_parts();
    run(Receiving::<v1::SubscribeStreamResponse>::new(broker, bounds, &extensions, Some(frames)))
}

struct Receiving<V> {
    broker: Arc<Broker>,
    life: Life,
    bounds: Bounds,
    frames: Option<Streaming<v1::SubscribeStreamRequest>>,
    open: Option<Open>,
    events: Events<V>,
}

/// What there is after the first frame.
struct Open {
    held: Held,
    /// The session may have something to take.
    hungry: bool,
    /// The session may be woken for what comes next.
    waiting: bool,
    taken: Vec<SessionDelivery>,
    acks: Acks,
    end: Option<End>,
}

impl<V: Voice> Served for Receiving<V> {
    type Event = V;

    fn said(&mut self) -> &mut Events<V> {
        &mut self.events
    }

    async fn step(&mut self) {
        if self.open.is_none() {
            return self.opening().await;
        }
        self.read().await;
        self.look_for_the_end();
        self.answer();
        self.deliver();
        if self.events.is_due() {
            return;
        }
        let Some(open) = &mut self.open else { return };
        if open.acks.is_empty()
            && let Some(end) = open.end.take()
        {
            return self.end(end);
        }
        let going = open.end.is_none();
        let wanting = going && !open.hungry && open.held.has_room();
        let reading = going && !open.acks.is_full();
        tokio::select! {
            biased;
            frame = next_frame(&mut self.frames), if reading => self.incoming(frame).await,
            done = open.acks.progress() => {
                if let Err(error) = done {
                    self.events.fail(status(&CoreError::Engine(error)));
                }
            }
            () = open.held.mailbox.changed(), if going => {}
            () = open.held.session.ready(), if wanting => open.hungry = true,
            tick = self.life.next(None), if going => match tick {
                Tick::Heartbeat(heartbeat) => self.say(Said::Heartbeat(heartbeat)),
                Tick::Closing(closing) => open.end = Some(End::Closing(closing)),
                Tick::Deadline(status) => {
                    open.held.clean = true;
                    self.events.fail(status);
                }
                Tick::Due => {}
            },
        }
    }
}

/// The next frame of a client that says something. Cancel safe.
async fn next_frame(
    frames: &mut Option<Streaming<v1::SubscribeStreamRequest>>,
) -> Result<Option<v1::SubscribeStreamRequest>, Status> {
    match frames {
        Some(frames) => frames.message().await,
        None => std::future::pending().await,
    }
}

impl<V: Voice> Receiving<V> {
    fn new(
        broker: &Arc<Broker>,
        bounds: Bounds,
        extensions: &Extensions,
        frames: Option<Streaming<v1::SubscribeStreamRequest>>,
    ) -> Self {
        Self {
            life: Life::new(extensions, bounds, broker.draining().clone()),
            broker: Arc::clone(broker),
            bounds,
            frames,
            open: None,
            events: Events::new(),
        }
    }

    fn say(&mut self, said: Said) {
        self.life.said();
        self.events.say(V::say(said));
    }

    async fn opening(&mut self) {
        let Some(frames) = &mut self.frames else { return self.events.end() };
        let opened = match first_frame(frames, &mut self.life).await {
            Ok(v1::SubscribeStreamRequest { action: Some(Action::Open(open)) }) => {
                self.opened(open).await.map_err(|error| status(&error))
            }
            Ok(_) => Err(must_open()),
            Err(NotOpened::Closing(closing)) => return self.end(End::Closing(closing)),
            Err(NotOpened::Failed(status)) => Err(status),
        };
        if let Err(status) = opened {
            self.events.fail(status);
        }
    }

    async fn opened(&mut self, open: v1::OpenSession) -> Result<(), CoreError> {
        at_most_items("open.filters", open.filters.len(), MAX_FILTERS)?;
        let window = window_of("open.window", open.window.as_ref())?;
        let (mut opened, held) = open_session(&self.broker, self.bounds, &open, window).await?;
        opened.window = Some(told_window(window));
        opened.filters = held.add("open.filters", open.filters).await;
        self.open = Some(held);
        self.say(Said::Opened(opened));
        Ok(())
    }

    /// Takes the frames that are there.
    async fn read(&mut self) {
        for _ in 0..FRAMES {
            let Some(open) = &self.open else { return };
            if open.end.is_some() || open.acks.is_full() {
                return;
            }
            match next_frame(&mut self.frames).now_or_never() {
                Some(frame) => self.incoming(frame).await,
                None => return,
            }
        }
    }

    async fn incoming(&mut self, frame: Result<Option<v1::SubscribeStreamRequest>, Status>) {
        let Some(open) = &mut self.open else { return };
        match frame {
            Ok(Some(v1::SubscribeStreamRequest { action })) => match open.action(action).await {
                Ok(Some(changed)) => self.say(Said::Changed(changed)),
                Ok(None) => {}
                Err(error) => open.end = Some(End::Fault(status(&error))),
            },
            Ok(None) => open.end = Some(End::Done),
            // The client is lost: what it had counts as failed.
            Err(status) => self.events.fail(status),
        }
    }

    /// Whether the core, or a full mailbox, ends it.
    fn look_for_the_end(&mut self) {
        let Some(open) = &mut self.open else { return };
        let fault = match open.held.mailbox.ended() {
            None => return,
            Some(Ended::Overflow) => {
                let what = "the client does not keep up: too many deliveries wait".to_owned();
                status(&CoreError::Limit { what, max: self.bounds.mailbox.messages as u64 })
            }
            Some(Ended::Core(CloseReason::TakenOver)) => {
                Status::aborted("another connection has taken the session over")
            }
            Some(Ended::Core(CloseReason::Deleted)) => Status::aborted("the session was deleted"),
            Some(Ended::Core(CloseReason::Draining)) => status(&CoreError::Draining),
        };
        // Whoever takes over waits for what is held: no answer is worth that.
        self.open = None;
        self.events.finish(End::Fault(fault), |closing| V::say(Said::Closing(closing)));
    }

    /// Says which frames that settle are done.
    fn answer(&mut self) {
        let Some(open) = &mut self.open else { return };
        match open.acks.results() {
            Ok(Some(results)) => self.say(Said::Results(results)),
            Ok(None) => {}
            Err(error) => self.events.fail(status(&CoreError::Engine(error))),
        }
    }

    /// Says what is there.
    fn deliver(&mut self) {
        let Some(open) = &mut self.open else { return };
        if open.end.is_some() {
            return;
        }
        match open.frame() {
            Ok(deliveries) if deliveries.is_empty() => {}
            Ok(deliveries) => self.say(Said::Deliveries(v1::DeliveryBatch { deliveries })),
            Err(error) => open.end = Some(End::Fault(status(&error))),
        }
    }

    fn end(&mut self, end: End) {
        if let Some(open) = &mut self.open {
            open.held.clean = !matches!(end, End::Fault(_));
        }
        self.events.finish(end, |closing| V::say(Said::Closing(closing)));
        // What is outstanding goes back now, not when the client has read the end.
        self.open = None;
    }
}

/// Opens the session that a client asks for.
async fn open_session(
    broker: &Arc<Broker>,
    bounds: Bounds,
    open: &v1::OpenSession,
    window: Window,
) -> Result<(v1::SubscribeOpened, Open), CoreError> {
    let longest = broker.limits().max_session_expiry;
    let given = open.session_expiry.as_ref();
    let expiry =
        optional_duration("open.session_expiry", given, Duration::ZERO..=longest)?.unwrap_or_default();
    let client_id = match open.client_id.as_str() {
        "" if expiry.is_zero() => None,
        "" => {
            return Err(CoreError::invalid(
                "open.client_id",
                "must be given for a session that outlives the stream",
            ));
        }
        id => {
            Some(ClientId::parse(id.to_owned()).map_err(|error| CoreError::name("open.client_id", &error))?)
        }
    };
    let mailbox = Mailbox::new(bounds.mailbox);
    let open = OpenSession {
        client_id,
        clean_start: open.clean_start,
        expiry,
        principal: ANYONE,
        outbox: mailbox.clone(),
    };
    let Opened { session, present, .. } = broker.open_session(open).await?;
    let opened = v1::SubscribeOpened {
        session_id: session.client_id().to_string(),
        session_present: present,
        ..Default::default()
    };
    let held = Held::new(session, mailbox, window);
    let open =
        Open { held, hungry: true, waiting: false, taken: Vec::new(), acks: Acks::default(), end: None };
    Ok((opened, open))
}

impl Open {
    /// What goes out as one frame.
    fn frame(&mut self) -> Result<Vec<v1::Delivery>, CoreError> {
        let now = clock::unix_now();
        let held = &mut self.held;
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        loop {
            while deliveries.len() < FRAME.messages && bytes < FRAME.bytes {
                let room = held.has_room();
                let next = held.mailbox.take(|next| next.qos == Qos::AtMostOnce || room);
                let Some(waiting) = next else { break };
                if waiting.message.is_expired(now) {
                    continue;
                }
                bytes += waiting.message.weight();
                let number = held.live(&waiting);
                deliveries.push(live(waiting, number, now));
            }
            let room = held.room();
            let max = room.messages.min(FRAME.messages - deliveries.len()).min(held.mailbox.room());
            let max_bytes = room.bytes.min(FRAME.bytes.saturating_sub(bytes));
            if max == 0 || max_bytes == 0 {
                if !held.has_room() && std::mem::take(&mut self.waiting) {
                    held.session.take(0, 0, &mut self.taken)?;
                }
                return Ok(deliveries);
            }
            if !self.hungry {
                return Ok(deliveries);
            }
            held.session.take(max, max_bytes, &mut self.taken)?;
            self.waiting = self.taken.len() < max;
            if self.taken.is_empty() && !held.mailbox.has_some() {
                self.hungry = false;
                return Ok(deliveries);
            }
            for delivery in self.taken.drain(..) {
                bytes += delivery.leased.message.weight();
                let number = held.stored(&delivery);
                let SessionDelivery { leased, identifiers, dropped_before, .. } = delivery;
                deliveries.push(stored(leased, identifiers, number, dropped_before, now));
            }
        }
    }

    /// Does what a frame says.
    async fn action(&mut self, action: Option<Action>) -> Result<Option<v1::FiltersChanged>, CoreError> {
        match action {
            None => Err(CoreError::invalid("action", "must be given")),
            Some(Action::Open(_)) => Err(CoreError::invalid("open", "the stream is open already")),
            Some(Action::Heartbeat(_)) => Ok(None),
            Some(Action::Add(add)) => {
                some_items("add.filters", add.filters.len(), MAX_FILTERS)?;
                let filters = self.add("add.filters", add.filters).await;
                self.hungry = true;
                Ok(Some(v1::FiltersChanged { filters }))
            }
            Some(Action::Remove(remove)) => {
                some_items("remove.filters", remove.filters.len(), MAX_FILTERS)?;
                let filters = self.remove(remove.filters).await;
                Ok(Some(v1::FiltersChanged { filters }))
            }
            Some(Action::Ack(ack)) => {
                self.acks.check("ack", &ack, false)?;
                let v1::AckBatch { ack_id, delivery_ids, lease_tokens } = ack;
                if !lease_tokens.is_empty() {
                    let what = "a session's deliveries have numbers alone";
                    return Err(CoreError::invalid("ack.lease_tokens", what));
                }
                let (failures, durable) = self.held.settle(ack_id, delivery_ids)?;
                self.acks.push(ack_id, failures, durable);
                self.hungry = true;
                Ok(None)
            }
        }
    }

    /// Subscribes to what is well said, and tells of each what became of it.
    async fn add(&self, field: &str, filters: Vec<v1::TopicFilter>) -> Vec<v1::FilterResult> {
        let mut wanted: Vec<Wanted> = Vec::with_capacity(filters.len());
        let mut refused = Vec::with_capacity(filters.len());
        for (at, filter) in filters.iter().enumerate() {
            match wanted_of(filter) {
                Ok(filter) => {
                    wanted.push(filter);
                    refused.push(None);
                }
                Err(error) => refused.push(Some(error.within(format_args!("{field}[{at}]")))),
            }
        }
        let mut granted = self.held.session.subscribe(wanted).await.into_iter();
        let results = refused.into_iter().map(|refused| match refused {
            Some(error) => Err(error),
            None => granted.next().unwrap_or(Err(CoreError::Draining)).map(Some),
        });
        filters
            .into_iter()
            .zip(results)
            .map(|(filter, result)| told(filter.filter, filter.share_group, result))
            .collect()
    }

    async fn remove(&self, filters: Vec<v1::FilterName>) -> Vec<v1::FilterResult> {
        let mut specs = Vec::with_capacity(filters.len());
        let mut refused = Vec::with_capacity(filters.len());
        for (at, name) in filters.iter().enumerate() {
            match spec_of(&name.filter, &name.share_group) {
                Ok(spec) => {
                    specs.push(spec);
                    refused.push(None);
                }
                Err(error) => refused.push(Some(error.within(format_args!("remove.filters[{at}]")))),
            }
        }
        let mut were_there = self.held.session.unsubscribe(specs).await.into_iter();
        let results = filters.into_iter().zip(refused).map(|(name, refused)| {
            let result = match refused.map_or_else(|| were_there.next().unwrap_or(Ok(false)), Err) {
                Ok(true) => Ok(None),
                Ok(false) => Err(CoreError::NotFound { kind: "subscription", name: name.filter.clone() }),
                Err(error) => Err(error),
            };
            told(name.filter, name.share_group, result)
        });
        results.collect()
    }
}
