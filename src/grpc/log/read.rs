//! `Read`: a stream from somewhere on.
//!
//! Invariant: nothing is read from the store before the client has read what was sent before, but for one frame.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{FutureExt, Stream};
use tonic::{Request, Status};

use crate::core::streams::read::{Item, Missing, Part, Reading, Start};
use crate::core::{Broker, CoreError};
use crate::engine::Logged;
use crate::grpc::bounds::FRAME;
use crate::grpc::convert::{message, moment, optional_duration, origin, timestamp};
use crate::grpc::proto::v1beta1;
use crate::grpc::proto::v1beta1::read_response::Event;
use crate::grpc::status::status;
use crate::grpc::stream::{Bounds, End, Events, HEARTBEAT_RANGE, Life, Served, Tick, run};
use crate::types::{Sequence, TopicFilter, UnixMillis, clock};

use super::definition::{cursor_name, state_of};

/// Serves one stream.
///
/// # Errors
/// As [`Broker::read_stream`], and [`CoreError::Invalid`].
#[expect(clippy::type_complexity, reason = "as the generated service names it")]
pub(super) fn serve(
    broker: &Arc<Broker>,
    bounds: Bounds,
    request: Request<v1beta1::ReadRequest>,
) -> Result<Pin<Box<dyn Stream<Item = Result<v1beta1::ReadResponse, Status>> + Send>>, CoreError> {
    let (_, extensions, request) = request.into_parts();
    let stream = broker.stream_named("stream", &request.stream)?;
    let filter = match request.topic_filter.as_str() {
        "" => None,
        text => {
            let filter = TopicFilter::parse(text.to_owned().into())
                .map_err(|error| CoreError::topic("topic_filter", &error))?;
            broker.limits().check_filter("topic_filter", &filter)?;
            Some(filter)
        }
    };
    let interval =
        optional_duration("heartbeat_interval", request.heartbeat_interval.as_ref(), HEARTBEAT_RANGE)?;
    let start = start_of(&request)?;
    let reading = broker.read_stream(&stream, &start, filter)?;
    let stats = broker.stream_stats(&stream)?;
    let mut life = Life::new(&extensions, bounds, broker.draining().clone());
    if let Some(interval) = interval {
        life.set_heartbeat(interval);
    }
    let mut events = Events::new();
    let opened = v1beta1::ReadOpened { start_sequence: reading.next().0, state: Some(state_of(&stats)) };
    events.say(v1beta1::ReadResponse { event: Some(Event::Opened(opened)) });
    Ok(run(Serving {
        reading,
        life,
        events,
        end: stats.ends.next,
        caught_up: false,
        follow: request.follow,
        left: if request.max_messages == 0 { u64::MAX } else { request.max_messages },
    }))
}

fn start_of(request: &v1beta1::ReadRequest) -> Result<Start, CoreError> {
    use v1beta1::StartFrom as From;
    let start = From::try_from(request.start)
        .map_err(|_| CoreError::invalid("start", format!("{} is no place to begin", request.start)))?;
    let (by_sequence, by_time) = (start == From::Sequence, start == From::Time);
    let by_cursor = matches!(start, From::Unspecified | From::Committed);
    for (field, said, wanted) in [
        ("sequence", request.sequence != 0, by_sequence),
        ("time", request.time.is_some(), by_time),
        ("cursor", !request.cursor.is_empty(), by_cursor),
    ] {
        if said && !wanted {
            return Err(CoreError::invalid(field, format!("does not go with {}", start.as_str_name())));
        }
    }
    Ok(match start {
        From::Unspecified if request.cursor.is_empty() => Start::First,
        From::Unspecified => Start::CommittedOrFirst(cursor_name("cursor", &request.cursor)?),
        From::First => Start::First,
        From::Last => Start::Last,
        From::New => Start::New,
        From::Sequence if request.sequence == 0 => {
            return Err(CoreError::invalid("sequence", "must be given; the first is 1"));
        }
        From::Sequence => Start::Sequence(Sequence(request.sequence)),
        From::Time => {
            let time = request.time.as_ref().ok_or_else(|| CoreError::invalid("time", "must be given"))?;
            Start::Time(moment(time))
        }
        From::Committed => Start::Committed(cursor_name("cursor", &request.cursor)?),
    })
}

