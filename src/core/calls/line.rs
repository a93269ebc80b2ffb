//! Calls that wait, in their order.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Serve;
use super::call::{Call, Place};
use super::state::Wakes;

/// See the module. Whoever gives one of them up says so with [`Line::died`].
#[derive(Debug, Default)]
pub(super) struct Line {
    calls: VecDeque<Arc<Call>>,
    /// Those of them that are over.
    dead: usize,
}

impl Line {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.calls.len() - self.dead
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push(&mut self, call: Arc<Call>) {
        self.calls.push_back(call);
    }

    /// Puts a call before all others.
    pub(super) fn push_first(&mut self, call: Arc<Call>) {
        self.calls.push_front(call);
    }

    /// The next one that is not over.
    pub(super) fn pop(&mut self) -> Option<Arc<Call>> {
        while let Some(call) = self.calls.pop_front() {
            if call.place() != Place::Over {
                return Some(call);
            }
            self.dead -= 1;
        }
        None
    }

    /// One of them is over. It stays until half of all are.
    pub(super) fn died(&mut self) {
        self.dead += 1;
        if self.dead * 2 >= self.calls.len() {
            self.calls.retain(|call| call.place() != Place::Over);
            self.dead = 0;
        }
    }

    /// All of them waited for a responder that is gone.
    pub(super) fn lost(mut self, responder: &Serve, wakes: &mut Wakes) {
        while let Some(call) = self.pop() {
            wakes.callers.extend(call.lost(responder));
        }
    }
}
