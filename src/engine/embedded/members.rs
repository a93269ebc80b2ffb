//! The consumers of one target: who waits, and who has a message alone.
//!
//! A message whose consumers were lost with it is handed out alone, so that nothing else is lost with the next one.
//! A consumer that has something else, or has such a message, gets nothing more: it is *held up* until it has nothing.
//! Consumers that are held up are told when that may be over; those that wait are told first.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use rustc_hash::FxHasher;

use crate::bell::Bell;

#[derive(Debug)]
struct Member {
    bell: Arc<Bell>,
    /// How many messages it has.
    has: usize,
    /// It has one message, alone.
    alone: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Keys are numbers of our own: no peer can choose them to collide.
    consumers: HashMap<u64, Member, BuildHasherDefault<FxHasher>>,
    waiting: VecDeque<u64>,
    held_up: Vec<u64>,
}

impl Members {
    pub(super) fn len(&self) -> usize {
        self.consumers.len()
    }

    pub(super) fn join(&mut self, consumer: u64, bell: Arc<Bell>) {
        self.consumers.insert(consumer, Member { bell, has: 0, alone: false });
    }

    /// The consumer is gone; what it has should have been given back before.
    pub(super) fn leave(&mut self, consumer: u64) {
        self.consumers.remove(&consumer);
        self.stop_waiting(consumer);
    }

    /// It wants nothing more. Another is woken in its stead: it may have been woken for something that it does not take.
    pub(super) fn stop_waiting(&mut self, consumer: u64) {
        self.waiting.retain(|&other| other != consumer);
        self.held_up.retain(|&other| other != consumer);
        self.wake(1);
    }

    /// It wants more, and is woken when there is more.
    pub(super) fn wait(&mut self, consumer: u64) {
        if !self.waiting.contains(&consumer) {
            self.waiting.push_back(consumer);
        }
    }

    /// It wants more, and gets nothing as long as it has something. What it was woken for is another's.
    pub(super) fn hold_up(&mut self, consumer: u64) {
        if !self.held_up.contains(&consumer) {
            self.held_up.push(consumer);
        }
        self.wake_waiting(1);
    }

    /// Whether it has anything.
    pub(super) fn has_any(&self, consumer: u64) -> bool {
        self.consumers.get(&consumer).is_some_and(|member| member.has > 0)
    }

    /// Whether it has a message alone.
    pub(super) fn is_alone(&self, consumer: u64) -> bool {
        self.consumers.get(&consumer).is_some_and(|member| member.alone)
    }

    /// It got messages; `alone`: one, and nothing beside it. Who was held up by that one may get others now.
    pub(super) fn took(&mut self, consumer: u64, count: usize, alone: bool) {
        if let Some(member) = self.consumers.get_mut(&consumer) {
            member.has += count;
            member.alone |= alone;
        }
        if alone {
            self.go_on();
        }
    }

    /// It has one message less.
    pub(super) fn gave(&mut self, consumer: u64) {
        let Some(member) = self.consumers.get_mut(&consumer) else { return };
        member.has = member.has.saturating_sub(1);
        if member.has > 0 {
            return;
        }
        member.alone = false;
        if let Some(at) = self.held_up.iter().position(|&other| other == consumer) {
            self.held_up.swap_remove(at);
            member.bell.ring();
        }
    }

    /// Who is held up looks again.
    pub(super) fn go_on(&mut self) {
        for consumer in std::mem::take(&mut self.held_up) {
            self.notify(consumer);
        }
    }

    /// Wakes up to `count` consumers that wait; when they are fewer, also those that are held up: what came may go before
    /// what holds them up.
    pub(super) fn wake(&mut self, count: usize) {
        if self.wake_waiting(count) < count && !self.held_up.is_empty() {
            self.go_on();
        }
    }

    fn wake_waiting(&mut self, count: usize) -> usize {
        for woken in 0..count {
            let Some(consumer) = self.waiting.pop_front() else { return woken };
            self.notify(consumer);
        }
        count
    }

    /// All are told.
    pub(super) fn wake_all(&self) {
        self.consumers.values().for_each(|member| member.bell.ring());
    }

    fn notify(&self, consumer: u64) {
        if let Some(member) = self.consumers.get(&consumer) {
            member.bell.ring();
        }
    }
}
