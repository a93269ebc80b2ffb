//! `WatchQueueStats`: the counts of a queue, again and again.
//!
//! Invariant: a client that does not read is not counted for: the next counts are taken when it has read the last ones.

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::time::Instant;
use tonic::{Request, Status};

use crate::core::queues::QueueEntry;
use crate::core::queues::inspect::QueueStats;
use crate::core::{Broker, CoreError};
use crate::grpc::convert::{duration_of, optional_duration};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::watch_queue_stats_response::Event;
use crate::grpc::status::status;
use crate::grpc::stream::{Bounds, End, Events, Life, Served, Tick, run};
use crate::types::clock;

/// What a client may ask for.
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
/// The interval when it does not say.
const INTERVAL: Duration = Duration::from_secs(1);

/// Serves one stream.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Invalid`] for the interval.
#[expect(clippy::type_complexity, reason = "as the generated service names it")]
pub(super) fn serve(
    broker: &Arc<Broker>,
    bounds: Bounds,
    request: Request<v1::WatchQueueStatsRequest>,
) -> Result<Pin<Box<dyn Stream<Item = Result<v1::WatchQueueStatsResponse, Status>> + Send>>, CoreError> {
    let (_, extensions, request) = request.into_parts();
    let queue = broker.queue_named("name", &request.name)?;
    let interval = optional_duration("interval", request.interval.as_ref(), INTERVALS)?.unwrap_or(INTERVAL);
    let mut life = Life::new(&extensions, bounds, broker.draining().clone());
    // The counts say that the broker is alive.
    life.set_heartbeat(interval);
    Ok(run(Watching {
        broker: Arc::clone(broker),
        queue,
        interval,
        life,
        due: Instant::now(),
        events: Events::new(),
    }))
}

struct Watching {
    broker: Arc<Broker>,
    queue: Arc<QueueEntry>,
    interval: Duration,
    life: Life,
    due: Instant,
    events: Events<v1::WatchQueueStatsResponse>,
}

impl Served for Watching {
    type Event = v1::WatchQueueStatsResponse;

    fn said(&mut self) -> &mut Events<v1::WatchQueueStatsResponse> {
        &mut self.events
    }

    async fn step(&mut self) {
        match self.life.next(Some(self.due)).await {
            Tick::Due => match self.broker.queue_stats(&self.queue).await {
                Ok(counted) => {
                    // A client that reads late is not sent what it has missed.
                    self.due = (self.due + self.interval).max(Instant::now());
                    self.life.said();
                    let event = Some(Event::Stats(stats(counted)));
                    self.events.say(v1::WatchQueueStatsResponse { event });
                }
                Err(error) => self.end(End::Fault(status(&error))),
            },
            Tick::Heartbeat(_) => {}
            Tick::Closing(closing) => self.end(End::Closing(closing)),
            Tick::Deadline(status) => self.events.fail(status),
        }
    }
}

impl Watching {
    fn end(&mut self, end: End) {
        self.events
            .finish(end, |closing| v1::WatchQueueStatsResponse { event: Some(Event::Closing(closing)) });
    }
}

/// The counts as the contract says them.
pub(super) fn stats(QueueStats { counts, oldest }: QueueStats) -> v1::QueueStats {
    v1::QueueStats {
        ready: counts.ready,
        delayed: counts.delayed,
        leased: counts.leased,
        bytes: counts.bytes,
        oldest_age: oldest.map(|at| duration_of(clock::unix_now().since(at))),
        enqueued_total: counts.enqueued_total,
        acked_total: counts.acked_total,
        dead_lettered_total: counts.dead_lettered_total,
        expired_total: counts.expired_total,
        consumers: counts.consumers,
        dropped_total: counts.dropped_total,
        replaced_total: counts.replaced_total,
    }
}
