//! Subscriptions to a stream: `$replay/<start>/<filter>`, or `$replay/<start>:<stream>/<filter>`.
//!
//! One is a source of deliveries beside a session's backlog and queues. It lasts as long as its connection: who comes again
//! goes on in the stream that its deliveries named, behind the last sequence that it had.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytestring::ByteString;
use parking_lot::Mutex;

use super::StreamEntry;
use super::read::{Item, Missing, Reading, Start};
use crate::bell::Bell;
use crate::core::{Broker, CoreError};
use crate::engine::{Consumer, EngineError, Leased, Logged, SubscribeOptions};
use crate::types::{ClientId, Message, Priority, Sequence, StreamName, TargetId, TopicFilter, UnixMillis};

/// What begins a filter that subscribes to a stream.
pub(crate) const REPLAY_PREFIX: &str = "$replay/";
/// The user property of a delivery that has its sequence.
const SEQUENCE: &str = "stafett-sequence";
/// The user property of a delivery that names the stream.
const STREAM: &str = "stafett-stream";
/// The user property of a delivery before which some were not kept long enough: `from-to`.
const SKIPPED: &str = "stafett-skipped";
/// The same where some cannot be read.
const UNREADABLE: &str = "stafett-unreadable";
/// So many ranges are told with one delivery; what comes then belongs to the last one.
const RANGES: usize = 8;
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
    /// What a filter asks for that begins with [`REPLAY_PREFIX`]; `rest` is what follows. Where no stream is named, the first
    /// one by name is meant that gets all that is asked for.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for another form, [`CoreError::NotFound`] when there is no such stream.
    pub(in crate::core) fn asked_of_stream(&self, rest: &str) -> Result<Asked, CoreError> {
        let wrong = |what: String| CoreError::invalid("filter", what);
        let (from, filter) =
            rest.split_once('/').ok_or_else(|| wrong("must be `$replay/<start>/<filter>`".to_owned()))?;
        let (start, named) = start_in(from).ok_or_else(|| {
            let may = "first, last, new, a sequence, a time as in 2026-01-31T08:00:00Z, or @ and seconds since 1970";
            wrong(format!("`{from}` is no place to begin: it must be {may}, and may end with `:<stream>`"))
        })?;
        let filter = TopicFilter::parse(filter.to_owned().into())
            .map_err(|error| CoreError::topic("filter", &error))?;
        let stream = match named {
            Some(name) => self.stream_named("filter", name)?,
            None => self.streams.covering(&filter).ok_or_else(|| CoreError::NotFound {
                kind: "stream that covers",
                name: filter.to_string(),
            })?,
        };
        Ok(Asked { stream, start, filter })
    }

    /// Begins to read for a session of this name.
    pub(in crate::core) fn subscribe_stream(
        &self,
        asked: Asked,
        options: SubscribeOptions,
        client_id: &ClientId,
    ) -> Result<StreamSubscription, CoreError> {
        let reading = self.read_stream(&asked.stream, &asked.start, Some(asked.filter))?;
        // A number of its own: deliveries are told apart by it, and the same stream may be read twice. Targets of the engine have
        // those below.
        let id = TargetId(self.streams.numbers.fetch_add(1, Ordering::Relaxed) | NUMBERS);
        let bell = Arc::clone(reading.ready());
        let own = options.no_local.then(|| client_id.clone());
        let retains = options.retain_as_published;
        Ok(StreamSubscription { id, bell, own, retains, reading: Mutex::new((reading, Untold::default())) })
    }
}

/// Numbers of subscriptions begin here; those of the engine's targets lie below.
const NUMBERS: u32 = 1 << 31;

/// Whether this is the number of a subscription.
pub(in crate::core) fn is_subscription(id: TargetId) -> bool {
    id.0 >= NUMBERS
}

/// Where to begin, and in which stream if it is named. A time has colons of its own.
fn start_in(text: &str) -> Option<(Start, Option<&str>)> {
    if let Some(start) = start_of(text) {
        return Some((start, None));
    }
    let (start, stream) = text.rsplit_once(':')?;
    Some((start_of(start)?, Some(stream)))
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
    /// What this client published is passed over [MQTT-3.8.3-3].
    own: Option<ClientId>,
    /// The retain flag is handed on [MQTT-3.3.1-13].
    retains: bool,
    reading: Mutex<(Reading, Untold)>,
}

