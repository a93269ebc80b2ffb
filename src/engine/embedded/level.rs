//! The ready messages of one priority.
//!
//! What is taken out of the midst of `fresh` leaves a hole there, so that nothing else moves; holes are dropped when they
//! come to an end of it, or are more than half of it. Invariant: neither end of `fresh` is a hole.

use std::collections::{BTreeMap, VecDeque};

use super::entry::Entry;

/// Ready messages of one priority.
#[derive(Debug, Default)]
pub(super) struct Level {
    pub(super) priority: u8,
    pub(super) fresh: VecDeque<Entry>,
    pub(super) returned: BTreeMap<u64, Entry>,
    pub(super) holes: usize,
}

impl Level {
    pub(super) fn pop(&mut self) -> Option<Entry> {
        match (self.returned.first_key_value(), self.fresh.front()) {
            (Some((&back, _)), Some(front)) if back < front.sequence => {
                self.returned.pop_first().map(|(_, entry)| entry)
            }
            (_, Some(_)) => {
                let entry = self.fresh.pop_front();
                self.trim();
                entry
            }
            (Some(_), None) => self.returned.pop_first().map(|(_, entry)| entry),
            (None, None) => None,
        }
    }

    /// The one that comes next.
    pub(super) fn first(&self) -> Option<&Entry> {
        let (back, fresh) = (self.returned.values().next(), self.fresh.front());
        back.into_iter().chain(fresh).min_by_key(|entry| entry.sequence)
    }

    /// One that was not here before, the last or one that comes late.
    pub(super) fn put(&mut self, entry: Entry) {
        if self.fresh.back().is_none_or(|last| last.sequence < entry.sequence) {
            self.fresh.push_back(entry);
        } else {
            self.returned.insert(entry.sequence, entry);
        }
    }

    pub(super) fn unpop(&mut self, entry: Entry) {
        if self.fresh.front().is_none_or(|front| entry.sequence < front.sequence) && self.returned.is_empty()
        {
            self.fresh.push_front(entry);
        } else {
            self.returned.insert(entry.sequence, entry);
        }
    }

    pub(super) fn find_fresh(&self, sequence: u64) -> Option<usize> {
        let at = self.fresh.binary_search_by_key(&sequence, |entry| entry.sequence).ok()?;
        self.fresh.get(at).filter(|entry| !entry.is_hole()).map(|_| at)
    }

    pub(super) fn has(&self, sequence: u64) -> bool {
        self.find_fresh(sequence).is_some() || self.returned.contains_key(&sequence)
    }

    pub(super) fn remove(&mut self, sequence: u64) -> Option<Entry> {
        let Some(at) = self.find_fresh(sequence) else { return self.returned.remove(&sequence) };
        let entry = self.fresh.get_mut(at)?;
        let removed = *entry;
        entry.make_hole();
        self.holes += 1;
        self.trim();
        Some(removed)
    }

    /// Takes those out that are such.
    pub(super) fn take_all(&mut self, out: &mut Vec<Entry>, is_such: &mut impl FnMut(&Entry) -> bool) {
        self.fill();
        self.fresh.retain(|entry| !is_such(entry) || (out.push(*entry), false).1);
        self.returned.retain(|_, entry| !is_such(entry) || (out.push(*entry), false).1);
    }

    /// Those from a sequence on, not in their order; the first `max` of them are among what it gives.
    pub(super) fn list(&self, from: u64, max: usize) -> impl Iterator<Item = &Entry> {
        let start = self.fresh.partition_point(|entry| entry.sequence < from);
        let fresh = self.fresh.range(start..).filter(|entry| !entry.is_hole()).take(max);
        fresh.chain(self.returned.range(from..).map(|(_, entry)| entry).take(max))
    }

    /// How many messages there are.
    pub(super) fn len(&self) -> usize {
        self.fresh.len() - self.holes + self.returned.len()
    }

