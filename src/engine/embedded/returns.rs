//! What comes back to the index of a target, or becomes due: leases that are given back, lost or ended, delayed messages,
//! messages whose time is over. Here deliveries are counted.

use super::entry::Entry;
use super::format::Mark;
use super::index::State;
use super::leases::Lease;
use super::retries::Retries;
use crate::engine::{LeaseError, LeaseRef};
use crate::types::{Sequence, UnixMillis};

/// How often messages that expire without being at the front are looked for, in milliseconds.
const SWEEP_MS: u64 = 2_000;
/// When what could not be moved to its dead letter queue is tried again, in milliseconds.
const MOVE_AGAIN_MS: u64 = 2_000;

/// How a lease ends short of being settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Return {
    /// Not counted.
    Released,
    /// Counted.
    Failed,
    /// Its consumer was lost with it: counted, also towards handing it out alone.
    Lost,
}

/// What was given back.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) entry: Entry,
    pub(super) mark: Mark,
    /// It has had its last delivery and stays leased, to be moved.
    pub(super) exhausted: bool,
    /// The mark is not what is written, and is to be.
    pub(super) changed: bool,
}

/// What became due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Marks to be written: of leases that ended, and of those that are old enough to be noted.
    pub(super) marks: Vec<(Entry, Mark)>,
    /// How many leases were given back, or ended by time.
    pub(super) ended: u64,
    /// How many leases are noted now.
    pub(super) noted: u64,
    /// Those that had their last delivery: they wait as leased for being moved.
    pub(super) exhausted: Vec<(Entry, u32)>,
    /// Their time is over.
    pub(super) over: Over,
}

/// Messages whose time is over.
#[derive(Debug, Default)]
pub(super) struct Over {
    /// To be settled.
    pub(super) dropped: Vec<Entry>,
    /// To be moved, with their counted deliveries: they wait as leased.
    pub(super) buried: Vec<(Entry, u32)>,
}

impl State {
    /// Gives a lease back, due at `until` if that is said. After its last counted delivery it stays leased, to be moved.
    pub(super) fn give_back(
        &mut self,
        lease: &LeaseRef,
        how: Return,
        retries: Retries,
        until: Option<u64>,
        now: UnixMillis,
    ) -> Result<Returned, LeaseError> {
        self.find_lease(lease)?;
        let Lease { entry, noted, .. } = self.unlease(lease.sequence.0).ok_or(LeaseError::Unknown)?;
        if self.is_replaced(entry.sequence) {
            self.forget(&entry);
            return Ok(Returned { entry, mark: Mark::default(), exhausted: false, changed: false });
        }
        let mark = self.count(&entry, how);
        let counted = how != Return::Released;
        let exhausted = counted && retries.max.is_some_and(|max| mark.attempts >= max.get());
        let until = match until {
            Some(until) => until,
            None if counted && !exhausted => retries.due(entry.sequence, mark.attempts, now),
            None => 0,
        };
        if exhausted {
            self.keep(entry, mark.attempts);
        } else {
            self.put_back(entry, until, now);
            self.members.wake(1);
        }
        let not_before = (until > now.0).then_some(UnixMillis(until));
        let changed = counted || noted || not_before.is_some();
        let mark = Mark { not_before, rests: not_before.is_some(), ..mark };
        Ok(Returned { entry, mark, exhausted, changed })
    }

    /// Keeps a leased message for the keeper, who will move it. None: it is gone, a newer one had its place.
    pub(super) fn set_aside(&mut self, lease: &LeaseRef) -> Result<Option<(Entry, u32)>, LeaseError> {
        self.find_lease(lease)?;
        let Lease { entry, attempt, .. } = self.unlease(lease.sequence.0).ok_or(LeaseError::Unknown)?;
        if self.is_replaced(entry.sequence) {
            self.forget(&entry);
            return Ok(None);
        }
        self.keep(entry, attempt);
        Ok(Some((entry, attempt)))
    }

    /// The keeper could not move it: it is ready again, after a while.
    pub(super) fn restore(&mut self, sequence: u64, now: UnixMillis) {
        let Some(Lease { entry, .. }) = self.unlease(sequence) else { return };
        if self.is_replaced(sequence) {
            self.forget(&entry);
        } else {
            self.put_back(entry, now.0.saturating_add(MOVE_AGAIN_MS), now);
        }
    }

    /// A message that is neither ready nor anywhere else any more has run out of time.
    pub(super) fn run_out(&mut self, entry: Entry, buries: bool, over: &mut Over) {
        if buries {
            let attempts = self.marks.get(&entry.sequence).map_or(0, |mark| mark.attempts);
            self.keep(entry, attempts);
            over.buried.push((entry, attempts));
        } else {
            self.forget(&entry);
            over.dropped.push(entry);
        }
    }

