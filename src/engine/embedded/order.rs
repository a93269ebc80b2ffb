//! Messages of one key come one at a time, in their order.
//!
//! Of each key one message is its *front*: ready, delayed or leased, wherever the index has it. The others wait here, and
//! the next becomes the front when the front is gone for good: settled, expired, purged, or moved to another queue. A front
//! that is given back stays the front, also while it rests. A delayed message joins its key when it is due: before those
//! that wait and came later, behind the front.
//!
//! A key is known by 64 bits of its hash: two keys that are taken for one come one at a time together, nothing worse. Each
//! message with a key takes 20 to 40 bytes beside its entry, each key 60 to 110, and 130 more once something waits.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::num::NonZeroU64;

use rustc_hash::FxHasher;

use super::entry::Entry;
use super::hash::TextHash;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<FxHasher>>;

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key(NonZeroU64);

impl From<TextHash> for Key {
    fn from(hash: TextHash) -> Self {
        Self(NonZeroU64::new(hash.0 as u64).unwrap_or(NonZeroU64::MIN))
    }
}

#[derive(Debug)]
struct Line {
    front: u64,
    /// By sequence.
    rest: VecDeque<Entry>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Order {
    lines: Map<Key, Line>,
    /// Of all messages that have one.
    keys: Map<u64, Key>,
    waiting: usize,
}

impl Order {
    /// A message of the queue has this key.
    pub(super) fn know(&mut self, sequence: u64, key: Key) {
        self.keys.insert(sequence, key);
    }

    /// A message is due: given back if it may be delivered, else it waits here.
    pub(super) fn join(&mut self, entry: Entry) -> Option<Entry> {
        let Some(key) = self.keys.get(&entry.sequence) else { return Some(entry) };
        match self.lines.entry(*key) {
            Slot::Vacant(slot) => {
                slot.insert(Line { front: entry.sequence, rest: VecDeque::new() });
                Some(entry)
            }
            Slot::Occupied(line) if line.get().front == entry.sequence => Some(entry),
            Slot::Occupied(mut line) => {
                let rest = &mut line.get_mut().rest;
                let at = rest.partition_point(|other| other.sequence < entry.sequence);
                rest.insert(at, entry);
                self.waiting += 1;
                None
            }
        }
    }

    /// A message that was delivered in vain before rests, and holds its key up.
    pub(super) fn hold(&mut self, sequence: u64) {
        if let Some(key) = self.keys.get(&sequence) {
            self.lines.entry(*key).or_insert_with(|| Line { front: sequence, rest: VecDeque::new() });
        }
    }

    /// A message is gone for good, and does not wait here. Gives the one that may be delivered now.
    pub(super) fn leave(&mut self, sequence: u64) -> Option<Entry> {
        let key = self.keys.remove(&sequence)?;
        let Slot::Occupied(mut line) = self.lines.entry(key) else { return None };
        if line.get().front != sequence {
            return None;
        }
        match line.get_mut().rest.pop_front() {
            Some(next) => {
                let line = line.get_mut();
                line.front = next.sequence;
                if line.rest.capacity() > 64 && line.rest.len() < line.rest.capacity() / 4 {
                    line.rest.shrink_to(line.rest.len() * 2);
                }
                self.waiting -= 1;
                Some(next)
            }
            None => {
                line.remove();
                self.shrink();
                None
            }
        }
    }

    /// Gives the memory of a drained backlog back.
    fn shrink(&mut self) {
        if self.keys.capacity() > 1024 && self.keys.len() < self.keys.capacity() / 8 {
            self.keys.shrink_to(self.keys.len() * 2);
            self.lines.shrink_to(self.lines.len() * 2);
        }
    }

    fn find(&mut self, sequence: u64) -> Option<(&mut VecDeque<Entry>, usize)> {
        let line = self.lines.get_mut(self.keys.get(&sequence)?)?;
        let at = line.rest.binary_search_by_key(&sequence, |entry| entry.sequence).ok()?;
        Some((&mut line.rest, at))
    }

    /// A message that waits here.
    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Entry> {
        self.find(sequence).and_then(|(rest, at)| rest.get_mut(at))
    }

