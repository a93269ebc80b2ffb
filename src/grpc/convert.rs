//! Between the contract's messages and the core's types.
//!
//! What comes in is checked here and nowhere after; an error names the field by its path in the request. What goes
//! out is copied once, into the message that is encoded.

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use crate::core::{CoreError, Limits, Published};
use crate::types::{Extras, Message, MessageIds, Priority, Qos, TopicFilter, TopicName, UnixMillis};

use super::proto::v1;

/// Text and opaque bytes that MQTT carries behind a two-byte length.
const SHORT_BYTES: usize = 65_535;
/// What messages are ordered by.
const ORDERING_KEY_BYTES: usize = 256;
/// What names a message for its producer.
const DEDUP_ID_BYTES: usize = 128;
/// The largest `ttl`: what MQTT carries in four bytes.
const MAX_TTL: Duration = Duration::from_secs(u32::MAX as u64);

/// What a frame's messages have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intake<'a> {
    /// The bounds of the broker.
    pub(super) limits: &'a Limits,
    /// Names them.
    pub(super) ids: &'a MessageIds,
    /// When they came.
    pub(super) now: UnixMillis,
    /// That of a message before: one that reads the same is shared with it.
    pub(super) recent: Option<&'a TopicName>,
}

/// A message that may go in.
#[derive(Debug)]
pub(super) struct Accepted {
    /// The message.
    pub(super) message: Message,
    /// For queues with priorities.
    pub(super) priority: Priority,
    /// Not delivered earlier.
    pub(super) not_before: Option<UnixMillis>,
}

impl Intake<'_> {
    /// Checks a message. Without a topic of its own it has `topic`, or is refused.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] and [`CoreError::TooLarge`] with the field's path below the message.
    pub(super) fn message(
        &self,
        message: v1::Message,
        topic: Option<&TopicName>,
    ) -> Result<Accepted, CoreError> {
        let qos = match message.qos() {
            v1::Qos::Unspecified | v1::Qos::AtLeastOnce => Qos::AtLeastOnce,
            v1::Qos::AtMostOnce => Qos::AtMostOnce,
            v1::Qos::ExactlyOnce => {
                return Err(CoreError::invalid("qos", "exactly once is for MQTT sessions"));
            }
        };
        let extras = Self::extras(&message)?;
        let v1::Message {
            topic: own,
            payload,
            properties,
            content_type,
            correlation_data,
            ordering_key,
            dedup_id,
            ..
        } = message;
        let topic = match topic {
            Some(topic) if own.is_empty() => topic.clone(),
            _ => match self.recent.filter(|recent| recent.as_str() == own) {
                Some(recent) => recent.clone(),
                None => TopicName::parse(own.into()).map_err(|error| CoreError::topic("topic", &error))?,
            },
        };
        let expires_at = match message.ttl {
            Some(ttl) => Some(self.now.after(ttl_of(&ttl)?)),
            None => None,
        };
        let priority = match message.priority {
            None => Priority::default(),
            Some(level) => u8::try_from(level)
                .ok()
                .and_then(Priority::new)
                .ok_or_else(|| CoreError::invalid("priority", format!("{level} is not 0 to 9")))?,
        };
        let not_before = self.not_before(message.schedule)?;
        let extras = extras.map(|mut extras| {
            extras.content_type = some_text(content_type);
            extras.correlation_data = Some(correlation_data).filter(|data| !data.is_empty());
            extras.ordering_key = some_text(ordering_key);
            extras.dedup_id = some_text(dedup_id);
            extras.properties = properties.into_iter().map(|p| (p.key.into(), p.value.into())).collect();
            extras
        });
        let id = self.ids.next(self.now);
        let message = Message { id, topic, payload, qos, retain: message.retain, expires_at, extras };
        self.limits.check_message(&message)?;
        Ok(Accepted { message, priority, not_before })
    }

    /// The rare parts, checked; those that are moved out of the message come later.
    fn extras(message: &v1::Message) -> Result<Option<Box<Extras>>, CoreError> {
        let v1::Message {
            properties,
            content_type,
            reply_to,
            correlation_data,
            ordering_key,
            dedup_id,
            payload_is_utf8,
            ..
        } = message;
        let usual = properties.is_empty()
            && content_type.is_empty()
            && reply_to.is_empty()
            && correlation_data.is_empty()
            && ordering_key.is_empty()
            && dedup_id.is_empty()
            && !payload_is_utf8;
        if usual {
            return Ok(None);
        }
        for (at, v1::Property { key, value }) in properties.iter().enumerate() {
            for (part, text) in [("key", key), ("value", value)] {
                check_text(text)
                    .map_err(|what| CoreError::invalid(format!("properties[{at}].{part}"), what))?;
            }
        }
        check_text(content_type).map_err(|what| CoreError::invalid("content_type", what))?;
        at_most("correlation_data", correlation_data.len(), SHORT_BYTES)?;
        at_most("ordering_key", ordering_key.len(), ORDERING_KEY_BYTES)?;
        check_text(ordering_key).map_err(|what| CoreError::invalid("ordering_key", what))?;
        at_most("dedup_id", dedup_id.len(), DEDUP_ID_BYTES)?;
        check_text(dedup_id).map_err(|what| CoreError::invalid("dedup_id", what))?;
        let reply_to = match reply_to.as_str() {
            "" => None,
            name => {
                let parsed = TopicName::parse(name.into());
                Some(parsed.map_err(|error| CoreError::topic("reply_to", &error))?)
            }
        };
        Ok(Some(Box::new(Extras { payload_is_utf8: *payload_is_utf8, reply_to, ..Extras::default() })))
    }

    fn not_before(&self, schedule: Option<v1::message::Schedule>) -> Result<Option<UnixMillis>, CoreError> {
        let (field, at) = match schedule {
            None => return Ok(None),
            Some(v1::message::Schedule::Delay(delay)) => {
                let delay = duration("delay", &delay)?;
                ("delay", self.now.after(delay))
            }
            Some(v1::message::Schedule::DeliverAt(at)) => ("deliver_at", moment(&at)),
        };
        if at > self.now.after(self.limits.max_delay) {
            let days = self.limits.max_delay.as_secs() / 86_400;
            return Err(CoreError::invalid(field, format!("is more than {days} days ahead")));
        }
        Ok(Some(at).filter(|&at| at > self.now))
    }
}