    /// Drops all holes.
    pub(super) fn fill(&mut self) {
        if self.holes > 0 {
            self.fresh.retain(|entry| !entry.is_hole());
            self.holes = 0;
        }
    }

    fn trim(&mut self) {
        while self.holes > 0 && self.fresh.front().is_some_and(Entry::is_hole) {
            self.fresh.pop_front();
            self.holes -= 1;
        }
        while self.holes > 0 && self.fresh.back().is_some_and(Entry::is_hole) {
            self.fresh.pop_back();
            self.holes -= 1;
        }
        if self.holes > self.fresh.len() / 2 {
            self.fill();
        }
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&Entry> {
        match self.find_fresh(sequence) {
            Some(at) => self.fresh.get(at),
            None => self.returned.get(&sequence),
        }
    }

    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Entry> {
        match self.find_fresh(sequence) {
            Some(at) => self.fresh.get_mut(at),
            None => self.returned.get_mut(&sequence),
        }
    }

    /// Gives the memory of a drained backlog back.
    pub(super) fn shrink(&mut self) {
        if self.fresh.capacity() > 1024 && self.fresh.len() < self.fresh.capacity() / 4 {
            self.fresh.shrink_to(self.fresh.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::format::Location;
    use super::*;
    use crate::types::{Priority, Qos};

    fn entry(sequence: u64) -> Entry {
        let place = Location { pack: 1, ordinal: 0 };
        let how = (Qos::AtLeastOnce, false);
        Entry::new(sequence, place, 0, 1, false, None, how, Priority::default())
    }

    /// What is done to a level.
    #[derive(Debug, Clone)]
    enum Act {
        Push,
        Pop,
        PopAndGiveBack,
        Remove(u64),
        Fill,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => Just(Act::Push),
            2 => Just(Act::Pop),
            1 => Just(Act::PopAndGiveBack),
            4 => (0..40_u64).prop_map(Act::Remove),
            1 => Just(Act::Fill),
        ]
    }

    #[test]
    fn what_is_taken_from_the_front_leaves_no_more_holes_than_half() {
        let mut level = Level::default();
        (0..7).for_each(|sequence| level.put(entry(sequence)));
        (3..6).for_each(|sequence| assert!(level.remove(sequence).is_some()));
        assert_eq!((level.holes, level.fresh.len()), (3, 7));
        assert!(level.pop().is_some() && level.pop().is_some());
        assert_eq!((level.holes, level.len()), (0, 2));
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_set(acts in prop::collection::vec(act(), 0..200)) {
            let (mut level, mut model) = (Level::default(), BTreeMap::new());
            let mut next = 0;
            for act in acts {
                match act {
                    Act::Push => {
                        level.fresh.push_back(entry(next));
                        model.insert(next, entry(next));
                        next += 1;
                    }
                    Act::Pop => prop_assert_eq!(level.pop(), model.pop_first().map(|(_, entry)| entry)),
                    Act::PopAndGiveBack => {
                        let popped = level.pop();
                        prop_assert_eq!(popped, model.first_key_value().map(|(_, entry)| *entry));
                        popped.into_iter().for_each(|entry| level.unpop(entry));
                    }
                    Act::Remove(sequence) => {
                        prop_assert_eq!(level.remove(sequence), model.remove(&sequence));
                        prop_assert!(level.get_mut(sequence).is_none());
                    }
                    Act::Fill => level.fill(),
                }
                prop_assert_eq!(level.len(), model.len());
                let ends = [level.fresh.front(), level.fresh.back()];
                prop_assert!(!ends.into_iter().flatten().any(Entry::is_hole));
                prop_assert!(level.holes <= level.fresh.len() / 2);
            }
            while let Some((_, expected)) = model.pop_first() {
                prop_assert_eq!(level.pop(), Some(expected));
            }
            prop_assert_eq!(level.pop(), None);
        }
    }
}