    /// Whether a message waits here.
    pub(super) fn has(&self, sequence: u64) -> bool {
        let line = self.keys.get(&sequence).and_then(|key| self.lines.get(key));
        line.is_some_and(|line| line.rest.binary_search_by_key(&sequence, |entry| entry.sequence).is_ok())
    }

    /// Takes a message out that waits here.
    pub(super) fn take(&mut self, sequence: u64) -> Option<Entry> {
        let entry = self.find(sequence).and_then(|(rest, at)| rest.remove(at))?;
        self.waiting -= 1;
        Some(entry)
    }

    /// Takes those out that wait here and are such.
    pub(super) fn take_all(&mut self, out: &mut Vec<Entry>, is_such: impl Fn(&Entry) -> bool) {
        let before = out.len();
        for line in self.lines.values_mut() {
            line.rest.retain(|entry| !is_such(entry) || (out.push(*entry), false).1);
        }
        self.waiting -= out.len() - before;
    }

    /// How many wait here.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Those that wait here from a sequence on, the first `max` of each key.
    pub(super) fn list(&self, from: u64, max: usize) -> impl Iterator<Item = &Entry> {
        self.lines.values().flat_map(move |line| {
            let start = line.rest.partition_point(|entry| entry.sequence < from);
            line.rest.range(start..).take(max)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::Location;
    use super::*;
    use crate::types::{Priority, Qos};

    fn entry(sequence: u64) -> Entry {
        let place = Location { pack: 1, ordinal: 0 };
        Entry::new(sequence, place, 0, 1, false, None, (Qos::AtLeastOnce, false), Priority::default())
    }

    fn key(key: u128) -> Key {
        TextHash(key).into()
    }

    fn join(order: &mut Order, sequence: u64, of: u128) -> bool {
        order.know(sequence, key(of));
        order.join(entry(sequence)).is_some()
    }

    fn sequence(entry: Option<Entry>) -> Option<u64> {
        entry.map(|entry| entry.sequence)
    }

    #[test]
    fn of_each_key_one_is_in_front() {
        let mut order = Order::default();
        assert!(join(&mut order, 1, 7) && join(&mut order, 2, 8));
        assert!(!join(&mut order, 3, 7) && !join(&mut order, 4, 7));
        assert!(order.join(entry(5)).is_some(), "it has no key");
        assert_eq!((order.waiting(), order.has(3), order.has(1)), (2, true, false));
        assert!(order.join(entry(1)).is_some(), "what was given back is still in front");
        assert_eq!(sequence(order.leave(1)), Some(3));
        assert_eq!(sequence(order.leave(2)), None);
        assert_eq!((sequence(order.leave(3)), sequence(order.leave(4))), (Some(4), None));
        assert!(order.lines.is_empty() && order.keys.is_empty() && order.waiting() == 0);
    }

    #[test]
    fn what_joins_late_goes_before_what_came_later() {
        let mut order = Order::default();
        order.know(1, key(7));
        for sequence in [2, 3, 4] {
            join(&mut order, sequence, 7);
        }
        assert!(order.join(entry(1)).is_none(), "2 is in front");
        assert_eq!((sequence(order.leave(2)), sequence(order.leave(1))), (Some(1), Some(3)));
    }

    #[test]
    fn what_rests_holds_its_key_up() {
        let mut order = Order::default();
        order.know(1, key(7));
        order.hold(1);
        assert!(!join(&mut order, 2, 7));
        assert!(order.join(entry(1)).is_some());
        assert_eq!(sequence(order.leave(1)), Some(2));
    }

    #[test]
    fn who_leaves_from_the_middle_is_not_missed() {
        let mut order = Order::default();
        for sequence in 1..=5 {
            join(&mut order, sequence, 7);
        }
        assert_eq!(sequence(order.take(3)), Some(3));
        assert_eq!(sequence(order.leave(3)), None);
        let mut out = Vec::new();
        order.take_all(&mut out, |entry| entry.sequence == 4);
        assert_eq!(out.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [4]);
        order.leave(4);
        assert_eq!(order.list(0, 9).map(|entry| entry.sequence).collect::<Vec<_>>(), [2, 5]);
        order.get_mut(5).unwrap().pack = 9;
        assert_eq!((sequence(order.leave(1)), order.leave(2).map(|entry| entry.pack)), (Some(2), Some(9)));
        assert_eq!(order.waiting(), 0);
    }
}
