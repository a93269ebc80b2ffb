//! What publishing and subscribing need of the broker.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::retained::Retained;
use super::session::will::Wills;
use super::session::{SessionKey, Sessions, keep_time};
use super::share::{Groups, ShareKey};
use super::{Broker, Limits};
use crate::engine::{GroupSpec, Op, StoredSession};
use crate::types::topic::FilterSpec;
use crate::types::{Message, TargetId, clock};

/// The parts of the broker that publishing and subscribing share.
#[derive(Debug)]
pub(crate) struct PubSub {
    pub(crate) retained: Retained,
    pub(crate) sessions: Sessions,
    pub(crate) wills: Wills,
    pub(crate) groups: Groups,
    /// Deliveries that outboxes did not take.
    pub(crate) dropped: Arc<AtomicU64>,
    /// Connections that were ended because they did not keep up.
    pub(crate) cut: AtomicU64,
    /// Sessions with a connection, and the most that there were.
    pub(crate) connected: AtomicU64,
    pub(crate) connected_most: AtomicU64,
    /// How often a session was given a connection.
    pub(crate) opened: AtomicU64,
    /// Sessions that ended by time.
    pub(crate) expired: AtomicU64,
    keys: AtomicU64,
}

impl PubSub {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            retained: Retained::new(limits),
            sessions: Sessions::default(),
            wills: Wills::default(),
            groups: Groups::default(),
            dropped: Arc::default(),
            cut: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            connected_most: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            keys: AtomicU64::new(1),
        }
    }

    fn next_key(&self) -> u64 {
        self.keys.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn next_session(&self) -> SessionKey {
        SessionKey(self.next_key())
    }

    pub(crate) fn next_share(&self) -> ShareKey {
        ShareKey(self.next_key())
    }
}

impl Broker {
    /// How many sessions there are, connected or away.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.pubsub.sessions.count()
    }

    /// How many retained values there are, those of the server's own aside.
    #[must_use]
    pub fn retained_count(&self) -> usize {
        self.pubsub.retained.size().0
    }

    /// What is counted, by the names that operators see; those that end in `_total` since the start. Never waits.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.engine.counters();
        counters.extend(self.calls.counters());
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (received, sent) = self.traffic.totals();
        let (retained, retained_bytes) = self.pubsub.retained.size();
        counters.extend([
            ("queues", self.queues().count() as u64),
            ("queues_expired_total", self.queues.expired()),
            ("streams", self.streams().count() as u64),
            ("sessions", self.session_count() as u64),
            ("subscriptions", self.routes.count() as u64),
            ("sessions_connected", load(&self.pubsub.connected)),
            ("sessions_connected_most", load(&self.pubsub.connected_most)),
            ("sessions_opened_total", load(&self.pubsub.opened)),
            ("sessions_expired_total", load(&self.pubsub.expired)),
            ("retained_messages", retained as u64),
            ("retained_bytes", retained_bytes as u64),
            ("publishes_received_total", received.messages),
            ("publishes_received_bytes_total", received.bytes),
            ("publishes_sent_total", sent.messages),
            ("publishes_sent_bytes_total", sent.bytes),
            ("deliveries_dropped_total", load(&self.pubsub.dropped)),
            ("subscribers_cut_total", load(&self.pubsub.cut)),
        ]);
        counters
    }

    /// Rebuilds sessions, share groups and retained values as they were stored, and starts what keeps time. Once,
    /// when the queues are there and before the doors open.
    pub(crate) fn restore_pubsub(
        self: &Arc<Self>,
        sessions: Vec<StoredSession>,
        groups: Vec<(TargetId, GroupSpec)>,
        retained: Vec<Message>,
    ) {
        self.pubsub.retained.restore(retained);
        let mut groups: HashMap<FilterSpec, TargetId> =
            groups.into_iter().map(|(id, spec)| (spec.filter, id)).collect();
        let mut used = HashMap::new();
        let now = clock::unix_now();
        let mut routes = Vec::new();
        let mut sessions = sessions;
        sessions.sort_by_key(|session| std::cmp::Reverse(session.id)); // Of two of one client the newer stays.
        for session in sessions {
            let target = |filter: &FilterSpec| {
                if let Some((filter, target)) = groups.remove_entry(filter) {
                    used.insert(filter, target);
                }
                used.get(filter).copied()
            };
            routes.extend(self.restore_session(session, target, now));
        }
        self.routes.change_now(routes);
        // A crash between the end of its last member and its own leaves a group without members.
        let lost: Vec<Op> = groups.into_values().map(Op::Delete).collect();
        if !lost.is_empty() {
            drop(self.engine.commit(lost));
        }
        self.tasks.spawn(keep_time(Arc::clone(self)));
    }
}

#[cfg(all(test, feature = "embedded"))]
pub(in crate::core) mod tests;
