//! Devices that say no number with their answers, and what they owe.
//!
//! Such a device has one request in hand, and what it says next is the answer. When that was given up, the device owes an
//! answer for [`call_timeout`](crate::core::Limits::call_timeout) from when it was asked, as long as it stays connected,
//! and is asked nothing else meanwhile. So what it says late is never taken for the answer to another request,
//! and an answer that was lost on its way keeps it from being asked no longer than that.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::task::AbortOnDropHandle;

use super::service::Service;
use super::state::Wakes;
use super::{Answer, Calls, Counts, Said};
use crate::types::clock;

impl Service {
    /// Lets a device owe the answer to what it was asked then. None if the broker stops.
    pub(super) fn owed(
        self: &Arc<Self>,
        calls: &Calls,
        (at, key): (usize, u64),
        asked: Instant,
    ) -> Option<AbortOnDropHandle<()>> {
        if calls.draining.is_cancelled() {
            return None;
        }
        let service = Arc::downgrade(self);
        let left = calls.bounds.late.saturating_sub(clock::now().saturating_duration_since(asked));
        let draining = calls.draining.clone();
        let forget = async move {
            tokio::select! {
                () = draining.cancelled() => {}
                () = tokio::time::sleep(left) => {
                    if let Some(service) = service.upgrade() {
                        service.owes_nothing(at, key);
                    }
                }
            }
        };
        Some(AbortOnDropHandle::new(calls.tasks.spawn(forget)))
    }

    /// What a device says from now on is the answer to what it is asked next.
    fn owes_nothing(self: &Arc<Self>, at: usize, key: u64) {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        if let Some(entry) = state.entry(at).filter(|entry| entry.key == key) {
            entry.owed = None;
            state.go_on(at, &mut wakes);
        }
        state.hand_out(Some(at), &mut wakes);
        self.let_go(state, at, wakes);
    }

    /// Passes the answer of a device on that does not say to what it is one: to what was given up before, if it owes that,
    /// or else to what it has in hand. What it says unasked is nothing.
    pub(super) fn reply_next(self: &Arc<Self>, at: usize, key: u64, said: impl FnOnce() -> Said) {
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let Some(entry) = state.entry(at).filter(|entry| entry.key == key && entry.says_no_number()) else {
            return;
        };
        if entry.owed.take().is_some() {
            if let Some(calls) = self.calls.upgrade() {
                Counts::add(&calls.counts.replies_over);
            }
            state.go_on(at, &mut wakes);
            state.hand_out(Some(at), &mut wakes);
        } else if let Some(number) = entry.in_hand.keys().next().copied() {
            let answers = vec![Answer { number, said: said() }];
            self.answer(&mut state, (at, key), answers, &mut wakes);
        }
        self.let_go(state, at, wakes);
    }
}
