//! One service: its responders, the calls that they have in hand, and those that wait for one of them.
//!
//! Invariants, under its lock: a call waits only while no responder has room; a call in hand is in its responder's table
//! and nowhere else; without a responder that takes requests nothing waits.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytestring::ByteString;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::call::{Call, Place};
use super::device::{Candidate, Device, NotAsked, Seen};
use super::responder::Responder;
use super::{Answer, CallError, Calls, Counts, ReplyRefused, ResponderFacts, Said, Serve, no_responders};
use crate::core::CoreError;
use crate::core::session::SessionKey;
use crate::types::{TopicName, clock};

/// Of so many responders with room the one with the least in hand is chosen; asking all would cost more than it gains.
const ASKED: usize = 32;
/// Of so many requests that were given up a responder's late reply is known as such.
const REMEMBERED: usize = 1024;
/// Calls that were given up stay in the line until so many, or half of it, are there.
const DEAD: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Service {
    name: TopicName,
    calls: Weak<Calls>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the devices among the responders were looked for.
    seen: Option<Seen>,
    places: Vec<Option<Entry>>,
    /// How many take requests: there, and not draining.
    takers: usize,
    groups: Vec<Group>,
    /// Where the next choice begins.
    turn: usize,
    waiting: VecDeque<Arc<Call>>,
    /// Those of them that are over.
    dead: usize,
}

/// Responders that do the same.
#[derive(Debug)]
struct Group {
    name: ByteString,
    members: usize,
    in_hand: usize,
}

/// A responder.
#[derive(Debug)]
struct Entry {
    key: u64,
    serve: Serve,
    group: usize,
    draining: bool,
    in_hand: FxHashMap<u64, Held>,
    next: u64,
    /// Numbers that it has not taken yet; those that are not in its hand any more are passed over.
    inbox: VecDeque<u64>,
    /// To tell it.
    cancelled: Vec<u64>,
    /// The last ones that were given up.
    over: VecDeque<u64>,
    /// When those were given up that a device that says no number may still answer.
    owed: VecDeque<Instant>,
    door: Door,
    served: u64,
    errors: u64,
    busy: Duration,
}

/// How a responder is asked.
#[derive(Debug)]
enum Door {
    /// It takes what is in its inbox.
    Stream(Arc<Notify>),
    /// It is sent each request at once.
    Device(Device),
}

#[derive(Debug)]
struct Held {
    call: Arc<Call>,
    since: Instant,
    /// The responder has seen it.
    taken: bool,
}

/// Who is to be woken when no lock is held.
#[derive(Default)]
struct Wakes {
    callers: SmallVec<[Waker; 4]>,
    responders: SmallVec<[Arc<Notify>; 4]>,
}

impl Wakes {
    fn run(self) {
        for waker in self.callers {
            waker.wake();
        }
        for notify in self.responders {
            notify.notify_one();
        }
    }
}

impl Service {
    pub(super) fn new(calls: &Arc<Calls>, name: TopicName) -> Arc<Self> {
        Arc::new(Self { name, calls: Arc::downgrade(calls), state: Mutex::default() })
    }

    pub(super) fn name(&self) -> &TopicName {
        &self.name
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().places.iter().all(Option::is_none)
    }

    /// Hands a call to a responder, or puts it in the line.
    pub(super) fn take_in(&self, call: &Arc<Call>) -> Result<(), CoreError> {
        let Some(calls) = self.calls.upgrade() else { return Err(CoreError::Draining) };
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let nobody_waits = state.waiting.len() == state.dead;
        while let Some(at) = if nobody_waits { state.choose() } else { None } {
            if state.assign(at, call, &mut wakes) {
                drop(state);
                wakes.run();
                return Ok(());
            }
        }
        if state.takers == 0 {
            Counts::add(&calls.counts.no_responders);
            return Err(no_responders(&self.name));
        }
        if state.waiting.len() - state.dead >= calls.bounds.waiting {
            Counts::add(&calls.counts.refused);
            let max = calls.bounds.waiting as u64;
            let what = format!("too many calls wait for a responder of `{}`", self.name);
            return Err(CoreError::Limit { what, max });
        }
        call.put(Place::Waiting);
        state.waiting.push_back(Arc::clone(call));
        drop(state);
        wakes.run();
        Ok(())
    }

