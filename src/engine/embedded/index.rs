//! What of one target is in memory: where each message lies and who has it.
//!
//! Invariants:
//! - a message is in exactly one of: ready, delayed, leased; or its settlement is on the way to the writer;
//! - `fresh` is ascending by sequence; what comes back (nack, lost lease, due) waits in `returned` and goes first;
//! - what is here is durable under the engine's policy; the writer puts it here after its commit.
//!
//! Knows no disk and no clock: the time comes in as an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHasher;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::entry::Entry;
use super::format::{Location, Mark};
use super::level::Level;
use crate::engine::{LeaseError, LeaseRef, Outgoing};
use crate::types::{Sequence, UnixMillis};

/// Keys are numbers of our own: no peer can choose them to collide.
type Map<K, V> = HashMap<K, V, BuildHasherDefault<FxHasher>>;

/// A message with a consumer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    pub(super) entry: Entry,
    pub(super) attempt: u32,
    pub(super) consumer: u64,
    /// `u64::MAX`: when its consumer ends.
    pub(super) ends: u64,
}

/// Wakes one consumer.
#[derive(Debug, Default)]
pub(super) struct Waker {
    pub(super) notify: Notify,
}

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
    /// Their time is over: to be settled.
    pub(super) expired: Vec<Entry>,
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
}

/// What became due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Leases that ended, with the attempts now counted.
    pub(super) lost: Vec<(Entry, Mark)>,
    /// Of these, those that had their last delivery: they wait as leased for being moved.
    pub(super) exhausted: Vec<(Entry, u32)>,
    /// Their time is over: to be settled.
    pub(super) expired: Vec<Entry>,
}

/// The index of one target.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By priority, the highest first.
    pub(super) levels: SmallVec<[Level; 1]>,
    pub(super) delayed: BTreeMap<(u64, u64), Entry>,
    pub(super) delayed_until: Map<u64, u64>,
    pub(super) leased: Map<u64, Lease>,
    pub(super) lease_ends: BTreeSet<(u64, u64)>,
    /// Of those messages that have one.
    pub(super) marks: Map<u64, Mark>,
    /// QoS 2 publishes that the session's client has not released: packet id → sequence and place.
    pub(super) incoming: Map<u16, (u64, Location)>,
    consumers: Map<u64, Arc<Waker>>,
    waiting: VecDeque<u64>,
    expiring: usize,
    pub(super) gone: bool,
    /// The deadline that the keeper knows, if any.
    pub(super) registered: Option<u64>,
}

/// Leased under this number while the keeper moves them to a dead letter queue.
pub(super) const KEEPER: u64 = u64::MAX;
/// How many missing bodies are asked for at once.
const READ_AHEAD: usize = 64;
/// How often messages that expire without being at the front are looked for, in milliseconds.
const SWEEP_MS: u64 = 2_000;

impl State {
    fn level(&mut self, priority: u8) -> &mut Level {
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
        self.levels.iter().map(|level| level.fresh.len() + level.returned.len()).sum()
    }

    pub(super) fn delayed_count(&self) -> usize {
        self.delayed.len()
    }

    pub(super) fn leased_count(&self) -> usize {
        self.leased.len()
    }

    pub(super) fn consumer_count(&self) -> usize {
        self.consumers.len()
    }

    /// A stored message arrives, in sequence order. `mark` is of an earlier start.
    pub(super) fn push(&mut self, entry: Entry, mark: Mark, now: UnixMillis) {
        if !mark.is_empty() {
            self.marks.insert(entry.sequence, Mark { not_before: None, ..mark });
        }
        self.expiring += usize::from(entry.expires != 0);
        match mark.not_before.filter(|&at| at > now) {
            Some(at) => self.delay(entry, at.0),
            None => {
                let level = self.level(entry.priority);
                if level.fresh.back().is_none_or(|last| last.sequence < entry.sequence) {
                    level.fresh.push_back(entry);
                } else {
                    level.returned.insert(entry.sequence, entry);
                }
            }
        }
    }

    fn delay(&mut self, entry: Entry, until: u64) {
        self.delayed.insert((until, entry.sequence), entry);
        self.delayed_until.insert(entry.sequence, until);
    }

