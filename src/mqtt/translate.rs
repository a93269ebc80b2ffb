//! Between the packets and the core's messages and subscriptions.
//!
//! User properties pass through unchanged and in order. Four of them mean something in a PUBLISH to `$queue/<name>`, as
//! 5.0 has no field for it:
//!
//! | user property | value |
//! |---|---|
//! | `stafett-priority` | 0 (lowest) to 9, in queues with priorities; without it 4 |
//! | `stafett-delay` | milliseconds until the message may be delivered |
//! | `stafett-ordering-key` | 1 to 256 bytes: messages with the same come one at a time, in their order |
//! | `stafett-dedup-id` | 1 to 128 bytes: sent again within the window of the queue it is not stored again |
//!
//! 3.1.1 has no user properties: a PUBLISH to `$delayed/<seconds>/<topic>` is one to `<topic>`, due so many seconds later.
//! Only what goes to queues alone can be delayed.
//!
//! Knows neither connections nor sessions.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use smallvec::SmallVec;

use super::codec::{
    self, PayloadFormat, PublishProperties, PublishRef, SubscribeFilter, SubscriptionId, WillProperties,
};
use crate::core::{CoreError, Inbound, Will};
use crate::engine::{RetainHandling, SubscribeOptions};
use crate::types::topic::FilterSpec;
use crate::types::{Extras, Message, MessageId, Priority, Qos, TopicName, UnixMillis};

/// The longest key that messages are ordered by.
const ORDERING_KEY_BYTES: usize = 256;
/// The longest name that a producer gives a message.
const DEDUP_ID_BYTES: usize = 128;
/// What begins the topic of a message that goes straight into a queue.
const QUEUE_PREFIX: &str = "$queue/";
/// What begins the topic of a message that is delayed.
const DELAYED_PREFIX: &str = "$delayed/";
/// The user property that gives a message its priority.
const PRIORITY: &str = "stafett-priority";
/// The user property that delays a message.
const DELAY: &str = "stafett-delay";
/// The user property by which messages are ordered.
const ORDERING_KEY: &str = "stafett-ordering-key";
/// The user property by which queues know a message when it comes again.
const DEDUP_ID: &str = "stafett-dedup-id";

/// The core's word for a quality of service.
pub(super) const fn qos(qos: codec::Qos) -> Qos {
    match qos {
        codec::Qos::AtMostOnce => Qos::AtMostOnce,
        codec::Qos::AtLeastOnce => Qos::AtLeastOnce,
        codec::Qos::ExactlyOnce => Qos::ExactlyOnce,
    }
}

/// The protocol's word for a quality of service.
pub(super) const fn wire_qos(qos: Qos) -> codec::Qos {
    match qos {
        Qos::AtMostOnce => codec::Qos::AtMostOnce,
        Qos::AtLeastOnce => codec::Qos::AtLeastOnce,
        Qos::ExactlyOnce => codec::Qos::ExactlyOnce,
    }
}

/// The session expiry of 5.0: all ones is for ever.
pub(super) const fn session_expiry(seconds: u32) -> Duration {
    match seconds {
        u32::MAX => Duration::MAX,
        seconds => Duration::from_secs(seconds as u64),
    }
}

/// The reverse, for what the server decided.
pub(super) fn session_expiry_seconds(expiry: Duration) -> u32 {
    u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX)
}

/// A PUBLISH as a message. Its topic was resolved by the caller.
pub(super) fn message(publish: codec::Publish, topic: TopicName, now: UnixMillis) -> Message {
    let mut message = Message {
        // The publisher gives it one.
        id: MessageId::from_u128(0),
        topic,
        payload: publish.payload,
        qos: qos(publish.qos),
        retain: publish.retain,
        expires_at: None,
        extras: None,
    };
    if let Some(properties) = publish.properties {
        let PublishProperties {
            payload_format,
            message_expiry,
            topic_alias: _,
            response_topic,
            correlation_data,
            subscription_ids: _,
            content_type,
            user_properties,
        } = *properties;
        message.expires_at = message_expiry.map(|seconds| now.after(Duration::from_secs(seconds.into())));
        message.extras =
            extras(payload_format, content_type, response_topic, correlation_data, user_properties);
    }
    message
}

