//! What is counted over all targets since the start, for operators.

use std::sync::atomic::{AtomicU64, Ordering};

/// One of them.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Operations refused because a queue was full.
    pub(super) refused_full: Count,
    /// Operations refused because the disk was nearly full.
    pub(super) refused_disk: Count,
    /// Messages that queues did not take again, by their deduplication ids.
    pub(super) duplicates: Count,
    /// Messages that a full session or share group did not take, or a full queue dropped for newer ones.
    pub(super) dropped: Count,
    /// Messages that queues which keep the last value gave up for newer ones.
    pub(super) replaced: Count,
    /// Messages that streams keep no longer.
    pub(super) retired: Count,
    /// Messages of streams that a reader was not given because they cannot be read, counted each time.
    pub(super) unreadable: Count,
    /// Messages whose time was over.
    pub(super) expired: Count,
    /// Messages moved to a dead letter queue.
    pub(super) dead_lettered: Count,
    /// Leases that ended by time.
    pub(super) leases_expired: Count,
    /// Leases whose consumer was lost.
    pub(super) leases_lost: Count,
    /// Leases that were written because they had become old.
    pub(super) leases_written: Count,
}

impl Counts {
    /// By the names under which they are shown.
    pub(super) fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("publishes_refused_full_total", self.refused_full.now()),
            ("publishes_refused_disk_total", self.refused_disk.now()),
            ("messages_duplicate_total", self.duplicates.now()),
            ("messages_dropped_full_total", self.dropped.now()),
            ("messages_replaced_total", self.replaced.now()),
            ("stream_messages_retired_total", self.retired.now()),
            ("stream_messages_unreadable_total", self.unreadable.now()),
            ("messages_expired_total", self.expired.now()),
            ("messages_dead_lettered_total", self.dead_lettered.now()),
            ("leases_expired_total", self.leases_expired.now()),
            ("leases_lost_total", self.leases_lost.now()),
            ("leases_written_total", self.leases_written.now()),
        ]
    }
}
