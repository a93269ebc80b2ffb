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
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHasher;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::format::{Location, Mark};
use crate::engine::{Definition, LeaseError, LeaseRef, Outgoing, TargetStats, View};
use crate::types::{Priority, Qos, QueueName, Sequence, TargetId, UnixMillis};

/// Keys are numbers of our own: no peer can choose them to collide.
type Map<K, V> = HashMap<K, V, BuildHasherDefault<FxHasher>>;

/// 2026-01-01T00:00:00Z, from where expiry is counted in tenths of a second.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// Expiry as an entry holds it: tenths of a second, rounded up; 0 is never.
pub(super) fn expiry_tenths(at: Option<UnixMillis>) -> u32 {
    at.map_or(0, |at| u32::try_from(at.0.saturating_sub(EPOCH_MS).div_ceil(100)).unwrap_or(u32::MAX).max(1))
}

/// One stored message, 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) sequence: u64,
    /// Where the body lies, and whose ADD it is.
    pub(super) pack: u64,
    pub(super) ordinal: u32,
    pub(super) len: u32,
    /// See [`expiry_tenths`].
    pub(super) expires: u32,
    /// In the pack's bodies, or the slot of a large one.
    pub(super) offset: u16,
    /// qos 2 bits, retain, large.
    flags: u8,
    priority: u8,
}

const RETAIN: u8 = 4;
const LARGE: u8 = 8;

impl Entry {
    #[expect(clippy::too_many_arguments, reason = "the one place that packs them")]
    pub(super) fn new(
        sequence: u64,
        location: Location,
        offset: u16,
        len: u32,
        large: bool,
        expires_at: Option<UnixMillis>,
        (qos, retain): (Qos, bool),
        priority: Priority,
    ) -> Self {
        let flags = qos as u8 | if retain { RETAIN } else { 0 } | if large { LARGE } else { 0 };
        Self {
            sequence,
            pack: location.pack,
            ordinal: location.ordinal,
            len,
            expires: expiry_tenths(expires_at),
            offset,
            flags,
            priority: priority.level(),
        }
    }

    pub(super) fn location(&self) -> Location {
        Location { pack: self.pack, ordinal: self.ordinal }
    }

    pub(super) fn is_large(&self) -> bool {
        self.flags & LARGE != 0
    }

    pub(super) fn retain(&self) -> bool {
        self.flags & RETAIN != 0
    }

    pub(super) fn qos(&self) -> Qos {
        Qos::from_u8(self.flags & 3).unwrap_or(Qos::AtMostOnce)
    }

    pub(super) fn priority(&self) -> Priority {
        Priority::new(self.priority).unwrap_or_default()
    }

    pub(super) fn expires_at(&self) -> Option<UnixMillis> {
        (self.expires != 0).then(|| UnixMillis(EPOCH_MS + u64::from(self.expires) * 100))
    }

    fn is_expired(&self, now: UnixMillis) -> bool {
        self.expires_at().is_some_and(|at| at <= now)
    }
}

/// What of a definition the engine itself needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// A full target refuses; else it drops what is new.
    pub(super) rejects: bool,
    pub(super) max_messages: u64,
    pub(super) max_bytes: u64,
    pub(super) max_deliveries: Option<NonZeroU32>,
    pub(super) queue: Option<QueueName>,
    pub(super) dead_letter: Option<QueueName>,
    pub(super) priorities: bool,
}

impl From<&Definition> for Settings {
    fn from(definition: &Definition) -> Self {
        let (max_messages, max_bytes) = match definition {
            Definition::Queue(queue) => (queue.max_messages, queue.max_bytes),
            Definition::Session(session) => (session.max_messages, session.max_bytes),
            Definition::Group(group) => (group.max_messages, group.max_bytes),
        };
        let queue = match definition {
            Definition::Queue(queue) => Some(queue),
            _ => None,
        };
        Self {
            rejects: queue.is_some(),
            max_messages,
            max_bytes,
            max_deliveries: queue.and_then(|queue| queue.max_deliveries),
            queue: queue.map(|queue| queue.name.clone()),
            dead_letter: queue.and_then(|queue| queue.dead_letter.clone()),
            priorities: queue.is_some_and(|queue| queue.priorities),
        }
    }
}

/// One target.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) id: TargetId,
    pub(super) settings: ArcSwap<Settings>,
    /// Stored and not settled. The writer alone changes these.
    pub(super) messages: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) next_sequence: AtomicU64,
    pub(super) totals: Totals,
    pub(super) state: Mutex<State>,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) enqueued: AtomicU64,
    pub(super) acked: AtomicU64,
    pub(super) dead_lettered: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) dropped: AtomicU64,
}

impl Target {
    pub(super) fn new(id: TargetId, settings: Settings, next_sequence: u64) -> Self {
        Self {
            id,
            settings: ArcSwap::from_pointee(settings),
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            next_sequence: AtomicU64::new(next_sequence),
            totals: Totals::default(),
            state: Mutex::default(),
        }
    }

