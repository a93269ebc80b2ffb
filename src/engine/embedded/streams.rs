//! Streams: what is appended, what goes. [`readers`](super::readers) has who reads.
//!
//! A stream's messages stand in the index of its target as ready ones of one level, in sequence order, 32 bytes each. They are
//! never leased; where other entries have their expiry, these have when they were appended.
//!
//! Invariant: the writer alone takes messages out, the oldest first, and settles them in the same commit.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::entry::{Entry, expiry_tenths};
use super::format::{Mark, ROW_BYTES};
use super::index::State;
use super::lanes::PreparedStreamAppend;
use super::objects;
use super::overflow::Leavers;
use super::pack::Failed;
use super::readers::Slot;
use super::shared::Shared;
use super::target::{Settings, Target};
use super::writer::Writer;
use crate::engine::{Definition, EngineError, Outcome, Refusal, StreamEnds, StreamStats};
use crate::types::clock::unix_now;
use crate::types::{Priority, Qos, Sequence, TargetId, UnixMillis};

/// So many messages go in one commit because of their age or a bound that was lowered; the rest in the next.
const RETIRE_AT_ONCE: usize = 10_000;

/// What is known of a stream beside its messages.
#[derive(Debug)]
pub(super) struct Kept {
    /// The sequence behind the last message that is durable.
    pub(super) next: u64,
    max_age: Option<u64>,
    /// The bounds may have been lowered.
    look: bool,
    /// Readers that have all that there is.
    waiting: Vec<Arc<Slot>>,
}

impl Kept {
    /// Of a target that is a stream.
    pub(super) fn of(settings: &Settings, next: u64) -> Option<Self> {
        settings.stream.then_some(Self { next, max_age: settings.max_age, look: false, waiting: Vec::new() })
    }
}

/// When the message of an entry was appended, in milliseconds since 1970.
fn appended(entry: &Entry) -> u64 {
    entry.expires_at().map_or(0, |at| at.0)
}

impl State {
    fn oldest_kept(&self) -> Option<&Entry> {
        self.levels.first()?.fresh.front()
    }

    /// The one that goes when so many have gone.
    pub(super) fn kept_at(&self, gone: u64) -> Option<Entry> {
        self.levels.first()?.fresh.get(usize::try_from(gone).ok()?).copied()
    }

    /// The oldest one goes.
    pub(super) fn drop_oldest(&mut self) -> Option<Entry> {
        self.levels.first_mut()?.pop()
    }

    fn newest_kept(&self) -> Option<&Entry> {
        self.levels.first()?.fresh.back()
    }

    pub(super) fn ends(&self) -> StreamEnds {
        let next = self.kept.as_ref().map_or(0, |kept| kept.next);
        let first = self.oldest_kept().map_or(next, |entry| entry.sequence);
        StreamEnds { first: Sequence(first), next: Sequence(next) }
    }

    /// The entries from a sequence on, as far as `max` and `max_bytes` go; one may overdraw.
    pub(super) fn read_on(&self, from: u64, max: usize, max_bytes: usize) -> Vec<Entry> {
        let Some(level) = self.levels.first() else { return Vec::new() };
        let start = level.fresh.partition_point(|entry| entry.sequence < from);
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let goes_on = bytes < max_bytes;
            bytes += entry.len as usize;
            goes_on
        };
        level
            .fresh
            .range(start..)
            .filter(|entry| !entry.is_hole())
            .take(max)
            .take_while(fits)
            .copied()
            .collect()
    }

    /// So many messages arrived: who waits is told, readers of a stream by what this gives.
    pub(super) fn announce(&mut self, count: usize) -> Vec<Arc<Slot>> {
        let Some(kept) = &mut self.kept else {
            self.members.wake(count);
            return Vec::new();
        };
        let waiting = std::mem::take(&mut kept.waiting);
        waiting.iter().for_each(|reader| reader.waits.store(false, Ordering::Relaxed));
        waiting
    }

    /// A reader has all that there is.
    pub(super) fn wait_for_more(&mut self, reader: &Arc<Slot>) {
        if let Some(kept) = &mut self.kept
            && !reader.waits.swap(true, Ordering::Relaxed)
        {
            kept.waiting.push(Arc::clone(reader));
        }
    }

    /// A reader is gone.
    pub(super) fn wait_no_more(&mut self, reader: &Arc<Slot>) {
        if let Some(kept) = &mut self.kept
            && reader.waits.load(Ordering::Relaxed)
        {
            kept.waiting.retain(|other| !Arc::ptr_eq(other, reader));
        }
    }

    /// When the oldest message of a stream has its age.
    pub(super) fn retires_at(&self, kept: &Kept, now: UnixMillis) -> Option<u64> {
        let oldest = self.oldest_kept().filter(|_| !self.gone)?;
        if kept.look { Some(now.0) } else { Some(appended(oldest).saturating_add(kept.max_age?)) }
    }
}

