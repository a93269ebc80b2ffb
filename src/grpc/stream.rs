//! What every stream of this door has beside its work: heartbeats, a maximum age, the call's deadline, the stop.
//!
//! Invariant: a stream that the broker ends by plan says `closing` last; one that ends by the client's fault says
//! `closing` and then ends with that status.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};

use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Extensions, Status, Streaming};

use crate::core::CoreError;
use crate::core::queues::consumer::Window;
use crate::types::clock;

use super::convert::{duration_of, timestamp};
use super::deadline::{Deadline, exceeded};
use super::proto::v1;
use super::status::plain;

/// After so much silence the broker says that it is alive, when the client does not say otherwise.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(30);
/// What a client may say instead.
pub(super) const HEARTBEAT_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);
/// How long a client waits before it opens again a stream that has reached its age: it need not.
const AGED_RECONNECT: Duration = Duration::ZERO;
/// The same when the broker stops.
const STOPPED_RECONNECT: Duration = Duration::from_secs(1);
/// Later than anything.
const NEVER: Duration = Duration::from_secs(86_400 * 365 * 30);

/// What holds for every stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Then it ends, so that clients spread again; none: never.
    pub(super) max_age: Option<Duration>,
    /// Largest frame of a client, in bytes.
    pub(super) max_frame_bytes: u64,
    /// What waits for one stream of deliveries; beyond it QoS 0 is dropped, and above QoS 0 the stream ends.
    pub(super) mailbox: Window,
}

/// A stream that the broker serves: a machine that is turned when the peer can take more.
pub(super) trait Served: Send + 'static {
    /// What it says.
    type Event: Send + 'static;

    /// What it has to say.
    fn said(&mut self) -> &mut Events<Self::Event>;

    /// Waits for something to do and does it. Need not say anything.
    fn step(&mut self) -> impl Future<Output = ()> + Send;
}

/// Runs a stream inside the answer of its call: without a task or a channel of its own, and no further than the peer
/// reads. Dropped with the call.
pub(super) fn run<S: Served>(served: S) -> Pin<Box<dyn Stream<Item = Result<S::Event, Status>> + Send>> {
    stream::unfold(Box::new(served), async |mut served| {
        loop {
            if let Some(event) = served.said().queue.pop_front() {
                return Some((event, served));
            }
            if served.said().ended {
                return None;
            }
            served.step().await;
        }
    })
    .boxed()
}

/// What a stream has to say, in order.
#[derive(Debug)]
pub(super) struct Events<T> {
    queue: VecDeque<Result<T, Status>>,
    ended: bool,
}

impl<T> Events<T> {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { queue: VecDeque::new(), ended: false }
    }

    /// One event more.
    pub(super) fn say(&mut self, event: T) {
        self.queue.push_back(Ok(event));
    }

    /// Nothing follows.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Nothing follows but this status.
    pub(super) fn fail(&mut self, status: Status) {
        self.queue.push_back(Err(status));
        self.ended = true;
    }

    /// Says how it ends; `closing` makes the last event of what it is told.
    pub(super) fn finish(&mut self, end: End, closing: impl FnOnce(v1::StreamClosing) -> T) {
        match end {
            End::Done => {}
            End::Closing(why) => self.say(closing(why)),
            End::Fault(status) => {
                self.say(closing(closing_for(&status)));
                return self.fail(status);
            }
        }
        self.end();
    }

    /// Whether there is something to say, or nothing any more.
    pub(super) fn is_due(&self) -> bool {
        self.ended || !self.queue.is_empty()
    }
}

/// Why a stream takes no more; said when all that it has taken is answered.
#[derive(Debug)]
pub(super) enum End {
    /// The client is done.
    Done,
    /// By plan.
    Closing(v1::StreamClosing),
    /// Something is wrong.
    Fault(Status),
}

/// Why there was no first frame.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// The stream is over by plan before it began.
    Closing(v1::StreamClosing),
    /// It ends with this status.
    Failed(Status),
}