struct Serving {
    reading: Reading,
    life: Life,
    events: Events<v1beta1::ReadResponse>,
    /// What was next when it was opened.
    end: Sequence,
    caught_up: bool,
    follow: bool,
    /// How many messages are still to be sent.
    left: u64,
}

impl Served for Serving {
    type Event = v1beta1::ReadResponse;

    fn said(&mut self) -> &mut Events<v1beta1::ReadResponse> {
        &mut self.events
    }

    async fn step(&mut self) {
        if let Some(tick) = self.life.next(None).now_or_never() {
            return self.on(tick);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(FRAME.messages);
        match self.reading.read(most, FRAME.bytes) {
            Ok(part) if part.moved => {
                self.tell(part);
                if !self.events.is_due() {
                    // All of it was passed over: others have their turn.
                    tokio::task::yield_now().await;
                }
                return;
            }
            Ok(_) if self.say_caught_up() => return,
            Ok(_) => {}
            Err(error) => return self.end(End::Fault(status(&error))),
        }
        let tick = tokio::select! {
            biased;
            () = self.reading.ready().heard() => return,
            tick = self.life.next(None) => tick,
        };
        self.on(tick);
    }
}

impl Serving {
    fn on(&mut self, tick: Tick) {
        match tick {
            Tick::Heartbeat(heartbeat) => self.say(Event::Heartbeat(heartbeat)),
            Tick::Due => {}
            Tick::Closing(closing) => self.end(End::Closing(closing)),
            Tick::Deadline(status) => self.events.fail(status),
        }
    }

    fn tell(&mut self, part: Part) {
        let now = clock::unix_now();
        let end = if self.follow { Sequence(u64::MAX) } else { self.end };
        let mut records = Vec::with_capacity(part.items.len());
        for item in part.items {
            match item {
                // What came while it was read is not asked for.
                Item::Message(Logged { sequence: from, .. }) | Item::Skipped { from, .. } if from >= end => {
                    break;
                }
                Item::Message(logged) => {
                    self.left -= 1;
                    records.push(record_of(logged, now));
                }
                Item::Skipped { from, to, why } => {
                    self.say_records(std::mem::take(&mut records));
                    let (from_sequence, to_sequence) = (from.0, to.0.min(end.0 - 1));
                    let reason = match why {
                        Missing::NotKept => v1beta1::SkipReason::NotKept,
                        Missing::Unreadable => v1beta1::SkipReason::Unreadable,
                    };
                    let reason = reason.into();
                    self.say(Event::Skipped(v1beta1::Skipped { from_sequence, to_sequence, reason }));
                }
            }
        }
        self.say_records(records);
        if self.left == 0 {
            self.end(End::Done);
        } else {
            self.say_caught_up();
        }
    }

    /// Says it if it is so for the first time.
    fn say_caught_up(&mut self) -> bool {
        if self.caught_up || self.reading.next() < self.end {
            return false;
        }
        self.caught_up = true;
        let next = self.reading.next();
        let next_sequence = if self.follow { next } else { next.min(self.end) }.0;
        self.say(Event::CaughtUp(v1beta1::CaughtUp { next_sequence }));
        if !self.follow {
            self.end(End::Done);
        }
        true
    }

    fn say_records(&mut self, records: Vec<v1beta1::Record>) {
        if !records.is_empty() {
            self.say(Event::Records(v1beta1::Records { records }));
        }
    }

    fn say(&mut self, event: Event) {
        self.life.said();
        self.events.say(v1beta1::ReadResponse { event: Some(event) });
    }

    fn end(&mut self, end: End) {
        self.events.finish(end, |closing| v1beta1::ReadResponse { event: Some(Event::Closing(closing)) });
    }
}

fn record_of(logged: Logged, now: UnixMillis) -> v1beta1::Record {
    let Logged { sequence, appended_at, message: stored } = logged;
    let qos = stored.qos;
    v1beta1::Record {
        sequence: sequence.0,
        append_time: Some(timestamp(appended_at)),
        origin: Some(origin(&stored)),
        message: Some(message(stored, qos, now)),
    }
}
