//! What of one target is in memory: where each message lies and who has it.
//!
//! Invariants:
//! - a message is in exactly one of: ready, delayed, leased; or its settlement is on the way to the writer;
//! - `fresh` is ascending by sequence; what comes back (nack, lost lease, due) waits in `returned` and goes first;
//! - what is here is durable under the engine's policy; the writer puts it here after its commit.
//!
//! Knows no disk and no clock: the time comes in as an argument.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::num::NonZeroU32;

use bytes::Bytes;
use rustc_hash::FxHasher;
use smallvec::SmallVec;

use super::entry::Entry;
use super::format::{Location, Mark};
use super::hash::TextHash;
use super::leases::{Lease, Leases};
use super::level::Level;
use super::members::Members;
use super::order::{Key, Order};
use super::returns::Over;
use super::streams::Kept;
use super::values::Values;
use crate::engine::{LeaseError, LeaseRef, Outgoing, View};
use crate::types::UnixMillis;

/// Keys are numbers of our own: no peer can choose them to collide.
type Map<K, V> = HashMap<K, V, BuildHasherDefault<FxHasher>>;

/// What one call of [`State::take`] gave.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) entry: Entry,
    pub(super) attempt: u32,
    pub(super) outgoing: Option<Outgoing>,
    pub(super) body: Bytes,
    pub(super) lease_ends: Option<UnixMillis>,
}

/// What [`State::take`] could not give.
#[derive(Debug, Default)]
pub(super) struct NotTaken {
    /// Their time is over.
    pub(super) over: Over,
    /// Those that had their last delivery: they wait as leased for being moved.
    pub(super) exhausted: Vec<(Entry, u32)>,
    /// Their bodies are not in memory: to be read, then take again.
    pub(super) missing: Vec<Entry>,
}

/// How a consumer takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Take {
    pub(super) consumer: u64,
    pub(super) max: usize,
    pub(super) max_bytes: usize,
    pub(super) now: UnixMillis,
    /// Milliseconds since 1970, or `u64::MAX`.
    pub(super) lease_ends: u64,
    /// After so many deliveries there is no further one, and a message whose consumers were lost with it is handed out
    /// alone.
    pub(super) max_deliveries: Option<NonZeroU32>,
    /// What expires is to be moved.
    pub(super) buries_expired: bool,
    /// Only the active consumer is given anything.
    pub(super) single_active: bool,
}

/// What a message is known by in queues that look at it.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub(super) key: Option<Key>,
    pub(super) value: Option<Box<TextHash>>,
}

/// The index of one target.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By priority, the highest first.
    pub(super) levels: SmallVec<[Level; 1]>,
    pub(super) delayed: BTreeMap<(u64, u64), Entry>,
    /// When each delayed message is due, by sequence.
    pub(super) delayed_until: BTreeMap<u64, u64>,
    pub(super) leases: Leases,
    /// Of those messages that have one.
    pub(super) marks: Map<u64, Mark>,
    /// QoS 2 publishes that the session's client has not released: packet id → sequence and place.
    pub(super) incoming: Map<u16, (u64, Location)>,
    pub(super) members: Members,
    /// Of a queue that keeps order by key.
    pub(super) order: Option<Box<Order>>,
    /// Of a queue that keeps the last value.
    pub(super) values: Option<Box<Values>>,
    pub(super) expiring: usize,
    pub(super) gone: bool,
    /// Nothing is leased to consumers.
    pub(super) paused: bool,
    /// Of a stream.
    pub(super) kept: Option<Kept>,
    /// The deadline that the keeper knows, if any.
    pub(super) registered: Option<u64>,
}

/// Leased under this number while the keeper moves them to a dead letter queue.
pub(super) const KEEPER: u64 = u64::MAX;
/// A message with so many losses is handed out alone.
const LOSSES: u8 = 2;
/// How many missing bodies are asked for at once.
const READ_AHEAD: usize = 64;

impl State {
    pub(super) fn level(&mut self, priority: u8) -> &mut Level {
        let at = match self.levels.binary_search_by(|level| priority.cmp(&level.priority)) {
            Ok(at) => at,
            Err(at) => {
                self.levels.insert(at, Level { priority, ..Level::default() });
                at
            }
        };
        // The index comes from the search above.
        #[expect(clippy::indexing_slicing, reason = "found or inserted just above")]
        &mut self.levels[at]
    }

