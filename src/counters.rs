//! What is counted for operators: where the counts come from, and counting what passes without contention.
//!
//! Invariant: counting never blocks, and threads that count at the same time do not share a cache line.

use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Gives counts by name when asked; must not block.
pub type CounterSource = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// All that is counted, by the names that operators see: those that end in `_total` since the start. Clones are the same.
#[derive(Clone)]
pub struct Counters(Arc<[CounterSource]>);

impl Counters {
    /// What all of `sources` say.
    #[must_use]
    pub fn new(sources: Vec<CounterSource>) -> Self {
        Self(sources.into())
    }

    /// As they are now. Never waits.
    pub fn list(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().flat_map(|source| source())
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").field("sources", &self.0.len()).finish()
    }
}

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// How many.
    pub messages: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Passed {
    /// Messages with payloads of these lengths.
    pub fn of(lengths: impl Iterator<Item = usize>) -> Self {
        lengths.fold(Self::default(), |sum, bytes| Self {
            messages: sum.messages + 1,
            bytes: sum.bytes + bytes as u64,
        })
    }

    /// So many messages of these, all taken to be of one size.
    #[must_use]
    pub fn part(self, messages: usize) -> Self {
        let messages = messages as u64;
        if messages >= self.messages {
            return self;
        }
        Self { messages, bytes: self.bytes / self.messages * messages }
    }
}

impl AddAssign for Passed {
    fn add_assign(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

/// Threads beyond this number share with others.
const SHARDS: usize = 16;

/// What has passed, each way, since the start. Added to in batches by any thread.
#[derive(Debug, Default)]
pub struct Traffic {
    shards: [Shard; SHARDS],
}

/// As wide as what a processor fetches at once.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    received: Pair,
    sent: Pair,
}

#[derive(Debug, Default)]
struct Pair {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Pair {
    fn add(&self, passed: Passed) {
        if passed.messages > 0 {
            self.messages.fetch_add(passed.messages, Ordering::Relaxed);
        }
        if passed.bytes > 0 {
            self.bytes.fetch_add(passed.bytes, Ordering::Relaxed);
        }
    }

    fn now(&self) -> Passed {
        Passed { messages: self.messages.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// The shard of this thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    MINE.with(|mine| *mine)
}

impl Traffic {
    #[expect(clippy::indexing_slicing, reason = "the index is below the number of shards")]
    fn mine(&self) -> &Shard {
        &self.shards[shard()]
    }

    /// Adds what came in.
    pub fn received(&self, passed: Passed) {
        self.mine().received.add(passed);
    }

    /// Adds what went out.
    pub fn sent(&self, passed: Passed) {
        self.mine().sent.add(passed);
    }

    /// All that came in and all that went out.
    #[must_use]
    pub fn totals(&self) -> (Passed, Passed) {
        let mut totals = (Passed::default(), Passed::default());
        for shard in &self.shards {
            totals.0 += shard.received.now();
            totals.1 += shard.sent.now();
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_count_adds_up() {
        let traffic = Traffic::default();
        std::thread::scope(|scope| {
            for _ in 0..SHARDS + 3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        traffic.received(Passed { messages: 1, bytes: 3 });
                        traffic.sent(Passed { messages: 2, bytes: 5 });
                    }
                });
            }
        });
        let threads = (SHARDS + 3) as u64;
        let (received, sent) = traffic.totals();
        assert_eq!(received, Passed { messages: 100 * threads, bytes: 300 * threads });
        assert_eq!(sent, Passed { messages: 200 * threads, bytes: 500 * threads });
    }
}
