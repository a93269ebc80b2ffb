//! `Serve`: requests out, answers in.
//!
//! Requests that are there together leave as one frame, and the answers of one frame are passed on together. Invariant:
//! dropped at whatever point, the stream leaves its requests to the core, which finds others for them or says why not.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use futures_util::{FutureExt, Stream};
use prost::Message as _;
use tonic::{Request, Status, Streaming};

use crate::core::calls::{self, Asked, Fault, ReplyRefused, Responder, Said};
use crate::core::{Broker, CoreError};
use crate::grpc::bounds::{FRAME, MAX_ITEMS, at_most_items, count, intake};
use crate::grpc::convert::{Intake, at_most, content, optional_duration, timestamp};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::serve_request::Action;
use crate::grpc::proto::v1::serve_response::Event;
use crate::grpc::status::{self, status};
use crate::grpc::stream::{
    Bounds, End, Events, HEARTBEAT, HEARTBEAT_RANGE, Life, NotOpened, Served, Tick, first_frame, must_open,
    run,
};
use crate::types::clock;

use super::number;
use super::{said, service_named};

/// Frames of the client that are taken before requests have their turn.
const FRAMES: usize = 64;
/// Requests in hand when the client does not say.
const CREDIT: usize = 64;
/// The most.
const MAX_CREDIT: usize = 65_535;
/// Bytes of a responder's name or group.
const NAME_BYTES: usize = 256;
/// Entries of a responder's metadata.
const METADATA: usize = 32;
/// Their bytes.
const METADATA_BYTES: usize = 4096;
/// Bytes of the text of an error; it travels in a header.
const ERROR_BYTES: usize = 2048;
/// Bytes of its details; they travel there too.
const DETAIL_BYTES: usize = 4096;

/// Serves one stream.
pub(super) fn serve(
    broker: &Arc<Broker>,
    bounds: Bounds,
    request: Request<Streaming<v1::ServeRequest>>,
) -> Pin<Box<dyn Stream<Item = Result<v1::ServeResponse, Status>> + Send>> {
    let (_, extensions, frames) = request.into_parts();
    run(Serving {
        life: Life::new(&extensions, bounds, broker.draining().clone()),
        broker: Arc::clone(broker),
        frames,
        open: None,
        events: Events::new(),
    })
}

struct Serving {
    broker: Arc<Broker>,
    life: Life,
    frames: Streaming<v1::ServeRequest>,
    open: Option<Open>,
    events: Events<v1::ServeResponse>,
}

/// What there is after the first frame.
struct Open {
    responder: Responder,
    /// There may be something to take.
    hungry: bool,
    refused: Vec<v1::RefusedReply>,
    /// Why it gets no more requests; said when all that it has in hand is answered.
    end: Option<End>,
}

impl Served for Serving {
    type Event = v1::ServeResponse;

    fn said(&mut self) -> &mut Events<v1::ServeResponse> {
        &mut self.events
    }

    async fn step(&mut self) {
        if self.open.is_none() {
            return self.opening().await;
        }
        self.read();
        self.refuse();
        self.deliver();
        if self.events.is_due() {
            return;
        }
        let Some(open) = &mut self.open else { return };
        if let Some(end) = open.end.take_if(|_| open.responder.is_idle()) {
            return self.end(end);
        }
        let takes = self.broker.has_room_for_replies();
        tokio::select! {
            biased;
            () = self.broker.room_for_replies(), if !takes => {}
            frame = self.frames.message(), if takes => self.incoming(frame),
            () = open.responder.ready() => open.hungry = true,
            tick = self.life.next(None) => match tick {
                Tick::Heartbeat(heartbeat) => self.say(Event::Heartbeat(heartbeat)),
                Tick::Closing(closing) => open.drain(End::Closing(closing)),
                Tick::Deadline(status) => self.events.fail(status),
                Tick::Due => {}
            },
        }
    }
}

