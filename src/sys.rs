//! What is counted, told as retained values under `$SYS/broker/`, by the names that MQTT clients look for.
//!
//! Counters are read once an interval, and a value is told when it has changed. Invariant: nothing is counted here; what
//! `GetServerInfo` shows and what stands here are the same counters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tokio::time::MissedTickBehavior;

use crate::core::{Broker, SYSTEM};
use crate::counters::Counters;
use crate::shutdown::Shutdown;
use crate::types::{TopicName, clock};

/// What the operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often values are told; `None` = never.
    pub interval: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval: Some(Duration::from_secs(10)) }
    }
}

/// A value: its name below `$SYS/broker/`, and the counters that it is the sum of.
type Value = (&'static str, &'static [&'static str]);

/// Values that are sums of counters.
const SUMS: [Value; 17] = [
    ("bytes/received", &["mqtt_bytes_received_total", "grpc_bytes_received_total"]),
    ("bytes/sent", &["mqtt_bytes_sent_total", "grpc_bytes_sent_total"]),
    ("clients/connected", &["sessions_connected"]),
    ("clients/expired", &["sessions_expired_total"]),
    ("clients/maximum", &["sessions_connected_most"]),
    ("clients/total", &["sessions"]),
    ("messages/received", &["mqtt_packets_received_total"]),
    ("messages/sent", &["mqtt_packets_sent_total"]),
    ("publish/bytes/received", &["publishes_received_bytes_total"]),
    ("publish/bytes/sent", &["publishes_sent_bytes_total"]),
    ("publish/messages/dropped", DROPPED),
    ("publish/messages/received", &["publishes_received_total"]),
    ("publish/messages/sent", &["publishes_sent_total"]),
    ("retained messages/count", &["retained_messages"]),
    ("store/messages/bytes", &["messages_stored_bytes", "retained_bytes"]),
    ("store/messages/count", &["messages_stored", "retained_messages"]),
    ("subscriptions/count", &["subscriptions"]),
];

const DROPPED: &[&str] = &["deliveries_dropped_total", "messages_dropped_full_total"];

/// What is told per minute, as moving averages.
const LOADS: [Value; 9] = [
    ("bytes/received", &["mqtt_bytes_received_total", "grpc_bytes_received_total"]),
    ("bytes/sent", &["mqtt_bytes_sent_total", "grpc_bytes_sent_total"]),
    ("connections", &["sessions_opened_total"]),
    ("messages/received", &["mqtt_packets_received_total"]),
    ("messages/sent", &["mqtt_packets_sent_total"]),
    ("publish/dropped", DROPPED),
    ("publish/received", &["publishes_received_total"]),
    ("publish/sent", &["publishes_sent_total"]),
    ("sockets", &["connections_total"]),
];

/// Minutes that the averages are over.
const MINUTES: [(&str, f64); 3] = [("1min", 1.0), ("5min", 5.0), ("15min", 15.0)];

/// Tells the values.
#[derive(Debug)]
pub struct Reporter {
    broker: Arc<Broker>,
    counters: Counters,
    started: Instant,
    /// When the averages were taken last.
    averaged: Instant,
    loads: [Load; LOADS.len()],
    told: FxHashMap<String, String>,
}

/// The averages of one counter.
#[derive(Debug, Default)]
struct Load {
    last: u64,
    per_minute: [f64; MINUTES.len()],
}

impl Load {
    /// Takes in what the counter is after `passed`.
    fn add(&mut self, now: u64, passed: Duration) {
        let minutes = passed.as_secs_f64() / 60.0;
        if minutes <= 0.0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "an average needs no more")]
        let rate = now.saturating_sub(self.last) as f64 / minutes;
        self.last = now;
        for (average, (_, over)) in self.per_minute.iter_mut().zip(MINUTES) {
            *average = rate + (-minutes / over).exp() * (*average - rate);
        }
    }
}

impl Reporter {
    /// Tells what `counters` count as values of `broker`.
    #[must_use]
    pub fn new(broker: Arc<Broker>, counters: Counters) -> Self {
        let started = clock::now();
        let mut reporter = Self {
            broker,
            counters,
            started,
            averaged: started,
            loads: Default::default(),
            told: FxHashMap::default(),
        };
        reporter.tell("version", concat!("stafett version ", env!("CARGO_PKG_VERSION")).to_owned());
        reporter.report();
        reporter
    }

    /// Tells the values every `interval` until the stop.
    pub async fn run(mut self, interval: Duration, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is at once, and `new` has told the values.
        ticks.tick().await;
        loop {
            tokio::select! {
                () = shutdown.stopping().cancelled() => return,
                _ = ticks.tick() => self.report(),
            }
        }
    }

    /// Tells what has changed.
    fn report(&mut self) {
        let counts: HashMap<&str, u64> = self.counters.list().collect();
        let sum = |names: &[&str]| names.iter().filter_map(|name| counts.get(name)).sum::<u64>();
        for (name, of) in SUMS {
            self.tell(name, sum(of).to_string());
        }
        let away = sum(&["sessions"]).saturating_sub(sum(&["sessions_connected"]));
        self.tell("clients/disconnected", away.to_string());
        let now = clock::now();
        self.tell("uptime", format!("{} seconds", (now - self.started).as_secs()));

        let passed = now - std::mem::replace(&mut self.averaged, now);
        let mut loads = std::mem::take(&mut self.loads);
        for (load, (name, of)) in loads.iter_mut().zip(LOADS) {
            load.add(sum(of), passed);
            for (average, (over, _)) in load.per_minute.iter().zip(MINUTES) {
                self.tell(&format!("load/{name}/{over}"), format!("{average:.2}"));
            }
        }
        self.loads = loads;
    }

    fn tell(&mut self, name: &str, value: String) {
        if self.told.get(name) == Some(&value) {
            return;
        }
        match TopicName::parse(format!("{SYSTEM}/broker/{name}").into()) {
            Ok(topic) => self.broker.set_system(topic, Bytes::from(value.clone())),
            Err(error) => tracing::error!(name, %error, "a name of the server's own is no topic"),
        }
        self.told.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_follow_the_rate_each_at_its_pace() {
        let mut load = Load::default();
        let mut count = 0;
        for _ in 0..6 {
            count += 100; // In ten seconds: 600 per minute.
            load.add(count, Duration::from_secs(10));
        }
        let [one, five, fifteen] = load.per_minute;
        assert!((one - 600.0 * (1.0 - (-1.0_f64).exp())).abs() < 0.01, "{one}");
        assert!((five - 600.0 * (1.0 - (-0.2_f64).exp())).abs() < 0.01, "{five}");
        assert!(fifteen < five && fifteen > 0.0);
        for _ in 0..600 {
            load.add(count, Duration::from_secs(10));
        }
        assert!(load.per_minute.iter().all(|average| *average < 1.0), "{load:?}");
    }
}