/// Places that were not given and that nobody was told of yet.
#[derive(Debug, Default)]
struct Untold(Vec<(Missing, Sequence, Sequence)>);

impl Untold {
    fn note(&mut self, why: Missing, from: Sequence, to: Sequence) {
        let is_full = self.0.len() == RANGES;
        match self.0.last_mut() {
            Some((last, _, end)) if *last == why && end.0 + 1 == from.0 || is_full => *end = to,
            _ => self.0.push((why, from, to)),
        }
    }

    fn tell(&mut self, properties: &mut Vec<(ByteString, ByteString)>) {
        for (why, from, to) in self.0.drain(..) {
            let name = match why {
                Missing::NotKept => SKIPPED,
                Missing::Unreadable => UNREADABLE,
            };
            properties.push((name.into(), format!("{}-{}", from.0, to.0).into()));
        }
    }
}

impl Consumer for StreamSubscription {
    fn take(&self, max: usize, max_bytes: usize, out: &mut Vec<Leased>) -> Result<(), EngineError> {
        let (reading, untold) = &mut *self.reading.lock();
        let (mut room, mut bytes) = (max, max_bytes);
        for _ in 0..PAGES {
            if room == 0 || bytes == 0 {
                return Ok(());
            }
            let part = reading.look(room.min(PAGE), bytes)?;
            for item in part.items {
                match item {
                    Item::Skipped { from, to, why } => untold.note(why, from, to),
                    Item::Message(logged) if self.is_own(&logged.message) => {}
                    Item::Message(logged) => {
                        room -= 1;
                        bytes = bytes.saturating_sub(logged.message.weight());
                        out.push(self.leased(logged, reading.stream().name(), untold));
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

impl StreamSubscription {
    fn is_own(&self, message: &Message) -> bool {
        let publisher = message.extras.as_ref().and_then(|extras| extras.publisher.as_ref());
        self.own.is_some() && self.own.as_ref() == publisher
    }

    fn leased(&self, logged: Logged, stream: &StreamName, untold: &mut Untold) -> Leased {
        let mut message = logged.message;
        let properties = &mut message.extras_mut().properties;
        // What a publisher says under these names would be taken for the broker's word.
        properties.retain(|(name, _)| ![SEQUENCE, STREAM, SKIPPED, UNREADABLE].contains(&&**name));
        properties.push((SEQUENCE.into(), logged.sequence.0.to_string().into()));
        properties.push((STREAM.into(), stream.to_byte_string()));
        untold.tell(properties);
        Leased {
            sequence: logged.sequence,
            attempt: 1,
            qos: message.qos,
            retain: message.retain && self.retains,
            priority: Priority::default(),
            lease_expires: None,
            outgoing: None,
            earlier_boot: false,
            message,
        }
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

    #[test]
    fn a_stream_is_named_behind_its_start() {
        let time = Start::Time(UnixMillis(17_000));
        assert_eq!(start_in("first"), Some((Start::First, None)));
        assert_eq!(start_in("first:log"), Some((Start::First, Some("log"))));
        assert_eq!(start_in("1970-01-01T00:00:17Z"), Some((time.clone(), None)));
        assert_eq!(start_in("1970-01-01T00:00:17Z:17"), Some((time, Some("17"))));
        for wrong in ["", ":", ":log", "log", "log:first", "first:log:more"] {
            assert_eq!(start_in(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_was_not_given_is_told_by_ranges() {
        let mut untold = Untold::default();
        let note = |untold: &mut Untold, why, from, to| untold.note(why, Sequence(from), Sequence(to));
        note(&mut untold, Missing::NotKept, 2, 3);
        note(&mut untold, Missing::NotKept, 4, 6);
        note(&mut untold, Missing::Unreadable, 7, 7);
        note(&mut untold, Missing::Unreadable, 9, 9);
        let mut told = Vec::new();
        untold.tell(&mut told);
        let of = |name: &str, range: &str| (ByteString::from(name), ByteString::from(range));
        assert_eq!(told, [of(SKIPPED, "2-6"), of(UNREADABLE, "7-7"), of(UNREADABLE, "9-9")]);
        for n in 0..20 {
            note(&mut untold, Missing::Unreadable, n * 2, n * 2);
        }
        told.clear();
        untold.tell(&mut told);
        assert_eq!((told.len(), told.last()), (RANGES, Some(&of(UNREADABLE, "14-38"))));
    }
}