impl Serving {
    fn say(&mut self, event: Event) {
        self.life.said();
        self.events.say(v1::ServeResponse { event: Some(event) });
    }

    async fn opening(&mut self) {
        let opened = match first_frame(&mut self.frames, &mut self.life).await {
            Ok(v1::ServeRequest { action: Some(Action::Open(open)) }) => {
                self.opened(open).map_err(|error| status(&error))
            }
            Ok(_) => Err(must_open()),
            Err(NotOpened::Closing(closing)) => return self.end(End::Closing(closing)),
            Err(NotOpened::Failed(status)) => Err(status),
        };
        if let Err(status) = opened {
            self.events.fail(status);
        }
    }

    fn opened(&mut self, open: v1::ServeOpen) -> Result<(), CoreError> {
        let interval = open.heartbeat_interval.as_ref();
        let interval = optional_duration("open.heartbeat_interval", interval, HEARTBEAT_RANGE)?;
        let responder = self.broker.serve(serve_of(&self.broker, open)?)?;
        self.life.set_heartbeat(interval.unwrap_or(HEARTBEAT));
        let opened = v1::ServeOpened {
            responder_id: responder.id().into(),
            max_concurrent_requests: number(responder.serve().credit),
        };
        self.open = Some(Open { responder, hungry: true, refused: Vec::new(), end: None });
        self.say(Event::Opened(opened));
        Ok(())
    }

    /// Takes the frames that are there.
    fn read(&mut self) {
        for _ in 0..FRAMES {
            if self.events.is_due() || !self.broker.has_room_for_replies() {
                return;
            }
            match self.frames.message().now_or_never() {
                Some(frame) => self.incoming(frame),
                None => return,
            }
        }
    }

    fn incoming(&mut self, frame: Result<Option<v1::ServeRequest>, Status>) {
        let Some(open) = &mut self.open else { return };
        match frame {
            Ok(Some(v1::ServeRequest { action })) => {
                if let Err(error) = open.action(&self.broker, action) {
                    self.end(End::Fault(status(&error)));
                }
            }
            // Nothing will be answered any more.
            Ok(None) => self.events.end(),
            Err(status) => self.events.fail(status),
        }
    }

    /// Says which replies nobody got.
    fn refuse(&mut self) {
        let Some(open) = &mut self.open else { return };
        if !open.refused.is_empty() {
            let replies = std::mem::take(&mut open.refused);
            self.say(Event::Refused(v1::RefusedReplies { replies }));
        }
    }

    /// Says what is asked, and what is given up.
    fn deliver(&mut self) {
        let Some(open) = &mut self.open else { return };
        if !std::mem::take(&mut open.hungry) {
            return;
        }
        let (asked, request_ids) = open.responder.take(FRAME);
        if !request_ids.is_empty() {
            self.say(Event::Cancelled(v1::CancelledRequests { request_ids }));
        }
        if !asked.is_empty() {
            let requests = asked.iter().map(incoming).collect();
            self.say(Event::Requests(v1::IncomingRequests { requests }));
        }
    }

    fn end(&mut self, end: End) {
        let closing = |closing| v1::ServeResponse { event: Some(Event::Closing(closing)) };
        self.events.finish(end, closing);
    }
}

impl Open {
    fn drain(&mut self, end: End) {
        self.responder.drain();
        self.end.get_or_insert(end);
    }

    fn action(&mut self, broker: &Broker, action: Option<Action>) -> Result<(), CoreError> {
        match action {
            Some(Action::Replies(v1::ServeReplies { replies })) => {
                at_most_items("replies.replies", replies.len(), MAX_ITEMS)?;
                let intake = intake(broker, clock::unix_now());
                let service = &self.responder.serve().service;
                let answers = replies.into_iter().map(|reply| calls::Answer {
                    number: reply.request_id,
                    said: answered(intake, reply, service).unwrap_or_else(Said::Wrong),
                });
                let refused = self.responder.reply(answers.collect());
                self.refused.extend(refused.into_iter().map(refused_of));
                Ok(())
            }
            Some(Action::Drain(_)) => {
                self.drain(End::Done);
                Ok(())
            }
            Some(Action::Heartbeat(_)) => Ok(()),
            Some(Action::Open(_)) => Err(CoreError::invalid("open", "is the first frame alone")),
            None => Err(CoreError::invalid("action", "must be given")),
        }
    }
}

