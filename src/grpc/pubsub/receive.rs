//! `Subscribe` and `SubscribeStream`: deliveries within a window, settled by number on the same stream.
//!
//! What is live waits in a mailbox; what is stored is taken from the session when the window has room. Deliveries that
//! are there together leave as one frame. `Subscribe` is the same without frames of the client: all comes at most
//! once, so nothing is to be settled.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{FutureExt, Stream};
use tonic::{Extensions, Request, Status, Streaming};

use crate::core::queues::consumer::Window;
use crate::core::{Broker, CloseReason, CoreError};
use crate::grpc::bounds::{at_most_items, some_items, told_window, window_of};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::subscribe_stream_request::Action;
use crate::grpc::status::{status, taken_away};
use crate::grpc::stream::{Bounds, End, Events, Life, NotOpened, Served, Tick, first_frame, must_open, run};
use crate::types::Qos;

use super::MAX_FILTERS;
use super::filters::{told, wanted_of};
use super::mailbox::Ended;
use super::session::{Open, open_session};
use super::voice::{Said, Voice};

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
    let (mut opened, mut held) = open_session(broker, bounds, open, ANY_WINDOW).await?;
    opened.session_expiry = None;
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
                Tick::Heartbeat(heartbeat) => {
                    open.held.mailbox.shrink();
                    self.say(Said::Heartbeat(heartbeat));
                }
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

    async fn opened(&mut self, mut open: v1::OpenSession) -> Result<(), CoreError> {
        at_most_items("open.filters", open.filters.len(), MAX_FILTERS)?;
        let window = window_of("open.window", open.window.as_ref())?;
        let filters = std::mem::take(&mut open.filters);
        let (mut opened, held) = open_session(&self.broker, self.bounds, open, window).await?;
        opened.window = Some(told_window(window));
        opened.filters = held.add("open.filters", filters).await;
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
                open.held.session.count_cut();
                let what = "the client does not keep up: too many deliveries wait".to_owned();
                status(&CoreError::Limit { what, max: self.bounds.mailbox.messages as u64 })
            }
            Some(Ended::Core(CloseReason::TakenOver)) => {
                taken_away("SESSION_TAKEN_OVER", "another connection has taken the session over")
            }
            Some(Ended::Core(CloseReason::Deleted)) => {
                taken_away("SESSION_DELETED", "the session was deleted")
            }
            Some(Ended::Core(CloseReason::Disconnected)) => {
                taken_away("CLIENT_DISCONNECTED", "an operator has ended the connection")
            }
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
            Ok(frame) if frame.is_empty() => {}
            Ok(frame) => self.say(Said::Deliveries(frame)),
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
