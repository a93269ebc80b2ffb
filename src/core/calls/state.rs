//! What a service decides under its lock: who is asked, what each has in hand, what becomes of an answer.
//!
//! Whoever has it wakes nobody himself: [`Wakes`] is for when the lock is let go.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytestring::ByteString;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::call::{Call, Place};
use super::choice::Handed;
use super::device::{Device, NotAsked, Seen};
use super::groups::Groups;
use super::jobs::Jobs;
use super::line::Line;
use super::stored::Watch;
use super::{CallError, ReplyRefused, Request, Said, Serve, too_large};
use crate::core::{CoreError, TooLarge};
use crate::types::clock;

/// Of so many requests that were given up a responder's late reply is known as such.
const REMEMBERED: usize = 1024;
/// So many calls that are too large for those who have room are looked behind.
const PASSED: usize = 16;
/// A device that took nothing counts for so long as one that has no room, for calls that do not wait in the line.
pub(super) const UNREAD: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct State {
    /// When the devices among the responders were looked for.
    pub(super) seen: Option<Seen>,
    pub(super) places: Vec<Option<Entry>>,
    /// Those of them that nobody has; the last one is never among them.
    free: BTreeSet<usize>,
    /// How many take requests: there, and not draining.
    pub(super) takers: usize,
    pub(super) groups: Groups,
    /// Where the next choice begins.
    pub(super) turn: usize,
    pub(super) waiting: Line,
    /// All that wait are too large for those who may have room.
    pub(super) passed: bool,
    /// Requests in parts.
    pub(super) jobs: Jobs,
    /// Told when there is room and nothing waits here: stored calls wait for it.
    pub(super) watch: Option<Arc<Watch>>,
}

/// A responder.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: u64,
    pub(super) serve: Serve,
    pub(super) group: usize,
    pub(super) draining: bool,
    pub(super) in_hand: FxHashMap<u64, Held>,
    pub(super) next: u64,
    /// What is for it alone and waits until it has room; it gets nothing else meanwhile.
    pub(super) line: Line,
    /// Numbers that it has in hand and has not taken yet, ascending.
    pub(super) inbox: VecDeque<u64>,
    /// To tell it.
    pub(super) cancelled: Vec<u64>,
    /// The last ones that were given up.
    pub(super) over: VecDeque<u64>,
    /// What a device that says no number says next is the answer to a call that was given up; it is asked nothing until
    /// then, or until this timer ends that.
    pub(super) owed: Option<AbortOnDropHandle<()>>,
    pub(super) door: Door,
    /// When it took nothing last.
    pub(super) unread: Option<Instant>,
    pub(super) served: u64,
    pub(super) errors: u64,
    pub(super) busy: Duration,
}

/// How a responder is asked.
#[derive(Debug)]
pub(super) enum Door {
    /// It takes what is in its inbox.
    Stream(Arc<Notify>),
    /// It is sent each request at once.
    Device(Device),
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) call: Arc<Call>,
    pub(super) since: Instant,
    /// The responder has seen it.
    pub(super) taken: bool,
}

/// Who is to be woken when no lock is held.
#[derive(Default)]
pub(super) struct Wakes {
    pub(super) callers: SmallVec<[Waker; 4]>,
    pub(super) responders: SmallVec<[Arc<Notify>; 4]>,
    pub(super) watch: Option<Arc<Watch>>,
}

impl Wakes {
    pub(super) fn run(self) {
        for waker in self.callers {
            waker.wake();
        }
        for notify in self.responders {
            notify.notify_one();
        }
        if let Some(watch) = self.watch {
            watch.look();
        }
    }
}

impl Entry {
    /// Whether it is a device that says no number with its answer.
    pub(super) fn says_no_number(&self) -> bool {
        matches!(&self.door, Door::Device(device) if device.says_no_number())
    }

    pub(super) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// How many requests more it takes.
    pub(super) fn room(&self) -> usize {
        if self.draining || self.owed.is_some() {
            return 0;
        }
        self.serve.credit.saturating_sub(self.in_hand.len())
    }

