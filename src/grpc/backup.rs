//! `Backup`: its events while the engine makes it.
//!
//! Invariant: a client that goes away ends it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::Status;

use crate::core::backup::Backup;
use crate::core::{Broker, CoreError};

use super::convert::timestamp;
use super::proto::v1;
use super::proto::v1::backup_response::Event;
use super::status::status;

/// Between two events.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// The events of one call.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<v1::BackupResponse, Status>> + Send>>;

struct Making {
    broker: Arc<Broker>,
    backup: Backup,
    ticks: Interval,
    opened: bool,
}

/// Begins a backup.
///
/// # Errors
/// As [`Broker::back_up`].
pub(super) fn serve(broker: &Arc<Broker>, name: &str) -> Result<Events, CoreError> {
    let backup = broker.back_up(name)?;
    let mut ticks = interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let making = Making { broker: Arc::clone(broker), backup, ticks, opened: false };
    let events = stream::unfold(Some(making), async |making| {
        let mut making = making?;
        let (event, goes_on) = making.next().await;
        let event = event.map(|event| v1::BackupResponse { event: Some(event) });
        Some((event.map_err(|error| status(&error)), goes_on.then_some(making)))
    });
    Ok(events.boxed())
}

impl Making {
    /// What happens next, and whether something follows.
    async fn next(&mut self) -> (Result<Event, CoreError>, bool) {
        if !std::mem::replace(&mut self.opened, true) {
            return (Ok(Event::Opened(v1::BackupOpened {})), true);
        }
        tokio::select! {
            biased;
            ended = self.backup.ended() => {
                let done = ended.map(|done| Event::Done(v1::BackupDone {
                    path: done.path.to_string_lossy().into_owned(),
                    at: Some(timestamp(done.at)),
                    bytes: done.bytes,
                }));
                (done, false)
            }
            () = self.broker.draining().cancelled() => (Err(CoreError::Draining), false),
            _ = self.ticks.tick() => {
                let (done_bytes, total_bytes) = self.backup.progress();
                (Ok(Event::Progress(v1::BackupProgress { done_bytes, total_bytes })), true)
            }
        }
    }
}
