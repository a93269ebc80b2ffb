//! Calls that wait, in their order.

use std::collections::VecDeque;
use std::sync::Arc;

use super::call::{Call, Place};

/// Calls that were given up stay until so many, or half of all, are there.
const DEAD: usize = 64;

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

    /// One of them is over.
    pub(super) fn died(&mut self) {
        self.dead += 1;
        if self.dead >= DEAD && self.dead > self.calls.len() / 2 {
            self.calls.retain(|call| call.place() != Place::Over);
            self.dead = 0;
        }
    }
}
