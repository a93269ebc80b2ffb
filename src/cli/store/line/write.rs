//! What a store holds as lines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{
    BacklogLine, CursorLine, DeadLetterLine, End, GroupLine, Line, MessageLine, OutgoingLine, OutgoingWord,
    OverflowWord, QueueLine, SessionLine, StreamLine, SubscriptionLine, UnreleasedLine,
};
use crate::engine::embedded::export::{ExportReport, Item, Waiting};
use crate::engine::{
    Cursor, Definition, OutgoingState, Overflow, QueueSpec, SessionSpec, StreamSpec, SubscribeOptions,
};
use crate::types::topic::FilterSpec;
use crate::types::{CursorName, Message, Sequence, UnixMillis};

fn date(at: UnixMillis) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(at.0)).filter(|at| *at < last_date());
    humantime::format_rfc3339_millis(at.unwrap_or_else(last_date)).to_string()
}

/// The format ends with the year 9999.
fn last_date() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

impl From<&ExportReport> for Line {
    fn from(report: &ExportReport) -> Self {
        let ExportReport { targets, retained, messages, .. } = *report;
        Self::End(End { targets, retained, messages })
    }
}

impl From<&Item<'_>> for Line {
    fn from(item: &Item<'_>) -> Self {
        match *item {
            Item::Target { definition, next_sequence, subscriptions, incoming, cursors } => {
                match definition {
                    Definition::Queue(queue) => Self::Queue(Box::new(queue_line(queue, next_sequence))),
                    Definition::Session(session) => {
                        Self::Session(session_line(session, next_sequence, subscriptions, incoming))
                    }
                    Definition::Group(group) => Self::Group(GroupLine {
                        filter: group.filter.to_string(),
                        next_sequence,
                        max_messages: group.max_messages,
                        max_bytes: group.max_bytes,
                    }),
                    Definition::Backlog(backlog) => {
                        Self::Backlog(BacklogLine { name: backlog.name.to_string(), next_sequence })
                    }
                    Definition::Stream(stream) => Self::Stream(stream_line(stream, next_sequence, cursors)),
                }
            }
            Item::Retained(message) => Self::Retained(Box::new(MessageLine {
                expires_at: message.expires_at.map(date),
                ..message_line(message)
            })),
            Item::Message(waiting) => Self::Message(Box::new(waiting_line(waiting))),
        }
    }
}

fn queue_line(queue: &QueueSpec, next_sequence: u64) -> QueueLine {
    QueueLine {
        name: queue.name.to_string(),
        next_sequence,
        bindings: queue.bindings.iter().map(ToString::to_string).collect(),
        lease_seconds: seconds(queue.lease),
        max_deliveries: queue.max_deliveries,
        dead_letter: queue.dead_letter.as_ref().map(ToString::to_string),
        dead_letter_expired: queue.dead_letter_expired,
        retry_min_backoff_seconds: queue.retry_min_backoff.map(seconds),
        retry_max_backoff_seconds: queue.retry_max_backoff.map(seconds),
        default_ttl_seconds: queue.default_ttl.map(seconds),
        max_messages: queue.max_messages,
        max_bytes: queue.max_bytes,
        overflow: match queue.overflow {
            Overflow::Reject => OverflowWord::Reject,
            Overflow::DropOldest => OverflowWord::DropOldest,
            Overflow::DeadLetter => OverflowWord::DeadLetter,
        },
        priorities: queue.priorities,
        ordered_by_key: queue.ordered_by_key,
        single_active_consumer: queue.single_active_consumer,
        dedup_window_seconds: queue.dedup_window.map(seconds),
        last_value_key: queue.last_value_key.as_ref().map(ToString::to_string),
        expires_after_seconds: queue.expires_after.map(seconds),
        paused: queue.paused,
        labels: queue.labels.clone(),
        created_at: date(queue.created_at),
    }
}

