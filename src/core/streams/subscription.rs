//! Subscriptions to a stream: `$replay/<start>/<filter>`.
//!
//! One is a source of deliveries beside a session's backlog and queues. It lasts as long as its connection: who comes again
//! goes on behind the last sequence that it had, by another start.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::StreamEntry;
use super::read::{Item, Reading, Start};
use crate::bell::Bell;
use crate::core::{Broker, CoreError};
use crate::engine::{Consumer, EngineError, Leased};
use crate::types::{Priority, Sequence, TargetId, TopicFilter, UnixMillis};

/// What begins a filter that subscribes to a stream.
pub(crate) const REPLAY_PREFIX: &str = "$replay/";
/// The user property of a delivery that has its sequence.
const SEQUENCE: &str = "stafett-sequence";
/// The user property of a delivery before which some were not kept long enough: `from-to`.
const SKIPPED: &str = "stafett-skipped";
/// Pages that are looked at in a row when nothing in them is wanted.
const PAGES: usize = 8;
/// Messages of one of them.
const PAGE: usize = 256;

/// What a filter of the form asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    stream: Arc<StreamEntry>,
    start: Start,
    filter: TopicFilter,
}

impl Broker {
    /// What a filter asks for that begins with [`REPLAY_PREFIX`]; `rest` is what follows.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for another form, [`CoreError::NotFound`] when no stream gets all that is asked for.
    pub(in crate::core) fn asked_of_stream(&self, rest: &str) -> Result<Asked, CoreError> {
        let wrong = |what: String| CoreError::invalid("filter", what);
        let (start, filter) =
            rest.split_once('/').ok_or_else(|| wrong("must be `$replay/<start>/<filter>`".to_owned()))?;
        let start = start_of(start).ok_or_else(|| {
            let may = "first, last, new, a sequence, a time as in 2026-01-31T08:00:00Z, or @ and seconds since 1970";
            wrong(format!("`{start}` is no place to begin: it must be {may}"))
        })?;
        let filter = TopicFilter::parse(filter.to_owned().into())
            .map_err(|error| CoreError::topic("filter", &error))?;
        let stream = self
            .streams
            .covering(&filter)
            .ok_or_else(|| CoreError::NotFound { kind: "stream that covers", name: filter.to_string() })?;
        Ok(Asked { stream, start, filter })
    }

    /// Begins to read.
    pub(in crate::core) fn subscribe_stream(&self, asked: Asked) -> Result<StreamSubscription, CoreError> {
        let reading = self.read_stream(&asked.stream, &asked.start, Some(asked.filter))?;
        // A number of its own: deliveries are told apart by it, and the same stream may be read twice. Targets of the engine have
        // those below.
        let id = TargetId(self.streams.numbers.fetch_add(1, Ordering::Relaxed) | 1 << 31);
        let bell = Arc::clone(reading.ready());
        Ok(StreamSubscription { id, bell, reading: Mutex::new((reading, None)) })
    }
}

fn start_of(text: &str) -> Option<Start> {
    let time = |at: SystemTime| {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Start::Time(UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
    };
    match text {
        "first" => Some(Start::First),
        "last" => Some(Start::Last),
        "new" => Some(Start::New),
        _ => match text.strip_prefix('@') {
            Some(seconds) => UNIX_EPOCH.checked_add(Duration::from_secs(seconds.parse().ok()?)).map(time),
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().ok().map(|sequence| Start::Sequence(Sequence(sequence)))
            }
            None => humantime::parse_rfc3339(text).ok().map(time),
        },
    }
}

/// One subscription to a stream. Nothing is leased: what was taken and is lost with the connection is read again by who
/// subscribes again.
pub(crate) struct StreamSubscription {
    id: TargetId,
    bell: Arc<Bell>,
    /// With the places that were skipped and not told yet.
    reading: Mutex<(Reading, Option<(Sequence, Sequence)>)>,
}

impl Consumer for StreamSubscription {
    fn take(&self, max: usize, max_bytes: usize, out: &mut Vec<Leased>) -> Result<(), EngineError> {
        let (reading, skipped) = &mut *self.reading.lock();
        let (mut room, mut bytes) = (max, max_bytes);
        for _ in 0..PAGES {
            if room == 0 || bytes == 0 {
                return Ok(());
            }
            let part = reading.look(room.min(PAGE), bytes)?;
            for item in part.items {
                match item {
                    Item::Skipped { from, to } => {
                        let from = skipped.map_or(from, |(first, _)| first);
                        *skipped = Some((from, to));
                    }
                    Item::Message(logged) => {
                        room -= 1;
                        bytes = bytes.saturating_sub(logged.message.weight());
                        out.push(leased(logged, skipped.take()));
                    }
                }
            }
            if !part.moved {
                return Ok(());
            }
        }
        // There may be more behind what was passed over: after others.
        self.bell.ring();
        Ok(())
    }

    fn is_active(&self) -> bool {
        true
    }

    fn is_preferred(&self) -> bool {
        false
    }

    fn is_reading(&self) -> bool {
        false
    }

    fn ready(&self) -> &Bell {
        &self.bell
    }

    fn outgoing(&self) -> Vec<u16> {
        Vec::new()
    }

    fn release_all(&self, _counted: bool) {}

    fn target(&self) -> TargetId {
        self.id
    }
}

fn leased(logged: crate::engine::Logged, skipped: Option<(Sequence, Sequence)>) -> Leased {
    let mut message = logged.message;
    let properties = &mut message.extras_mut().properties;
    properties.push((SEQUENCE.into(), logged.sequence.0.to_string().into()));
    if let Some((from, to)) = skipped {
        properties.push((SKIPPED.into(), format!("{}-{}", from.0, to.0).into()));
    }
    Leased {
        sequence: logged.sequence,
        attempt: 1,
        qos: message.qos,
        retain: false,
        priority: Priority::default(),
        lease_expires: None,
        outgoing: None,
        earlier_boot: false,
        message,
    }
}

impl fmt::Debug for StreamSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSubscription").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_word_a_number_or_a_time() {
        assert_eq!(start_of("first"), Some(Start::First));
        assert_eq!(start_of("last"), Some(Start::Last));
        assert_eq!(start_of("new"), Some(Start::New));
        assert_eq!(start_of("17"), Some(Start::Sequence(Sequence(17))));
        assert_eq!(start_of("@17"), Some(Start::Time(UnixMillis(17_000))));
        assert_eq!(start_of("1970-01-01T00:00:17Z"), Some(Start::Time(UnixMillis(17_000))));
        for wrong in ["", "+", "#", "-1", "@", "@-1", "99999999999999999999", "yesterday", "2026-01-31"] {
            assert_eq!(start_of(wrong), None, "{wrong}");
        }
    }
}
