//! One service: its responders, the calls that they have in hand, and those that wait for one of them.
//!
//! Invariants, under its lock: a call waits only while no responder that takes one as large has room, or behind some for which
//! that is so, or while the one that it is for has none; a call in hand is in its responder's table
//! and nowhere else; without a responder that takes requests nothing waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::call::{Call, Place};
use super::choice::Handed;
use super::device::{Candidate, Seen};
use super::responder::Responder;
use super::state::{Door, Entry, Held, State, Wakes};
use super::stored::Watch;
use super::{Answer, Audience, Calls, Counts, Missing, ReplyRefused, ResponderFacts, Serve, too_large};
use crate::core::CoreError;
use crate::core::session::SessionKey;
use crate::types::{TopicName, clock};

/// See the module.
#[derive(Debug)]
pub(super) struct Service {
    name: TopicName,
    audience: Audience,
    /// How many gatherings are about to ask it, or wait for it: changed with the services locked.
    gatherings: AtomicUsize,
    pub(super) calls: Weak<Calls>,
    pub(super) state: Mutex<State>,
}

impl Service {
    pub(super) fn new(calls: &Arc<Calls>, audience: Audience, name: TopicName) -> Arc<Self> {
        Arc::new(Self {
            name,
            audience,
            gatherings: AtomicUsize::new(0),
            calls: Arc::downgrade(calls),
            state: Mutex::default(),
        })
    }

    pub(super) fn name(&self) -> &TopicName {
        &self.name
    }

    pub(super) fn audience(&self) -> Audience {
        self.audience
    }

    pub(super) fn is_empty(&self) -> bool {
        self.gatherings.load(Ordering::Relaxed) == 0 && self.state.lock().is_empty()
    }

    /// Takes its devices away: at once, or those that owe an answer when they do not any more.
    fn disband(&self, calls: &Calls) {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        for at in 0..state.places.len() {
            state.stop(at, &mut wakes);
            if let Some(entry) = state.dismiss(at) {
                calls.gone(&entry);
            }
        }
        state.seen = None;
        drop(state);
        wakes.run();
    }

    /// Lets the lock go after something has ended that this responder had, and the responder with it if it is a device that
    /// serves no more.
    pub(super) fn let_go(self: &Arc<Self>, mut state: MutexGuard<'_, State>, at: usize, wakes: Wakes) {
        let entry = state.dismiss(at);
        let empty = entry.is_some() && state.is_empty();
        drop(state);
        wakes.run();
        if let (Some(entry), Some(calls)) = (entry, self.calls.upgrade()) {
            calls.gone(&entry);
            if empty {
                calls.forget(self);
            }
        }
    }

    /// A device has ended a subscription: it is asked no more if that made it a responder.
    pub(super) fn stop_if_gone(self: &Arc<Self>, at: usize, key: u64) {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        if state.entry(at).is_none_or(|entry| entry.key != key) {
            return;
        }
        let takers = state.takers;
        state.stop_if_gone(at, &mut wakes);
        // It may have been the last that others wait for.
        if state.takers < takers {
            state.hand_out(None, &mut wakes);
        }
        self.let_go(state, at, wakes);
    }

    /// Who is told when it has room; none: nobody any more.
    pub(super) fn watch(&self, watch: Option<Arc<Watch>>) {
        self.state.lock().watch = watch;
    }

    /// How many stored calls it takes now, at most `max`.
    pub(super) fn room(&self, max: usize) -> usize {
        self.state.lock().room(max)
    }

    /// Whether someone has room that took nothing just now.
    pub(super) fn rests(&self) -> bool {
        self.state.lock().rests()
    }

    /// Hands a call to a responder, or puts it in the line if it `waits`. False if it does not, and nobody has room.
    pub(super) fn take_in(&self, call: &Arc<Call>, waits: bool) -> Result<bool, CoreError> {
        let Some(calls) = self.calls.upgrade() else { return Err(CoreError::Draining) };
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let goes_first = state.waiting.is_empty() || state.passed && waits;
        let handed = if goes_first { state.hand(call, &mut wakes) } else { Handed::Busy };
        let taken = match handed {
            Handed::Yes => Ok(true),
            Handed::Busy | Handed::Passed if !waits => Ok(false),
            Handed::Busy | Handed::Passed if state.waiting.len() >= calls.bounds.waiting => {
                let what = format!("too many calls wait for a responder of `{}`", self.name);
                Err(calls.refused(what, "calls_waiting", calls.bounds.waiting))
            }
            Handed::Busy | Handed::Passed => {
                state.passed = handed == Handed::Passed;
                call.put(Place::Waiting);
                state.waiting.push(Arc::clone(call));
                Ok(true)
            }
            Handed::Full => Err(calls.unread(&self.name)),
            Handed::TooLarge(what) => Err(too_large(what)),
            Handed::Nobody => Err(calls.nobody(&self.name)),
        };
        state.end_parts_for_nobody(&mut wakes);
        drop(state);
        wakes.run();
        taken
    }