fn some_text(text: String) -> Option<ByteString> {
    if text.is_empty() { None } else { Some(text.into()) }
}

/// Text as MQTT can carry it.
fn check_text(text: &str) -> Result<(), String> {
    if text.len() > SHORT_BYTES {
        return Err(format!("has {} bytes, at most {SHORT_BYTES} are allowed", text.len()));
    }
    match text.find('\0') {
        Some(at) => Err(format!("holds U+0000 at byte {at}")),
        None => Ok(()),
    }
}

/// # Errors
/// [`CoreError::TooLarge`] in bytes.
pub(super) fn at_most(field: &str, len: usize, max: usize) -> Result<(), CoreError> {
    if len > max {
        let (field, len, max) = (field.to_owned(), len as u64, max as u64);
        return Err(CoreError::TooLarge { field, len, max, unit: "bytes" });
    }
    Ok(())
}

/// Topic filters.
///
/// # Errors
/// [`CoreError::Invalid`] naming the place in `field`.
pub(super) fn filters(field: &str, filters: &[String]) -> Result<Vec<TopicFilter>, CoreError> {
    let parse = |(at, filter): (usize, &String)| {
        let parsed = TopicFilter::parse(filter.clone().into());
        parsed.map_err(|error| CoreError::topic(format!("{field}[{at}]"), &error))
    };
    filters.iter().enumerate().map(parse).collect()
}

/// A time that may be zero.
///
/// # Errors
/// [`CoreError::Invalid`] for a negative one or one whose parts contradict each other.
pub(super) fn duration(field: &str, duration: &prost_types::Duration) -> Result<Duration, CoreError> {
    Duration::try_from(*duration).map_err(|_| {
        CoreError::invalid(field, format!("{}.{:09} s is not a time", duration.seconds, duration.nanos))
    })
}

/// A time that was perhaps given, within `range`.
///
/// # Errors
/// [`CoreError::Invalid`] beyond the range.
pub(super) fn optional_duration(
    field: &str,
    given: Option<&prost_types::Duration>,
    range: std::ops::RangeInclusive<Duration>,
) -> Result<Option<Duration>, CoreError> {
    let Some(given) = given else { return Ok(None) };
    let given = duration(field, given)?;
    if !range.contains(&given) {
        let (from, to) = (range.start(), range.end());
        return Err(CoreError::invalid(field, format!("{given:?} is not within {from:?} and {to:?}")));
    }
    Ok(Some(given))
}

