//! The jobs of a service: parts of requests that wait, what each responder has of them, and whose turn it is.
//!
//! What a lost responder had goes first in its job. A part that was too large for one who was asked is put aside for those
//! who take it, the smallest first: it keeps nobody from the others. Known under the lock of the service.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::time::Instant;

use super::call::{Call, Place};
use super::line::Line;
use super::shared::{Shared, weight_of_said};
use super::state::Wakes;
use super::{CallError, Missing, Said};

/// The jobs of one service.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    all: FxHashMap<u64, Job>,
    /// Those of them that have parts that wait, by their turn; and some that have none any more.
    turn: BTreeMap<u64, u64>,
    /// How many parts wait, of all of them.
    waiting: usize,
    /// How many turns there were.
    turns: u64,
    /// Places of those who were full when they were asked last. Nobody says when they are not any more.
    pub(super) full: BTreeSet<usize>,
    /// Which of these was asked again last.
    again: usize,
    /// Calls that waited had their turn.
    called: bool,
    /// A part ended that kept others from those who were asked before.
    pub(super) look_again: bool,
    /// How often a job was looked at.
    #[cfg(test)]
    pub(super) looks: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Job {
    todo: Line,
    /// Those that are too large for somebody, by their weight.
    large: BTreeMap<(usize, usize), Arc<Call>>,
    /// When it is its turn.
    turn: Option<u64>,
    terms: Terms,
    /// How many each has, by its key.
    in_hand: FxHashMap<u64, usize>,
    /// All that is in hand.
    out: usize,
    /// Keys of those who have had one.
    asked: FxHashSet<u64>,
    /// How many were answered, and what that takes: of all, or since one was larger than the others and found no room.
    answers: usize,
    weight: usize,
    shared: Arc<Shared>,
}

/// How the parts of a job are handed out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// How many one responder has in hand at the most.
    pub(super) each: usize,
    /// The replies are kept: nobody reads them before the end.
    pub(super) keeps: bool,
    /// Nobody waits for what would be handed out from then on.
    pub(super) ends: Instant,
}

/// Where a part stands among those that are put aside.
fn place_of(part: &Call) -> (usize, usize) {
    let request = part.request();
    (request.message.weight(), request.part.map_or(0, |part| part.index))
}

impl Jobs {
    /// Whether no part waits.
    pub(super) fn is_empty(&self) -> bool {
        self.turn.is_empty()
    }

    /// How many parts wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether parts are handed out before calls that wait.
    pub(super) fn go_first(&mut self, calls_wait: bool) -> bool {
        if self.turn.is_empty() || !calls_wait {
            return false;
        }
        self.called = !self.called;
        !self.called
    }

    /// A responder has got a part.
    pub(super) fn took(&mut self, job: u64, responder: u64) {
        if let Some(job) = self.all.get_mut(&job) {
            *job.in_hand.entry(responder).or_default() += 1;
            job.out += 1;
            job.asked.insert(responder);
        }
    }

    /// A responder has a part no longer.
    pub(super) fn gave(&mut self, job: u64, responder: u64) {
        let Some(job) = self.all.get_mut(&job) else { return };
        if let Some(count) = job.in_hand.get_mut(&responder) {
            *count -= 1;
            job.out -= 1;
            if *count == 0 {
                job.in_hand.remove(&responder);
            }
        }
    }

    /// Puts a part before all others of its job.
    pub(super) fn put_first(&mut self, number: u64, part: Arc<Call>) {
        self.put(number, part, |job, part| job.todo.push_first(part));
    }

    /// Puts a part aside that is too large for one who was asked.
    pub(super) fn put_aside(&mut self, number: u64, part: Arc<Call>) {
        self.put(number, part, |job, part| drop(job.large.insert(place_of(&part), part)));
    }

    fn put(&mut self, number: u64, part: Arc<Call>, put: impl FnOnce(&mut Job, Arc<Call>)) {
        let Some(job) = self.all.get_mut(&number) else {
            part.put(Place::Over);
            return;
        };
        part.put(Place::Waiting);
        put(job, part);
        self.waiting += 1;
        self.line_up(number);
    }

    /// The next part of a job: the smallest of those that are put aside, or the first of the others.
    pub(super) fn pop(&mut self, number: u64) -> Option<Arc<Call>> {
        let part = self.all.get_mut(&number)?.pop()?;
        self.waiting -= 1;
        Some(part)
    }

    /// The next part of a job of those that are not put aside.
    pub(super) fn pop_other(&mut self, number: u64) -> Option<Arc<Call>> {
        let part = self.all.get_mut(&number)?.todo.pop()?;
        self.waiting -= 1;
        Some(part)
    }

    /// Adds a job with parts that wait.
    pub(super) fn begin(&mut self, number: u64, parts: &[Arc<Call>], terms: Terms, shared: &Arc<Shared>) {
        let mut job = Job {
            todo: Line::default(),
            large: BTreeMap::new(),
            turn: None,
            terms,
            in_hand: FxHashMap::default(),
            out: 0,
            asked: FxHashSet::default(),
            answers: 0,
            weight: 0,
            shared: Arc::clone(shared),
        };
        for part in parts {
            part.put(Place::Waiting);
            job.todo.push(Arc::clone(part));
        }
        self.waiting += parts.len();
        self.all.insert(number, job);
        self.line_up(number);
    }

    /// Takes a job away with the parts that wait.
    pub(super) fn end(&mut self, number: u64) -> Option<Job> {
        let job = self.all.remove(&number)?;
        self.waiting -= job.len();
        if let Some(turn) = job.turn {
            self.turn.remove(&turn);
        }
        Some(job)
    }

