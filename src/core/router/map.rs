//! A persistent map: the fan-out of a trie node and the subscribers of a filter.
//!
//! Up to [`LEAF_MAX`] entries are one sorted vector; above that the map fans out 16 ways by the hash
//! of the key, into such vectors again:
//!
//! ```text
//! root ─ Branch[hash & 15] ─ Branch[hash >> 4 & 15] ─ … ─ Leaf [(key, value), …] sorted by key
//! ```
//!
//! A clone shares everything. A change copies the buckets on its way that are shared, at most 16 slots
//! or entries each, and changes in place those that are not: with a million entries that is five small
//! copies, and a batch of changes copies a common bucket once.
//!
//! Invariants: no bucket is empty; a branch has more than [`MERGE_MAX`] entries below it. Hashes are
//! keyed, so a peer cannot choose keys that fall into one bucket; keys with equal hashes end in a leaf
//! below the last branch, which may exceed [`LEAF_MAX`].

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, RandomState};
use std::mem;
use std::sync::Arc;

use smallvec::SmallVec;

/// The most entries that are kept as one sorted vector.
const LEAF_MAX: usize = 16;
/// A branch with this many entries left becomes a leaf again: fewer than [`LEAF_MAX`], so that one
/// insert and remove in turn does not split and merge each time.
const MERGE_MAX: usize = 8;
const FAN_OUT: usize = 16;
const HASH_BITS: u32 = 4;
/// How many branches there can be above a leaf: all bits of a hash.
const DEPTH_MAX: u32 = u64::BITS / HASH_BITS;

type Leaf<K, V> = SmallVec<[(K, V); 1]>;
type Slots<K, V> = [Option<Arc<Bucket<K, V>>>; FAN_OUT];

pub(super) struct Map<K, V> {
    root: Option<Arc<Bucket<K, V>>>,
}

#[derive(Clone)]
enum Bucket<K, V> {
    Leaf(Leaf<K, V>),
    Branch(Box<Slots<K, V>>),
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self { root: None }
    }
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone() }
    }
}

impl<K, V> Map<K, V> {
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Whether there is exactly one entry.
    pub(super) fn is_single(&self) -> bool {
        matches!(self.root.as_deref(), Some(Bucket::Leaf(entries)) if entries.len() == 1)
    }

    /// Calls `visit` for each entry, in no order that callers may rely on.
    pub(super) fn for_each(&self, visit: &mut impl FnMut(&K, &V)) {
        if let Some(root) = &self.root {
            root.for_each(visit);
        }
    }

    /// Empties the map and gives away the values of which it was the only owner.
    pub(super) fn dismantle(&mut self, take: &mut impl FnMut(V)) {
        if let Some(bucket) = self.root.take().and_then(Arc::into_inner) {
            bucket.dismantle(take);
        }
    }
}

