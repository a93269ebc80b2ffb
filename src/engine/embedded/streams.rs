//! Streams: what is appended, what goes, who reads.
//!
//! A stream's messages stand in the index of its target as ready ones of one level, in sequence order, 32 bytes each. They are
//! never leased; where other entries have their expiry, these have when they were appended.
//!
//! Invariants: the writer alone takes messages out, the oldest first, and settles them in the same commit; a reader holds at
//! most one page.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::body::decode_message;
use super::entry::{Entry, expiry_tenths};
use super::format::Mark;
use super::index::State;
use super::keeper::{Job, body_of};
use super::lanes::PreparedStreamAppend;
use super::overflow::Leavers;
use super::pack::Failed;
use super::shared::Shared;
use super::target::{Settings, Target};
use super::writer::Writer;
use crate::bell::Bell;
use crate::engine::{
    EngineError, Logged, Outcome, Refusal, StreamEnds, StreamPage, StreamReader, StreamStats,
};
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
}

impl Kept {
    /// Of a target that is a stream.
    pub(super) fn of(settings: &Settings, next: u64) -> Option<Self> {
        settings.stream.then_some(Self { next, max_age: settings.max_age, look: false })
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

    fn newest_kept(&self) -> Option<&Entry> {
        self.levels.first()?.fresh.back()
    }

    fn ends(&self) -> StreamEnds {
        let next = self.kept.as_ref().map_or(0, |kept| kept.next);
        let first = self.oldest_kept().map_or(next, |entry| entry.sequence);
        StreamEnds { first: Sequence(first), next: Sequence(next) }
    }

    /// The entries from a sequence on, as far as `max` and `max_bytes` go; one may overdraw.
    fn read_on(&self, from: u64, max: usize, max_bytes: usize) -> Vec<Entry> {
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

    /// So many messages arrived: who waits is told.
    pub(super) fn announce(&mut self, count: usize) {
        if self.kept.is_some() { self.members.wake_all() } else { self.members.wake(count) }
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
        if expected.is_some_and(|expected| expected != next) {
            return Ok(Outcome::Refused(Refusal::OtherNext { next }));
        }
        let bytes: usize = bodies.iter().map(bytes::Bytes::len).sum();
        let mut leavers = Leavers::default();
        if let Some(bound) = self.make_room(&target, (bodies.len() as u64, bytes as u64), &mut leavers) {
            Self::stay(leavers);
            self.shared.counts.refused_full.add(1);
            return Ok(Outcome::Refused(target.refusal(bound)));
        }
        self.leave(leavers.before())?;
        let (packer, mut books) = self.books();
        packer.begin_op(&mut books, bodies.len() + leavers.len() + 1, bytes)?;
        self.leave(leavers)?;
        let mut places = Vec::with_capacity(bodies.len());
        for body in &bodies {
            let (packer, mut books) = self.books();
            places.push(packer.body(&mut books, body)?);
        }
        let mut sequences = SmallVec::with_capacity(bodies.len());
        for place in places {
            let how = (Qos::AtLeastOnce, false, Priority::default());
            sequences.push(Some(self.stage_add(
                Arc::clone(&target),
                place,
                how,
                None,
                None,
                Mark::default(),
            )?));
        }
        let (packer, mut books) = self.books();
        packer.end_op(&mut books)?;
        Ok(Outcome::Published(sequences))
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
                let Some(entry) = state.levels.first_mut().and_then(super::level::Level::pop) else { break };
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
            if self.stage_settle(target, entry.sequence, entry.location())? {
                target.messages.fetch_sub(1, Ordering::Relaxed);
                target.bytes.fetch_sub(u64::from(entry.len), Ordering::Relaxed);
            }
            let total = if aged { &target.totals.expired } else { &target.totals.dropped };
            total.fetch_add(1, Ordering::Relaxed);
            self.shared.counts.retired.add(1);
        }
        Ok(())
    }
}

/// What a reader waits for.
#[derive(Debug, Default)]
enum Fetch {
    #[default]
    Nothing,
    /// From there on the engine's thread reads.
    Under,
    /// What it has read from there on.
    Done(Sequence, Result<Vec<Logged>, EngineError>),
}

/// Where the engine's thread puts what it reads for one reader.
#[derive(Debug, Default)]
pub(super) struct Slot {
    bell: Arc<Bell>,
    fetch: Mutex<Fetch>,
}

impl Slot {
    /// Reads entries in a row. Blocks.
    pub(super) fn fill(&self, shared: &Shared, target: &Target, entries: Vec<Entry>) {
        let Some(from) = entries.first().map(|entry| Sequence(entry.sequence)) else { return };
        if Arc::strong_count(&self.bell) == 1 {
            return; // Its reader is gone.
        }
        let mut bodies = shared.bodies.reader();
        let mut read = Vec::with_capacity(entries.len());
        let mut failed = None;
        for entry in entries {
            let body = body_of(target, &entry, |entry| bodies.read(&shared.disk.trees, entry));
            match body.and_then(|body| logged(&entry, body)) {
                Ok(message) => read.push(message),
                // What retention has taken since is not there for the reader either.
                Err(_) if target.state.lock().entry(entry.sequence).is_none() => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let result = match failed.filter(|_| read.is_empty()) {
            Some(error) => Err(error),
            None => Ok(read),
        };
        *self.fetch.lock() = Fetch::Done(from, result);
        self.bell.ring();
    }
}

fn logged(entry: &Entry, body: bytes::Bytes) -> Result<Logged, EngineError> {
    let message = decode_message(body)
        .map_err(|error| EngineError::Damaged(format!("message {} of a stream: {error}", entry.sequence)))?;
    let appended_at = UnixMillis(appended(entry));
    Ok(Logged { sequence: Sequence(entry.sequence), appended_at, message })
}

/// See [`StreamReader`].
pub(super) struct EmbeddedStreamReader {
    shared: Arc<Shared>,
    target: Arc<Target>,
    id: u64,
    bell: Arc<Bell>,
    slot: Arc<Slot>,
}

impl EmbeddedStreamReader {
    pub(super) fn join(shared: Arc<Shared>, target: Arc<Target>, id: u64) -> Self {
        let slot = Arc::new(Slot::default());
        target.state.lock().members.join(id, Arc::clone(&slot.bell), 0);
        Self { shared, target, id, bell: Arc::clone(&slot.bell), slot }
    }
}

impl StreamReader for EmbeddedStreamReader {
    fn read(&self, from: Sequence, max: usize, max_bytes: usize) -> Result<StreamPage, EngineError> {
        let mut fetch = self.slot.fetch.lock();
        let (ends, entries) = {
            let state = self.target.state.lock();
            if state.gone {
                return Err(EngineError::NoSuchTarget(self.target.id));
            }
            let under = matches!(*fetch, Fetch::Under);
            (state.ends(), if under { Vec::new() } else { state.read_on(from.0, max, max_bytes) })
        };
        let first = match std::mem::take(&mut *fetch) {
            Fetch::Under => {
                *fetch = Fetch::Under;
                return Ok(StreamPage { ends, messages: Vec::new() });
            }
            fetched => entries.first().map(|entry| (entry.sequence, fetched)),
        };
        let Some((first, fetched)) = first else { return Ok(StreamPage { ends, ..StreamPage::default() }) };
        if let Fetch::Done(of, result) = fetched
            && of.0 == first
        {
            let mut messages = result?;
            messages.truncate(entries.len());
            if !messages.is_empty() {
                return Ok(StreamPage { messages, ends });
            }
        }
        let mut bodies = self.shared.bodies.reader();
        let mut messages = Vec::with_capacity(entries.len());
        for entry in &entries {
            let Some(body) = bodies.get(entry) else { break };
            messages.push(logged(entry, body)?);
        }
        if messages.is_empty() {
            *fetch = Fetch::Under;
            let (target, slot) = (Arc::clone(&self.target), Arc::clone(&self.slot));
            self.shared.tasks.push(Job::ReadStream { target, entries, slot });
        }
        Ok(StreamPage { messages, ends })
    }

    fn ready(&self) -> &Arc<Bell> {
        &self.bell
    }
}

impl fmt::Debug for EmbeddedStreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStreamReader")
            .field("target", &self.target.id)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for EmbeddedStreamReader {
    fn drop(&mut self) {
        self.target.state.lock().members.leave(self.id);
    }
}
