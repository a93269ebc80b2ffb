//! Messages on the command line: made from flags, shown as text or JSON.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::grpc::proto::v1;

/// Longer than anyone waits, and no longer than clocks can count.
const LONGEST_WAIT: Duration = Duration::from_secs(100 * 365 * 86_400);

/// What a message says beside its payload.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct MessageOptions {
    /// What the payload is, as in application/json
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// A property; may be given several times
    #[arg(long = "property", value_name = "KEY=VALUE")]
    properties: Vec<String>,
    /// How long the message is worth delivering, with its unit: 30s, 1h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Deliver it after those with the same key, for queues that are ordered by key
    #[arg(long, value_name = "KEY")]
    ordering_key: Option<String>,
    /// Topic where an answer is expected
    #[arg(long, value_name = "TOPIC")]
    reply_to: Option<String>,
    /// What the answer repeats
    #[arg(long, value_name = "TEXT")]
    correlation: Option<String>,
}

impl MessageOptions {
    /// A message with these options and no payload.
    pub(super) fn message(&self, topic: &str) -> anyhow::Result<v1::Message> {
        let properties = self.properties.iter().map(|pair| {
            let (key, value) = key_value("--property", pair)?;
            Ok(v1::Property { key, value })
        });
        Ok(v1::Message {
            topic: topic.to_owned(),
            properties: properties.collect::<anyhow::Result<_>>()?,
            content_type: self.content_type.clone().unwrap_or_default(),
            ttl: self.ttl.map(duration),
            ordering_key: self.ordering_key.clone().unwrap_or_default(),
            reply_to: self.reply_to.clone().unwrap_or_default(),
            correlation_data: self.correlation.clone().unwrap_or_default().into(),
            ..Default::default()
        })
    }
}

/// The same of one that is delivered from queues, too.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct QueuedOptions {
    #[command(flatten)]
    message: MessageOptions,
    /// Deliver not before this has passed
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    delay: Option<Duration>,
    /// Names the message, for queues with a dedup window: sent again it is not stored again
    #[arg(long, value_name = "ID")]
    dedup_id: Option<String>,
    /// 0 (last) to 9 (first), for queues with priorities
    #[arg(long, value_name = "LEVEL")]
    priority: Option<u32>,
}

impl QueuedOptions {
    /// A message with these options and no payload.
    pub(super) fn message(&self, topic: &str) -> anyhow::Result<v1::Message> {
        Ok(v1::Message {
            dedup_id: self.dedup_id.clone().unwrap_or_default(),
            priority: self.priority,
            schedule: self.delay.map(|delay| v1::message::Schedule::Delay(duration(delay))),
            ..self.message.message(topic)?
        })
    }
}

/// How long to wait, by a clock of our own.
pub(super) fn wait(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text).map(|wait| wait.min(LONGEST_WAIT))
}

/// `KEY=VALUE`.
pub(super) fn key_value(flag: &str, pair: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = pair.split_once('=').with_context(|| format!("{flag} {pair:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// As the contract carries it.
pub(super) fn duration(duration: Duration) -> prost_types::Duration {
    // What is too long for the contract is too long for the broker, which says so.
    prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 })
}

/// `30s`, `1.5s`.
pub(super) fn show_duration(duration: &prost_types::Duration) -> String {
    let fraction = format!("{:09}", duration.nanos.unsigned_abs());
    match fraction.trim_end_matches('0') {
        "" => format!("{}s", duration.seconds),
        fraction => format!("{}.{fraction}s", duration.seconds),
    }
}

/// As a date.
pub(super) fn show_time(at: &prost_types::Timestamp) -> String {
    let since = Duration::new(at.seconds.try_into().unwrap_or(0), at.nanos.try_into().unwrap_or(0));
    let at = std::time::UNIX_EPOCH.checked_add(since);
    at.map(|at| humantime::format_rfc3339_millis(at).to_string()).unwrap_or_default()
}

/// A lease token as text that needs no quotes.
pub(super) fn show_token(token: &Bytes) -> String {
    URL_SAFE_NO_PAD.encode(token)
}

/// The token of such a text.
pub(super) fn parse_token(text: &str) -> anyhow::Result<Bytes> {
    match URL_SAFE_NO_PAD.decode(text) {
        Ok(token) => Ok(token.into()),
        Err(_) => bail!("{text:?} is not a lease token"),
    }
}

/// The payload for people.
pub(super) fn payload_text(message: Option<&v1::Message>) -> Cow<'_, str> {
    message.map(|message| String::from_utf8_lossy(&message.payload)).unwrap_or_default()
}

/// A message as members of a JSON object; what it does not have is left out.
pub(super) fn message_json(message: &v1::Message, origin: Option<&v1::Origin>) -> Map<String, Value> {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        object.insert(name.to_owned(), value);
    };
    put("topic", json!(message.topic));
    match std::str::from_utf8(&message.payload) {
        Ok(text) => put("payload", json!(text)),
        Err(_) => put("payload_base64", json!(STANDARD.encode(&message.payload))),
    }
    if !message.properties.is_empty() {
        let pairs: Vec<_> = message.properties.iter().map(|p| json!([p.key, p.value])).collect();
        put("properties", json!(pairs));
    }
    for (name, text) in [
        ("content_type", &message.content_type),
        ("reply_to", &message.reply_to),
        ("ordering_key", &message.ordering_key),
        ("dedup_id", &message.dedup_id),
    ] {
        if !text.is_empty() {
            put(name, json!(text));
        }
    }
    if !message.correlation_data.is_empty() {
        put("correlation_base64", json!(STANDARD.encode(&message.correlation_data)));
    }
    if let Some(ttl) = &message.ttl {
        put("ttl", json!(show_duration(ttl)));
    }
    if let Some(priority) = message.priority {
        put("priority", json!(priority));
    }
    if let Some(v1::message::Schedule::DeliverAt(at)) = &message.schedule {
        put("deliver_at", json!(show_time(at)));
    }
    if let Some(origin) = origin {
        put("message_id", json!(origin.message_id));
        if let Some(at) = &origin.publish_time {
            put("publish_time", json!(show_time(at)));
        }
        if !origin.publisher_id.is_empty() {
            put("publisher_id", json!(origin.publisher_id));
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_in_protobuf_json() {
        let show = |seconds, nanos| show_duration(&prost_types::Duration { seconds, nanos });
        assert_eq!(show(30, 0), "30s");
        assert_eq!(show(1, 500_000_000), "1.5s");
        assert_eq!(show(0, 1), "0.000000001s");
    }

    #[test]
    fn tokens_survive_being_text() {
        let token = Bytes::from_static(&[0, 255, 62, 63]);
        assert_eq!(parse_token(&show_token(&token)).unwrap(), token);
        assert!(parse_token("no token").is_err());
    }

    #[test]
    fn a_payload_that_is_no_text_is_base64() {
        let message = v1::Message { payload: Bytes::from_static(&[255]), ..Default::default() };
        let object = message_json(&message, None);
        assert_eq!((object.get("payload"), &object["payload_base64"]), (None, &json!("/w==")));
    }
}