impl Target {
    /// The time of a message that is appended now: never before that of the last.
    pub(super) fn stamp(&self, now: UnixMillis) -> UnixMillis {
        UnixMillis(self.last_append.fetch_max(now.0, Ordering::Relaxed).max(now.0))
    }

    /// What is said when a bound stands in the way. That of a stream does so only for what is larger by itself.
    pub(super) fn refusal(&self, bound: String) -> Refusal {
        let target = self.id;
        if self.settings.load().stream {
            Refusal::Oversize { target, bound }
        } else {
            Refusal::Full { target, bound }
        }
    }

    /// It has all its messages, and goes on with this sequence.
    pub(super) fn read_back(&self, next: u64) {
        let mut state = self.state.lock();
        let last = state.newest_kept().map_or(0, appended);
        if let Some(kept) = &mut state.kept {
            kept.next = next;
            kept.look = true;
            self.last_append.store(last, Ordering::Relaxed);
        }
    }

    /// Its settings may be others: whether it is to be seen what it keeps by them.
    pub(super) fn look_again(&self, state: &mut State) -> bool {
        let settings = self.settings.load();
        let Some(kept) = &mut state.kept else { return false };
        kept.max_age = settings.max_age;
        kept.look = true;
        true
    }

    /// Of a stream, the sequence behind what is durable. One that was given out to what a crash takes back must not count: its
    /// readers would be told of a message that never was.
    pub(super) fn durable_next(&self) -> Option<u64> {
        self.state.lock().kept.as_ref().map(|kept| kept.next)
    }

