//! Lines as what a store is given.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use bytestring::ByteString;

use super::{
    BacklogLine, CursorLine, DeadLetterLine, GroupLine, MessageLine, OutgoingWord, OverflowWord, QueueLine,
    SessionLine, StreamLine, SubscriptionLine,
};
use crate::engine::embedded::import::{GivenMessage, GivenTarget, Place};
use crate::engine::{
    BacklogSpec, Cursor, Definition, GroupSpec, Outgoing, OutgoingState, Overflow, QueueSpec, RetainHandling,
    SessionSpec, StreamSpec, SubscribeOptions,
};
use crate::types::topic::FilterSpec;
use crate::types::{
    ClientId, CursorName, DeadLetter, Extras, Message, MessageId, Priority, Qos, QueueName, Sequence,
    StreamName, TopicFilter, TopicName, UnixMillis,
};

/// What is wrong with a line: the field and why.
type Wrong = String;

fn read<T, E: fmt::Display>(field: &str, result: Result<T, E>) -> Result<T, Wrong> {
    result.map_err(|e| format!("{field}: {e}"))
}

fn time(field: &str, text: &str) -> Result<UnixMillis, Wrong> {
    let at = read(field, humantime::parse_rfc3339(text))?;
    let since = at.duration_since(UNIX_EPOCH).map_err(|_| format!("{field}: is before 1970"))?;
    Ok(UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}

fn time_if(field: &str, text: Option<&String>) -> Result<Option<UnixMillis>, Wrong> {
    text.map(|text| time(field, text)).transpose()
}

/// Durations are stored in milliseconds.
fn duration(field: &str, seconds: f64) -> Result<Duration, Wrong> {
    let exact = read(field, Duration::try_from_secs_f64(seconds))?;
    Ok(Duration::from_millis(u64::try_from((exact.as_micros() + 500) / 1000).unwrap_or(u64::MAX)))
}

fn duration_if(field: &str, seconds: Option<f64>) -> Result<Option<Duration>, Wrong> {
    seconds.map(|seconds| duration(field, seconds)).transpose()
}

fn qos(field: &str, level: u8) -> Result<Qos, Wrong> {
    Qos::from_u8(level).ok_or_else(|| format!("{field}: is {level}, must be 0, 1 or 2"))
}

fn bytes(field: &str, text: &str) -> Result<Bytes, Wrong> {
    read(field, STANDARD.decode(text)).map(Bytes::from)
}

fn filter_spec(field: &str, text: String) -> Result<FilterSpec, Wrong> {
    read(field, FilterSpec::parse(&ByteString::from(text)))
}

fn filters(field: &str, texts: Vec<String>) -> Result<Vec<TopicFilter>, Wrong> {
    texts.into_iter().map(|text| read(field, TopicFilter::parse(text.into()))).collect()
}

impl QueueLine {
    pub(in super::super) fn given(self) -> Result<GivenTarget, Wrong> {
        let definition = Definition::Queue(QueueSpec {
            name: read("name", QueueName::parse(self.name))?,
            bindings: filters("bindings", self.bindings)?,
            lease: duration("lease_seconds", self.lease_seconds)?,
            max_deliveries: self.max_deliveries,
            dead_letter: self.dead_letter.map(|it| read("dead_letter", QueueName::parse(it))).transpose()?,
            retry_min_backoff: duration_if("retry_min_backoff_seconds", self.retry_min_backoff_seconds)?,
            retry_max_backoff: duration_if("retry_max_backoff_seconds", self.retry_max_backoff_seconds)?,
            default_ttl: duration_if("default_ttl_seconds", self.default_ttl_seconds)?,
            max_messages: self.max_messages,
            max_bytes: self.max_bytes,
            overflow: match self.overflow {
                OverflowWord::Reject => Overflow::Reject,
                OverflowWord::DropOldest => Overflow::DropOldest,
                OverflowWord::DeadLetter => Overflow::DeadLetter,
            },
            priorities: self.priorities,
            ordered_by_key: self.ordered_by_key,
            single_active_consumer: self.single_active_consumer,
            dedup_window: duration_if("dedup_window_seconds", self.dedup_window_seconds)?,
            last_value_key: self.last_value_key.map(ByteString::from),
            labels: self.labels,
            paused: self.paused,
            created_at: time("created_at", &self.created_at)?,
            dead_letter_expired: self.dead_letter_expired,
            expires_after: duration_if("expires_after_seconds", self.expires_after_seconds)?,
        });
        Ok(GivenTarget::new(definition, self.next_sequence))
    }
}

impl SessionLine {
    pub(in super::super) fn given(self) -> Result<GivenTarget, Wrong> {
        let definition = Definition::Session(SessionSpec {
            client_id: read("name", ClientId::parse(self.name))?,
            principal: self.principal.into(),
            expiry: duration_if("expiry_seconds", self.expiry_seconds)?.unwrap_or(Duration::MAX),
            created_at: time("created_at", &self.created_at)?,
            last_connected: time("last_connected", &self.last_connected)?,
            connected: self.connected,
            max_messages: self.max_messages,
            max_bytes: self.max_bytes,
        });
        let subscription = |line: SubscriptionLine| {
            let options = SubscribeOptions {
                max_qos: qos("max_qos", line.max_qos)?,
                upgrade_qos: line.upgrade_qos,
                no_local: line.no_local,
                retain_as_published: line.retain_as_published,
                retain_handling: match line.retain_handling {
                    0 => RetainHandling::Send,
                    1 => RetainHandling::SendIfNew,
                    2 => RetainHandling::DoNotSend,
                    other => return Err(format!("retain_handling: is {other}, must be 0, 1 or 2")),
                },
                identifier: line.identifier,
            };
            Ok((filter_spec("filter", line.filter)?, options))
        };
        Ok(GivenTarget {
            subscriptions: self.subscriptions.into_iter().map(subscription).collect::<Result<_, _>>()?,
            incoming: self.unreleased.into_iter().map(|it| (it.packet_id, Sequence(it.sequence))).collect(),
            ..GivenTarget::new(definition, self.next_sequence)
        })
    }
}

impl GroupLine {
    pub(in super::super) fn given(self) -> Result<GivenTarget, Wrong> {
        let definition = Definition::Group(GroupSpec {
            filter: filter_spec("filter", self.filter)?,
            max_messages: self.max_messages,
            max_bytes: self.max_bytes,
        });
        Ok(GivenTarget::new(definition, self.next_sequence))
    }
}

impl BacklogLine {
    pub(in super::super) fn given(self) -> GivenTarget {
        let definition = Definition::Backlog(BacklogSpec { name: self.name.into() });
        GivenTarget::new(definition, self.next_sequence)
    }
}

impl StreamLine {
    pub(in super::super) fn given(self) -> Result<GivenTarget, Wrong> {
        let definition = Definition::Stream(StreamSpec {
            name: read("name", StreamName::parse(self.name))?,
            filters: filters("filters", self.filters)?,
            max_age: duration_if("max_age_seconds", self.max_age_seconds)?,
            max_messages: self.max_messages,
            max_bytes: self.max_bytes,
            created_at: time("created_at", &self.created_at)?,
        });
        let cursor = |line: CursorLine| {
            let committed_at = time("committed_at", &line.committed_at)?;
            let cursor = Cursor { sequence: Sequence(line.sequence), committed_at };
            Ok::<_, Wrong>((read("cursors", CursorName::parse(line.name))?, cursor))
        };
        Ok(GivenTarget {
            cursors: self.cursors.into_iter().map(cursor).collect::<Result<_, _>>()?,
            ..GivenTarget::new(definition, self.next_sequence)
        })
    }
}

impl MessageLine {
    fn place(&self) -> Result<Place, Wrong> {
        let named = [
            self.queue.as_ref().map(|name| Place::Queue(name.clone())),
            self.session.as_ref().map(|name| Place::Session(name.clone())),
            self.group.as_ref().map(|name| Place::Group(name.clone())),
            self.backlog.as_ref().map(|name| Place::Backlog(name.clone())),
            self.stream.as_ref().map(|name| Place::Stream(name.clone())),
            self.target.map(Place::Lost),
        ];
        let mut named = named.into_iter().flatten();
        match (named.next(), named.next()) {
            (Some(place), None) => Ok(place),
            (None, _) => Err("it says nowhere to wait: queue, session, group, backlog or stream".to_owned()),
            (Some(_), Some(_)) => Err("it waits in more than one place".to_owned()),
        }
    }

    pub(in super::super) fn given(mut self) -> Result<GivenMessage, Wrong> {
        const SEQUENCE: &str = "sequence: is missing";
        let level = self.priority.unwrap_or_else(|| Priority::default().level());
        let expires_at = time_if("expires_at", self.expires_at.as_ref())?;
        let own = time_if("message_expires_at", self.message_expires_at.as_ref())?;
        Ok(GivenMessage {
            place: self.place()?,
            sequence: Sequence(self.sequence.ok_or(SEQUENCE)?),
            qos: qos("granted_qos", self.granted_qos.unwrap_or(self.qos))?,
            retain: self.retain_flag.unwrap_or(false),
            priority: Priority::new(level).ok_or_else(|| format!("priority: is {level}, must be 0 to 9"))?,
            expires_at,
            attempts: self.attempts.unwrap_or(0),
            losses: self.losses.unwrap_or(0),
            not_before: time_if("not_before", self.not_before.as_ref())?,
            rests: self.rests.unwrap_or(false),
            appended_at: time_if("appended_at", self.appended_at.as_ref())?,
            outgoing: self.outgoing.take().map(|outgoing| Outgoing {
                packet_id: outgoing.packet_id,
                state: match outgoing.state {
                    OutgoingWord::Sent => OutgoingState::Sent,
                    OutgoingWord::Received => OutgoingState::Received,
                    OutgoingWord::Settled => OutgoingState::Settled,
                },
            }),
            message: self.message(own)?,
        })
    }

    pub(in super::super) fn retained(self) -> Result<Message, Wrong> {
        let expires_at = time_if("expires_at", self.expires_at.as_ref())?;
        self.message(expires_at)
    }

    fn message(self, expires_at: Option<UnixMillis>) -> Result<Message, Wrong> {
        let dead_letter = |dead: DeadLetterLine| {
            Ok::<_, Wrong>(DeadLetter {
                source: read("dead_letter.source", QueueName::parse(dead.source))?,
                reason: dead.reason.into(),
                attempts: dead.attempts,
                at: time("dead_letter.at", &dead.at)?,
            })
        };
        let topic = |field, text: String| read(field, TopicName::parse(text.into()));
        let data = self.correlation_data_base64;
        let properties = self.properties.unwrap_or_default();
        let extras = Extras {
            payload_is_utf8: self.payload_is_utf8.unwrap_or(false),
            content_type: self.content_type.map(ByteString::from),
            reply_to: self.reply_to.map(|text| topic("reply_to", text)).transpose()?,
            correlation_data: data.map(|data| bytes("correlation_data_base64", &data)).transpose()?,
            ordering_key: self.ordering_key.map(ByteString::from),
            dedup_id: self.dedup_id.map(ByteString::from),
            properties: properties.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
            publisher: self.publisher.map(|id| read("publisher", ClientId::parse(id))).transpose()?,
            dead_letter: self.dead_letter.map(dead_letter).transpose()?,
            subscription: self.subscription,
        };
        Ok(Message {
            id: MessageId::parse(&self.message_id).ok_or("message_id: is no ULID")?,
            topic: topic("topic", self.topic)?,
            payload: bytes("payload_base64", &self.payload_base64)?,
            qos: qos("qos", self.qos)?,
            retain: self.retain,
            expires_at,
            extras: (extras != Extras::default()).then(|| Box::new(extras)),
        })
    }
}