/// What a responder offers.
fn serve_of(broker: &Broker, open: v1::ServeOpen) -> Result<calls::Serve, CoreError> {
    let service = service_named(broker, "open.service", open.service)?;
    at_most("open.group", open.group.len(), NAME_BYTES)?;
    at_most("open.responder_id", open.responder_id.len(), NAME_BYTES)?;
    let field = "open.max_concurrent_requests";
    let credit = count(field, open.max_concurrent_requests, CREDIT, MAX_CREDIT)?;
    at_most_items("open.metadata", open.metadata.len(), METADATA)?;
    let bytes = open.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    at_most("open.metadata", bytes, METADATA_BYTES)?;
    let metadata = open.metadata.into_iter().map(|(key, value)| (key.into(), value.into()));
    let id = Some(ByteString::from(open.responder_id)).filter(|id| !id.is_empty());
    Ok(calls::Serve { service, group: open.group.into(), id, credit, metadata: metadata.collect() })
}

/// What a responder says to a request.
fn answered(
    intake: Intake<'_>,
    reply: v1::ServeReply,
    service: &crate::types::TopicName,
) -> Result<Said, CoreError> {
    let v1::ServeReply { message, error, more, .. } = reply;
    let Some(error) = error else {
        let message = said(intake, message, service).map_err(|error| error.within("message"))?;
        return Ok(if more { Said::Part(message) } else { Said::Last(message) });
    };
    if message.is_some() || more {
        return Err(CoreError::invalid("error", "stands alone"));
    }
    if error.code == 0 {
        return Err(CoreError::invalid("error.code", "0 is no error"));
    }
    at_most("error.message", error.message.len(), ERROR_BYTES)?;
    let details = match error.details.is_empty() {
        true => Bytes::new(),
        false => Bytes::from(error.encode_to_vec()),
    };
    at_most("error.details", details.len(), ERROR_BYTES + DETAIL_BYTES)?;
    Ok(Said::Fault(Fault { code: error.code, message: error.message.into(), details }))
}

fn refused_of(refused: ReplyRefused) -> v1::RefusedReply {
    let (reason, what) = (refused.reason(), refused.to_string());
    let (request_id, error) = match refused {
        ReplyRefused::Unknown(id)
        | ReplyRefused::Over(id)
        | ReplyRefused::Answered(id)
        | ReplyRefused::OneReply(id) => (id, CoreError::Precondition { reason, what }),
        ReplyRefused::Wrong { number, error } => (number, error),
    };
    v1::RefusedReply { request_id, error: Some(status::item(&error)) }
}

/// A request as its responder gets it.
fn incoming(asked: &Asked) -> v1::IncomingRequest {
    let calls::Request { message, deadline, caller, metadata, takes_parts, part, .. } = asked.request();
    let property = |(key, value): &(ByteString, ByteString)| v1::Property {
        key: key.to_string(),
        value: value.to_string(),
    };
    v1::IncomingRequest {
        request_id: asked.number,
        message: Some(content(message.clone())),
        deadline: deadline.map(timestamp),
        caller_id: caller.client_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        caller_address: caller.address.as_deref().unwrap_or_default().to_owned(),
        metadata: metadata.iter().map(property).collect(),
        takes_parts: *takes_parts,
        attempt: number(asked.attempt()),
        part: part.map(|part| v1::RequestPart { index: number(part.index), count: number(part.count) }),
    }
}