    /// Gives a call up. False if it is over.
    pub(super) fn cancel(self: &Arc<Self>, call: &Arc<Call>) -> bool {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        match call.place() {
            Place::Over => return false,
            Place::Waiting => {
                call.put(Place::Over);
                match call.job() {
                    Some(job) => state.jobs.died(job, call),
                    None => state.waiting.died(),
                }
            }
            Place::WaitingFor(at) => {
                call.put(Place::Over);
                if let Some(entry) = state.entry(at) {
                    entry.line.died();
                }
            }
            Place::With(at, number) => {
                call.put(Place::Over);
                self.give_up(&mut state, at, number, &mut wakes);
                state.go_on(at, &mut wakes);
                state.hand_out(Some(at), &mut wakes);
                self.let_go(state, at, wakes);
            }
        }
        true
    }

    fn give_up(self: &Arc<Self>, state: &mut State, at: usize, number: u64, wakes: &mut Wakes) {
        if let Some((key, asked)) = state.give_up(at, number, wakes) {
            let owed = self.calls.upgrade().and_then(|calls| self.owed(&calls, (at, key), asked));
            if let Some(entry) = state.entry(at) {
                entry.owed = owed;
            }
        }
    }

    /// Takes a call away from a device that has had it for `limit`: it is lost. Returns when to look again.
    pub(super) fn overdue(self: &Arc<Self>, call: &Arc<Call>, limit: Duration) -> Duration {
        let (Some(calls), Place::With(at, number)) = (self.calls.upgrade(), call.place()) else {
            return limit;
        };
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let Some(entry) = state.entry(at).filter(|entry| matches!(entry.door, Door::Device(_))) else {
            return limit;
        };
        let serve = entry.serve.clone();
        let Some(held) = entry.in_hand.get(&number).filter(|held| Arc::ptr_eq(&held.call, call)) else {
            return limit;
        };
        let left = limit.saturating_sub(clock::now().saturating_duration_since(held.since));
        if !left.is_zero() {
            return left;
        }
        let held = Held { call: Arc::clone(call), since: held.since, taken: held.taken };
        self.give_up(&mut state, at, number, &mut wakes);
        Self::pass_on(&calls, &mut state, &serve, vec![(number, held)], &mut wakes);
        state.go_on(at, &mut wakes);
        state.hand_out(Some(at), &mut wakes);
        self.let_go(state, at, wakes);
        limit
    }

    /// Adds a responder, and hands it what waits.
    pub(super) fn join(self: &Arc<Self>, key: u64, serve: Serve) -> Responder {
        let wake = Arc::new(Notify::new());
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let at = state.add(key, serve.clone(), Door::Stream(Arc::clone(&wake)));
        state.hand_out(Some(at), &mut wakes);
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
        // Another has looked meanwhile, and later: who has come since is not to be taken away.
        if state.seen > Some(seen) {
            return Ok(());
        }
        let mut known: FxHashMap<SessionKey, usize> = FxHashMap::default();
        for (at, entry) in state.places.iter().enumerate() {
            if let Some(Entry { door: Door::Device(device), .. }) = entry {
                known.insert(device.key(), at);
            }
        }
        let mut new = Vec::new();
        for (device, serve) in candidates {
            match known.remove(&device.key()) {
                Some(at) => {
                    state.renew(at, device, serve);
                    state.stop_if_gone(at, &mut wakes);
                    state.go_on(at, &mut wakes);
                }
                None => new.push((device, serve)),
            }
        }
        for at in known.into_values() {
            state.stop(at, &mut wakes);
            if let Some(entry) = state.dismiss(at) {
                calls.gone(&entry);
            }
        }
        let mut all = Ok(());
        for (device, serve) in new {
            match calls.next_key() {
                Ok(key) => {
                    let at = state.add(key, serve, Door::Device(device.clone()));
                    calls.devices.add(key, &device, self, at);
                    // Had it left before it was noted, nobody would say so.
                    state.stop_if_gone(at, &mut wakes);
                    if let Some(entry) = state.dismiss(at) {
                        calls.gone(&entry);
                    }
                }
                Err(full) => {
                    all = Err(full);
                    break;
                }
            }
        }
        if all.is_ok() {
            state.seen = Some(seen);
        }
        state.hand_out(None, &mut wakes);
        drop(state);
        wakes.run();
        all
    }