    /// Takes all parts of all jobs that wait.
    pub(super) fn take_all(&mut self, mut take: impl FnMut(Arc<Call>)) {
        self.turn.clear();
        self.waiting = 0;
        for job in self.all.values_mut() {
            job.turn = None;
            while let Some(part) = job.pop() {
                take(part);
            }
        }
    }

    /// Has a job wait for its turn, if it does not.
    fn line_up(&mut self, number: u64) {
        if let Some(job) = self.all.get_mut(&number).filter(|job| job.turn.is_none()) {
            self.turns += 1;
            job.turn = Some(self.turns);
            self.turn.insert(self.turns, number);
        }
    }

    /// How many jobs wait for their turn, at the most.
    pub(super) fn in_turn(&self) -> usize {
        self.turn.len()
    }

    /// The job whose turn it is. Its next one is after those of all others.
    pub(super) fn next(&mut self) -> Option<u64> {
        while let Some((_, number)) = self.turn.pop_first() {
            #[cfg(test)]
            {
                self.looks += 1;
            }
            let Some(job) = self.all.get_mut(&number) else { continue };
            job.turn = None;
            if job.len() > 0 {
                self.line_up(number);
                return Some(number);
            }
        }
        None
    }

    /// The next one of those who were full.
    pub(super) fn next_full(&mut self) -> Option<usize> {
        let after = (Bound::Excluded(self.again), Bound::Unbounded);
        self.again = self.full.range(after).next().or_else(|| self.full.first()).copied()?;
        Some(self.again)
    }

    /// Whether a responder may have one more part of a job now.
    pub(super) fn feeds(&self, number: u64, responder: u64) -> bool {
        self.all.get(&number).is_some_and(|job| job.feeds(responder) && !job.rests())
    }

    /// Whether a part of a job waits and nobody has one.
    pub(super) fn is_idle(&self, number: u64) -> bool {
        self.all.get(&number).is_some_and(Job::is_idle)
    }

    /// Whether there is such a job.
    pub(super) fn has_idle(&self) -> bool {
        self.turn.values().any(|number| self.is_idle(*number))
    }

    /// Those of which nobody has a part, though nothing is to be read first.
    pub(super) fn starving(&self) -> Vec<u64> {
        let starves = |number: &&u64| self.all.get(number).is_some_and(|job| job.is_idle() && !job.rests());
        self.turn.values().filter(starves).copied().collect()
    }

    /// The smallest part of a job that is put aside.
    pub(super) fn aside(&self, number: u64) -> Option<&Arc<Call>> {
        self.all.get(&number)?.large.values().next()
    }

    /// Whether all parts of a job that wait are put aside.
    pub(super) fn is_aside(&self, number: u64) -> bool {
        self.all.get(&number).is_some_and(|job| job.todo.is_empty() && !job.large.is_empty())
    }

    /// A part was answered. Where that finds no room, the part waits again if it may, until more is read: true. Where replies
    /// are kept, nothing is read before the end, and parts that wait are not carried out for nothing.
    pub(super) fn waits_again(
        &mut self,
        number: u64,
        part: &Arc<Call>,
        said: &Said,
        wakes: &mut Wakes,
    ) -> bool {
        let (Some(job), Some(weight)) = (self.all.get_mut(&number), weight_of_said(said)) else {
            return false;
        };
        job.answers += 1;
        job.weight += weight;
        if job.shared.has_room(weight) {
            return false;
        }
        if job.terms.keeps {
            let shared = Arc::clone(&job.shared);
            while shared.is_half_full()
                && let Some(part) = self.pop(number)
            {
                wakes.callers.extend(part.fail(CallError::Broker(shared.no_room())));
            }
            return false;
        }
        if weight > job.mean() {
            (job.answers, job.weight) = (1, weight);
        }
        let again = part.begins_anew();
        if again {
            part.missed(Missing::Refused);
            self.put_first(number, Arc::clone(part));
        }
        again
    }

    /// A part that waited is over.
    pub(super) fn died(&mut self, number: u64, part: &Call) {
        if let Some(job) = self.all.get_mut(&number) {
            if job.large.remove(&place_of(part)).is_none() {
                job.todo.died();
            }
            self.waiting -= 1;
        }
    }

    /// As counted one by one.
    #[cfg(test)]
    pub(super) fn counted(&self) -> usize {
        self.all.values().map(Job::len).sum()
    }
}

impl Job {
    /// How many parts wait.
    fn len(&self) -> usize {
        self.todo.len() + self.large.len()
    }

    /// See [`Jobs::pop`].
    pub(super) fn pop(&mut self) -> Option<Arc<Call>> {
        self.large.pop_first().map(|(_, part)| part).or_else(|| self.todo.pop())
    }

    /// How many have had a part.
    pub(super) fn asked(&self) -> usize {
        self.asked.len()
    }

    /// Whether the responder may have one more.
    fn feeds(&self, responder: u64) -> bool {
        self.in_hand.get(&responder).copied().unwrap_or_default() < self.terms.each
    }

    /// Whether nobody gets more of it now: its time is over, or more is to be read first, and whoever reads goes on with it.
    fn rests(&self) -> bool {
        Instant::now() >= self.terms.ends || !self.terms.keeps && self.shared.holds(self.out, self.mean())
    }

    /// What an answer takes.
    fn mean(&self) -> usize {
        self.weight.checked_div(self.answers).unwrap_or_default()
    }

    /// Whether parts wait and nobody has one.
    fn is_idle(&self) -> bool {
        self.len() > 0 && self.in_hand.is_empty()
    }
}