    fn put_back(&mut self, entry: Entry, until: u64, now: UnixMillis) {
        if until > now.0 {
            self.delay(entry, until);
        } else {
            self.level(entry.priority).unpop(entry);
        }
    }

    /// Wakes up to `count` waiting consumers.
    pub(super) fn wake(&mut self, count: usize) {
        for _ in 0..count {
            let Some(consumer) = self.waiting.pop_front() else { break };
            if let Some(waker) = self.consumers.get(&consumer) {
                waker.notify.notify_one();
            }
        }
    }

    pub(super) fn join(&mut self, consumer: u64, waker: Arc<Waker>) {
        self.consumers.insert(consumer, waker);
    }

    /// The consumer is gone; what it has should have been given back before.
    pub(super) fn leave(&mut self, consumer: u64) {
        self.consumers.remove(&consumer);
        self.waiting.retain(|&other| other != consumer);
        // It may have been woken for something that it did not take.
        self.wake(1);
    }

    /// The target is gone: everybody who waits is told.
    pub(super) fn end(&mut self) {
        self.gone = true;
        for waker in self.consumers.values() {
            waker.notify.notify_one();
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
            self.waiting.retain(|&other| other != how.consumer);
            // It may have been woken for something that it does not take.
            self.wake(1);
            return not;
        }
        let (mut count, mut bytes) = (0, 0);
        while count < how.max && (bytes < how.max_bytes || count == 0) && how.max_bytes > 0 {
            let Some(entry) = self.levels.iter_mut().find_map(Level::pop) else { break };
            if self.is_over(&entry, how.now) {
                self.forget(&entry);
                not.expired.push(entry);
                continue;
            }
            let Some(body) = body(&entry) else {
                not.missing = self.ahead(&entry);
                self.level(entry.priority).unpop(entry);
                break;
            };
            let mark = self.marks.get(&entry.sequence).copied().unwrap_or_default();
            let attempt = mark.attempts.saturating_add(1);
            self.lease(entry, attempt, how.consumer, how.lease_ends);
            count += 1;
            bytes += entry.len as usize;
            let lease_ends = Some(how.lease_ends).filter(|&ends| ends != u64::MAX).map(UnixMillis);
            out.push(Taken { entry, attempt, outgoing: mark.outgoing, body, lease_ends });
        }
        if count < how.max && !self.waiting.contains(&how.consumer) {
            self.waiting.push_back(how.consumer);
        }
        self.levels.iter_mut().for_each(Level::shrink);
        not
    }

    /// Whether its time is over. What was begun is carried to its end [MQTT-4.3.3-7, MQTT-4.3.3-13].
    fn is_over(&self, entry: &Entry, now: UnixMillis) -> bool {
        entry.is_expired(now) && self.marks.get(&entry.sequence).is_none_or(|mark| mark.outgoing.is_none())
    }

    /// The entry and what will be asked for after it, one for each pack.
    fn ahead(&self, first: &Entry) -> Vec<Entry> {
        let mut found = vec![*first];
        let Some(level) = self.levels.iter().find(|level| level.priority == first.priority) else {
            return found;
        };
        for entry in level.returned.values().chain(level.fresh.iter()).take(READ_AHEAD * 16) {
            if found.last().is_some_and(|last| last.pack != entry.pack || entry.is_large()) {
                found.push(*entry);
                if found.len() >= READ_AHEAD {
                    break;
                }
            }
        }
        found
    }

    fn lease(&mut self, entry: Entry, attempt: u32, consumer: u64, ends: u64) {
        if ends != u64::MAX {
            self.lease_ends.insert((ends, entry.sequence));
        }
        self.leased.insert(entry.sequence, Lease { entry, attempt, consumer, ends });
    }

    pub(super) fn unlease(&mut self, sequence: u64) -> Option<Lease> {
        let lease = self.leased.remove(&sequence)?;
        if lease.ends != u64::MAX {
            self.lease_ends.remove(&(lease.ends, sequence));
        }
        Some(lease)
    }