/// A will as the message to publish, with the delay that was asked for.
///
/// # Errors
/// [`CoreError::Invalid`].
pub(super) fn will(will: codec::Will) -> Result<Will, CoreError> {
    let topic = TopicName::parse(will.topic).map_err(|error| CoreError::topic("will topic", &error))?;
    let mut message = Message {
        id: MessageId::from_u128(0),
        topic,
        payload: will.payload,
        qos: qos(will.qos),
        retain: will.retain,
        expires_at: None,
        extras: None,
    };
    let WillProperties {
        delay,
        payload_format,
        message_expiry,
        content_type,
        response_topic,
        correlation_data,
        user_properties,
    } = will.properties;
    message.extras = extras(payload_format, content_type, response_topic, correlation_data, user_properties);
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let delay = delay.map_or(Duration::ZERO, seconds);
    Ok(Will::new(Inbound::new(message, 0), delay, message_expiry.map(seconds)))
}

/// What a message and a will carry alike, if it is anything.
fn extras(
    payload_format: Option<PayloadFormat>,
    content_type: Option<ByteString>,
    response_topic: Option<ByteString>,
    correlation_data: Option<Bytes>,
    properties: Vec<(ByteString, ByteString)>,
) -> Option<Box<Extras>> {
    let extras = Extras {
        payload_is_utf8: payload_format == Some(PayloadFormat::Utf8),
        content_type,
        // The codec has checked it: it is not empty and has no wildcard.
        reply_to: response_topic.and_then(|topic| TopicName::parse(topic).ok()),
        correlation_data,
        properties,
        ..Extras::default()
    };
    (extras != Extras::default()).then(|| Box::new(extras))
}

/// What a publish asks of the queues that it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) priority: Priority,
    /// Not delivered earlier.
    pub(super) not_before: Option<UnixMillis>,
}

/// Takes `$delayed/<seconds>/` off a topic.
///
/// # Errors
/// [`CoreError::Invalid`].
pub(super) fn delayed(topic: TopicName) -> Result<(TopicName, Option<Duration>), CoreError> {
    let Some(rest) = topic.as_str().strip_prefix(DELAYED_PREFIX) else { return Ok((topic, None)) };
    let parts = rest.split_once('/').and_then(|(seconds, rest)| Some((seconds.parse().ok()?, rest)));
    let Some((seconds, rest)) = parts else {
        return Err(CoreError::invalid("topic", "must be `$delayed/<seconds>/<topic>`"));
    };
    let rest = TopicName::parse(topic.to_byte_string().slice_ref(rest));
    Ok((rest.map_err(|error| CoreError::topic("topic", &error))?, Some(Duration::from_secs(seconds))))
}

/// What `message` asks for: `delay` by its topic, the rest by user properties if it goes straight into a queue. What it
/// asks for to keep it is put where the core looks for it.
///
/// # Errors
/// [`CoreError::Invalid`] naming the user property, or the topic.
pub(super) fn wishes(
    message: &mut Message,
    delay: Option<Duration>,
    max_delay: Duration,
    now: UnixMillis,
) -> Result<Wishes, CoreError> {
    let mut wishes = Wishes { priority: Priority::default(), not_before: None };
    let mut wait = |field: &str, delay: Duration| {
        if delay > max_delay {
            let days = max_delay.as_secs() / 86_400;
            return Err(CoreError::invalid(field, format!("delays by more than {days} days")));
        }
        wishes.not_before = (!delay.is_zero()).then(|| now.after(delay));
        Ok(())
    };
    if let Some(delay) = delay {
        wait("topic", delay)?;
    }
    let Some(extras) = &mut message.extras else { return Ok(wishes) };
    if !message.topic.as_str().starts_with(QUEUE_PREFIX) {
        return Ok(wishes);
    }
    let Extras { properties, ordering_key, dedup_id, .. } = &mut **extras;
    for (name, value) in properties {
        match &**name {
            PRIORITY => {
                let level = value.parse().ok().and_then(Priority::new);
                wishes.priority = level.ok_or_else(|| CoreError::invalid(PRIORITY, "must be 0 to 9"))?;
            }
            DELAY => {
                let delay = value.parse().map_err(|_| CoreError::invalid(DELAY, "must be milliseconds"))?;
                wait(DELAY, Duration::from_millis(delay))?;
            }
            ORDERING_KEY => *ordering_key = Some(word(ORDERING_KEY, value, ORDERING_KEY_BYTES)?),
            DEDUP_ID => *dedup_id = Some(word(DEDUP_ID, value, DEDUP_ID_BYTES)?),
            _ => {}
        }
    }
    Ok(wishes)
}