    pub(super) fn stream_stats(&self) -> StreamStats {
        let state = self.state.lock();
        let at = |entry: Option<&Entry>| entry.and_then(Entry::expires_at);
        StreamStats {
            ends: state.ends(),
            messages: state.ready_count() as u64,
            bytes: self.bytes.load(Ordering::Relaxed),
            first_at: at(state.oldest_kept()),
            last_at: at(state.newest_kept()),
            appended_total: self.totals.enqueued.load(Ordering::Relaxed),
            aged_total: self.totals.expired.load(Ordering::Relaxed),
            displaced_total: self.totals.dropped.load(Ordering::Relaxed),
            readers: u32::try_from(state.members.len()).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn stream_at(&self, time: UnixMillis) -> Sequence {
        let state = self.state.lock();
        let tenths = expiry_tenths(Some(time));
        let found = state.levels.first().and_then(|level| {
            let at = level.fresh.partition_point(|entry| entry.expires < tenths);
            level.fresh.get(at)
        });
        found.map_or(state.ends().next, |entry| Sequence(entry.sequence))
    }
}

impl Shared {
    /// A target that is a stream.
    pub(super) fn stream(&self, id: TargetId) -> Result<Arc<Target>, EngineError> {
        self.target(id).and_then(|target| {
            if target.settings.load().stream { Ok(target) } else { Err(EngineError::NoSuchTarget(id)) }
        })
    }
}

impl Writer {
    pub(super) fn stage_stream_append(&mut self, append: PreparedStreamAppend) -> Result<Outcome, Failed> {
        let PreparedStreamAppend { target: id, bodies, expected } = append;
        let Ok(target) = self.shared.stream(id) else { return Ok(Outcome::Refused(Refusal::Gone(id))) };
        let next = Sequence(target.next_sequence.load(Ordering::Relaxed));
        if let Some(expected) = expected.filter(|expected| *expected != next) {
            return Ok(Outcome::Refused(Refusal::OtherNext { target: id, next, expected }));
        }
        let bytes: usize = bodies.iter().map(bytes::Bytes::len).sum();
        let mut leavers = Leavers::default();
        if let Some(bound) = self.make_room(&target, (bodies.len() as u64, bytes as u64), &mut leavers) {
            self.stay(leavers);
            return Ok(self.refused(target.refusal(bound)));
        }
        self.begin_all(leavers, bodies.iter().map(|body| (1, body.len())))?;
        let mut sequences = SmallVec::with_capacity(bodies.len());
        for body in &bodies {
            let (packer, mut books) = self.books();
            packer.begin_op(&mut books, 1, body.len())?;
            let place = packer.body(&mut books, body)?;
            let how = (Qos::AtLeastOnce, false, Priority::default());
            let target = Arc::clone(&target);
            sequences.push(Some(self.stage_add(target, place, how, None, (None, None), Mark::default())?));
        }
        let (packer, mut books) = self.books();
        packer.end_all(&mut books)?;
        Ok(Outcome::Published(sequences))
    }

    /// Whether a definition takes no room worth counting: of a queue that there is, which is given nothing new meanwhile, or of a
    /// stream that there is and keeps no more than before.
    pub(super) fn takes_no_room(&self, id: TargetId, definition: &Definition) -> bool {
        let Ok(target) = self.shared.target(id) else { return false };
        let (old, new) = (target.settings.load(), Settings::from(definition));
        let age = |settings: &Settings| settings.max_age.unwrap_or(u64::MAX);
        let keeps_less = new.stream
            && old.stream
            && new.max_messages <= old.max_messages
            && new.max_bytes <= old.max_bytes
            && age(&new) <= age(&old);
        let is_queue = new.queue.is_some() && old.queue.is_some();
        (keeps_less || is_queue) && objects::encode(definition).len() <= ROW_BYTES
    }

    /// What a stream does not keep any longer goes, some of it if that is much.
    pub(super) fn stage_retention(&mut self, target: &Arc<Target>) -> Result<(), Failed> {
        let now = unix_now();
        let settings = target.settings.load_full();
        let (mut messages, mut bytes) =
            (target.messages.load(Ordering::Relaxed), target.bytes.load(Ordering::Relaxed));
        let mut going = Vec::new();
        {
            let mut state = target.state.lock();
            while going.len() < RETIRE_AT_ONCE
                && let Some(oldest) = state.oldest_kept()
            {
                let aged = settings.max_age.is_some_and(|age| appended(oldest).saturating_add(age) <= now.0);
                if !aged && messages <= settings.max_messages && bytes <= settings.max_bytes {
                    break;
                }
                let Some(entry) = state.drop_oldest() else { break };
                messages -= 1;
                bytes = bytes.saturating_sub(u64::from(entry.len));
                going.push((entry, aged));
            }
            state.levels.iter_mut().for_each(super::level::Level::shrink);
            if let Some(kept) = &mut state.kept {
                kept.look = going.len() == RETIRE_AT_ONCE;
            }
            self.shared.tasks.register(target, &mut state, now);
        }
        for (entry, aged) in going {
            self.stage_end(target, &entry)?;
            let total = if aged { &target.totals.expired } else { &target.totals.dropped };
            total.fetch_add(1, Ordering::Relaxed);
            self.shared.counts.retired.add(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