    /// Gives it no more requests. What it has not taken goes to others.
    pub(super) fn drain(&self, at: usize) {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        state.stop(at, &mut wakes);
        if let Some(calls) = self.calls.upgrade() {
            let held = state.take_back(at);
            if let Some(serve) = state.entry(at).map(|entry| entry.serve.clone()) {
                Self::pass_on(&calls, &mut state, &serve, held, &mut wakes);
            }
        }
        state.hand_out(None, &mut wakes);
        drop(state);
        wakes.run();
    }

    /// Takes a responder away with what it has in hand.
    pub(super) fn leave(self: &Arc<Self>, at: usize, key: u64) {
        let Some(calls) = self.calls.upgrade() else { return };
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let is_there = state.entry(at).is_some_and(|entry| entry.key == key);
        let Some(entry) = is_there.then(|| state.vacate(at)).flatten() else { return };
        calls.gone(&entry);
        entry.line.lost(&entry.serve, &mut wakes);
        Self::pass_on(&calls, &mut state, &entry.serve, entry.in_hand.into_iter().collect(), &mut wakes);
        state.hand_out(None, &mut wakes);
        let empty = state.is_empty();
        drop(state);
        wakes.run();
        if empty {
            calls.forget(self);
        }
    }

    /// Puts what a responder had in hand first in the line, or lets it fail where another may not be asked.
    fn pass_on(
        calls: &Calls,
        state: &mut State,
        responder: &Serve,
        mut held: Vec<(u64, Held)>,
        wakes: &mut Wakes,
    ) {
        held.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        for (_, Held { call, taken, .. }) in held {
            let again = if taken { call.may_retry(calls.bounds.tries) } else { call.is_for_anyone() };
            if again {
                Counts::add(&calls.counts.retried);
                call.put(Place::Waiting);
                match call.job() {
                    Some(job) => {
                        call.missed(Missing::Lost);
                        state.jobs.put_first(job, call);
                    }
                    None => state.waiting.push_first(call),
                }
            } else {
                wakes.callers.extend(call.lost(responder));
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
            weight += held.call.request().message.weight();
            request(number, Arc::clone(&held.call));
        }
        if let Door::Stream(wake) = &entry.door
            && !entry.inbox.is_empty()
        {
            wake.notify_one();
        }
    }

    /// Passes answers on, in their order. Returns those that nobody got.
    pub(super) fn reply(self: &Arc<Self>, at: usize, key: u64, answers: Vec<Answer>) -> Vec<ReplyRefused> {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let refused = self.answer(&mut state, (at, key), answers, &mut wakes);
        self.let_go(state, at, wakes);
        refused
    }

    /// See [`Self::reply`].
    pub(super) fn answer(
        &self,
        state: &mut State,
        (at, key): (usize, u64),
        answers: Vec<Answer>,
        wakes: &mut Wakes,
    ) -> Vec<ReplyRefused> {
        let Some(calls) = self.calls.upgrade() else { return Vec::new() };
        let mut refused = Vec::new();
        let is_there = state.entry(at).is_some_and(|entry| entry.key == key);
        for Answer { number, said } in answers {
            let result = if is_there {
                state.answer(at, number, said, wakes)
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
        if is_there {
            state.go_on(at, wakes);
        }
        state.hand_out(Some(at), wakes);
        refused
    }

    /// Numbers in the inboxes of all responders.
    #[cfg(test)]
    pub(super) fn untaken(&self) -> usize {
        self.state.lock().places.iter().flatten().map(|entry| entry.inbox.len()).sum()
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

/// Those who listen to a topic, for as long as a gathering is about them. Nobody else asks them, and there are many topics to
/// which one may listen: they go with the last of them.
#[derive(Debug)]
pub(super) struct Listening(Arc<Service>);

impl Listening {
    pub(super) fn service(&self) -> &Arc<Service> {
        &self.0
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let Some(calls) = self.0.calls.upgrade() else { return };
        let mut services = calls.listening.write();
        if self.0.gatherings.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.disband(&calls);
            if self.0.is_empty() {
                services.remove(&self.0.name);
            }
        }
    }
}

impl Calls {
    /// Holds on to those who listen to a topic; [`Broker::find_listeners`](crate::core::Broker) finds them.
    pub(super) fn listening(self: &Arc<Self>, name: &TopicName) -> Listening {
        self.service_with(Audience::Listening, name, |service| {
            service.gatherings.fetch_add(1, Ordering::Relaxed);
            Listening(Arc::clone(service))
        })
    }

    /// A responder is not there any more.
    fn gone(&self, entry: &Entry) {
        self.counts.responders.fetch_sub(1, Ordering::Relaxed);
        if let Door::Device(_) = &entry.door {
            self.devices.remove(entry.key);
        }
    }
}