    fn find_lease(&self, lease: &LeaseRef) -> Result<&Lease, LeaseError> {
        let found = self.leased.get(&lease.sequence.0).filter(|found| found.consumer != KEEPER);
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
        self.leased.contains_key(&sequence)
            || self.delayed_until.contains_key(&sequence)
            || self
                .levels
                .iter()
                .any(|level| level.find_fresh(sequence).is_some() || level.returned.contains_key(&sequence))
    }

    /// Drops what is kept beside the entry.
    pub(super) fn forget(&mut self, entry: &Entry) {
        if !self.marks.is_empty() {
            self.marks.remove(&entry.sequence);
        }
        self.expiring = self.expiring.saturating_sub(usize::from(entry.expires != 0));
    }

    /// Takes a leased message out.
    pub(super) fn settle(&mut self, lease: &LeaseRef) -> Result<Entry, LeaseError> {
        let entry = if lease.earlier_boot {
            // The earlier start's lease is good as long as nobody else got the message since.
            match self.levels.iter_mut().find_map(|level| level.remove(lease.sequence.0)) {
                Some(entry) => entry,
                None => return Err(self.find_lease(lease).err().unwrap_or(LeaseError::Expired)),
            }
        } else {
            self.find_lease(lease)?;
            self.unlease(lease.sequence.0).ok_or(LeaseError::Unknown)?.entry
        };
        self.forget(&entry);
        Ok(entry)
    }

    /// Gives a lease back, due at `until`. `count` adds an attempt. Returns the message's mark, and whether it has
    /// had `max` deliveries: then it stays leased, to be moved.
    pub(super) fn give_back(
        &mut self,
        lease: &LeaseRef,
        count: bool,
        max: Option<NonZeroU32>,
        until: u64,
        now: UnixMillis,
    ) -> Result<(Entry, Mark, bool), LeaseError> {
        self.find_lease(lease)?;
        let Lease { entry, .. } = self.unlease(lease.sequence.0).ok_or(LeaseError::Unknown)?;
        let mark = self.count_attempt(&entry, count);
        let exhausted = count && max.is_some_and(|max| mark.attempts >= max.get());
        if exhausted {
            self.lease(entry, mark.attempts, KEEPER, u64::MAX);
        } else {
            self.put_back(entry, until, now);
            self.wake(1);
        }
        let not_before = (until > now.0).then_some(UnixMillis(until));
        Ok((entry, Mark { not_before, ..mark }, exhausted))
    }

    /// Keeps a leased message for the keeper, who will move it.
    pub(super) fn set_aside(&mut self, lease: &LeaseRef) -> Result<(Entry, u32), LeaseError> {
        self.find_lease(lease)?;
        let Lease { entry, attempt, .. } = self.unlease(lease.sequence.0).ok_or(LeaseError::Unknown)?;
        self.lease(entry, attempt, KEEPER, u64::MAX);
        Ok((entry, attempt))
    }

    /// The keeper could not move it: it is ready again.
    pub(super) fn restore(&mut self, sequence: u64, now: UnixMillis) {
        if let Some(Lease { entry, .. }) = self.unlease(sequence) {
            self.put_back(entry, 0, now);
            self.wake(1);
        }
    }

    /// A move settles what is leased to anyone, the keeper included.
    pub(super) fn settle_for_move(&mut self, sequence: u64) -> Option<Entry> {
        let entry = self.unlease(sequence)?.entry;
        self.forget(&entry);
        Some(entry)
    }

    fn count_attempt(&mut self, entry: &Entry, count: bool) -> Mark {
        if !count {
            return self.marks.get(&entry.sequence).copied().unwrap_or_default();
        }
        let mark = self.marks.entry(entry.sequence).or_default();
        mark.attempts = mark.attempts.saturating_add(1);
        *mark
    }

    pub(super) fn extend(&mut self, lease: &LeaseRef, ends: u64) -> Result<(), LeaseError> {
        let Lease { entry, attempt, consumer, .. } = *self.find_lease(lease)?;
        self.unlease(lease.sequence.0);
        self.lease(entry, attempt, consumer, ends);
        Ok(())
    }

