//! The table of all settings: name, flag, place in [`Settings`] and permitted range.

use std::sync::Arc;
use std::time::Duration;

use super::Settings;
use super::value::Slot;
use crate::mqtt::Terms;

/// One setting.
#[derive(Debug)]
pub struct Entry {
    /// Section and name in the file, with a dot between.
    pub key: &'static str,
    /// The flag of `stafett serve`, where it has one.
    pub flag: Option<&'static str>,
    /// Where the value is kept, and what is permitted.
    pub slot: fn(&mut Settings) -> Slot<'_>,
}

impl Entry {
    /// The name in the environment: after the flag where there is one, else after the key.
    #[must_use]
    pub fn variable(&self) -> String {
        let name = self.flag.unwrap_or(self.key).trim_start_matches("--");
        format!("STAFETT_{}", name.to_uppercase().replace(['-', '.'], "_"))
    }

    /// Section and name.
    #[must_use]
    pub fn split(&self) -> (&'static str, &'static str) {
        self.key.split_once('.').unwrap_or(("", self.key))
    }
}

const fn entry(key: &'static str, slot: fn(&mut Settings) -> Slot<'_>) -> Entry {
    Entry { key, flag: None, slot }
}

const fn with_flag(key: &'static str, flag: &'static str, slot: fn(&mut Settings) -> Slot<'_>) -> Entry {
    Entry { key, flag: Some(flag), slot }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn terms(settings: &mut Settings) -> &mut Terms {
    Arc::make_mut(&mut settings.mqtt.settings.terms)
}

/// All settings, section by section.
pub static ENTRIES: [Entry; 93] = [
    with_flag("store.data_dir", "--data-dir", |s| Slot::Path(&mut s.store.data_dir)),
    with_flag("store.durability", "--durability", |s| Slot::Durability(&mut s.store.durability)),
    entry("store.sync_interval", |s| {
        Slot::Duration(&mut s.store.sync_interval, Duration::from_millis(1)..=10 * SECOND)
    }),
    entry("store.max_dedup_ids", |s| Slot::count(&mut s.store.max_dedup_ids, 1..=100_000_000)),
    entry("store.body_cache", |s| Slot::bytes(&mut s.store.body_cache_bytes, MIB..=1024 * GIB)),
    entry("store.watermark_free_bytes", |s| {
        Slot::bytes(&mut s.store.watermark_free_bytes, 16 * MIB..=1024 * GIB)
    }),
    entry("store.ballast_bytes", |s| Slot::bytes(&mut s.store.ballast_bytes, 8 * MIB..=16 * GIB)),
    entry("store.compact_at_start", |s| {
        Slot::OptionalBytes(&mut s.store.compact_at_start_bytes, MIB..=1024 * GIB)
    }),
    entry("store.backup_dir", |s| Slot::OptionalPath(&mut s.store.backup_dir)),
    with_flag("grpc.listen", "--grpc-listen", |s| Slot::Listen(&mut s.grpc.listen)),
    entry("grpc.max_message_bytes", |s| Slot::bytes(&mut s.grpc.settings.max_message_bytes, 64 * KIB..=GIB)),
    entry("grpc.max_concurrent_streams", |s| {
        Slot::count(&mut s.grpc.settings.max_concurrent_streams, 1..=1_000_000)
    }),
    entry("grpc.max_stream_age", |s| {
        Slot::OptionalDuration(&mut s.grpc.settings.max_stream_age, SECOND..=30 * DAY)
    }),
    entry("grpc.max_connection_age", |s| {
        Slot::OptionalDuration(&mut s.grpc.settings.max_connection_age, 10 * SECOND..=30 * DAY)
    }),
    entry("grpc.keepalive_interval", |s| {
        Slot::OptionalDuration(&mut s.grpc.settings.keepalive_interval, SECOND..=HOUR)
    }),
    entry("grpc.keepalive_timeout", |s| {
        Slot::Duration(&mut s.grpc.settings.keepalive_timeout, SECOND..=HOUR)
    }),
    entry("grpc.outbox_messages", |s| Slot::count(&mut s.grpc.settings.outbox_messages, 16..=10_000_000)),
    entry("grpc.outbox_bytes", |s| Slot::bytes(&mut s.grpc.settings.outbox_bytes, 64 * KIB..=16 * GIB)),
    entry("grpc.tls.cert", |s| Slot::OptionalPath(&mut s.grpc.tls.cert)),
    entry("grpc.tls.key", |s| Slot::OptionalPath(&mut s.grpc.tls.key)),
    entry("grpc.tls.client_cert", |s| Slot::ClientCert(&mut s.grpc.tls.client_cert)),
    entry("grpc.tls.client_ca", |s| Slot::OptionalPath(&mut s.grpc.tls.client_ca)),
    with_flag("mqtt.listen", "--mqtt-listen", |s| Slot::Listen(&mut s.mqtt.listen)),
    entry("mqtt.max_connections", |s| Slot::count(&mut s.mqtt.settings.max_connections, 1..=1_000_000_000)),
    entry("mqtt.max_packet_bytes", |s| {
        Slot::bytes(&mut s.mqtt.settings.max_packet_bytes, 4 * KIB..=256 * MIB)
    }),
    entry("mqtt.connect_timeout", |s| Slot::Duration(&mut s.mqtt.settings.connect_timeout, SECOND..=HOUR)),
    entry("mqtt.keep_alive_ceiling", |s| {
        Slot::OptionalDuration(&mut s.mqtt.settings.keep_alive_ceiling, SECOND..=65_535 * SECOND)
    }),
    entry("mqtt.receive_maximum", |s| Slot::count(&mut s.mqtt.settings.receive_maximum, 1..=65_535)),
    entry("mqtt.max_inflight", |s| Slot::count(&mut s.mqtt.settings.max_inflight, 1..=65_535)),
    entry("mqtt.max_inflight_bytes", |s| {
        Slot::OptionalBytes(&mut s.mqtt.settings.max_inflight_bytes, KIB..=16 * GIB)
    }),
    entry("mqtt.topic_alias_maximum", |s| Slot::count(&mut s.mqtt.settings.topic_alias_maximum, 0..=65_535)),
    entry("mqtt.outgoing_topic_aliases", |s| {
        Slot::count(&mut s.mqtt.settings.outgoing_topic_aliases, 0..=65_535)
    }),
    entry("mqtt.outbox_bytes", |s| Slot::bytes(&mut s.mqtt.settings.outbox_bytes, 64 * KIB..=GIB)),
    entry("mqtt.outbox_messages", |s| Slot::count(&mut s.mqtt.settings.outbox_messages, 1..=10_000_000)),
    entry("mqtt.versions", |s| Slot::Versions(&mut terms(s).versions)),
    entry("mqtt.max_qos", |s| Slot::count(&mut terms(s).max_qos, 0..=2)),
    entry("mqtt.upgrade_outgoing_qos", |s| Slot::Switch(&mut terms(s).upgrade_outgoing_qos)),
    entry("mqtt.retain", |s| Slot::Switch(&mut terms(s).retain)),
    entry("mqtt.wildcards", |s| Slot::Switch(&mut terms(s).wildcards)),
    entry("mqtt.shared_subscriptions", |s| Slot::Switch(&mut terms(s).shares)),
    entry("mqtt.subscription_identifiers", |s| Slot::Switch(&mut terms(s).identifiers)),
    entry("mqtt.denied_filters", |s| Slot::DeniedFilters(&mut terms(s).denied)),
    entry("mqtt.users", |s| Slot::OptionalPath(&mut s.mqtt.settings.users)),
    entry("mqtt.anonymous", |s| Slot::AutoSwitch(&mut s.mqtt.settings.anonymous)),
    entry("limits.connections", |s| Slot::count(&mut s.limits.connections, 1..=1_000_000_000)),
    entry("limits.connect_rate", |s| {
        Slot::OptionalCount(&mut s.limits.connect_rate.per_second, 1..=1_000_000)
    }),
    entry("limits.connect_burst", |s| Slot::count(&mut s.limits.connect_rate.burst, 1..=1_000_000)),
    entry("limits.password_checks", |s| Slot::count(&mut s.limits.password_checks, 1..=1_000_000)),
    entry("limits.max_payload_bytes", |s| Slot::bytes(&mut s.limits.core.max_payload_bytes, KIB..=GIB)),
    entry("limits.max_topic_bytes", |s| Slot::bytes(&mut s.limits.core.max_topic_bytes, 64..=65_535)),
    entry("limits.max_topic_levels", |s| Slot::count(&mut s.limits.core.max_topic_levels, 1..=1024)),
    entry("limits.max_properties", |s| Slot::count(&mut s.limits.core.max_properties, 0..=10_000)),
    entry("limits.max_property_bytes", |s| {
        Slot::bytes(&mut s.limits.core.max_property_bytes, KIB..=16 * MIB)
    }),
    entry("limits.max_streams", |s| Slot::count(&mut s.limits.core.max_streams, 1..=1_000_000)),
    entry("limits.max_cursors", |s| Slot::count(&mut s.limits.core.max_cursors, 1..=1_000_000)),
    entry("limits.session_streams", |s| Slot::count(&mut s.limits.core.session_streams, 1..=10_000)),
    entry("limits.max_queues", |s| Slot::count(&mut s.limits.core.max_queues, 1..=1_000_000)),
    entry("limits.max_bindings", |s| Slot::count(&mut s.limits.core.max_bindings, 1..=100_000)),
    entry("limits.max_sessions", |s| Slot::count(&mut s.limits.core.max_sessions, 1..=100_000_000)),
    entry("limits.max_subscriptions", |s| Slot::count(&mut s.limits.core.max_subscriptions, 1..=1_000_000)),
    entry("limits.max_group_members", |s| Slot::count(&mut s.limits.core.max_group_members, 1..=1_000_000)),
    entry("limits.max_retained", |s| Slot::count(&mut s.limits.core.max_retained, 1..=1_000_000_000)),
    entry("limits.max_retained_bytes", |s| {
        Slot::bytes(&mut s.limits.core.max_retained_bytes, MIB..=1024 * GIB)
    }),
    entry("limits.session_messages", |s| Slot::count(&mut s.limits.core.session_messages, 1..=1_000_000_000)),
    entry("limits.session_bytes", |s| Slot::bytes(&mut s.limits.core.session_bytes, 64 * KIB..=1024 * GIB)),
    entry("limits.max_session_expiry", |s| {
        Slot::Duration(&mut s.limits.core.max_session_expiry, SECOND..=3650 * DAY)
    }),
    entry("limits.release_within", |s| {
        Slot::Duration(&mut s.limits.core.release_within, Duration::from_millis(100)..=60 * SECOND)
    }),
    entry("limits.max_calls", |s| Slot::count(&mut s.limits.core.max_calls, 1..=100_000_000)),
    entry("limits.call_bytes", |s| Slot::bytes(&mut s.limits.core.call_bytes, MIB..=1024 * GIB)),
    entry("limits.call_reply_bytes", |s| Slot::bytes(&mut s.limits.core.call_reply_bytes, KIB..=1024 * GIB)),
    entry("limits.gather_responders", |s| Slot::count(&mut s.limits.core.gather_responders, 1..=1_000_000)),
    entry("limits.gather_bytes", |s| Slot::bytes(&mut s.limits.core.gather_bytes, KIB..=1024 * GIB)),
    entry("limits.gather_parts", |s| Slot::count(&mut s.limits.core.gather_parts, 1..=1_000_000)),
    entry("limits.parts_waiting", |s| Slot::count(&mut s.limits.core.parts_waiting, 1..=100_000_000)),
    entry("limits.calls_waiting", |s| Slot::count(&mut s.limits.core.calls_waiting, 0..=100_000_000)),
    entry("limits.call_tries", |s| Slot::count(&mut s.limits.core.call_tries, 1..=100)),
    entry("limits.max_responders", |s| Slot::count(&mut s.limits.core.max_responders, 1..=10_000_000)),
    entry("limits.device_calls", |s| Slot::count(&mut s.limits.core.device_calls, 1..=65_535)),
    entry("limits.call_timeout", |s| {
        Slot::Duration(&mut s.limits.core.call_timeout, Duration::from_millis(1)..=DAY)
    }),
    entry("limits.async_calls", |s| Slot::count(&mut s.limits.core.async_calls, 1..=10_000_000)),
    entry("limits.async_call_bytes", |s| Slot::bytes(&mut s.limits.core.async_call_bytes, MIB..=1024 * GIB)),
    entry("limits.async_reply_ttl", |s| {
        Slot::Duration(&mut s.limits.core.async_reply_ttl, SECOND..=30 * DAY)
    }),
    entry("limits.device_topics", |s| Slot::TopicPairs(&mut s.limits.core.device_topics)),
    entry("limits.publish_pending", |s| Slot::count(&mut s.limits.core.publish_pending, 1..=1_000_000)),
    entry("limits.commit_pending_bytes", |s| {
        Slot::bytes(&mut s.limits.core.commit_pending_bytes, MIB..=16 * GIB)
    }),
    entry("limits.queue_messages", |s| Slot::count(&mut s.limits.core.queue_messages, 1..=1_000_000_000_000)),
    entry("limits.queue_bytes", |s| Slot::bytes(&mut s.limits.core.queue_bytes, MIB..=1024 * 1024 * GIB)),
    entry("limits.stream_messages", |s| {
        Slot::count(&mut s.limits.core.stream_messages, 1..=1_000_000_000_000)
    }),
    entry("limits.stream_bytes", |s| Slot::bytes(&mut s.limits.core.stream_bytes, MIB..=1024 * 1024 * GIB)),
    entry("sys.interval", |s| Slot::OptionalDuration(&mut s.sys.interval, SECOND..=HOUR)),
    with_flag("log.level", "--log-level", |s| Slot::LogLevel(&mut s.log.level)),
    with_flag("log.format", "--log-format", |s| Slot::LogFormat(&mut s.log.format)),
    entry("shutdown.drain_timeout", |s| Slot::Duration(&mut s.shutdown.drain_timeout, Duration::ZERO..=HOUR)),
];
