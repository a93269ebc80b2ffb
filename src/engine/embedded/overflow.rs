//! What goes for a message that is stored. Room in a queue that is full: its oldest ready messages go, those of the lowest
//! priority first. And what it takes the [place](super::values) of.
//!
//! Invariant: a message goes only if the one that it makes room for is stored; what is dropped is settled in the same
//! operation. Where that is much and the operation fills a chain by itself, of hundreds of targets or of messages of a
//! stream, it is settled right before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

use super::entry::Entry;
use super::format::Mark;
use super::index::{Names, State};
use super::order::Key;
use super::pack::Failed;
use super::target::{Target, WhenFull};
use super::writer::{Effect, Writer};
use crate::engine::Overflow;
use crate::types::TargetId;
use crate::types::clock::unix_now;

/// When so many are on their way from one queue to its dead letter queue, the queue refuses. What one message sends there
/// is counted from the next one on.
const LEAVING_MESSAGES: u64 = 10_000;
/// The same in bytes.
const LEAVING_BYTES: u64 = 64 << 20;

/// So many are settled in one pack. An operation that fills a chain by itself settles no more: in a later pack they would be
/// lost with the first, which can go sooner than what they settle.
const SETTLED_WITHIN: usize = 100;

/// A message that makes room.
struct Leaver {
    target: Arc<Target>,
    entry: Entry,
    /// It is not in the index yet: its place among the effects of this commit.
    at: Option<usize>,
    /// A newer one with its value has its place.
    replaced: Option<Replaced>,
}

/// Where a message is that a newer one has the place of.
pub(super) enum Replaced {
    /// Taken out of the index, where it would have been due then.
    Waiting { until: u64 },
    /// Somebody has it, and keeps it.
    Leased,
    /// Taken out of the effects of this commit.
    Staged { at: usize, effect: Box<Effect> },
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

/// Where a bound was lowered, so many more than come go from a queue with one operation: what is left is beyond it until the
/// next ones.
const SHED_BY_ONE: u64 = 20_000;
/// The same of a stream, where [`Work::Retain`] sees to the rest.
///
/// [`Work::Retain`]: super::lanes::Work::Retain
const SHED_OF_STREAM: u64 = 256;

impl Leavers {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Takes out what goes before the operation, and what goes behind it: a crash in between lets the next start drop what has
    /// been replaced.
    pub(super) fn around(&mut self) -> (Self, Self) {
        let (mut before, mut after) = (Self::default(), Self::default());
        if self.len() > SETTLED_WITHIN {
            let (replaced, others): (Vec<_>, Vec<_>) =
                self.all.drain(..).partition(|leaver| leaver.replaced.is_some());
            (before.all, after.all) = (others.into(), replaced.into());
            let within = before.len().min(SETTLED_WITHIN);
            self.all.extend(before.all.drain(before.all.len() - within..));
            self.all.extend(after.all.drain(..after.all.len().min(SETTLED_WITHIN - within)));
        }
        (before, after)
    }

    /// How many go with each pack.
    fn parts(&self) -> impl Iterator<Item = usize> + use<> {
        let all = self.len();
        (0..all).step_by(SETTLED_WITHIN).map(move |from| (all - from).min(SETTLED_WITHIN))
    }

