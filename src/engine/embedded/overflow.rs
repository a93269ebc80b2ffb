//! Room in a queue that is full: its oldest ready messages go, those of the lowest priority first.
//!
//! Invariant: a message goes only if the one that it makes room for is stored; what is dropped is settled in the same
//! operation, or, where that is much, right before it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::entry::Entry;
use super::format::Mark;
use super::index::State;
use super::order::Key;
use super::pack::Failed;
use super::target::{Target, WhenFull};
use super::writer::{Effect, Writer};
use crate::engine::Overflow;
use crate::types::TargetId;
use crate::types::clock::unix_now;

/// When so many are on their way from one queue to its dead letter queue, the queue refuses. What one message sends there
/// is not counted before: a queue whose bound was lowered could never be cleared.
const LEAVING_MESSAGES: u64 = 10_000;
/// The same in bytes.
const LEAVING_BYTES: u64 = 64 << 20;

/// So many are settled in the operation that they make room for: they stand in its first pack. In a later one of a chain
/// they would be lost with the first, which can go sooner than what they settle.
const SETTLED_WITHIN: usize = 100;

/// A message that makes room.
struct Leaver {
    target: Arc<Target>,
    entry: Entry,
    /// It is not in the index yet: its place among the effects of this commit.
    at: Option<usize>,
}

/// Those that make room for one operation.
#[derive(Default)]
pub(super) struct Leavers {
    all: SmallVec<[Leaver; 1]>,
    sums: SmallVec<[Sum; 1]>,
}

/// What leaves one target.
#[derive(Clone, Copy)]
struct Sum {
    target: TargetId,
    messages: u64,
    bytes: u64,
    /// The last among the effects of this commit.
    last: Option<usize>,
}

/// So many more than come may go from a stream with one operation. Beyond that a bound was lowered, and [`Work::Retain`] sees to
/// it in parts.
///
/// [`Work::Retain`]: super::lanes::Work::Retain
const SHED_BY_ONE: u64 = 256;

impl Leavers {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Takes out what goes before the operation.
    pub(super) fn before(&mut self) -> Self {
        let count = self.len().saturating_sub(SETTLED_WITHIN);
        Self { all: self.all.drain(..count).collect(), sums: SmallVec::new() }
    }

    fn of(&self, target: TargetId) -> Sum {
        let known = self.sums.iter().find(|sum| sum.target == target).copied();
        known.unwrap_or(Sum { target, messages: 0, bytes: 0, last: None })
    }

    fn push(&mut self, leaver: Leaver) {
        let before = self.of(leaver.target.id);
        let (messages, bytes) = (before.messages + 1, before.bytes + u64::from(leaver.entry.len));
        let sum = Sum { messages, bytes, last: leaver.at.or(before.last), ..before };
        match self.sums.iter_mut().find(|sum| sum.target == before.target) {
            Some(known) => *known = sum,
            None => self.sums.push(sum),
        }
        self.all.push(leaver);
    }
}

impl State {
    /// Takes out the message that goes first when there must be room. It has its place in the order of its key until it is
    /// gone.
    fn make_room(&mut self) -> Option<Entry> {
        let waiting = self.order.as_mut().and_then(|order| order.first_to_go());
        let level = self.levels.iter_mut().rev().find(|level| level.len() > 0);
        let ready = level.as_ref().and_then(|level| Some((level.priority, level.first()?.sequence)));
        let entry = match (waiting, &mut self.order) {
            (Some((_, sequence)), Some(order)) if ready.is_none() || waiting < ready => {
                let entry = order.take(sequence);
                order.set_aside(sequence);
                entry
            }
            _ => level?.pop(),
        };
        self.members.go_on();
        entry
    }

    /// A message that goes to the dead letter queue without having been ready.
    pub(super) fn pass_by(&mut self, entry: Entry, mark: Mark, key: Option<Key>) {
        self.know(entry.sequence, key);
        if !mark.is_empty() {
            self.marks.insert(entry.sequence, mark);
        }
        self.expiring += usize::from(entry.expires != 0);
        self.keep(entry, mark.attempts);
    }
}

impl Writer {
    /// Which bound so many more messages of `len` bytes together would break, though all that may go went: `leavers` has it.
    pub(super) fn make_room(
        &mut self,
        target: &Arc<Target>,
        (count, len): (u64, u64),
        leavers: &mut Leavers,
    ) -> Option<String> {
        let bound = room(target, count, len)?;
        let settings = target.settings.load();
        let WhenFull::Queue(overflow @ (Overflow::DropOldest | Overflow::DeadLetter)) = settings.when_full
        else {
            return Some(bound);
        };
        if count > settings.max_messages || len > settings.max_bytes {
            return Some(bound);
        }
        loop {
            let gone = leavers.of(target.id);
            let bound = broken(target, count, len, (gone.messages, gone.bytes))?;
            if settings.stream && gone.messages >= count + SHED_BY_ONE {
                return None;
            }
            if overflow == Overflow::DeadLetter {
                let leaving = target.leaving_messages.load(Ordering::Relaxed);
                if leaving >= LEAVING_MESSAGES || target.leaving_bytes.load(Ordering::Relaxed) > LEAVING_BYTES
                {
                    return Some(format!("{bound}, and {leaving} messages are on their way out"));
                }
            }
            let ready = target.state.lock().make_room();
            let leaver = match ready {
                Some(entry) => Leaver { target: target.clone(), entry, at: None },
                None => match self.next_of_this_commit(target, gone.last) {
                    Some((at, entry)) => Leaver { target: target.clone(), entry, at: Some(at) },
                    None => return Some(bound),
                },
            };
            leavers.push(leaver);
        }
    }