    pub(super) fn ready_count(&self) -> usize {
        let waiting = self.order.as_ref().map_or(0, |order| order.waiting());
        self.levels.iter().map(Level::len).sum::<usize>() + waiting
    }

    pub(super) fn delayed_count(&self) -> usize {
        self.delayed.len()
    }

    pub(super) fn leased_count(&self) -> usize {
        self.leases.len()
    }

    /// A stored message arrives, in sequence order. `mark` is of an earlier start.
    /// Gives the one whose place it takes, to be settled.
    pub(super) fn push(&mut self, entry: Entry, mark: Mark, names: Names, now: UnixMillis) -> Option<Entry> {
        self.know(entry.sequence, names.key);
        let replaced = names.value.and_then(|value| self.know_value(entry.sequence, Some(*value)));
        let kept = Mark { not_before: None, rests: false, ..mark };
        if !kept.is_empty() {
            self.marks.insert(entry.sequence, kept);
        }
        match &mut self.kept {
            Some(kept) => kept.next = entry.sequence + 1,
            None => self.expiring += usize::from(entry.expires != 0),
        }
        match mark.not_before.filter(|&at| at > now) {
            Some(at) => {
                if let Some(order) = self.order.as_mut().filter(|_| mark.rests) {
                    order.set_aside(entry.sequence);
                }
                self.delay(entry, at.0);
            }
            None => {
                if let Some(entry) = self.join(entry) {
                    self.level(entry.priority).put(entry);
                }
            }
        }
        replaced
    }

    /// A stored message has this key.
    pub(super) fn know(&mut self, sequence: u64, key: Option<Key>) {
        if let (Some(order), Some(key)) = (&mut self.order, key) {
            order.know(sequence, key);
        }
    }

    /// A message is due: given back if nothing of its key is before it.
    fn join(&mut self, entry: Entry) -> Option<Entry> {
        match &mut self.order {
            None => Some(entry),
            Some(order) => order.join(entry),
        }
    }

    /// A message that was delayed or with somebody is due. Whether it may be delivered.
    pub(super) fn fall_due(&mut self, entry: Entry) -> bool {
        let Some(entry) = self.join(entry) else { return false };
        self.level(entry.priority).unpop(entry);
        true
    }

    fn delay(&mut self, entry: Entry, until: u64) {
        self.delayed.insert((until, entry.sequence), entry);
        self.delayed_until.insert(entry.sequence, until);
    }

    pub(super) fn put_back(&mut self, entry: Entry, until: u64, now: UnixMillis) {
        if until > now.0 {
            self.delay(entry, until);
        } else {
            self.fall_due(entry);
        }
    }

    /// The target is gone: everybody who waits is told.
    pub(super) fn end(&mut self) {
        self.gone = true;
        self.members.wake_all();
    }

    /// Consumers get nothing from now on, or what is there again.
    pub(super) fn pause(&mut self, paused: bool) {
        if std::mem::replace(&mut self.paused, paused) && !paused {
            self.members.wake_all();
        }
    }

