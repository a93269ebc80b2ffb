//! When sessions end, and when it is written down that one is connected: one ordered set, one task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::entry::{SessionEntry, SessionKey};
use crate::core::Broker;
use crate::types::{ClientId, clock};

/// The shortest and the longest time between two notes that a session is connected. After a crash its expiry counts
/// from the last one, so a session with a short expiry has them more often.
const NOTE_EVERY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// So many of what is due is done at a time.
const AT_ONCE: usize = 256;
/// How often a shard of retained values is looked through for what has expired.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: Mutex<BTreeMap<(Instant, SessionKey), ClientId>>,
    /// Woken when the first has changed.
    sooner: Notify,
}

impl Timers {
    /// Replaces what is due of a session. Lock order: the session's state, then this.
    fn set(&self, entry: &SessionEntry, at: Option<Instant>) {
        let mut state = entry.state.lock();
        let at = at.filter(|_| !state.ended);
        let mut due = self.due.lock();
        if let Some(old) = std::mem::replace(&mut state.due, at) {
            due.remove(&(old, entry.key));
        }
        if let Some(at) = at {
            due.insert((at, entry.key), entry.client_id.clone());
            if due.first_key_value().is_some_and(|((first, _), _)| *first == at) {
                self.sooner.notify_one();
            }
        }
    }

    /// The session is with a connection: that is noted from time to time, if it may end by time.
    pub(super) fn connected(&self, entry: &SessionEntry) {
        let expiry = entry.state.lock().expiry;
        let (least, most) = NOTE_EVERY;
        let notes = entry.target.is_some() && expiry < Duration::MAX && !expiry.is_zero();
        self.set(entry, notes.then(|| Instant::now() + (expiry / 16).clamp(least, most)));
    }

    /// The session is away and ends in `left`.
    pub(super) fn away(&self, entry: &SessionEntry, left: Duration) {
        self.set(entry, Instant::now().checked_add(left).filter(|_| left < Duration::MAX));
    }

    /// Nothing is due of it any more.
    pub(super) fn forget(&self, entry: &SessionEntry) {
        self.set(entry, None);
    }

    /// Waits until something is due, and takes it.
    async fn next(&self) -> Vec<ClientId> {
        loop {
            let sooner = self.sooner.notified();
            let first = self.due.lock().first_key_value().map(|((at, _), _)| *at);
            match first {
                Some(at) if at <= Instant::now() => return self.take(),
                Some(at) => {
                    tokio::select! {
                        () = sleep_until(at) => {}
                        () = sooner => {}
                    }
                }
                None => sooner.await,
            }
        }
    }

    fn take(&self) -> Vec<ClientId> {
        let now = Instant::now();
        let mut due = self.due.lock();
        let mut taken = Vec::new();
        while taken.len() < AT_ONCE
            && let Some(first) = due.first_entry()
            && first.key().0 <= now
        {
            taken.push(first.remove());
        }
        taken
    }
}

/// Ends sessions whose time is over, notes who is connected, and clears retained values, until the broker drains.
pub(crate) async fn keep_time(broker: Arc<Broker>) {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut shard = 0;
    loop {
        tokio::select! {
            () = broker.draining.cancelled() => return,
            _ = sweep.tick() => shard = broker.sweep_retained(shard).await,
            clients = broker.pubsub.sessions.timers.next() => {
                join_all(clients.iter().map(|client| broker.is_due(client))).await;
            }
        }
    }
}

impl Broker {
    /// A session may have come to its end, or is to be noted as connected.
    async fn is_due(self: &Arc<Self>, client: &ClientId) {
        let sessions = &self.pubsub.sessions;
        let claim = sessions.claim(client).await;
        let Some(entry) = claim.current() else { return };
        let due = entry.state.lock().due;
        if due.is_none_or(|due| due > Instant::now()) {
            return; // It was opened meanwhile, or is another session.
        }
        if entry.attached.load().is_some() {
            sessions.timers.connected(&entry);
            if let Some(op) = entry.definition(&self.limits, clock::unix_now()) {
                // Nobody waits for a note.
                drop(self.engine.commit(vec![op]));
            }
        } else {
            tracing::debug!(client = %client, "session expired");
            self.pubsub.expired.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = self.end_session(&entry).await {
                tracing::debug!(client = %client, %error, "the expired session is not deleted yet");
            }
        }
    }
}
