//! What looks at the index of a target as a whole, or empties it.

use super::entry::Entry;
use super::index::{KEEPER, State};
use crate::engine::View;

impl State {
    /// Entries of a view from a sequence on, in sequence order.
    pub(super) fn list(&self, view: View, from: u64, max: usize) -> Vec<(Entry, View, u32, Option<u64>)> {
        let mut found = Vec::new();
        if matches!(view, View::All | View::Ready) {
            for level in &self.levels {
                let start = level.fresh.partition_point(|entry| entry.sequence < from);
                let ready = level
                    .fresh
                    .range(start..)
                    .take(max)
                    .chain(level.returned.range(from..).map(|(_, e)| e).take(max));
                found.extend(ready.map(|entry| (*entry, View::Ready, None)));
            }
            let waiting = self.order.iter().flat_map(|order| order.list(from, max));
            found.extend(waiting.map(|entry| (*entry, View::Ready, None)));
        }
        if matches!(view, View::All | View::Delayed) {
            let delayed = self.delayed.iter().filter(|((_, sequence), _)| *sequence >= from);
            found.extend(delayed.map(|(&(until, _), entry)| (*entry, View::Delayed, Some(until))));
        }
        if matches!(view, View::All | View::Leased) {
            let leased = self.leases.all().filter(|lease| lease.entry.sequence >= from);
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

    /// All that the target holds, for its end.
    pub(super) fn drain_whole(&mut self) -> Vec<Entry> {
        let mut out = self.drain(View::All);
        out.extend(self.leases.drain().map(|lease| lease.entry));
        out
    }

    /// Takes all messages of a view out. What the keeper moves stays.
    pub(super) fn drain(&mut self, view: View) -> Vec<Entry> {
        let mut out = Vec::new();
        if matches!(view, View::All | View::Ready) {
            for level in &mut self.levels {
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