    /// Gives a call up. False if it is over.
    pub(super) fn cancel(&self, call: &Arc<Call>) -> bool {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        match call.place() {
            Place::Over => return false,
            Place::Waiting => {
                call.put(Place::Over);
                state.dead += 1;
                if state.dead >= DEAD && state.dead > state.waiting.len() / 2 {
                    state.waiting.retain(|call| call.place() != Place::Over);
                    state.dead = 0;
                }
            }
            Place::With(at, number) => {
                call.put(Place::Over);
                state.give_up(at, number, &mut wakes);
                state.dispatch(&mut wakes);
            }
        }
        drop(state);
        wakes.run();
        true
    }

    /// Adds a responder, and hands it what waits.
    pub(super) fn join(self: &Arc<Self>, key: u64, serve: Serve) -> Responder {
        let wake = Arc::new(Notify::new());
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let at = state.add(key, serve.clone(), Door::Stream(Arc::clone(&wake)));
        state.dispatch(&mut wakes);
        drop(state);
        wakes.run();
        Responder::new(Arc::clone(self), (at, key), serve, wake)
    }

    /// Whether the devices that answer are known as of `seen`.
    pub(super) fn has_seen(&self, seen: Seen) -> bool {
        self.state.lock().seen == Some(seen)
    }

    /// These devices answer, and no others.
    ///
    /// # Errors
    /// [`CoreError::Limit`] when there are too many responders: those that have room are there.
    pub(super) fn refresh(self: &Arc<Self>, seen: Seen, candidates: Vec<Candidate>) -> Result<(), CoreError> {
        let Some(calls) = self.calls.upgrade() else { return Ok(()) };
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let mut known: FxHashMap<SessionKey, usize> = FxHashMap::default();
        for (at, entry) in state.places.iter().enumerate() {
            if let Some(Entry { door: Door::Device(device), .. }) = entry {
                known.insert(device.key(), at);
            }
        }
        for (device, serve) in candidates {
            let session = device.key();
            let at = match known.remove(&session) {
                Some(at) => {
                    state.renew(at, device, serve);
                    at
                }
                None => {
                    let key = calls.next_key()?;
                    let at = state.add(key, serve, Door::Device(device.clone()));
                    calls.devices.add(key, &device, self, at);
                    at
                }
            };
            // Had it left before it was noted, nobody would say so.
            if state.entry(at).is_some_and(|entry| !entry.answers()) {
                state.stop(at);
            }
        }
        for at in known.into_values() {
            state.stop(at);
            if let Some(entry) =
                state.places.get_mut(at).and_then(|entry| entry.take_if(|it| it.in_hand.is_empty()))
            {
                state.forget(&entry);
                calls.gone(&entry);
            }
        }
        state.seen = Some(seen);
        state.dispatch(&mut wakes);
        self.nobody_waits_in_vain(&mut state, &mut wakes);
        drop(state);
        wakes.run();
        Ok(())
    }

    /// Gives it no more requests.
    pub(super) fn drain(&self, at: usize) {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        state.stop(at);
        self.nobody_waits_in_vain(&mut state, &mut wakes);
        drop(state);
        wakes.run();
    }

    /// Takes a responder away with what it has in hand.
    pub(super) fn leave(self: &Arc<Self>, at: usize, key: u64) {
        let Some(calls) = self.calls.upgrade() else { return };
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let entry = state.places.get_mut(at).and_then(|entry| entry.take_if(|entry| entry.key == key));
        let Some(entry) = entry else { return };
        state.forget(&entry);
        calls.gone(&entry);
        let id = entry.serve.id.unwrap_or_default();
        let mut held: Vec<(u64, Held)> = entry.in_hand.into_iter().collect();
        held.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        for (_, Held { call, taken, .. }) in held {
            if !taken || call.may_retry(calls.bounds.tries) {
                Counts::add(&calls.counts.retried);
                call.put(Place::Waiting);
                state.waiting.push_front(call);
            } else {
                Counts::add(&calls.counts.lost);
                let (service, responder) = (self.name.as_str().to_owned(), id.to_string());
                let lost = CoreError::ResponderLost { service, responder };
                wakes.callers.extend(call.fail(CallError::Broker(lost)));
            }
        }
        state.dispatch(&mut wakes);
        self.nobody_waits_in_vain(&mut state, &mut wakes);
        let empty = state.places.iter().all(Option::is_none);
        drop(state);
        wakes.run();
        if empty {
            calls.forget(self);
        }
    }

