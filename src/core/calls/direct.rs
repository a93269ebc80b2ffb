//! Requests that are for certain responders alone: one to everyone who serves.
//!
//! Every stream is asked, every subscriber of exactly the service's topic, and one member of each share group. Whoever has no
//! room gets its request as soon as it has, before any other.

use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use bytestring::ByteString;
use rustc_hash::FxHashMap;
use smallvec::{SmallVec, smallvec};

use super::call::{Call, Place, To};
use super::device::NotAsked;
use super::service::Service;
use super::shared::Shared;
use super::state::{Door, State, Wakes};
use super::{CallError, Calls, Request, too_large};
use crate::core::{CoreError, TooLarge};

/// Those of whom one is asked.
type Members = SmallVec<[usize; 1]>;

/// Why none of some responders has got a request.
enum Passed {
    /// They do not answer any more.
    Left,
    /// Too much waits for them to read.
    Unread,
    /// Too many requests wait for them.
    Busy,
    /// They take no packet as large.
    TooLarge(TooLarge),
}

impl State {
    fn members(&self) -> Vec<Members> {
        let mut all: Vec<Members> = Vec::new();
        let mut groups = FxHashMap::default();
        for (at, entry) in self.places.iter().enumerate() {
            let Some(entry) = entry.as_ref().filter(|entry| !entry.draining && entry.answers()) else {
                continue;
            };
            if matches!(&entry.door, Door::Device(device) if device.is_member()) {
                match groups.entry(entry.group) {
                    Slot::Vacant(group) => drop(group.insert(all.len())),
                    Slot::Occupied(group) => {
                        all.get_mut(*group.get()).into_iter().for_each(|members| members.push(at));
                        continue;
                    }
                }
            }
            all.push(smallvec![at]);
        }
        for members in &mut all {
            members.sort_by_cached_key(|at| {
                let entry = self.places.get(*at).and_then(Option::as_ref);
                entry.map(|entry| (!entry.has_room(), entry.in_hand.len()))
            });
        }
        all
    }

    /// Hands a call to the first of `members` that takes it, now or as soon as it has room.
    fn direct(
        &mut self,
        members: &[usize],
        call: &Arc<Call>,
        waiting: usize,
        wakes: &mut Wakes,
    ) -> Result<usize, Passed> {
        let mut passed = Passed::Left;
        for &at in members {
            let Some(entry) = self.entry(at).filter(|entry| !entry.draining) else { continue };
            if !entry.has_room() {
                if entry.line.len() < waiting {
                    call.put(Place::WaitingFor(at));
                    entry.line.push(Arc::clone(call));
                    return Ok(at);
                }
                passed = Passed::Busy;
                continue;
            }
            match self.assign(at, call, wakes) {
                Ok(()) => return Ok(at),
                Err(NotAsked::Left) => self.stop(at, wakes),
                Err(NotAsked::Full) => passed = Passed::Unread,
                Err(NotAsked::TooLarge(what)) => passed = Passed::TooLarge(what),
            }
        }
        Err(passed)
    }

    /// Gives a responder what waits for it alone, while it has room.
    pub(super) fn go_on(&mut self, at: usize, wakes: &mut Wakes) {
        while let Some(entry) = self.entry(at).filter(|entry| entry.has_room())
            && let Some(call) = entry.line.pop()
        {
            match self.assign(at, &call, wakes) {
                Ok(()) => {}
                Err(NotAsked::Full) => wakes.callers.extend(call.unread()),
                Err(NotAsked::TooLarge(what)) => {
                    wakes.callers.extend(call.fail(CallError::Broker(too_large(what))));
                }
                Err(NotAsked::Left) => {
                    if let Some(entry) = self.entry(at) {
                        wakes.callers.extend(call.lost(&entry.serve));
                    }
                    self.stop(at, wakes);
                }
            }
        }
    }
}

impl Service {
    /// Asks everyone, at most `max`, each with a call of its own. Returns the calls with the names of those asked, none if
    /// nobody serves; some may be over.
    ///
    /// # Errors
    /// [`CoreError::Limit`]: nobody was asked.
    pub(super) fn ask_all(
        &self,
        calls: &Arc<Calls>,
        (shared, request): (&Arc<Shared>, &Arc<Request>),
        max: usize,
    ) -> Result<Vec<(ByteString, Arc<Call>)>, CoreError> {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let (all, takers) = (state.members(), state.takers);
        if all.len() > max {
            return Err(calls.too_many_to_ask());
        }
        let new = |members| {
            let call = Call::new(calls, To::Many(Arc::clone(shared), Arc::clone(request)))?;
            Ok((members, Arc::new(call)))
        };
        let new: Vec<(Members, Arc<Call>)> = all.into_iter().map(new).collect::<Result<_, CoreError>>()?;
        let mut asked = Vec::with_capacity(new.len());
        for (members, call) in new {
            let at = match state.direct(&members, &call, calls.bounds.waiting, &mut wakes) {
                Ok(at) => Some(at),
                Err(Passed::Left) => continue,
                Err(why) => {
                    let error = match why {
                        Passed::Busy => {
                            let what = format!("too many requests wait for a responder of `{}`", self.name());
                            calls.refused(what, "calls_waiting", calls.bounds.waiting)
                        }
                        Passed::TooLarge(what) => too_large(what),
                        _ => calls.unread(self.name()),
                    };
                    wakes.callers.extend(call.fail(CallError::Broker(error)));
                    members.first().copied()
                }
            };
            let entry = at.and_then(|at| state.entry(at));
            let id = entry.and_then(|entry| entry.serve.id.clone()).unwrap_or_default();
            asked.push((id, call));
        }
        // One of those that do not answer any more may have been the last that others wait for.
        if state.takers < takers {
            state.hand_out(None, &mut wakes);
        }
        drop(state);
        wakes.run();
        Ok(asked)
    }
}

impl Calls {
    pub(super) fn too_many_to_ask(&self) -> CoreError {
        let max = self.bounds.gather_responders;
        self.refused("there are too many responders to ask them all", "gather_responders", max)
    }
}
