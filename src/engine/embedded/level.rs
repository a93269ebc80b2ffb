//! The ready messages of one priority.

use std::collections::{BTreeMap, VecDeque};

use super::entry::Entry;

/// Ready messages of one priority.
#[derive(Debug, Default)]
pub(super) struct Level {
    pub(super) priority: u8,
    pub(super) fresh: VecDeque<Entry>,
    pub(super) returned: BTreeMap<u64, Entry>,
}

impl Level {
    pub(super) fn pop(&mut self) -> Option<Entry> {
        match (self.returned.first_key_value(), self.fresh.front()) {
            (Some((&back, _)), Some(front)) if back < front.sequence => {
                self.returned.pop_first().map(|(_, entry)| entry)
            }
            (_, Some(_)) => self.fresh.pop_front(),
            (Some(_), None) => self.returned.pop_first().map(|(_, entry)| entry),
            (None, None) => None,
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
        self.fresh.binary_search_by_key(&sequence, |entry| entry.sequence).ok()
    }

    pub(super) fn remove(&mut self, sequence: u64) -> Option<Entry> {
        match self.find_fresh(sequence) {
            Some(at) => self.fresh.remove(at),
            None => self.returned.remove(&sequence),
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