    /// A message goes because a newer one has its place.
    pub(super) fn replace(&mut self, target: &Arc<Target>, entry: Entry, how: Replaced) {
        self.push(Leaver { target: target.clone(), entry, at: None, replaced: Some(how) });
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
    /// Takes out the message of a queue that goes first when there must be room. It has its place in the order of its key until
    /// it is gone.
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
    /// Which bound so many more messages of `len` bytes together would break, though all that may go went: `leavers` has it. One
    /// that was lowered is met in parts, and breaks nothing while more goes than comes.
    pub(super) fn make_room(
        &mut self,
        target: &Arc<Target>,
        (count, len): (u64, u64),
        leavers: &mut Leavers,
    ) -> Option<String> {
        let bound = room(target, count, len, leavers)?;
        let settings = target.settings.load();
        let WhenFull::Queue(overflow @ (Overflow::DropOldest | Overflow::DeadLetter)) = settings.when_full
        else {
            return Some(bound);
        };
        if count > settings.max_messages || len > settings.max_bytes {
            return Some(bound);
        }
        let was_lowered = is_beyond(target);
        let enough = count + if settings.stream { SHED_OF_STREAM } else { SHED_BY_ONE };
        loop {
            let gone = leavers.of(target.id);
            let bound = broken(target, count, len, (gone.messages, gone.bytes))?;
            if was_lowered && gone.messages >= enough && gone.bytes >= len {
                return None;
            }
            if overflow == Overflow::DeadLetter {
                let leaving = target.leaving_messages.load(Ordering::Relaxed);
                if leaving >= LEAVING_MESSAGES || target.leaving_bytes.load(Ordering::Relaxed) > LEAVING_BYTES
                {
                    return Some(format!("{bound}, and {leaving} messages are on their way out"));
                }
            }
            let ready = match settings.stream {
                // Readers see it until it goes.
                true => target.state.lock().kept_at(gone.messages),
                false => target.state.lock().make_room(),
            };
            let leaver = match ready {
                Some(entry) => Leaver { target: target.clone(), entry, at: None, replaced: None },
                None => match self.next_of_this_commit(target, gone.last) {
                    Some((at, entry)) => {
                        Leaver { target: target.clone(), entry, at: Some(at), replaced: None }
                    }
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

    /// The operation is refused: what would have gone for it stays.
    pub(super) fn stay(&mut self, leavers: Leavers) {
        let now = unix_now();
        for Leaver { target, entry, at, replaced } in leavers.all.into_iter().rev() {
            let until = match replaced {
                Some(Replaced::Leased) => continue,
                Some(Replaced::Staged { at, effect }) => {
                    if let Some(staged) = self.effects.get_mut(at) {
                        *staged = *effect;
                    }
                    continue;
                }
                Some(Replaced::Waiting { until }) => until,
                None if at.is_some() || target.settings.load().stream => continue,
                None => 0,
            };
            let mut state = target.state.lock();
            state.put_back(entry, until, now);
            state.members.wake(1);
        }
    }

    /// Begins an operation that ends with [`Packer::end_all`], of what goes, which is settled, and of messages with so many
    /// records and such a body each.
    ///
    /// [`Packer::end_all`]: super::pack::Packer::end_all
    pub(super) fn begin_all(
        &mut self,
        mut leavers: Leavers,
        messages: impl Iterator<Item = (usize, usize)>,
    ) -> Result<(), Failed> {
        let parts = leavers.parts();
        let (packer, mut books) = self.books();
        packer.begin_all(&mut books, leavers.parts().map(|records| (records, 0)).chain(messages))?;
        for part in parts {
            let (packer, mut books) = self.books();
            packer.begin_op(&mut books, part, 0)?;
            self.leave(Leavers { all: leavers.all.drain(..part).collect(), ..Leavers::default() })?;
        }
        Ok(())
    }

    /// What goes for an operation is settled.
    pub(super) fn leave(&mut self, leavers: Leavers) -> Result<(), Failed> {
        for Leaver { target, entry, at, replaced } in leavers.all {
            if let Some(at) = at {
                self.left.insert(target.id, at + 1);
            }
            let dead_letters = target.settings.load().when_full == WhenFull::Queue(Overflow::DeadLetter);
            if dead_letters && replaced.is_none() {
                target.leaving_messages.fetch_add(1, Ordering::Relaxed);
                target.leaving_bytes.fetch_add(u64::from(entry.len), Ordering::Relaxed);
                self.leave_for_dead_letters(target, entry, at);
                continue;
            }
            let is_stream = target.settings.load().stream;
            match (&replaced, at.and_then(|at| self.effects.get_mut(at))) {
                (Some(Replaced::Staged { .. }), _) => {}
                (Some(Replaced::Leased), _) => drop(target.state.lock().replace(entry.sequence)),
                (_, Some(effect)) => *effect = Effect::None,
                (_, None) if is_stream => drop(target.state.lock().drop_oldest()),
                (_, None) => target.state.lock().forget(&entry),
            }
            self.stage_end(&target, &entry)?;
            let (total, count) = match replaced {
                Some(_) => (&target.totals.replaced, &self.shared.counts.replaced),
                None if is_stream => (&target.totals.dropped, &self.shared.counts.retired),
                None => (&target.totals.dropped, &self.shared.counts.dropped),
            };
            total.fetch_add(1, Ordering::Relaxed);
            count.add(1);
        }
        Ok(())
    }

    fn leave_for_dead_letters(&mut self, target: Arc<Target>, entry: Entry, at: Option<usize>) {
        if let Some(effect) = at.and_then(|at| self.effects.get_mut(at)) {
            let new = match effect {
                Effect::Push(_, _, mark, names) => (*mark, std::mem::take(names)),
                _ => (Mark::default(), Names::default()),
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

/// Which bound so many more messages with so many bytes would break, though nothing goes for them but these.
pub(super) fn room(target: &Target, count: u64, len: u64, leavers: &Leavers) -> Option<String> {
    let gone = leavers.of(target.id);
    broken(target, count, len, (gone.messages, gone.bytes))
}

/// Whether there is more than there may be: a bound was lowered.
fn is_beyond(target: &Target) -> bool {
    let settings = target.settings.load();
    let (messages, bytes) = left(target, (0, 0));
    messages > settings.max_messages || bytes > settings.max_bytes
}

/// What there is when those that are leaving, or `gone`, are not counted.
fn left(target: &Target, gone: (u64, u64)) -> (u64, u64) {
    let left = |count: &AtomicU64, leaving: &AtomicU64, gone: u64| {
        count.load(Ordering::Relaxed).saturating_sub(leaving.load(Ordering::Relaxed)).saturating_sub(gone)
    };
    (
        left(&target.messages, &target.leaving_messages, gone.0),
        left(&target.bytes, &target.leaving_bytes, gone.1),
    )
}

/// The same when those that are `gone` are not counted. What does not grow breaks no bound, though it be beyond it.
fn broken(target: &Target, count: u64, len: u64, gone: (u64, u64)) -> Option<String> {
    let settings = target.settings.load();
    let (messages, bytes) = left(target, gone);
    if count > 0 && messages.saturating_add(count) > settings.max_messages {
        return Some(format!("max_messages {}", settings.max_messages));
    }
    (len > 0 && bytes + len > settings.max_bytes).then(|| format!("max_bytes {}", settings.max_bytes))
}