    /// Whether nothing is in its hand or waits for it, and nothing it says would be an answer.
    pub(super) fn is_idle(&self) -> bool {
        self.in_hand.is_empty() && self.line.is_empty() && self.owed.is_none()
    }

    /// Whether it took nothing just now.
    fn is_unread(&self) -> bool {
        self.unread.is_some_and(|at| clock::now().saturating_duration_since(at) < UNREAD)
    }

    pub(super) fn answers(&self) -> bool {
        match &self.door {
            Door::Stream(_) => true,
            Door::Device(device) => device.answers(),
        }
    }

    /// Whether it takes a request as large. One that has left says so when it is asked.
    pub(super) fn takes(&self, request: &Request) -> Result<(), TooLarge> {
        match &self.door {
            Door::Stream(_) => Ok(()),
            Door::Device(device) => device.takes(request),
        }
    }
}

impl State {
    /// Nobody serves, and nobody waits for that.
    pub(super) fn is_empty(&self) -> bool {
        self.watch.is_none() && self.places.is_empty()
    }

    /// How many requests could be handed out at once, at most `max`.
    pub(super) fn room(&self, max: usize) -> usize {
        if !self.waiting.is_empty() {
            return 0;
        }
        let mut room = 0;
        for entry in self.places.iter().flatten() {
            if room >= max {
                break;
            }
            if !entry.is_unread() {
                room += entry.room();
            }
        }
        room.min(max)
    }

    /// Whether someone has room that took nothing just now: that is no room yet.
    pub(super) fn rests(&self) -> bool {
        self.waiting.is_empty()
            && self.places.iter().flatten().any(|entry| entry.is_unread() && entry.has_room())
    }

    /// A new responder's place.
    pub(super) fn add(&mut self, key: u64, serve: Serve, door: Door) -> usize {
        let group = self.groups.join(&serve.group);
        let entry = Entry {
            key,
            serve,
            group,
            draining: false,
            in_hand: FxHashMap::default(),
            next: 1,
            line: Line::default(),
            inbox: VecDeque::new(),
            cancelled: Vec::new(),
            over: VecDeque::new(),
            owed: None,
            door,
            unread: None,
            served: 0,
            errors: 0,
            busy: Duration::ZERO,
        };
        let at = self.free.pop_first().unwrap_or(self.places.len());
        match self.places.get_mut(at) {
            Some(place) => *place = Some(entry),
            None => self.places.push(Some(entry)),
        }
        self.takers += 1;
        at
    }

    /// A device is subscribed as before, or in another way, and takes requests.
    pub(super) fn renew(&mut self, at: usize, device: Device, serve: Serve) {
        let group = self.groups.join(&serve.group);
        let Some(Some(entry)) = self.places.get_mut(at) else { return };
        let old = std::mem::replace(&mut entry.group, group);
        let in_hand = entry.in_hand.len();
        (entry.serve, entry.door) = (serve, Door::Device(device));
        self.takers += usize::from(std::mem::take(&mut entry.draining));
        self.groups.leave(old, in_hand);
        self.groups.took(group, in_hand);
    }

    /// Gives a responder no more requests. What waits for it alone is lost.
    pub(super) fn stop(&mut self, at: usize, wakes: &mut Wakes) {
        if let Some(entry) = self.entry(at).filter(|entry| !entry.draining) {
            entry.draining = true;
            let (line, serve) = (std::mem::take(&mut entry.line), &entry.serve);
            line.lost(serve, wakes);
            self.takers -= 1;
        }
    }

    /// Gives a device that does not answer any more no more requests.
    pub(super) fn stop_if_gone(&mut self, at: usize, wakes: &mut Wakes) {
        if self.entry(at).is_some_and(|entry| !entry.answers()) {
            self.stop(at, wakes);
        }
    }

    /// Takes a device out of its place that takes no more requests, when nothing is in its hand and it owes nothing.
    pub(super) fn dismiss(&mut self, at: usize) -> Option<Entry> {
        let is_done =
            |entry: &&mut Entry| entry.draining && matches!(entry.door, Door::Device(_)) && entry.is_idle();
        self.entry(at).filter(is_done)?;
        self.vacate(at)
    }