/// A text that is not empty.
fn word(field: &str, value: &ByteString, max: usize) -> Result<ByteString, CoreError> {
    if value.is_empty() || value.len() > max {
        return Err(CoreError::invalid(field, format!("must have 1 to {max} bytes")));
    }
    Ok(value.clone())
}

/// A filter of SUBSCRIBE with its options and the packet's identifier.
///
/// # Errors
/// [`CoreError::Invalid`].
pub(super) fn subscription(
    asked: &SubscribeFilter,
    identifier: Option<SubscriptionId>,
) -> Result<(FilterSpec, SubscribeOptions), CoreError> {
    let options = SubscribeOptions {
        upgrade_qos: false,
        max_qos: qos(asked.options.qos),
        no_local: asked.options.no_local,
        retain_as_published: asked.options.retain_as_published,
        retain_handling: match asked.options.retain_handling {
            codec::RetainHandling::Send => RetainHandling::Send,
            codec::RetainHandling::SendIfNew => RetainHandling::SendIfNew,
            codec::RetainHandling::DoNotSend => RetainHandling::DoNotSend,
        },
        identifier: identifier.and_then(|identifier| NonZeroU32::new(identifier.get())),
    };
    Ok((filter(&asked.filter)?, options))
}

/// A filter of SUBSCRIBE or UNSUBSCRIBE.
///
/// # Errors
/// [`CoreError::Invalid`].
pub(super) fn filter(text: &ByteString) -> Result<FilterSpec, CoreError> {
    FilterSpec::parse(text).map_err(|error| CoreError::topic("filter", &error))
}

/// How one subscriber gets a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery<'a> {
    pub(super) message: &'a Message,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) dup: bool,
    pub(super) packet_id: Option<NonZeroU16>,
    pub(super) identifiers: &'a [NonZeroU32],
}