    /// Without a responder that takes requests, what waits ends.
    fn nobody_waits_in_vain(&self, state: &mut State, wakes: &mut Wakes) {
        if state.takers > 0 {
            return;
        }
        state.dead = 0;
        for call in std::mem::take(&mut state.waiting) {
            if call.place() == Place::Waiting {
                if let Some(calls) = self.calls.upgrade() {
                    Counts::add(&calls.counts.no_responders);
                }
                wakes.callers.extend(call.fail(CallError::Broker(no_responders(&self.name))));
            }
        }
    }

    /// Moves requests that the responder has not seen to `requests`, at most `messages` and, beyond the first, `bytes`
    /// of them; and the numbers of those that were given up to `cancelled`.
    pub(super) fn take(
        &self,
        at: usize,
        (messages, bytes): (usize, usize),
        mut request: impl FnMut(u64, Arc<Call>),
        cancelled: &mut Vec<u64>,
    ) {
        let mut state = self.state.lock();
        let Some(entry) = state.entry(at) else { return };
        cancelled.append(&mut entry.cancelled);
        let (mut count, mut weight) = (0, 0);
        while count < messages && weight < bytes {
            let Some(number) = entry.inbox.pop_front() else { return };
            let Some(held) = entry.in_hand.get_mut(&number) else { continue };
            held.taken = true;
            held.call.seen();
            count += 1;
            weight += held.call.request.message.weight();
            request(number, Arc::clone(&held.call));
        }
        if let Door::Stream(wake) = &entry.door
            && !entry.inbox.is_empty()
        {
            wake.notify_one();
        }
    }

    /// Passes answers on, in their order. Returns those that nobody got.
    pub(super) fn reply(&self, at: usize, key: u64, answers: Vec<Answer>) -> Vec<ReplyRefused> {
        let Some(calls) = self.calls.upgrade() else { return Vec::new() };
        let mut wakes = Wakes::default();
        let mut refused = Vec::new();
        let mut state = self.state.lock();
        let is_there = state.entry(at).is_some_and(|entry| entry.key == key);
        for Answer { number, said } in answers {
            let result = if is_there {
                state.answer(at, number, said, &mut wakes)
            } else {
                Err(ReplyRefused::Unknown(number))
            };
            if let Err(why) = result {
                Counts::add(match why {
                    ReplyRefused::Unknown(_) => &calls.counts.replies_unknown,
                    ReplyRefused::Over(_) => &calls.counts.replies_over,
                    ReplyRefused::Answered(_) => &calls.counts.replies_again,
                    ReplyRefused::OneReply(_) | ReplyRefused::Wrong { .. } => &calls.counts.replies_wrong,
                });
                refused.push(why);
            }
        }
        state.dispatch(&mut wakes);
        drop(state);
        wakes.run();
        refused
    }

    /// Passes the answer of a device on that does not say to what it is one: to what was given up not long ago, or else to
    /// what it has in hand. What it says unasked is nothing.
    pub(super) fn reply_next(&self, at: usize, key: u64, said: impl FnOnce() -> Said) {
        let Some(calls) = self.calls.upgrade() else { return };
        let number = {
            let mut state = self.state.lock();
            let Some(entry) = state.entry(at).filter(|entry| entry.key == key && entry.says_no_number())
            else {
                return;
            };
            let now = clock::now();
            entry.owed.retain(|given_up| now.saturating_duration_since(*given_up) < calls.bounds.late);
            if entry.owed.pop_front().is_some() {
                Counts::add(&calls.counts.replies_over);
                return;
            }
            entry.in_hand.keys().next().copied()
        };
        if let Some(number) = number {
            self.reply(at, key, vec![Answer { number, said: said() }]);
        }
    }

    /// Whether the responder has nothing in hand.
    pub(super) fn is_idle(&self, at: usize) -> bool {
        let mut state = self.state.lock();
        state.entry(at).is_none_or(|entry| entry.in_hand.is_empty())
    }