    /// What the peer knows an outgoing message by. Returns the place and the whole mark, to be stored.
    pub(super) fn set_outgoing(&mut self, sequence: u64, outgoing: Outgoing) -> Option<(Location, Mark)> {
        let entry = self.leased.get(&sequence)?.entry;
        let mark = self.marks.entry(sequence).or_default();
        mark.outgoing = Some(outgoing);
        Some((entry.location(), *mark))
    }

    /// All that a consumer has goes back. Returns places and marks if attempts were counted, and what is exhausted.
    pub(super) fn release_all(
        &mut self,
        consumer: u64,
        counted: bool,
        max: Option<NonZeroU32>,
        now: UnixMillis,
    ) -> Due {
        let mut held: Vec<u64> =
            self.leased.iter().filter(|(_, lease)| lease.consumer == consumer).map(|(&s, _)| s).collect();
        held.sort_unstable_by(|a, b| b.cmp(a));
        let mut due = Due::default();
        for sequence in &held {
            if let Ok((entry, mark, exhausted)) =
                self.give_back(&LeaseRef::of(Sequence(*sequence)), counted, max, 0, now)
            {
                if exhausted {
                    due.exhausted.push((entry, mark.attempts));
                }
                if counted {
                    due.lost.push((entry, mark));
                }
            }
        }
        self.wake(held.len());
        due
    }

    /// When something of this target will be due, in milliseconds since 1970.
    pub(super) fn next_deadline(&self, now: UnixMillis) -> Option<u64> {
        let delayed = self.delayed.first_key_value().map(|(&(at, _), _)| at);
        let lease = self.lease_ends.first().map(|&(at, _)| at);
        let sweep = (self.expiring > 0 && !self.gone).then_some(now.0 + SWEEP_MS);
        [delayed, lease, sweep].into_iter().flatten().min()
    }

    /// Moves what is due at `now`.
    pub(super) fn due(&mut self, now: UnixMillis, max: Option<NonZeroU32>) -> Due {
        let mut due = Due::default();
        let mut woken = 0;
        while let Some((&(at, sequence), _)) = self.delayed.first_key_value()
            && at <= now.0
        {
            self.delayed_until.remove(&sequence);
            if let Some((_, entry)) = self.delayed.pop_first() {
                self.level(entry.priority).unpop(entry);
                woken += 1;
            }
        }
        while let Some(&(at, sequence)) = self.lease_ends.first()
            && at <= now.0
        {
            match self.give_back(&LeaseRef::of(Sequence(sequence)), true, max, 0, now) {
                Ok((entry, mark, exhausted)) => {
                    due.lost.push((entry, mark));
                    if exhausted {
                        due.exhausted.push((entry, mark.attempts));
                    }
                }
                Err(_) => {
                    self.lease_ends.pop_first();
                }
            }
        }
        if self.expiring > 0 {
            let mut levels = std::mem::take(&mut self.levels);
            for level in &mut levels {
                level.fresh.retain(|entry| !self.is_over(entry, now) || (due.expired.push(*entry), false).1);
                level
                    .returned
                    .retain(|_, entry| !self.is_over(entry, now) || (due.expired.push(*entry), false).1);
            }
            self.levels = levels;
            due.expired.iter().for_each(|entry| self.forget(entry));
        }
        self.wake(woken);
        due
    }

    /// A rewritten message lies elsewhere now.
    pub(super) fn relocate(&mut self, sequence: u64, place: &Entry) -> bool {
        let move_to = |entry: &mut Entry| {
            entry.pack = place.pack;
            entry.ordinal = place.ordinal;
            entry.offset = place.offset;
        };
        if let Some(lease) = self.leased.get_mut(&sequence) {
            move_to(&mut lease.entry);
        } else if let Some(entry) =
            self.delayed_until.get(&sequence).and_then(|&until| self.delayed.get_mut(&(until, sequence)))
        {
            move_to(entry);
        } else if let Some(entry) = self.levels.iter_mut().find_map(|level| level.get_mut(sequence)) {
            move_to(entry);
        } else {
            return false;
        }
        true
    }
}