    pub(super) fn stats(&self) -> TargetStats {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let state = self.state.lock();
        TargetStats {
            ready: state.ready_count() as u64,
            delayed: state.delayed.len() as u64,
            leased: state.leased.len() as u64,
            bytes: load(&self.bytes),
            oldest: None,
            enqueued_total: load(&self.totals.enqueued),
            acked_total: load(&self.totals.acked),
            dead_lettered_total: load(&self.totals.dead_lettered),
            expired_total: load(&self.totals.expired),
            dropped_total: load(&self.totals.dropped),
            consumers: u32::try_from(state.consumers.len()).unwrap_or(u32::MAX),
        }
    }
}

/// Ready messages of one priority.
#[derive(Debug, Default)]
struct Level {
    priority: u8,
    fresh: VecDeque<Entry>,
    returned: BTreeMap<u64, Entry>,
}

impl Level {
    fn pop(&mut self) -> Option<Entry> {
        match (self.returned.first_key_value(), self.fresh.front()) {
            (Some((&back, _)), Some(front)) if back < front.sequence => {
                self.returned.pop_first().map(|(_, entry)| entry)
            }
            (_, Some(_)) => self.fresh.pop_front(),
            (Some(_), None) => self.returned.pop_first().map(|(_, entry)| entry),
            (None, None) => None,
        }
    }

    fn unpop(&mut self, entry: Entry) {
        if self.fresh.front().is_none_or(|front| entry.sequence < front.sequence) && self.returned.is_empty()
        {
            self.fresh.push_front(entry);
        } else {
            self.returned.insert(entry.sequence, entry);
        }
    }

    fn find_fresh(&self, sequence: u64) -> Option<usize> {
        self.fresh.binary_search_by_key(&sequence, |entry| entry.sequence).ok()
    }

    fn remove(&mut self, sequence: u64) -> Option<Entry> {
        match self.find_fresh(sequence) {
            Some(at) => self.fresh.remove(at),
            None => self.returned.remove(&sequence),
        }
    }

    fn get_mut(&mut self, sequence: u64) -> Option<&mut Entry> {
        match self.find_fresh(sequence) {
            Some(at) => self.fresh.get_mut(at),
            None => self.returned.get_mut(&sequence),
        }
    }

    /// Gives the memory of a drained backlog back.
    fn shrink(&mut self) {
        if self.fresh.capacity() > 1024 && self.fresh.len() < self.fresh.capacity() / 4 {
            self.fresh.shrink_to(self.fresh.len() * 2);
        }
    }
}

/// A message with a consumer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    pub(super) entry: Entry,
    pub(super) attempt: u32,
    consumer: u64,
    /// `u64::MAX`: when its consumer ends.
    ends: u64,
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
    levels: SmallVec<[Level; 1]>,
    delayed: BTreeMap<(u64, u64), Entry>,
    delayed_until: Map<u64, u64>,
    leased: Map<u64, Lease>,
    lease_ends: BTreeSet<(u64, u64)>,
    /// Of those messages that have one.
    marks: Map<u64, Mark>,
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
const KEEPER: u64 = u64::MAX;
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
            if entry.is_expired(how.now) {
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

    fn unlease(&mut self, sequence: u64) -> Option<Lease> {
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
    fn forget(&mut self, entry: &Entry) {
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
            for level in &mut self.levels {
                level.fresh.retain(|entry| !entry.is_expired(now) || (due.expired.push(*entry), false).1);
                level
                    .returned
                    .retain(|_, entry| !entry.is_expired(now) || (due.expired.push(*entry), false).1);
            }
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
        }
        if matches!(view, View::All | View::Delayed) {
            let delayed = self.delayed.iter().filter(|((_, sequence), _)| *sequence >= from);
            found.extend(delayed.map(|(&(until, _), entry)| (*entry, View::Delayed, Some(until))));
        }
        if matches!(view, View::All | View::Leased) {
            let leased = self.leased.values().filter(|lease| lease.entry.sequence >= from);
            found.extend(
                leased.map(|lease| {
                    (lease.entry, View::Leased, Some(lease.ends).filter(|&ends| ends != u64::MAX))
                }),
            );
        }
        found.sort_unstable_by_key(|(entry, ..)| entry.sequence);
        found.truncate(max);
        let attempts = |entry: &Entry| self.marks.get(&entry.sequence).map_or(0, |mark| mark.attempts);
        found.into_iter().map(|(entry, view, until)| (entry, view, attempts(&entry), until)).collect()
    }

    /// A message whose body cannot be read is not handed out any more; it stays in the store.
    pub(super) fn discard(&mut self, sequence: u64) {
        if self.unlease(sequence).is_none() {
            self.levels.iter_mut().find_map(|level| level.remove(sequence));
        }
    }

    /// All that the target holds, for its end.
    pub(super) fn drain_whole(&mut self) -> Vec<Entry> {
        let mut out = self.drain(View::All);
        out.extend(self.leased.drain().map(|(_, lease)| lease.entry));
        self.lease_ends.clear();
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
        }
        if matches!(view, View::All | View::Delayed) {
            out.extend(std::mem::take(&mut self.delayed).into_values());
            self.delayed_until.clear();
        }
        if matches!(view, View::All | View::Leased) {
            let held: Vec<u64> =
                self.leased.values().filter(|l| l.consumer != KEEPER).map(|l| l.entry.sequence).collect();
            out.extend(
                held.into_iter().filter_map(|sequence| self.unlease(sequence)).map(|lease| lease.entry),
            );
        }
        out.iter().for_each(|entry| self.forget(entry));
        out
    }
}