    /// Shows the responders with a key above `after`.
    pub(super) fn facts(&self, after: u64, facts: &mut Vec<ResponderFacts>) {
        let state = self.state.lock();
        let shown = state.places.iter().flatten().filter(|entry| entry.key > after);
        facts.extend(shown.map(|entry| ResponderFacts {
            key: entry.key,
            serve: entry.serve.clone(),
            in_flight: entry.in_hand.len(),
            served: entry.served,
            errors: entry.errors,
            busy: entry.busy,
            draining: entry.draining,
            device: matches!(entry.door, Door::Device(_)),
        }));
    }
}

impl Calls {
    /// A responder is not there any more.
    fn gone(&self, entry: &Entry) {
        self.counts.responders.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        if let Door::Device(device) = &entry.door {
            self.devices.remove(entry.key, device.key());
        }
    }
}

impl Entry {
    /// Whether it is a device that says no number with its answer.
    fn says_no_number(&self) -> bool {
        matches!(&self.door, Door::Device(device) if device.says_no_number())
    }

    fn answers(&self) -> bool {
        match &self.door {
            Door::Stream(_) => true,
            Door::Device(device) => device.answers(),
        }
    }
}

impl State {
    /// A new responder's place.
    fn add(&mut self, key: u64, serve: Serve, door: Door) -> usize {
        let group = self.group(&serve.group);
        let entry = Entry {
            key,
            serve,
            group,
            draining: false,
            in_hand: FxHashMap::default(),
            next: 1,
            inbox: VecDeque::new(),
            cancelled: Vec::new(),
            over: VecDeque::new(),
            owed: VecDeque::new(),
            door,
            served: 0,
            errors: 0,
            busy: Duration::ZERO,
        };
        let free = self.places.iter().position(Option::is_none);
        let at = free.unwrap_or(self.places.len());
        match self.places.get_mut(at) {
            Some(place) => *place = Some(entry),
            None => self.places.push(Some(entry)),
        }
        self.takers += 1;
        at
    }

    /// A device is subscribed as before, or in another way, and takes requests.
    fn renew(&mut self, at: usize, device: Device, serve: Serve) {
        let group = self.group(&serve.group);
        let Some(Some(entry)) = self.places.get_mut(at) else { return };
        let old = std::mem::replace(&mut entry.group, group);
        let in_hand = entry.in_hand.len();
        (entry.serve, entry.door) = (serve, Door::Device(device));
        self.takers += usize::from(std::mem::take(&mut entry.draining));
        if let Some(group) = self.groups.get_mut(old) {
            group.members -= 1;
            group.in_hand -= in_hand;
        }
        if let Some(group) = self.groups.get_mut(group) {
            group.in_hand += in_hand;
        }
    }

    /// Gives a responder no more requests.
    fn stop(&mut self, at: usize) {
        if let Some(entry) = self.entry(at).filter(|entry| !entry.draining) {
            entry.draining = true;
            self.takers -= 1;
        }
    }

    /// A responder has left its place.
    fn forget(&mut self, entry: &Entry) {
        self.takers -= usize::from(!entry.draining);
        if let Some(group) = self.groups.get_mut(entry.group) {
            group.members -= 1;
            group.in_hand -= entry.in_hand.len();
        }
    }

    fn entry(&mut self, at: usize) -> Option<&mut Entry> {
        self.places.get_mut(at)?.as_mut()
    }

    /// The group of this name, with one member more.
    fn group(&mut self, name: &ByteString) -> usize {
        let there = self.groups.iter().position(|group| group.members > 0 && group.name == *name);
        let at = there.or_else(|| self.groups.iter().position(|group| group.members == 0));
        match at.and_then(|at| Some((at, self.groups.get_mut(at)?))) {
            Some((at, group)) => {
                if group.members == 0 {
                    group.name = name.clone();
                }
                group.members += 1;
                at
            }
            None => {
                self.groups.push(Group { name: name.clone(), members: 1, in_hand: 0 });
                self.groups.len() - 1
            }
        }
    }

