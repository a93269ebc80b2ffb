//! Remembers where the topics of one publisher went.
//!
//! A connection publishes to few topics, again and again. The cache is its own (no lock), small and
//! bounded: entries lie in sets of four by the hash of the topic, so a lookup is one hash and at most
//! four comparisons, and allocates nothing.
//!
//! Invariant: what [`RouteCache::get`] returns is what a match against that snapshot would give,
//! because an entry counts only while its topic's [`Epoch`] is that of the snapshot.

use std::hash::BuildHasher;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use super::snapshot::{Epoch, Shard, Snapshot};
use crate::types::topic::TopicName;

/// Entries of one set.
const WAYS: usize = 4;
/// Longer topics are not kept: with them the entries would no longer bound the memory.
const TOPIC_BYTES_MAX: usize = 1_024;
/// Nor are longer lists of targets: walking them costs more than finding them.
const TARGETS_MAX: usize = 1_024;

/// A bounded cache from topic to targets, for one publisher and one router.
///
/// Entries hold their targets until they are replaced or [cleared](Self::clear), also when these have
/// unsubscribed: an idle connection should clear its cache, which gives back all memory.
#[derive(Debug)]
pub struct RouteCache<T> {
    /// Empty until something is inserted, then `capacity` places.
    places: Vec<Option<Entry<T>>>,
    capacity: usize,
    /// Which entry of a full set goes next.
    turn: usize,
}

#[derive(Debug)]
struct Entry<T> {
    hash: u64,
    topic: TopicName,
    shard: Shard,
    epoch: Epoch,
    targets: Arc<[T]>,
}

impl<T> Default for RouteCache<T> {
    /// A cache of 64 topics.
    fn default() -> Self {
        Self::with_capacity(64)
    }
}

impl<T> RouteCache<T> {
    /// A cache of up to `topics` topics, rounded up to a power of two and to 4 or more. Takes no
    /// memory before its first entry.
    #[must_use]
    pub fn with_capacity(topics: usize) -> Self {
        Self { places: Vec::new(), capacity: topics.max(WAYS).next_power_of_two(), turn: 0 }
    }

    /// Where `topic` goes by `snapshot`, if that is known.
    #[must_use]
    pub fn get<K, V>(&self, snapshot: &Snapshot<K, V>, topic: &TopicName) -> Option<&Arc<[T]>> {
        self.find(snapshot, topic, hash(topic))
    }

    /// Where `topic` goes by `snapshot`: what is known, or else what `route` finds, which is kept.
    pub fn get_or_insert_with<K, V>(
        &mut self,
        snapshot: &Snapshot<K, V>,
        topic: &TopicName,
        route: impl FnOnce() -> Arc<[T]>,
    ) -> Arc<[T]> {
        let hash = hash(topic);
        if let Some(targets) = self.find(snapshot, topic, hash) {
            return Arc::clone(targets);
        }
        let targets = route();
        self.keep(snapshot, topic, hash, Arc::clone(&targets));
        targets
    }

    /// How many topics are held, those with outdated targets included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.iter().flatten().count()
    }

    /// Whether no topic is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.iter().flatten().next().is_none()
    }

    /// Forgets everything and gives the memory back.
    pub fn clear(&mut self) {
        self.places = Vec::new();
    }

    fn find<K, V>(&self, snapshot: &Snapshot<K, V>, topic: &TopicName, hash: u64) -> Option<&Arc<[T]>> {
        let set = self.places.get(self.set(hash))?;
        let entry = set.iter().flatten().find(|entry| entry.is_for(topic, hash))?;
        entry.is_valid(snapshot).then_some(&entry.targets)
    }

    /// Puts the targets in place of the topic's own entry, or of none, or of an outdated one, or of
    /// the one whose turn it is.
    fn keep<K, V>(&mut self, snapshot: &Snapshot<K, V>, topic: &TopicName, hash: u64, targets: Arc<[T]>) {
        if topic.as_str().len() > TOPIC_BYTES_MAX || targets.len() > TARGETS_MAX {
            return;
        }
        if self.places.is_empty() {
            self.places.resize_with(self.capacity, || None);
        }
        let range = self.set(hash);
        let Some(set) = self.places.get_mut(range) else { return };
        let own = set.iter().position(|place| place.as_ref().is_some_and(|entry| entry.is_for(topic, hash)));
        let free =
            || set.iter().position(|place| place.as_ref().is_none_or(|entry| !entry.is_valid(snapshot)));
        let at = own.or_else(free).unwrap_or_else(|| {
            self.turn = self.turn.wrapping_add(1);
            self.turn % WAYS
        });
        if let Some(place) = set.get_mut(at) {
            let shard = snapshot.shard(topic.first_level());
            let epoch = snapshot.shard_epoch(shard);
            // The topic is a slice of a read buffer, which must not live as long as the entry.
            let topic = topic.detached();
            *place = Some(Entry { hash, topic, shard, epoch, targets });
        }
    }

    fn set(&self, hash: u64) -> std::ops::Range<usize> {
        let sets = (self.capacity / WAYS) as u64;
        let start = (hash >> 32) as usize % sets.max(1) as usize * WAYS;
        start..start + WAYS
    }
}

impl<T> Entry<T> {
    fn is_for(&self, topic: &TopicName, hash: u64) -> bool {
        self.hash == hash && self.topic == *topic
    }

    fn is_valid<K, V>(&self, snapshot: &Snapshot<K, V>) -> bool {
        self.epoch == snapshot.shard_epoch(self.shard)
    }
}

/// Not keyed: whoever makes topics collide slows down no connection but their own.
fn hash(topic: &TopicName) -> u64 {
    FxBuildHasher.hash_one(topic.as_str())
}