    /// Takes a responder out of its place.
    pub(super) fn vacate(&mut self, at: usize) -> Option<Entry> {
        let entry = self.places.get_mut(at)?.take()?;
        self.free.insert(at);
        while let Some(None) = self.places.last() {
            self.places.pop();
            self.free.remove(&self.places.len());
        }
        self.jobs.full.remove(&at);
        self.takers -= usize::from(!entry.draining);
        for job in entry.in_hand.values().filter_map(|held| held.call.job()) {
            self.jobs.gave(job, entry.key);
        }
        self.groups.leave(entry.group, entry.in_hand.len());
        Some(entry)
    }

    pub(super) fn entry(&mut self, at: usize) -> Option<&mut Entry> {
        self.places.get_mut(at)?.as_mut()
    }

    /// How many places and groups are kept, and how many of the latter have a name.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 4] {
        let [groups, named] = self.groups.sizes();
        [self.places.len(), self.free.len(), groups, named]
    }

    /// Hands out what waits while there is room, and says so where there is more; parts to the responder in this place, which
    /// has room now, or to everyone. What nobody can take ends.
    pub(super) fn hand_out(&mut self, at: Option<usize>, wakes: &mut Wakes) {
        // Where both wait, each has the first of what is free every second time.
        if self.jobs.go_first(!self.waiting.is_empty()) {
            self.feed(at, wakes);
        }
        self.hand_out_calls(wakes);
        self.feed(at, wakes);
        self.end_parts_for_nobody(wakes);
        if let Some(watch) = self.watch.as_ref().filter(|_| self.room(1) > 0) {
            wakes.watch = Some(Arc::clone(watch));
        }
    }

    /// Hands out calls that wait while there is room. What is too large for those who have room keeps few behind it from them.
    fn hand_out_calls(&mut self, wakes: &mut Wakes) {
        let mut passed: SmallVec<[Arc<Call>; 4]> = SmallVec::new();
        self.passed = true;
        while let Some(call) = self.waiting.pop() {
            let waker = match self.hand(&call, wakes) {
                Handed::Yes => continue,
                Handed::Passed if passed.len() < PASSED => {
                    passed.push(call);
                    continue;
                }
                Handed::Busy | Handed::Passed => {
                    self.passed = false;
                    self.waiting.push_first(call);
                    break;
                }
                Handed::Full => call.unread(),
                Handed::TooLarge(what) => call.fail(CallError::Broker(too_large(what))),
                Handed::Nobody => call.nobody(),
            };
            wakes.callers.extend(waker);
        }
        while let Some(call) = passed.pop() {
            self.waiting.push_first(call);
        }
    }

    /// Hands a call to the responder.
    pub(super) fn assign(&mut self, at: usize, call: &Arc<Call>, wakes: &mut Wakes) -> Result<(), NotAsked> {
        let Some(Some(entry)) = self.places.get_mut(at) else { return Err(NotAsked::Left) };
        let number = entry.next;
        let mut held = Held { call: Arc::clone(call), since: clock::now(), taken: false };
        match &entry.door {
            Door::Stream(wake) => {
                if entry.inbox.is_empty() {
                    wakes.responders.push(Arc::clone(wake));
                }
                entry.inbox.push_back(number);
            }
            Door::Device(device) => {
                device.ask(entry.key, number, call.request())?;
                held.taken = true;
                call.seen();
            }
        }
        entry.next += 1;
        call.put(Place::With(at, number));
        entry.in_hand.insert(number, held);
        if let Some(job) = call.job() {
            self.jobs.took(job, entry.key);
            call.held_by(entry.serve.id.as_ref().unwrap_or(&ByteString::new()));
        }
        self.groups.took(entry.group, 1);
        Ok(())
    }

    /// Takes a request out of a responder's hand.
    pub(super) fn release(&mut self, at: usize, number: u64) -> Option<Held> {
        let entry = self.places.get_mut(at)?.as_mut()?;
        let held = entry.in_hand.remove(&number)?;
        if let Some(job) = held.call.job() {
            self.jobs.gave(job, entry.key);
        }
        self.groups.gave(entry.group);
        Some(held)
    }

    /// Takes what a responder has not taken out of its hand.
    pub(super) fn take_back(&mut self, at: usize) -> Vec<(u64, Held)> {
        let numbers = self.entry(at).map(|entry| std::mem::take(&mut entry.inbox)).unwrap_or_default();
        numbers.into_iter().filter_map(|number| Some((number, self.release(at, number)?))).collect()
    }

    /// Takes a request that nobody waits for out of a responder's hand, and tells it if it has seen the request. Returns
    /// the key of a device that may still answer without saying what, and when it was asked.
    pub(super) fn give_up(&mut self, at: usize, number: u64, wakes: &mut Wakes) -> Option<(u64, Instant)> {
        let Held { taken, since, .. } = self.release(at, number)?;
        let entry = self.entry(at)?;
        if !taken {
            // One that does not read has no more in its inbox than it takes, whatever comes and goes.
            if let Ok(place) = entry.inbox.binary_search(&number) {
                entry.inbox.remove(place);
            }
            return None;
        }
        if let Door::Stream(wake) = &entry.door {
            if entry.cancelled.is_empty() {
                wakes.responders.push(Arc::clone(wake));
            }
            entry.cancelled.push(number);
        }
        if entry.over.len() == REMEMBERED {
            entry.over.pop_front();
        }
        entry.over.push_back(number);
        entry.says_no_number().then_some((entry.key, since))
    }

    pub(super) fn answer(
        &mut self,
        at: usize,
        number: u64,
        said: Said,
        wakes: &mut Wakes,
    ) -> Result<(), ReplyRefused> {
        let Some(entry) = self.entry(at) else { return Err(ReplyRefused::Unknown(number)) };
        let held = match entry.in_hand.get(&number) {
            Some(held) if held.taken => held,
            Some(_) => return Err(ReplyRefused::Unknown(number)),
            None if number == 0 || number >= entry.next => return Err(ReplyRefused::Unknown(number)),
            None if entry.over.contains(&number) => return Err(ReplyRefused::Over(number)),
            None => return Err(ReplyRefused::Answered(number)),
        };
        let id = entry.serve.id.clone().unwrap_or_default();
        if let Said::Part(message) = said {
            if !held.call.request().takes_parts {
                return Err(ReplyRefused::OneReply(number));
            }
            let call = Arc::clone(&held.call);
            match call.say(&id, message, true) {
                Ok(waker) => wakes.callers.extend(waker),
                Err(error) => {
                    self.give_up(at, number, wakes);
                    wakes.callers.extend(call.fail(CallError::Broker(error)));
                }
            }
            return Ok(());
        }
        let Some(Held { call, since, .. }) = self.release(at, number) else {
            return Err(ReplyRefused::Unknown(number));
        };
        if let Some(entry) = self.entry(at) {
            entry.served += 1;
            entry.errors += u64::from(!matches!(said, Said::Last(_)));
            entry.busy += clock::now().saturating_duration_since(since);
        }
        if let Some(job) = call.job()
            && self.jobs.waits_again(job, &call, &said, wakes)
        {
            return Ok(());
        }
        let mut refused = Ok(());
        let ended = match said {
            Said::Part(_) => None,
            Said::Last(message) => match call.say(&id, message, false) {
                Ok(waker) => waker,
                Err(error) => call.fail(CallError::Broker(error)),
            },
            Said::Fault(fault) => call.fault(fault),
            Said::Wrong(error) => {
                let responder = id.to_string();
                let bad = CoreError::BadReply { responder, what: error.to_string() };
                refused = Err(ReplyRefused::Wrong { number, error });
                call.fail(CallError::Broker(bad))
            }
        };
        wakes.callers.extend(ended);
        refused
    }
}