    /// Leases what is ready. `body` gives the bytes of an entry if they are in memory.
    pub(super) fn take(
        &mut self,
        how: Take,
        mut body: impl FnMut(&Entry) -> Option<Bytes>,
        out: &mut Vec<Taken>,
    ) -> NotTaken {
        let mut not = NotTaken::default();
        if how.max == 0 {
            self.members.stop_waiting(how.consumer);
            return not;
        }
        if self.paused {
            // All are told when it goes on.
            return not;
        }
        if how.single_active && !self.members.is_active(how.consumer) {
            // It may wait from before, and have been woken for something.
            self.members.stop_waiting(how.consumer);
            return not;
        }
        if self.members.is_ranked() {
            let is_any = self.levels.iter().any(|level| level.len() > 0);
            if is_any && self.members.is_outranked(how.consumer, how.now.0) {
                return not;
            }
            self.members.claim(how.consumer);
        }
        if self.members.is_alone(how.consumer) {
            self.members.hold_up(how.consumer);
            return not;
        }
        let (mut count, mut bytes) = (0, 0);
        let mut held_up = false;
        while count < how.max && (bytes < how.max_bytes || count == 0) && how.max_bytes > 0 {
            let Some(entry) = self.levels.iter_mut().find_map(Level::pop) else { break };
            if self.is_over(&entry, how.now) {
                self.run_out(entry, how.buries_expired, &mut not.over);
                continue;
            }
            let mark = self.marks.get(&entry.sequence).copied().unwrap_or_default();
            if how.max_deliveries.is_some_and(|max| mark.attempts >= max.get()) {
                // It could not be moved then, or a crash came before, or the maximum was higher.
                self.keep(entry, mark.attempts);
                not.exhausted.push((entry, mark.attempts));
                continue;
            }
            let alone = how.max_deliveries.is_some() && mark.losses >= LOSSES;
            if alone && (count > 0 || self.members.has_any(how.consumer)) {
                self.level(entry.priority).unpop(entry);
                held_up = true;
                break;
            }
            let Some(body) = body(&entry) else {
                not.missing = self.ahead(&entry);
                self.level(entry.priority).unpop(entry);
                break;
            };
            let attempt = mark.attempts.saturating_add(1);
            let (consumer, since, ends) = (how.consumer, how.now.0, how.lease_ends);
            self.leases.insert(Lease { entry, attempt, consumer, since, ends, noted: false });
            count += 1;
            bytes += entry.len as usize;
            let lease_ends = Some(how.lease_ends).filter(|&ends| ends != u64::MAX).map(UnixMillis);
            out.push(Taken { entry, attempt, outgoing: mark.outgoing, body, lease_ends });
            if alone {
                held_up = true;
                self.members.took(how.consumer, 1, true);
                count = 0;
                break;
            }
        }
        self.members.took(how.consumer, count, false);
        if held_up {
            self.members.hold_up(how.consumer);
        } else if count < how.max {
            self.members.wait(how.consumer);
        }
        self.levels.iter_mut().for_each(Level::shrink);
        not
    }

    /// Whether its time is over. What was begun is carried to its end [MQTT-4.3.3-7, MQTT-4.3.3-13].
    pub(super) fn is_over(&self, entry: &Entry, now: UnixMillis) -> bool {
        entry.is_expired(now) && self.marks.get(&entry.sequence).is_none_or(|mark| mark.outgoing.is_none())
    }

    /// The entry and what will be asked for after it, one for each pack.
    fn ahead(&self, first: &Entry) -> Vec<Entry> {
        let mut found = vec![*first];
        let Some(level) = self.levels.iter().find(|level| level.priority == first.priority) else {
            return found;
        };
        let fresh = level.fresh.iter().filter(|entry| !entry.is_hole());
        for entry in level.returned.values().chain(fresh).take(READ_AHEAD * 16) {
            if found.last().is_some_and(|last| last.pack != entry.pack || entry.is_large()) {
                found.push(*entry);
                if found.len() >= READ_AHEAD {
                    break;
                }
            }
        }
        found
    }

    /// Takes a message out that waits in this view, with when it would have been due.
    pub(super) fn take_waiting(&mut self, view: View, sequence: u64) -> Option<(Entry, u64)> {
        if matches!(view, View::All | View::Ready)
            && let Some(entry) = self.take_ready(sequence)
        {
            return Some((entry, 0));
        }
        if !matches!(view, View::All | View::Delayed) {
            return None;
        }
        let until = self.delayed_until.remove(&sequence)?;
        Some((self.delayed.remove(&(until, sequence))?, until))
    }

    pub(super) fn unlease(&mut self, sequence: u64) -> Option<Lease> {
        let lease = self.leases.remove(sequence)?;
        self.members.gave(lease.consumer);
        Some(lease)
    }

    /// Leased to the keeper, until it has moved it.
    pub(super) fn keep(&mut self, entry: Entry, attempt: u32) {
        if let Some(order) = &mut self.order {
            order.set_aside(entry.sequence);
        }
        let (since, ends) = (0, u64::MAX);
        self.leases.insert(Lease { entry, attempt, consumer: KEEPER, since, ends, noted: false });
    }

    pub(super) fn find_lease(&self, lease: &LeaseRef) -> Result<&Lease, LeaseError> {
        let found = self.leases.get(lease.sequence.0).filter(|found| found.consumer != KEEPER);
        match found {
            Some(found) if !lease.earlier_boot && lease.attempt.is_none_or(|it| it == found.attempt) => {
                Ok(found)
            }
            Some(_) => Err(LeaseError::Expired),
            None if self.is_known(lease.sequence.0) => Err(LeaseError::Expired),
            None => Err(LeaseError::Unknown),
        }
    }

    fn is_known(&self, sequence: u64) -> bool {
        self.leases.get(sequence).is_some()
            || self.delayed_until.contains_key(&sequence)
            || self.levels.iter().any(|level| level.has(sequence))
            || self.order.as_ref().is_some_and(|order| order.has(sequence))
    }

