//! What there is of one kind: queues, streams.
//!
//! Invariant: a name and a number lead to the same entry.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::FxHashMap;

use crate::types::TargetId;

/// Something with a name that the engine knows by a number.
pub trait Listed: Debug {
    /// Its name.
    type Name: Borrow<str> + Clone + Debug + Ord;

    /// What the engine knows it by.
    fn id(&self) -> TargetId;

    /// Its name.
    fn name(&self) -> &Self::Name;
}

/// All of one kind.
#[derive(Debug)]
pub struct Listing<E: Listed> {
    map: RwLock<Map<E>>,
}

#[derive(Debug)]
struct Map<E: Listed> {
    by_name: BTreeMap<E::Name, Arc<E>>,
    by_id: FxHashMap<TargetId, Arc<E>>,
}

impl<E: Listed> Default for Listing<E> {
    fn default() -> Self {
        Self { map: RwLock::new(Map { by_name: BTreeMap::new(), by_id: FxHashMap::default() }) }
    }
}

impl<E: Listed> Listing<E> {
    /// Lists one; false if its name is taken.
    pub(super) fn insert(&self, entry: &Arc<E>) -> bool {
        let mut map = self.map.write();
        let free = map.by_name.insert(entry.name().clone(), Arc::clone(entry)).is_none();
        map.by_id.insert(entry.id(), Arc::clone(entry));
        free
    }

    pub(super) fn remove(&self, entry: &E) {
        let mut map = self.map.write();
        map.by_name.remove::<E::Name>(entry.name());
        map.by_id.remove(&entry.id());
    }

    /// The one of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<E>> {
        self.map.read().by_name.get(name).cloned()
    }

    /// The one that the engine knows by this number.
    #[must_use]
    pub fn by_id(&self, id: TargetId) -> Option<Arc<E>> {
        self.map.read().by_id.get(&id).cloned()
    }

    /// All, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<E>> {
        self.map.read().by_name.values().cloned().collect()
    }

    /// The first, by name, that is such.
    pub(super) fn find(&self, is_such: impl Fn(&E) -> bool) -> Option<Arc<E>> {
        self.map.read().by_name.values().find(|entry| is_such(entry)).cloned()
    }

    /// At most `max` whose name begins with `prefix`, by name, those after `after`.
    #[must_use]
    pub fn page(&self, prefix: &str, after: Option<&E::Name>, max: usize) -> Vec<Arc<E>> {
        let from = match after.map(Borrow::borrow) {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let map = self.map.read();
        map.by_name
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(name, _)| Borrow::<str>::borrow(*name).starts_with(prefix))
            .take(max)
            .map(|(_, entry)| Arc::clone(entry))
            .collect()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.map.read().by_name.len()
    }
}