fn session_line(
    session: &SessionSpec,
    next_sequence: u64,
    subscriptions: &[(FilterSpec, SubscribeOptions)],
    incoming: &[(u16, Sequence)],
) -> SessionLine {
    let subscription = |(filter, options): &(FilterSpec, SubscribeOptions)| SubscriptionLine {
        filter: filter.to_string(),
        max_qos: options.max_qos as u8,
        upgrade_qos: options.upgrade_qos,
        no_local: options.no_local,
        retain_as_published: options.retain_as_published,
        retain_handling: options.retain_handling as u8,
        identifier: options.identifier,
    };
    SessionLine {
        name: session.client_id.to_string(),
        next_sequence,
        principal: session.principal.to_string(),
        expiry_seconds: (session.expiry != Duration::MAX).then(|| seconds(session.expiry)),
        created_at: date(session.created_at),
        last_connected: date(session.last_connected),
        connected: session.connected,
        max_messages: session.max_messages,
        max_bytes: session.max_bytes,
        subscriptions: subscriptions.iter().map(subscription).collect(),
        unreleased: incoming
            .iter()
            .map(|&(packet_id, at)| UnreleasedLine { packet_id, sequence: at.0 })
            .collect(),
    }
}

fn stream_line(stream: &StreamSpec, next_sequence: u64, cursors: &[(CursorName, Cursor)]) -> StreamLine {
    let cursor = |(name, cursor): &(CursorName, Cursor)| CursorLine {
        name: name.to_string(),
        sequence: cursor.sequence.0,
        committed_at: date(cursor.committed_at),
    };
    StreamLine {
        name: stream.name.to_string(),
        next_sequence,
        filters: stream.filters.iter().map(ToString::to_string).collect(),
        max_age_seconds: stream.max_age.map(seconds),
        max_messages: stream.max_messages,
        max_bytes: stream.max_bytes,
        created_at: date(stream.created_at),
        cursors: cursors.iter().map(cursor).collect(),
    }
}

fn waiting_line(waiting: &Waiting<'_>) -> MessageLine {
    let mut line = MessageLine {
        sequence: Some(waiting.sequence.0),
        attempts: Some(waiting.attempts),
        losses: Some(waiting.losses).filter(|&losses| losses > 0),
        priority: Some(waiting.priority.level()),
        granted_qos: Some(waiting.qos as u8),
        retain_flag: Some(waiting.retain),
        not_before: waiting.not_before.map(date),
        rests: Some(waiting.rests).filter(|&rests| rests),
        appended_at: waiting.appended_at.map(date),
        expires_at: waiting.expires_at.map(date),
        message_expires_at: waiting.message.expires_at.map(date),
        outgoing: waiting.outgoing.map(|outgoing| OutgoingLine {
            packet_id: outgoing.packet_id,
            state: match outgoing.state {
                OutgoingState::Sent => OutgoingWord::Sent,
                OutgoingState::Received => OutgoingWord::Received,
                OutgoingState::Settled => OutgoingWord::Settled,
            },
        }),
        ..message_line(&waiting.message)
    };
    match waiting.target {
        Some(Definition::Queue(queue)) => line.queue = Some(queue.name.to_string()),
        Some(Definition::Session(session)) => line.session = Some(session.client_id.to_string()),
        Some(Definition::Group(group)) => line.group = Some(group.filter.to_string()),
        Some(Definition::Backlog(backlog)) => line.backlog = Some(backlog.name.to_string()),
        Some(Definition::Stream(stream)) => line.stream = Some(stream.name.to_string()),
        None => line.target = Some(waiting.target_id),
    }
    line
}

fn message_line(message: &Message) -> MessageLine {
    let line = MessageLine {
        message_id: message.id.to_string(),
        published_at: Some(date(message.id.time())),
        topic: message.topic.to_string(),
        qos: message.qos as u8,
        retain: message.retain,
        payload_base64: STANDARD.encode(&message.payload),
        ..MessageLine::default()
    };
    let Some(extras) = &message.extras else { return line };
    let properties = extras.properties.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    MessageLine {
        properties: Some(properties.collect()),
        payload_is_utf8: Some(extras.payload_is_utf8),
        content_type: extras.content_type.as_ref().map(ToString::to_string),
        reply_to: extras.reply_to.as_ref().map(ToString::to_string),
        correlation_data_base64: extras.correlation_data.as_ref().map(|data| STANDARD.encode(data)),
        ordering_key: extras.ordering_key.as_ref().map(ToString::to_string),
        dedup_id: extras.dedup_id.as_ref().map(ToString::to_string),
        publisher: extras.publisher.as_ref().map(ToString::to_string),
        dead_letter: extras.dead_letter.as_ref().map(|dead| DeadLetterLine {
            source: dead.source.to_string(),
            reason: dead.reason.to_string(),
            attempts: dead.attempts,
            at: date(dead.at),
        }),
        subscription: extras.subscription,
        ..line
    }
}
