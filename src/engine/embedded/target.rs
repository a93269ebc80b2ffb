//! A durable target as the engine knows it: its settings, its counts, its index.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytestring::ByteString;
use parking_lot::Mutex;

use super::entry::Entry;
use super::index::State;
use super::retries::Retries;
use super::streams::Kept;
use crate::engine::{Definition, Overflow, TargetStats, Usage};
use crate::types::{QueueName, Sequence, TargetId};

/// What a full target does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// It drops what is new, and counts it.
    DropNew,
    Queue(Overflow),
}

/// What of a definition the engine itself needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) when_full: WhenFull,
    pub(super) max_messages: u64,
    pub(super) max_bytes: u64,
    pub(super) retries: Retries,
    pub(super) queue: Option<QueueName>,
    pub(super) dead_letter: Option<QueueName>,
    pub(super) priorities: bool,
    /// Messages of one key come one at a time.
    pub(super) ordered: bool,
    /// One consumer gets messages, until it ends.
    pub(super) single_active: bool,
    pub(super) dedup_window: Option<Duration>,
    /// The property of which it keeps the last value.
    pub(super) last_value_key: Option<ByteString>,
    /// What expires goes to the dead letter queue.
    pub(super) buries_expired: bool,
    pub(super) paused: bool,
    /// Nobody consumes it; see [`super::streams`].
    pub(super) stream: bool,
    /// In milliseconds. Of a stream.
    pub(super) max_age: Option<u64>,
}

impl From<&Definition> for Settings {
    fn from(definition: &Definition) -> Self {
        let (max_messages, max_bytes) = match definition {
            Definition::Queue(queue) => (queue.max_messages, queue.max_bytes),
            Definition::Session(session) => (session.max_messages, session.max_bytes),
            Definition::Group(group) => (group.max_messages, group.max_bytes),
            Definition::Backlog(_) => (u64::MAX, u64::MAX),
            Definition::Stream(stream) => (stream.max_messages, stream.max_bytes),
        };
        let queue = match definition {
            Definition::Queue(queue) => Some(queue),
            _ => None,
        };
        let stream = match definition {
            Definition::Stream(stream) => Some(stream),
            _ => None,
        };
        let when_full = match stream {
            Some(_) => WhenFull::Queue(Overflow::DropOldest),
            None => queue.map_or(WhenFull::DropNew, |queue| WhenFull::Queue(queue.overflow)),
        };
        Self {
            when_full,
            max_messages,
            max_bytes,
            retries: queue.map(Retries::from).unwrap_or_default(),
            queue: queue.map(|queue| queue.name.clone()),
            dead_letter: queue.and_then(|queue| queue.dead_letter.clone()),
            priorities: queue.is_some_and(|queue| queue.priorities),
            ordered: queue.is_some_and(|queue| queue.ordered_by_key),
            single_active: queue.is_some_and(|queue| queue.single_active_consumer),
            dedup_window: queue.and_then(|queue| queue.dedup_window),
            last_value_key: queue.and_then(|queue| queue.last_value_key.clone()),
            buries_expired: queue
                .is_some_and(|queue| queue.dead_letter_expired && queue.dead_letter.is_some()),
            paused: queue.is_some_and(|queue| queue.paused),
            stream: stream.is_some(),
            max_age: stream
                .and_then(|stream| stream.max_age)
                .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// One target.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) id: TargetId,
    pub(super) settings: ArcSwap<Settings>,
    /// Stored and not settled. The writer alone changes these.
    pub(super) messages: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Of these: on their way to the dead letter queue to make room.
    pub(super) leaving_messages: AtomicU64,
    pub(super) leaving_bytes: AtomicU64,
    pub(super) next_sequence: AtomicU64,
    /// Messages below were stored by an earlier start.
    pub(super) earlier: AtomicU64,
    pub(super) totals: Totals,
    /// When the last message of a stream was appended, in milliseconds since 1970. The writer alone changes it.
    pub(super) last_append: AtomicU64,
    pub(super) state: Mutex<State>,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) enqueued: AtomicU64,
    pub(super) acked: AtomicU64,
    pub(super) dead_lettered: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) replaced: AtomicU64,
}

impl Target {
    pub(super) fn new(id: TargetId, settings: Settings, next_sequence: u64) -> Self {
        let order = settings.ordered.then(Box::default);
        let values = settings.last_value_key.is_some().then(Box::default);
        let kept = Kept::of(&settings, next_sequence);
        let state = State { order, values, kept, paused: settings.paused, ..State::default() };
        Self {
            id,
            settings: ArcSwap::from_pointee(settings),
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            leaving_messages: AtomicU64::new(0),
            leaving_bytes: AtomicU64::new(0),
            next_sequence: AtomicU64::new(next_sequence),
            earlier: AtomicU64::new(next_sequence),
            totals: Totals::default(),
            last_append: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    /// One that was counted as leaving is so no more: it is gone, or stays.
    pub(super) fn left(&self, entry: &Entry) {
        self.leaving_messages.fetch_sub(1, Ordering::Relaxed);
        self.leaving_bytes.fetch_sub(u64::from(entry.len), Ordering::Relaxed);
    }

    pub(super) fn usage(&self) -> Usage {
        let state = self.state.lock();
        Usage {
            stored: self.totals.enqueued.load(Ordering::Relaxed),
            joined: state.members.joined(),
            busy: state.members.len() > 0 || state.leased_count() > 0,
        }
    }

    pub(super) fn stats(&self) -> TargetStats {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let state = self.state.lock();
        TargetStats {
            ready: state.ready_count() as u64,
            delayed: state.delayed_count() as u64,
            leased: state.leased_count() as u64,
            bytes: load(&self.bytes),
            enqueued_total: load(&self.totals.enqueued),
            acked_total: load(&self.totals.acked),
            dead_lettered_total: load(&self.totals.dead_lettered),
            expired_total: load(&self.totals.expired),
            dropped_total: load(&self.totals.dropped),
            replaced_total: load(&self.totals.replaced),
            consumers: u32::try_from(state.members.len()).unwrap_or(u32::MAX),
            last: Sequence(load(&self.next_sequence).saturating_sub(1)),
        }
    }
}