    fn count(&mut self, entry: &Entry, how: Return) -> Mark {
        if how == Return::Released {
            return self.marks.get(&entry.sequence).copied().unwrap_or_default();
        }
        let mark = self.marks.entry(entry.sequence).or_default();
        mark.attempts = mark.attempts.saturating_add(1);
        if how == Return::Lost {
            mark.losses = mark.losses.saturating_add(1).min(Mark::MAX_LOSSES);
        }
        *mark
    }

    /// All that a consumer has goes back.
    pub(super) fn release_all(
        &mut self,
        consumer: u64,
        how: Return,
        retries: Retries,
        now: UnixMillis,
    ) -> Due {
        let of = |lease: &&Lease| lease.consumer == consumer;
        let mut held: Vec<u64> = self.leases.all().filter(of).map(|lease| lease.entry.sequence).collect();
        held.sort_unstable_by(|a, b| b.cmp(a));
        let mut due = Due::default();
        for &sequence in &held {
            due.ended += u64::from(self.return_into(&mut due, sequence, how, retries, now));
        }
        self.members.wake(held.len());
        due
    }

    /// Whether there was such a lease.
    fn return_into(
        &mut self,
        due: &mut Due,
        sequence: u64,
        how: Return,
        retries: Retries,
        now: UnixMillis,
    ) -> bool {
        let lease = LeaseRef::of(Sequence(sequence));
        let Ok(Returned { entry, mark, exhausted, changed }) =
            self.give_back(&lease, how, retries, None, now)
        else {
            return false;
        };
        if exhausted {
            due.exhausted.push((entry, mark.attempts));
        }
        if changed {
            due.marks.push((entry, mark));
        }
        true
    }

    /// The marks of leases that are a second old, each once.
    fn note(&mut self, now: UnixMillis) -> Vec<(Entry, Mark)> {
        let noted = self.leases.note(now);
        noted.iter().map(|lease| (lease.entry, self.mark_of(lease, lease.attempt))).collect()
    }

    /// The marks of noted leases as if they had not been: their time ends in order.
    pub(super) fn unnote(&mut self) -> Vec<(Entry, Mark)> {
        let noted: Vec<Lease> = self.leases.all().filter(|lease| lease.noted).copied().collect();
        noted
            .iter()
            .map(|lease| (lease.entry, self.mark_of(lease, lease.attempt.saturating_sub(1))))
            .collect()
    }

    fn mark_of(&self, lease: &Lease, attempts: u32) -> Mark {
        let mark = self.marks.get(&lease.entry.sequence).copied().unwrap_or_default();
        Mark { attempts, ..mark }
    }

    /// When something of this target will be due, in milliseconds since 1970.
    pub(super) fn next_deadline(&self, now: UnixMillis) -> Option<u64> {
        if let Some(kept) = &self.kept {
            return self.retires_at(kept, now);
        }
        let delayed = self.delayed.first_key_value().map(|(&(at, _), _)| at);
        let lease = self.leases.first_end().map(|(at, _)| at);
        let note = self.leases.next_note();
        let sweep = (self.expiring > 0 && !self.gone).then_some(now.0 + SWEEP_MS);
        [delayed, lease, note, sweep, self.members.patience()].into_iter().flatten().min()
    }

    /// Moves what is due at `now`.
    pub(super) fn due(&mut self, now: UnixMillis, retries: Retries, buries_expired: bool) -> Due {
        let mut due = Due::default();
        let mut woken = 0;
        self.members.lose_patience(now.0);
        while let Some((&(at, sequence), _)) = self.delayed.first_key_value()
            && at <= now.0
        {
            self.delayed_until.remove(&sequence);
            if let Some((_, entry)) = self.delayed.pop_first() {
                woken += usize::from(self.fall_due(entry));
            }
        }
        while let Some((at, sequence)) = self.leases.first_end()
            && at <= now.0
            && self.return_into(&mut due, sequence, Return::Failed, retries, now)
        {
            due.ended += 1;
        }
        let noted = self.note(now);
        due.noted = noted.len() as u64;
        due.marks.extend(noted);
        if self.expiring > 0 {
            let mut levels = std::mem::take(&mut self.levels);
            let mut over = Vec::new();
            let mut order = self.order.take();
            let mut is_over = |entry: &Entry| self.is_over(entry, now);
            levels.iter_mut().for_each(|level| level.take_all(&mut over, &mut is_over));
            let mut resting = Vec::new();
            if let Some(order) = &mut order {
                order.take_all(&mut over, &mut is_over);
                // One that holds its key up does not do so until it is due.
                let fronts = self.delayed.iter().filter(|(_, entry)| order.is_front(entry.sequence));
                resting.extend(fronts.filter(|(_, entry)| is_over(entry)).map(|(&at, _)| at));
            }
            (self.levels, self.order) = (levels, order);
            for at in resting {
                self.delayed_until.remove(&at.1);
                over.extend(self.delayed.remove(&at));
            }
            if !over.is_empty() {
                self.members.go_on();
            }
            over.sort_unstable_by_key(|entry| entry.sequence);
            over.into_iter().for_each(|entry| self.run_out(entry, buries_expired, &mut due.over));
        }
        self.members.wake(woken);
        due
    }
}