impl Delivery<'_> {
    /// Calls `with` with the PUBLISH. `expiry` is what is left of the message's time.
    pub(super) fn with<T>(&self, expiry: Option<u32>, with: impl FnOnce(&PublishRef<'_>) -> T) -> T {
        let Self { message, .. } = *self;
        let mut publish = PublishRef {
            dup: self.dup,
            qos: wire_qos(self.qos),
            retain: self.retain,
            topic: message.topic.as_str(),
            packet_id: self.packet_id,
            message_expiry: expiry,
            payload: &message.payload,
            ..PublishRef::default()
        };
        let identifiers: SmallVec<[SubscriptionId; 4]>;
        if !self.identifiers.is_empty() {
            identifiers = self.identifiers.iter().filter_map(|id| SubscriptionId::new(id.get())).collect();
            publish.subscription_ids = &identifiers;
        }
        if let Some(extras) = &message.extras {
            publish.payload_format = extras.payload_is_utf8.then_some(PayloadFormat::Utf8);
            publish.response_topic = extras.reply_to.as_ref().map(TopicName::as_str);
            publish.correlation_data = extras.correlation_data.as_deref();
            publish.content_type = extras.content_type.as_deref();
            publish.user_properties = &extras.properties;
        }
        with(&publish)
    }

    /// What is left of the message's time, in seconds begun; `None` when it is over.
    pub(super) fn remaining(&self, now: UnixMillis) -> Option<Option<u32>> {
        let Some(at) = self.message.expires_at else { return Some(None) };
        let left = at.since(now).as_millis();
        (left > 0).then(|| Some(u32::try_from(left.div_ceil(1000)).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn publish(topic: &str, properties: PublishProperties) -> codec::Publish {
        codec::Publish {
            dup: true,
            qos: codec::Qos::AtLeastOnce,
            retain: true,
            topic: topic.into(),
            packet_id: NonZeroU16::new(7),
            properties: Some(Box::new(properties)),
            payload: Bytes::from_static(b"x"),
        }
    }

    fn parsed(publish: codec::Publish, now: UnixMillis) -> Message {
        let topic = TopicName::parse(publish.topic.clone()).unwrap();
        message(publish, topic, now)
    }

    #[test]
    fn properties_pass_through_in_order() {
        let pair = |key: &str, value: &str| (ByteString::from(key), ByteString::from(value));
        let properties = PublishProperties {
            payload_format: Some(PayloadFormat::Utf8),
            message_expiry: Some(60),
            response_topic: Some("re/ply".into()),
            correlation_data: Some(Bytes::from_static(&[1, 2])),
            content_type: Some("text/plain".into()),
            user_properties: vec![pair("b", "1"), pair("a", "2"), pair("b", "1")],
            ..PublishProperties::default()
        };
        let now = UnixMillis(1_000_000);
        let message = parsed(publish("a/b", properties.clone()), now);
        assert_eq!((message.qos, message.retain), (Qos::AtLeastOnce, true));
        let delivery = Delivery {
            message: &message,
            qos: Qos::AtMostOnce,
            retain: false,
            dup: false,
            packet_id: None,
            identifiers: &[NonZeroU32::MIN],
        };
        // [MQTT-3.3.2-4], [MQTT-3.3.2-15] to [MQTT-3.3.2-18], [MQTT-3.3.2-20], [MQTT-3.3.1-3]
        // [MQTT-3.3.2-6]: 1.5 of 60 seconds have passed.
        let left = delivery.remaining(UnixMillis(1_001_500)).unwrap();
        delivery.with(left, |sent| {
            assert_eq!((sent.dup, sent.retain, sent.qos), (false, false, codec::Qos::AtMostOnce));
            assert_eq!(sent.message_expiry, Some(59));
            assert_eq!(sent.payload_format, properties.payload_format);
            assert_eq!(sent.response_topic, properties.response_topic.as_deref());
            assert_eq!(sent.correlation_data, properties.correlation_data.as_deref());
            assert_eq!(sent.content_type, properties.content_type.as_deref());
            assert_eq!(sent.user_properties, properties.user_properties);
            assert_eq!(sent.subscription_ids, [SubscriptionId::new(1).unwrap()]);
        });
        // [MQTT-3.3.2-5]
        assert_eq!(delivery.remaining(UnixMillis(1_060_000)), None);
    }

    #[test]
    fn a_plain_message_is_small() {
        let message = parsed(publish("a/b", PublishProperties::default()), UnixMillis(1));
        assert_eq!((message.extras, message.expires_at), (None, None));
    }

    #[test]
    fn what_a_queue_is_asked_for() {
        let asked = |topic: &str, name: &str, value: &str| {
            let user_properties = vec![(name.into(), value.into())];
            let properties = PublishProperties { user_properties, ..PublishProperties::default() };
            let mut message = parsed(publish(topic, properties), UnixMillis(0));
            let wishes = wishes(&mut message, None, Duration::from_secs(10), UnixMillis(1000))?;
            Ok::<_, CoreError>((wishes.priority.level(), wishes.not_before))
        };
        assert_eq!(asked("$queue/q", PRIORITY, "9").unwrap(), (9, None));
        assert_eq!(asked("$queue/q", DELAY, "1500").unwrap(), (4, Some(UnixMillis(2500))));
        assert_eq!(asked("$queue/q", "other", "x").unwrap(), (4, None));
        let wrong = [
            (PRIORITY, "10"),
            (PRIORITY, ""),
            (DELAY, "1s"),
            (DELAY, "-1"),
            (DELAY, "10001"),
            (DEDUP_ID, ""),
            (ORDERING_KEY, ""),
        ];
        for (name, value) in wrong {
            assert!(asked("$queue/q", name, value).unwrap_err().to_string().starts_with(name));
        }
        // Elsewhere they are a publisher's own business.
        assert_eq!(asked("a/b", PRIORITY, "x").unwrap(), (4, None));
    }

    #[test]
    fn a_topic_may_delay() {
        let parts = |text: &str| {
            let (topic, delay) = delayed(TopicName::parse(text.into()).unwrap())?;
            Ok::<_, CoreError>((topic.to_string(), delay.map(|delay| delay.as_secs())))
        };
        assert_eq!(parts("$delayed/5/$queue/q").unwrap(), ("$queue/q".into(), Some(5)));
        assert_eq!(parts("$delayed/0/a//b/").unwrap(), ("a//b/".into(), Some(0)));
        assert_eq!(parts("$delayed").unwrap(), ("$delayed".into(), None));
        assert_eq!(parts("a/$delayed/5/b").unwrap(), ("a/$delayed/5/b".into(), None));
        for wrong in
            ["$delayed/", "$delayed/5", "$delayed/5/", "$delayed/x/a", "$delayed/-1/a", "$delayed//a"]
        {
            assert!(parts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn session_expiry_for_ever_is_all_ones() {
        for seconds in [0, 1, u32::MAX - 1, u32::MAX] {
            assert_eq!(session_expiry_seconds(session_expiry(seconds)), seconds);
        }
        assert_eq!(session_expiry(u32::MAX), Duration::MAX);
    }
}