/// Waits for the first frame of a client, which says nothing to heartbeats until then.
pub(super) async fn first_frame<R>(frames: &mut Streaming<R>, life: &mut Life) -> Result<R, NotOpened> {
    loop {
        let tick = tokio::select! {
            biased;
            first = frames.message() => return match first {
                Ok(Some(frame)) => Ok(frame),
                Ok(None) => Err(NotOpened::Failed(must_open())),
                Err(status) => Err(NotOpened::Failed(status)),
            },
            tick = life.next(None) => tick,
        };
        match tick {
            Tick::Heartbeat(_) | Tick::Due => {}
            Tick::Closing(closing) => return Err(NotOpened::Closing(closing)),
            Tick::Deadline(status) => return Err(NotOpened::Failed(status)),
        }
    }
}

/// What a stream ends with that begins with another frame.
pub(super) fn must_open() -> Status {
    super::status::status(&CoreError::invalid("open", "must be the first frame"))
}

/// What the time or the operator wants of a stream.
#[derive(Debug)]
pub(super) enum Tick {
    /// Say that the broker is alive.
    Heartbeat(v1::Heartbeat),
    /// End by plan.
    Closing(v1::StreamClosing),
    /// The call's deadline has passed.
    Deadline(Status),
    /// The moment that the stream itself asked for has come.
    Due,
}

/// The timers of one stream.
#[derive(Debug)]
pub(super) struct Life {
    heartbeat: Duration,
    silent_until: Instant,
    age: Instant,
    deadline: Instant,
    stopping: CancellationToken,
    /// That it is to end by plan was said: that is not said again.
    closing: bool,
    sleep: Pin<Box<Sleep>>,
}

impl Life {
    /// Begins now.
    pub(super) fn new(extensions: &Extensions, bounds: Bounds, stopping: CancellationToken) -> Self {
        let now = Instant::now();
        let deadline = extensions.get::<Deadline>().map_or(now + NEVER, |deadline| deadline.0);
        let age = now + bounds.max_age.unwrap_or(NEVER);
        let silent_until = now + HEARTBEAT;
        Self {
            heartbeat: HEARTBEAT,
            silent_until,
            age,
            deadline,
            stopping,
            closing: false,
            sleep: Box::pin(sleep_until(now)),
        }
    }

    /// Heartbeats come after this much silence.
    pub(super) fn set_heartbeat(&mut self, interval: Duration) {
        self.heartbeat = interval;
        self.said();
    }

    /// Something was said.
    pub(super) fn said(&mut self) {
        self.silent_until = Instant::now() + self.heartbeat;
    }

    /// The next thing that the time wants; `due` is a moment of the stream's own.
    ///
    /// Cancel safe.
    pub(super) async fn next(&mut self, due: Option<Instant>) -> Tick {
        let own = due.unwrap_or(self.silent_until);
        let age = if self.closing { self.deadline } else { self.age };
        let at = self.silent_until.min(age).min(self.deadline).min(own);
        if self.sleep.deadline() != at {
            self.sleep.as_mut().reset(at);
        }
        tokio::select! {
            biased;
            () = self.stopping.cancelled(), if !self.closing => {
                self.closing = true;
                let why = "the broker is shutting down";
                return Tick::Closing(closing(plain(Code::Unavailable, why), Some(STOPPED_RECONNECT)));
            }
            () = &mut self.sleep => {}
        }
        let now = Instant::now();
        if now >= self.deadline {
            Tick::Deadline(exceeded())
        } else if now >= age {
            self.closing = true;
            let why = "the stream has reached its maximum age";
            Tick::Closing(closing(plain(Code::Unavailable, why), Some(AGED_RECONNECT)))
        } else if due.is_some_and(|due| now >= due) {
            Tick::Due
        } else {
            self.said();
            Tick::Heartbeat(v1::Heartbeat { server_time: Some(timestamp(clock::unix_now())) })
        }
    }
}

/// The last event of a stream that ends by the client's fault, or ours.
fn closing_for(status: &Status) -> v1::StreamClosing {
    closing(super::status::of_status(status), None)
}

fn closing(status: tonic_types::pb::Status, reconnect_after: Option<Duration>) -> v1::StreamClosing {
    v1::StreamClosing { status: Some(status), reconnect_after: reconnect_after.map(duration_of) }
}