impl<K: Clone + Ord + Hash, V: Clone> Map<K, V> {
    pub(super) fn get<Q>(&self, key: &Q, hasher: &RandomState) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        let mut bucket = self.root.as_deref()?;
        let mut hash = None; // most maps are one leaf and need none
        loop {
            match bucket {
                Bucket::Leaf(entries) => {
                    let at = find(entries, key).ok()?;
                    return entries.get(at).map(|(_, value)| value);
                }
                Bucket::Branch(slots) => {
                    let rest = hash.get_or_insert_with(|| hasher.hash_one(key));
                    bucket = slots[slot(*rest)].as_deref()?;
                    *rest >>= HASH_BITS;
                }
            }
        }
    }

    /// The value of `key`, after setting it to what `make` gives when there is none.
    pub(super) fn get_or_insert_with<Q>(
        &mut self,
        key: &Q,
        hasher: &RandomState,
        make: impl FnOnce() -> (K, V),
    ) -> &mut V
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        let (entries, found) = self.leaf_for(key, hasher);
        let at = found.unwrap_or_else(|at| {
            entries.insert(at, make());
            at
        });
        &mut entries[at].1
    }

    /// The value of `key`, to be changed. Copies what is shared on the way even when the key is not
    /// there: ask [`get`](Self::get) first.
    pub(super) fn get_mut<Q>(&mut self, key: &Q, hasher: &RandomState) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        let mut bucket = self.root.as_mut()?;
        let mut hash = None;
        loop {
            match Arc::make_mut(bucket) {
                Bucket::Leaf(entries) => {
                    let at = find(entries, key).ok()?;
                    return entries.get_mut(at).map(|(_, value)| value);
                }
                Bucket::Branch(slots) => {
                    let rest = hash.get_or_insert_with(|| hasher.hash_one(key));
                    bucket = slots[slot(*rest)].as_mut()?;
                    *rest >>= HASH_BITS;
                }
            }
        }
    }

    /// Sets the value of `key` and returns the one it had.
    pub(super) fn insert(&mut self, key: K, value: V, hasher: &RandomState) -> Option<V> {
        match self.leaf_for(&key, hasher) {
            (entries, Ok(at)) => Some(mem::replace(&mut entries[at].1, value)),
            (entries, Err(at)) => {
                entries.insert(at, (key, value));
                None
            }
        }
    }

    /// The leaf for `key`, unshared and with room for one more, and where in it the key is or belongs.
    /// The leaf may be new and empty: the caller puts the key there.
    fn leaf_for<Q>(&mut self, key: &Q, hasher: &RandomState) -> (&mut Leaf<K, V>, Result<usize, usize>)
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        let mut bucket = self.root.get_or_insert_with(Bucket::empty);
        let mut hash = None;
        let mut depth = 0;
        loop {
            let node = Arc::make_mut(bucket);
            if let Bucket::Leaf(entries) = node
                && entries.len() >= LEAF_MAX
                && depth < DEPTH_MAX
                && find(entries, key).is_err()
            {
                *node = Bucket::split(mem::take(entries), depth, hasher);
            }
            match node {
                Bucket::Branch(slots) => {
                    let rest = hash.get_or_insert_with(|| hasher.hash_one(key));
                    bucket = slots[slot(*rest)].get_or_insert_with(Bucket::empty);
                    *rest >>= HASH_BITS;
                    depth += 1;
                }
                Bucket::Leaf(entries) => {
                    let found = find(entries, key);
                    return (entries, found);
                }
            }
        }
    }

    /// Removes `key` and returns its value. Copies what is shared on the way even when the key is
    /// not there: ask [`get`](Self::get) first.
    pub(super) fn remove<Q>(&mut self, key: &Q, hasher: &RandomState) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        let removed = Bucket::remove(self.root.as_mut()?, key, &mut None, hasher);
        if self.root.as_ref().is_some_and(|root| root.is_empty()) {
            self.root = None;
        }
        removed
    }
}

// The recursions below go one bucket deeper each time: at most `DEPTH_MAX` times.
impl<K, V> Bucket<K, V> {
    fn empty() -> Arc<Self> {
        Arc::new(Self::Leaf(Leaf::new()))
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Leaf(entries) if entries.is_empty())
    }

    fn for_each(&self, visit: &mut impl FnMut(&K, &V)) {
        match self {
            Self::Leaf(entries) => entries.iter().for_each(|(key, value)| visit(key, value)),
            Self::Branch(slots) => slots.iter().flatten().for_each(|bucket| bucket.for_each(visit)),
        }
    }

    fn dismantle(self, take: &mut impl FnMut(V)) {
        match self {
            Self::Leaf(entries) => entries.into_iter().for_each(|(_, value)| take(value)),
            Self::Branch(slots) => {
                slots
                    .into_iter()
                    .flatten()
                    .filter_map(Arc::into_inner)
                    .for_each(|bucket| bucket.dismantle(take));
            }
        }
    }
}

impl<K: Clone + Ord + Hash, V: Clone> Bucket<K, V> {
    /// A branch at `depth` with the entries of a leaf.
    fn split(entries: Leaf<K, V>, depth: u32, hasher: &RandomState) -> Self {
        let mut leaves: [Leaf<K, V>; FAN_OUT] = Default::default();
        for (key, value) in entries {
            let hash = hasher.hash_one(&key) >> (depth * HASH_BITS);
            leaves[slot(hash)].push((key, value)); // stays sorted
        }
        let slots = leaves.map(|entries| (!entries.is_empty()).then(|| Arc::new(Self::Leaf(entries))));
        Self::Branch(Box::new(slots))
    }

