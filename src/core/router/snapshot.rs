//! One state of the router that never changes: what publishers match against.
//!
//! Invariant: the epoch of a first level is the same in two snapshots of one router only if no filter
//! that could match topics of that first level changed between them. (Not the other way round: first
//! levels share shards by hash, so an epoch may change for a neighbour's sake.)

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use super::Change;
use super::trie::Node;
use crate::types::topic::{TopicFilter, TopicName};

/// How many epochs there are for filters that begin with a literal level. More make fewer neighbours
/// and larger snapshots: each copies 8 bytes per shard.
const SHARDS: usize = 256;

/// A first level's shard; see [`Snapshot::epoch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shard {
    index: u8,
    /// Whether filters that begin with a wildcard can match.
    wild: bool,
}

/// When the filters that could match topics of one first level last changed. Only good for
/// comparing with an epoch of the same first level and router: the later one is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch {
    shard: u64,
    wild: u64,
}

/// An immutable state of a [`Router`](super::Router). Cheap to hold, but it keeps alive what has been
/// unsubscribed since.
pub struct Snapshot<K, V> {
    root: Arc<Node<K, V>>,
    /// The version of the last change in each shard.
    shards: [u64; SHARDS],
    /// The version of the last change to a filter that begins with a wildcard.
    wild: u64,
    version: u64,
    subscriptions: usize,
    nodes: usize,
    hasher: RandomState,
}

impl<K, V> Snapshot<K, V> {
    pub(super) fn empty() -> Self {
        Self {
            root: Arc::default(),
            shards: [0; SHARDS],
            wild: 0,
            version: 0,
            subscriptions: 0,
            nodes: 0,
            hasher: RandomState::new(),
        }
    }

    /// How many subscriptions there are: pairs of a filter and a subscriber.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    /// How many nodes the trie has beside its root: a measure of its memory.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Counts the batches of changes that led here.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The epoch of the topics that begin with `first_level`. While it is the same, so are the
    /// matches of each such topic.
    #[must_use]
    pub fn epoch(&self, first_level: &str) -> Epoch {
        self.shard_epoch(self.shard(first_level))
    }

    pub(super) fn shard(&self, first_level: &str) -> Shard {
        let [index, ..] = self.hasher.hash_one(first_level).to_le_bytes();
        // [MQTT-4.7.2-1]: wildcards in first place do not reach `$`.
        Shard { index, wild: !first_level.starts_with('$') }
    }

    pub(super) fn shard_epoch(&self, shard: Shard) -> Epoch {
        Epoch { shard: self.shards[usize::from(shard.index)], wild: if shard.wild { self.wild } else { 0 } }
    }
}

impl<K: Clone + Ord + Hash, V: Clone> Snapshot<K, V> {
    /// Calls `out` for every subscription whose filter matches `topic`, in no particular order: once
    /// per filter, so maybe several times for one subscriber.
    ///
    /// The cost depends on the topic's levels and on the filters that match a beginning of it, not on
    /// how many others there are. Nothing is allocated, unless more than 32 branches of `+` are open
    /// at once.
    pub fn matches(&self, topic: &TopicName, out: &mut impl FnMut(&K, &V)) {
        self.root.for_each_match(topic, &self.hasher, out);
    }

    /// Calls `out` with each topic that `filter` matches and that somebody subscribes to by its name, in no particular order
    /// and once each, until it returns false. False if it did, or if more than `nodes` levels of topics would have to be
    /// looked at.
    ///
    /// The cost depends on the topics below the filter's beginning without wildcards.
    pub fn names(&self, filter: &TopicFilter, nodes: usize, out: &mut impl FnMut(&str) -> bool) -> bool {
        self.root.for_each_name(filter, &self.hasher, nodes, out)
    }

    /// The state after `changes`, in their order, and what each subscription was before. `None` for
    /// the state when nothing has changed.
    pub(super) fn after(
        &self,
        changes: impl IntoIterator<Item = Change<K, V>>,
        before: &mut Vec<Option<V>>,
    ) -> Option<Self> {
        let mut next = Self {
            root: Arc::clone(&self.root),
            shards: self.shards,
            hasher: self.hasher.clone(),
            version: self.version + 1,
            ..*self
        };
        let mut changed = false;
        for change in changes {
            let (previous, effective) = next.change(change);
            before.push(previous);
            changed |= effective;
        }
        changed.then_some(next)
    }

    /// Returns what the subscription was before and whether anything has changed.
    fn change(&mut self, change: Change<K, V>) -> (Option<V>, bool) {
        match change {
            Change::Insert { filter, key, value } => {
                let (previous, created) = Node::insert(&mut self.root, &filter, key, value, &self.hasher);
                self.nodes += created;
                self.subscriptions += usize::from(previous.is_none());
                self.touch(&filter);
                (previous, true)
            }
            Change::Remove { filter, key } => {
                let Some(removed) = Node::remove(&mut self.root, &filter, &key, &self.hasher) else {
                    return (None, false);
                };
                self.nodes -= removed.pruned;
                self.subscriptions -= 1;
                self.touch(&filter);
                (Some(removed.value), true)
            }
        }
    }

    fn touch(&mut self, filter: &TopicFilter) {
        if filter.starts_with_wildcard() {
            self.wild = self.version;
        } else {
            let shard = self.shard(filter.first_level());
            self.shards[usize::from(shard.index)] = self.version;
        }
    }
}

impl<K, V> fmt::Debug for Snapshot<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("version", &self.version)
            .field("subscriptions", &self.subscriptions)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}