    /// The first message of this commit, behind `last` of its effects, that would be ready in this target.
    fn next_of_this_commit(&mut self, target: &Arc<Target>, last: Option<usize>) -> Option<(usize, Entry)> {
        let from = match last {
            Some(last) => last + 1,
            None => self.left.get(&target.id).copied().unwrap_or(0),
        };
        let now = unix_now();
        let find = |(at, effect): (usize, &Effect)| match effect {
            Effect::Push(other, entry, mark, _)
                if Arc::ptr_eq(other, target) && mark.not_before.is_none_or(|at| at <= now) =>
            {
                Some((at, *entry))
            }
            _ => None,
        };
        self.effects.iter().enumerate().skip(from).find_map(find)
    }

    /// The operation is refused: what would have made room for it stays.
    pub(super) fn stay(leavers: Leavers) {
        let now = unix_now();
        for Leaver { target, entry, .. } in leavers.all.into_iter().filter(|leaver| leaver.at.is_none()).rev()
        {
            let mut state = target.state.lock();
            state.put_back(entry, 0, now);
            state.members.wake(1);
        }
    }

    /// What makes room for an operation goes.
    pub(super) fn leave(&mut self, leavers: Leavers) -> Result<(), Failed> {
        for Leaver { target, entry, at } in leavers.all {
            if let Some(at) = at {
                self.left.insert(target.id, at + 1);
            }
            if target.settings.load().when_full == WhenFull::Queue(Overflow::DeadLetter) {
                target.leaving_messages.fetch_add(1, Ordering::Relaxed);
                target.leaving_bytes.fetch_add(u64::from(entry.len), Ordering::Relaxed);
                self.leave_for_dead_letters(target, entry, at);
                continue;
            }
            match at.and_then(|at| self.effects.get_mut(at)) {
                Some(effect) => *effect = Effect::None,
                None => target.state.lock().forget(&entry),
            }
            if self.stage_settle(&target, entry.sequence, entry.location())? {
                target.messages.fetch_sub(1, Ordering::Relaxed);
                target.bytes.fetch_sub(u64::from(entry.len), Ordering::Relaxed);
            }
            target.totals.dropped.fetch_add(1, Ordering::Relaxed);
            if target.settings.load().stream {
                self.shared.counts.retired.add(1);
            } else {
                self.shared.counts.dropped.add(1);
            }
        }
        Ok(())
    }

    fn leave_for_dead_letters(&mut self, target: Arc<Target>, entry: Entry, at: Option<usize>) {
        if let Some(effect) = at.and_then(|at| self.effects.get_mut(at)) {
            let new = match effect {
                Effect::Push(_, _, mark, key) => (*mark, *key),
                _ => (Mark::default(), None),
            };
            *effect = Effect::Bury(target, entry, Some(new));
            return;
        }
        let mut state = target.state.lock();
        let attempts = state.marks.get(&entry.sequence).map_or(0, |mark| mark.attempts);
        state.keep(entry, attempts);
        drop(state);
        self.effects.push(Effect::Bury(target, entry, None));
    }
}

/// Which bound so many more messages with so many bytes would break, though nothing goes for them.
pub(super) fn room(target: &Target, count: u64, len: u64) -> Option<String> {
    broken(target, count, len, (0, 0))
}

/// The same when those that are `gone` are not counted. What does not grow breaks no bound, though it be beyond it.
fn broken(target: &Target, count: u64, len: u64, gone: (u64, u64)) -> Option<String> {
    let settings = target.settings.load();
    let left = |count: &std::sync::atomic::AtomicU64, leaving: &std::sync::atomic::AtomicU64, gone: u64| {
        count.load(Ordering::Relaxed).saturating_sub(leaving.load(Ordering::Relaxed)).saturating_sub(gone)
    };
    let messages = left(&target.messages, &target.leaving_messages, gone.0);
    if count > 0 && messages.saturating_add(count) > settings.max_messages {
        return Some(format!("max_messages {}", settings.max_messages));
    }
    let bytes = left(&target.bytes, &target.leaving_bytes, gone.1);
    (len > 0 && bytes + len > settings.max_bytes).then(|| format!("max_bytes {}", settings.max_bytes))
}