fn ttl_of(ttl: &prost_types::Duration) -> Result<Duration, CoreError> {
    let given = duration("ttl", ttl)?;
    let whole = Duration::from_secs(given.as_secs() + u64::from(given.subsec_nanos() > 0));
    if whole.is_zero() || whole > MAX_TTL {
        return Err(CoreError::invalid("ttl", "must be more than 0 and at most 4294967295 s"));
    }
    Ok(whole)
}

/// A moment; one before 1970 is 1970.
pub(super) fn moment(at: &prost_types::Timestamp) -> UnixMillis {
    let seconds = u64::try_from(at.seconds).unwrap_or(0);
    let millis = u64::try_from(at.nanos).unwrap_or(0) / 1_000_000;
    UnixMillis(seconds.saturating_mul(1000).saturating_add(millis))
}

/// The moment as the contract carries it.
pub(super) fn timestamp(moment: UnixMillis) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(moment.0 / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(moment.0 % 1000).unwrap_or(0) * 1_000_000,
    }
}

/// The time as the contract carries it.
pub(super) fn duration_of(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A message as a delivery repeats it, at `qos`.
pub(super) fn message(message: Message, qos: Qos, now: UnixMillis) -> v1::Message {
    v1::Message {
        topic: message.topic.as_str().to_owned(),
        qos: qos_of(qos).into(),
        retain: message.retain,
        ttl: message.expires_at.map(|at| duration_of(at.since(now))),
        ..content(message)
    }
}

/// What a message says, without where it was published and how.
pub(super) fn content(message: Message) -> v1::Message {
    let Extras {
        payload_is_utf8,
        content_type,
        reply_to,
        correlation_data,
        ordering_key,
        dedup_id,
        properties,
        ..
    } = message.extras.map_or_else(Extras::default, |extras| *extras);
    let text = |text: Option<ByteString>| text.map(String::from).unwrap_or_default();
    v1::Message {
        payload: message.payload,
        properties: properties
            .into_iter()
            .map(|(k, v)| v1::Property { key: k.into(), value: v.into() })
            .collect(),
        content_type: text(content_type),
        payload_is_utf8,
        reply_to: reply_to.map(|topic| topic.as_str().to_owned()).unwrap_or_default(),
        correlation_data: correlation_data.unwrap_or_else(Bytes::new),
        ordering_key: text(ordering_key),
        dedup_id: text(dedup_id),
        ..v1::Message::default()
    }
}

/// What became of a publish.
pub(super) fn published(published: &Published) -> v1::PublishResponse {
    v1::PublishResponse {
        message_id: published.id.to_string(),
        publish_time: Some(timestamp(published.id.time())),
        matched_subscribers: published.subscribers,
        matched_queues: published.queues,
        duplicate: published.duplicate,
        matched_streams: published.streams,
    }
}

/// What the broker added to a message.
pub(super) fn origin(message: &Message) -> v1::Origin {
    let publisher = message.extras.as_ref().and_then(|extras| extras.publisher.as_ref());
    v1::Origin {
        message_id: message.id.to_string(),
        publish_time: Some(timestamp(message.id.time())),
        publisher_id: publisher.map(|publisher| publisher.as_str().to_owned()).unwrap_or_default(),
    }
}

/// The level as the contract carries it.
pub(super) fn qos_of(qos: Qos) -> v1::Qos {
    match qos {
        Qos::AtMostOnce => v1::Qos::AtMostOnce,
        Qos::AtLeastOnce => v1::Qos::AtLeastOnce,
        Qos::ExactlyOnce => v1::Qos::ExactlyOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn take(change: impl FnOnce(&mut v1::Message)) -> Result<Accepted, CoreError> {
        let mut given = v1::Message { topic: "a/b".to_owned(), ..Default::default() };
        change(&mut given);
        let (limits, ids) = (Limits::default(), MessageIds::new());
        Intake { limits: &limits, ids: &ids, now: NOW, recent: None }.message(given, None)
    }

    fn wrong_field(change: impl FnOnce(&mut v1::Message)) -> String {
        match take(change) {
            Err(CoreError::Invalid { field, .. } | CoreError::TooLarge { field, .. }) => field,
            other => panic!("accepted: {other:?}"),
        }
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn an_error_names_the_field() {
        use v1::message::Schedule;
        let property = |key: &str| v1::Property { key: key.to_owned(), value: String::new() };
        assert_eq!(wrong_field(|m| m.topic.clear()), "topic");
        assert_eq!(wrong_field(|m| m.topic = "a/#".to_owned()), "topic");
        assert_eq!(wrong_field(|m| m.topic = "/".repeat(64)), "topic");
        assert_eq!(wrong_field(|m| m.payload = vec![0; (4 << 20) + 1].into()), "payload");
        assert_eq!(wrong_field(|m| m.properties = vec![property("a"), property("\0")]), "properties[1].key");
        assert_eq!(wrong_field(|m| m.properties = vec![property("a"); 65]), "properties");
        assert_eq!(wrong_field(|m| m.content_type = "a\0".to_owned()), "content_type");
        assert_eq!(wrong_field(|m| m.reply_to = "+".to_owned()), "reply_to");
        assert_eq!(wrong_field(|m| m.correlation_data = vec![0; 65_536].into()), "correlation_data");
        assert_eq!(wrong_field(|m| m.ordering_key = "x".repeat(257)), "ordering_key");
        assert_eq!(wrong_field(|m| m.ordering_key = "\0".to_owned()), "ordering_key");
        assert_eq!(wrong_field(|m| m.dedup_id = "x".repeat(129)), "dedup_id");
        assert_eq!(wrong_field(|m| m.dedup_id = "\0".to_owned()), "dedup_id");
        assert_eq!(wrong_field(|m| m.qos = v1::Qos::ExactlyOnce.into()), "qos");
        assert_eq!(wrong_field(|m| m.priority = Some(10)), "priority");
        assert_eq!(wrong_field(|m| m.ttl = seconds(0)), "ttl");
        assert_eq!(wrong_field(|m| m.ttl = seconds(-1)), "ttl");
        assert_eq!(wrong_field(|m| m.ttl = seconds(1 << 32)), "ttl");
        assert_eq!(wrong_field(|m| m.schedule = seconds(-1).map(Schedule::Delay)), "delay");
        assert_eq!(wrong_field(|m| m.schedule = seconds(367 * 86_400).map(Schedule::Delay)), "delay");
    }

    #[test]
    fn what_comes_in_goes_out() {
        let properties = vec![
            v1::Property { key: "k".to_owned(), value: "1".to_owned() },
            v1::Property { key: "k".to_owned(), value: "2".to_owned() },
        ];
        let given = v1::Message {
            topic: "a/b".to_owned(),
            payload: Bytes::from_static(b"x"),
            properties,
            content_type: "text/plain".to_owned(),
            payload_is_utf8: true,
            qos: v1::Qos::AtLeastOnce.into(),
            ttl: seconds(9),
            reply_to: "r".to_owned(),
            correlation_data: Bytes::from_static(b"c"),
            ordering_key: "o".to_owned(),
            dedup_id: "d".to_owned(),
            ..Default::default()
        };
        let taken = take(|message| *message = given.clone()).unwrap();
        assert_eq!(message(taken.message, Qos::AtLeastOnce, NOW), given);
    }

    #[test]
    fn a_ttl_is_rounded_up_and_a_past_schedule_is_now() {
        let half = Some(prost_types::Duration { seconds: 0, nanos: 500_000_000 });
        let past = v1::message::Schedule::DeliverAt(timestamp(UnixMillis(NOW.0 - 1)));
        let taken = take(|m| (m.ttl, m.schedule) = (half, Some(past))).unwrap();
        assert_eq!(taken.message.expires_at, Some(NOW.after(Duration::from_secs(1))));
        assert_eq!(taken.not_before, None);
        let later = v1::message::Schedule::DeliverAt(timestamp(UnixMillis(NOW.0 + 1)));
        assert_eq!(take(|m| m.schedule = Some(later)).unwrap().not_before, Some(UnixMillis(NOW.0 + 1)));
    }

    #[test]
    fn a_usual_message_has_no_extras() {
        assert_eq!(take(|_| {}).unwrap().message.extras, None);
    }
}