    /// `rest` is what is left of the key's hash, once a branch has asked for it.
    fn remove<Q>(this: &mut Arc<Self>, key: &Q, rest: &mut Option<u64>, hasher: &RandomState) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        let node = Arc::make_mut(this);
        match node {
            Self::Leaf(entries) => {
                let at = find(entries, key).ok()?;
                Some(entries.remove(at).1)
            }
            Self::Branch(slots) => {
                let hash = rest.get_or_insert_with(|| hasher.hash_one(key));
                let place = &mut slots[slot(*hash)];
                *hash >>= HASH_BITS;
                let child = place.as_mut()?;
                let removed = Self::remove(child, key, rest, hasher)?;
                if child.is_empty() {
                    *place = None;
                }
                if let Some(entries) = Self::merge(slots) {
                    *node = Self::Leaf(entries);
                }
                Some(removed)
            }
        }
    }

    /// The entries of a branch as one leaf, if they are few.
    fn merge(slots: &Slots<K, V>) -> Option<Leaf<K, V>> {
        let mut total = 0;
        for bucket in slots.iter().flatten() {
            match &**bucket {
                Self::Leaf(entries) if total + entries.len() <= MERGE_MAX => total += entries.len(),
                _ => return None,
            }
        }
        let mut merged = Leaf::with_capacity(total);
        slots.iter().flatten().for_each(|bucket| {
            bucket.for_each(&mut |key, value| merged.push((key.clone(), value.clone())));
        });
        merged.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Some(merged)
    }
}

fn slot(hash: u64) -> usize {
    (hash & (FAN_OUT as u64 - 1)) as usize
}

fn find<K: Borrow<Q>, V, Q: Ord + ?Sized>(entries: &[(K, V)], key: &Q) -> Result<usize, usize> {
    entries.binary_search_by(|(other, _)| other.borrow().cmp(key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A key whose hash has few values, so that buckets collide down to the last depth.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    struct Key(u16);

    impl Hash for Key {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            if self.0 < 1_000 { (self.0 % 2).hash(state) } else { self.0.hash(state) }
        }
    }

    fn entries(map: &Map<Key, u32>) -> BTreeMap<Key, u32> {
        let mut all = BTreeMap::new();
        map.for_each(&mut |key, value| assert_eq!(all.insert(*key, *value), None));
        all
    }

    fn key() -> impl Strategy<Value = Key> {
        prop_oneof![0..60_u16, 1_000..1_400_u16].prop_map(Key)
    }

    /// Checks the invariants and returns the number of entries.
    fn check(bucket: &Bucket<Key, u32>) -> usize {
        match bucket {
            Bucket::Leaf(entries) => {
                assert!(!entries.is_empty() && entries.is_sorted_by(|(a, _), (b, _)| a < b));
                entries.len()
            }
            Bucket::Branch(slots) => {
                let total = slots.iter().flatten().map(|bucket| check(bucket)).sum();
                assert!(total > MERGE_MAX);
                total
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_model(changes in prop::collection::vec((key(), prop::option::weighted(0.6, any::<u32>())), 0..800)) {
            let hasher = RandomState::new();
            let (mut map, mut model) = (Map::default(), BTreeMap::new());
            let mut kept = Vec::new();
            for (at, (key, value)) in changes.iter().enumerate() {
                if at % 64 == 0 {
                    kept.push((map.clone(), model.clone()));
                }
                match value {
                    Some(value) => prop_assert_eq!(map.insert(*key, *value, &hasher), model.insert(*key, *value)),
                    None => prop_assert_eq!(map.remove(key, &hasher), model.remove(key)),
                }
                prop_assert_eq!(map.get(key, &hasher), model.get(key));
                prop_assert_eq!((map.is_empty(), map.is_single()), (model.is_empty(), model.len() == 1));
                prop_assert_eq!(map.root.as_deref().map_or(0, check), model.len());
            }
            for (map, model) in &kept {
                prop_assert_eq!(&entries(map), model); // a clone never changes
            }
            prop_assert_eq!(&entries(&map), &model);
            for key in model.keys() {
                prop_assert_eq!(map.remove(key, &hasher), model.get(key).copied());
            }
            prop_assert!(map.is_empty());
        }
    }

    #[test]
    fn dismantle_gives_only_what_no_one_else_holds() {
        let hasher = RandomState::new();
        let mut map = Map::default();
        for key in 1_000..2_000 {
            map.insert(Key(key), 0, &hasher);
        }
        let mut changed = map.clone();
        changed.insert(Key(5_000), 0, &hasher);
        let mut given = 0;
        changed.dismantle(&mut |_| given += 1);
        assert!(changed.is_empty() && (1..=LEAF_MAX + 1).contains(&given), "{given}");
        given = 0;
        map.dismantle(&mut |_| given += 1);
        assert_eq!(given, 1_000);
    }
}