    /// The message is gone for good: drops what is kept beside the entry, and lets the next of its key be delivered.
    pub(super) fn forget(&mut self, entry: &Entry) {
        if !self.marks.is_empty() {
            self.marks.remove(&entry.sequence);
        }
        self.expiring = self.expiring.saturating_sub(usize::from(entry.expires != 0));
        if let Some(values) = &mut self.values {
            values.forget(entry.sequence);
        }
        if let Some(next) = self.order.as_mut().and_then(|order| order.leave(entry.sequence)) {
            self.level(next.priority).unpop(next);
            self.members.wake(1);
        }
    }

    /// Takes a message out that is ready.
    pub(super) fn take_ready(&mut self, sequence: u64) -> Option<Entry> {
        let found = self.levels.iter_mut().find_map(|level| level.remove(sequence));
        found.or_else(|| self.order.as_mut()?.take(sequence))
    }

    /// Takes a leased message out.
    pub(super) fn settle(&mut self, lease: &LeaseRef) -> Result<Entry, LeaseError> {
        let entry = if lease.earlier_boot {
            // The earlier start's lease is good as long as nobody else got the message since.
            match self.take_ready(lease.sequence.0) {
                Some(entry) => {
                    self.members.go_on();
                    entry
                }
                None => return Err(self.find_lease(lease).err().unwrap_or(LeaseError::Expired)),
            }
        } else {
            self.find_lease(lease)?;
            self.unlease(lease.sequence.0).ok_or(LeaseError::Unknown)?.entry
        };
        self.forget(&entry);
        Ok(entry)
    }

    pub(super) fn extend(&mut self, lease: &LeaseRef, ends: u64) -> Result<(), LeaseError> {
        self.find_lease(lease)?;
        self.leases.extend(lease.sequence.0, ends);
        Ok(())
    }

    /// What the peer knows an outgoing message by. Returns the place and the whole mark, to be stored.
    pub(super) fn set_outgoing(&mut self, sequence: u64, outgoing: Outgoing) -> Option<(Location, Mark)> {
        let lease = *self.leases.get(sequence)?;
        let mark = self.marks.entry(sequence).or_default();
        mark.outgoing = Some(outgoing);
        let attempts = if lease.noted { lease.attempt } else { mark.attempts };
        Some((lease.entry.location(), Mark { attempts, ..*mark }))
    }

    /// A rewritten message lies elsewhere now.
    pub(super) fn relocate(&mut self, sequence: u64, place: &Entry) -> bool {
        let Some(entry) = self.entry_mut(sequence) else { return false };
        entry.pack = place.pack;
        entry.ordinal = place.ordinal;
        entry.offset = place.offset;
        true
    }

    /// Where a message lies now, if it is here.
    pub(super) fn entry(&mut self, sequence: u64) -> Option<Entry> {
        self.entry_mut(sequence).map(|entry| *entry)
    }

    fn entry_mut(&mut self, sequence: u64) -> Option<&mut Entry> {
        if let Some(entry) = self.leases.get_mut(sequence) {
            return Some(entry);
        }
        if let Some(&until) = self.delayed_until.get(&sequence) {
            return self.delayed.get_mut(&(until, sequence));
        }
        let ready = self.levels.iter_mut().find_map(|level| level.get_mut(sequence));
        ready.or_else(|| self.order.as_mut()?.get_mut(sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Priority, Qos};

    #[test]
    fn what_was_removed_is_not_read_ahead() {
        let mut state = State::default();
        let now = UnixMillis(1);
        for sequence in 1..=6 {
            // Each in a pack of its own.
            let place = Location { pack: sequence, ordinal: 0 };
            let how = (Qos::AtLeastOnce, false);
            let entry = Entry::new(sequence, place, 0, 1, false, None, how, Priority::default());
            state.push(entry, Mark::default(), Names::default(), now);
        }
        assert_eq!(state.remove(View::Ready, [3, 5]).len(), 2);
        let consumer = 7;
        state.members.join(consumer, Default::default(), 0);
        let how = Take {
            consumer,
            max: 10,
            max_bytes: usize::MAX,
            now,
            lease_ends: u64::MAX,
            max_deliveries: None,
            buries_expired: false,
            single_active: false,
        };
        let missing = state.take(how, |_| None, &mut Vec::new()).missing;
        assert_eq!(missing.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1, 2, 4, 6]);
    }
}
