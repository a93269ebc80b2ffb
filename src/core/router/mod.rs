//! Which subscribers a topic goes to.
//!
//! A [`Router`] maps filters to subscribers (`K`, an id) and what is to know of each subscription
//! (`V`, shared options or a handle). It is a persistent trie behind one pointer:
//!
//! ```text
//! publisher ── load() ──▶ Snapshot ──▶ root ─ nodes shared between snapshots
//! subscriber ─ submit() ─▶ pending batch ── one writer: copy the changed paths, publish ─▶ Snapshot'
//! ```
//!
//! - Publishers match in their own task against the snapshot that they loaded. They take no lock and
//!   wait for no one; a snapshot never changes.
//! - Changes go through one writer at a time. Single changes that come together are applied together,
//!   since each new snapshot costs copies that a batch shares.
//! - [`RouteCache`] remembers a publisher's targets for as long as the [`Epoch`] of a topic's first
//!   level is the same.
//!
//! Invariants: changes take effect in the order of their calls, whether submitted or applied; every
//! change that was handed over is applied, also when its caller has gone. Shared subscriptions are one
//! subscriber here (the group); who of its members gets a message is delivery's business, and so is
//! the limit on the levels of a filter. The router knows nothing of sessions, protocols or storage.

mod batch;
mod cache;
mod level;
mod map;
mod snapshot;
#[cfg(test)]
mod tests;
mod trie;

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

pub use self::batch::BatchAbandoned;
use self::batch::{Pending, Submission};
pub use self::cache::RouteCache;
pub use self::snapshot::{Epoch, Snapshot};
use crate::types::clock;
use crate::types::topic::TopicFilter;

/// One change of one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<K, V> {
    /// Subscribes, or replaces the value of the same subscriber's subscription to the same filter.
    Insert {
        /// Which topics.
        filter: TopicFilter,
        /// Who.
        key: K,
        /// What matches give along with the key.
        value: V,
    },
    /// Ends a subscription. Does nothing when there is none.
    Remove {
        /// Which topics.
        filter: TopicFilter,
        /// Who.
        key: K,
    },
}

/// The filters of all subscribers; see the [module](self).
///
/// Locks, in the order they are taken: `writer`, then `pending`. Neither is held over an await.
pub struct Router<K, V> {
    current: ArcSwap<Snapshot<K, V>>,
    writer: Mutex<()>,
    pending: Mutex<Pending<K, V>>,
}

impl<K, V> Router<K, V> {
    /// A router without subscriptions.
    #[must_use]
    pub fn new() -> Self {
        Self {
            current: ArcSwap::from_pointee(Snapshot::empty()),
            writer: Mutex::new(()),
            pending: Mutex::default(),
        }
    }

    /// The state as of now, for a match right away. A guard is for short use: to hold it over an
    /// await or longer than a read's worth of messages, take [`snapshot`](Self::snapshot).
    pub fn load(&self) -> Guard<Arc<Snapshot<K, V>>> {
        self.current.load()
    }

    /// The state as of now, to keep.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot<K, V>> {
        self.current.load_full()
    }
}

impl<K: Clone + Ord + Hash, V: Clone> Router<K, V> {
    /// Applies `changes` in their order, behind what was submitted before, and publishes the result
    /// as one snapshot. Returns, for each change, the value that the subscription had before.
    ///
    /// Blocks while another batch is being applied: a few microseconds per change in it.
    pub fn apply(&self, changes: Vec<Change<K, V>>) -> Vec<Option<V>> {
        self.write(changes)
    }

    /// Applies what is pending and then `own`, and publishes one snapshot.
    fn write(&self, own: Vec<Change<K, V>>) -> Vec<Option<V>> {
        let writing = self.writer.lock();
        let mut submissions = self.pending.lock().take();
        let began = clock::now();
        let sizes: Vec<_> = submissions.iter().map(Submission::len).collect();
        let changes = submissions.iter_mut().flat_map(Submission::take_changes).chain(own);

        let old = self.current.load_full();
        let mut before = Vec::new();
        if let Some(next) = old.after(changes, &mut before) {
            self.current.store(Arc::new(next));
        }
        self.pending.lock().applied(began.elapsed());
        drop(writing);

        let mut before = before.into_iter();
        for (submission, size) in submissions.into_iter().zip(sizes) {
            submission.answer(before.by_ref().take(size).collect());
        }
        before.collect()
    }
}

impl<K, V> Default for Router<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> fmt::Debug for Router<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("current", &**self.load()).finish_non_exhaustive()
    }
}
