//! What looks at the index of a target as a whole, or empties it.

use super::entry::Entry;
use super::index::{KEEPER, State};
use super::leases::Lease;
use super::level::Level;
use crate::engine::View;

impl State {
    /// Leases of what is stored: not of what was replaced, whose body may be gone.
    fn leased(&self) -> impl Iterator<Item = &Lease> {
        self.leases.all().filter(|lease| !self.is_replaced(lease.entry.sequence))
    }

    /// Entries of a view from a sequence on, in sequence order.
    pub(super) fn list(&self, view: View, from: u64, max: usize) -> Vec<(Entry, View, u32, Option<u64>)> {
        let mut found = Vec::new();
        if matches!(view, View::All | View::Ready) {
            for level in &self.levels {
                found.extend(level.list(from, max).map(|entry| (*entry, View::Ready, None)));
            }
            let waiting = self.order.iter().flat_map(|order| order.list(from, max));
            found.extend(waiting.map(|entry| (*entry, View::Ready, None)));
        }
        if matches!(view, View::All | View::Delayed) {
            let delayed = self.delayed_until.range(from..).take(max);
            let delayed = delayed
                .filter_map(|(&sequence, &until)| self.delayed.get(&(until, sequence)).zip(Some(until)));
            found.extend(delayed.map(|(entry, until)| (*entry, View::Delayed, Some(until))));
        }
        if matches!(view, View::All | View::Leased) {
            let leased = self.leased().filter(|lease| lease.entry.sequence >= from);
            found.extend(
                leased.map(|lease| {
                    (lease.entry, View::Leased, Some(lease.ends).filter(|&ends| ends != u64::MAX))
                }),
            );
        }
        if found.len() > max {
            found.select_nth_unstable_by_key(max, |(entry, ..)| entry.sequence);
            found.truncate(max);
        }
        found.sort_unstable_by_key(|(entry, ..)| entry.sequence);
        let attempts = |entry: &Entry| self.marks.get(&entry.sequence).map_or(0, |mark| mark.attempts);
        found.into_iter().map(|(entry, view, until)| (entry, view, attempts(&entry), until)).collect()
    }

    /// The one with the first place of all.
    pub(super) fn oldest(&self) -> Option<Entry> {
        let waiting = self.order.as_ref().and_then(|order| order.oldest());
        let ready = self.levels.iter().filter_map(Level::first).chain(waiting);
        let delayed = self.delayed_until.first_key_value();
        let delayed = delayed.and_then(|(&sequence, &until)| self.delayed.get(&(until, sequence)));
        let leased = self.leased().map(|lease| &lease.entry);
        ready.chain(delayed).chain(leased).min_by_key(|entry| entry.sequence).copied()
    }

    /// A message whose body cannot be read is not handed out any more; it stays in the store.
    pub(super) fn discard(&mut self, sequence: u64) {
        let found = match self.unlease(sequence) {
            Some(lease) => Some(lease.entry),
            None => {
                let found = self.take_ready(sequence);
                self.members.go_on();
                found
            }
        };
        if let Some(entry) = found {
            self.forget(&entry);
        }
    }

    /// Takes those of these messages out that wait in this view. What is leased stays.
    pub(super) fn remove(&mut self, view: View, sequences: impl IntoIterator<Item = u64>) -> Vec<Entry> {
        let taken = sequences.into_iter().filter_map(|sequence| self.take_waiting(view, sequence));
        let out: Vec<Entry> = taken.map(|(entry, _)| entry).collect();
        out.iter().for_each(|entry| self.forget(entry));
        if !out.is_empty() {
            self.members.go_on();
        }
        out
    }

    /// Takes one message out to be moved: one that waits in this view, or one that is leased to anyone, the keeper included.
    pub(super) fn take_for_move(&mut self, view: View, sequence: u64) -> Option<Entry> {
        let waiting = self.remove(view, [sequence]).pop();
        if waiting.is_some() || !matches!(view, View::All | View::Leased) {
            return waiting;
        }
        let entry = self.unlease(sequence)?.entry;
        self.forget(&entry);
        Some(entry)
    }

    /// All that the target holds, for its end.
    pub(super) fn drain_whole(&mut self) -> Vec<Entry> {
        let mut out = self.drain(View::All);
        out.extend(self.leases.drain().map(|lease| lease.entry));
        (self.order, self.values) = (None, None);
        out
    }

    /// Takes all messages of a view out. What the keeper moves stays.
    pub(super) fn drain(&mut self, view: View) -> Vec<Entry> {
        let mut out = Vec::new();
        if matches!(view, View::All | View::Ready) {
            for level in &mut self.levels {
                level.fill();
                out.extend(std::mem::take(&mut level.returned).into_values());
                out.extend(std::mem::take(&mut level.fresh));
            }
            if let Some(order) = &mut self.order {
                order.take_all(&mut out, |_| true);
            }
        }
        if matches!(view, View::All | View::Delayed) {
            out.extend(std::mem::take(&mut self.delayed).into_values());
            self.delayed_until.clear();
        }
        if matches!(view, View::All | View::Leased) {
            let held: Vec<u64> =
                self.leases.all().filter(|l| l.consumer != KEEPER).map(|l| l.entry.sequence).collect();
            out.extend(
                held.into_iter().filter_map(|sequence| self.unlease(sequence)).map(|lease| lease.entry),
            );
        }
        out.iter().for_each(|entry| self.forget(entry));
        self.members.go_on();
        out
    }
}