    /// The responder that gets the next call: of the group with the least in hand the one with the least, in turn among
    /// equals.
    fn choose(&mut self) -> Option<usize> {
        self.turn = (self.turn + 1) % self.places.len().max(1);
        let mut best: Option<((usize, usize), usize)> = None;
        let mut asked = 0;
        for at in (self.turn..self.places.len()).chain(0..self.turn) {
            let Some(Some(entry)) = self.places.get(at) else { continue };
            if entry.draining || entry.in_hand.len() >= entry.serve.credit {
                continue;
            }
            let group = self.groups.get(entry.group).map_or(0, |group| group.in_hand);
            let load = (group, entry.in_hand.len());
            if best.is_none_or(|(least, _)| load < least) {
                best = Some((load, at));
            }
            asked += 1;
            if load == (0, 0) || asked == ASKED {
                break;
            }
        }
        best.map(|(_, at)| at)
    }

    /// Hands a call to the responder. False if it takes none any more.
    fn assign(&mut self, at: usize, call: &Arc<Call>, wakes: &mut Wakes) -> bool {
        let Some(Some(entry)) = self.places.get_mut(at) else { return false };
        let number = entry.next;
        let mut held = Held { call: Arc::clone(call), since: clock::now(), taken: false };
        match &entry.door {
            Door::Stream(wake) => {
                if entry.inbox.is_empty() {
                    wakes.responders.push(Arc::clone(wake));
                }
                entry.inbox.push_back(number);
            }
            Door::Device(device) => match device.ask(entry.key, number, &call.request) {
                Ok(()) => {
                    held.taken = true;
                    call.seen();
                }
                Err(NotAsked::Left) => {
                    self.stop(at);
                    return false;
                }
                Err(NotAsked::Full) => {
                    let what = "too much waits for the responder to read".to_owned();
                    let max = entry.serve.credit as u64;
                    let full = CallError::Broker(CoreError::Limit { what, max });
                    wakes.callers.extend(call.fail(full));
                    return true;
                }
            },
        }
        entry.next += 1;
        call.put(Place::With(at, number));
        entry.in_hand.insert(number, held);
        if let Some(group) = self.groups.get_mut(entry.group) {
            group.in_hand += 1;
        }
        true
    }

    /// Hands out what waits while there is room.
    fn dispatch(&mut self, wakes: &mut Wakes) {
        while let Some(next) = self.waiting.front() {
            if next.place() == Place::Over {
                self.waiting.pop_front();
                self.dead -= 1;
                continue;
            }
            let Some(at) = self.choose() else { return };
            let Some(call) = self.waiting.pop_front() else { return };
            if !self.assign(at, &call, wakes) {
                self.waiting.push_front(call);
            }
        }
    }

    /// Takes a request out of a responder's hand.
    fn release(&mut self, at: usize, number: u64) -> Option<Held> {
        let entry = self.places.get_mut(at)?.as_mut()?;
        let held = entry.in_hand.remove(&number)?;
        if let Some(group) = self.groups.get_mut(entry.group) {
            group.in_hand -= 1;
        }
        Some(held)
    }

    /// Takes a request that nobody waits for out of a responder's hand, and tells it if it has seen the request.
    fn give_up(&mut self, at: usize, number: u64, wakes: &mut Wakes) {
        let Some(Held { taken: true, .. }) = self.release(at, number) else { return };
        let Some(entry) = self.entry(at) else { return };
        if let Door::Stream(wake) = &entry.door {
            if entry.cancelled.is_empty() {
                wakes.responders.push(Arc::clone(wake));
            }
            entry.cancelled.push(number);
        }
        if entry.says_no_number() {
            if entry.owed.len() == REMEMBERED {
                entry.owed.pop_front();
            }
            entry.owed.push_back(clock::now());
        }
        if entry.over.len() == REMEMBERED {
            entry.over.pop_front();
        }
        entry.over.push_back(number);
    }

    fn answer(&mut self, at: usize, number: u64, said: Said, wakes: &mut Wakes) -> Result<(), ReplyRefused> {
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
            if !held.call.request.takes_parts {
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
        let mut refused = Ok(());
        let ended = match said {
            Said::Part(_) => None,
            Said::Last(message) => match call.say(&id, message, false) {
                Ok(waker) => waker,
                Err(error) => call.fail(CallError::Broker(error)),
            },
            Said::Fault(fault) => call.fail(CallError::Responder(fault)),
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
