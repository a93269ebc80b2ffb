//! The consumers of one target: who waits, and who has a message alone.
//!
//! A message whose consumers were lost with it is handed out alone, so that nothing else is lost with the next one.
//! A consumer that has something else, or has such a message, gets nothing more: it is *held up* until it has nothing.
//! Consumers that are held up are told when that may be over; those that wait are told first.
//!
//! Where consumers have different priorities, one that asked and may ask for more has a *claim*: who is below it gets
//! nothing, until it says that it has no room, ends, or does not come though it was called.

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
    priority: i32,
    claims: bool,
    /// When somebody first had to wait for it, in milliseconds since 1970.
    called: Option<u64>,
}

/// How long others wait for one that has a claim and does not come, in milliseconds.
const PATIENCE_MS: u64 = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Keys are numbers of our own: no peer can choose them to collide.
    consumers: HashMap<u64, Member, BuildHasherDefault<FxHasher>>,
    waiting: VecDeque<u64>,
    held_up: Vec<u64>,
    /// How many have a priority of their own.
    ranked: usize,
    /// How many have ever joined.
    joined: u64,
    /// The single active one, where there is to be one.
    active: Option<u64>,
    /// When those who wait for one that does not come wait no more.
    patience: Option<u64>,
}

impl Members {
    pub(super) fn len(&self) -> usize {
        self.consumers.len()
    }

    /// How many have ever joined.
    pub(super) fn joined(&self) -> u64 {
        self.joined
    }

    pub(super) fn join(&mut self, consumer: u64, bell: Arc<Bell>, priority: i32) {
        self.joined += 1;
        self.ranked += usize::from(priority != 0);
        let member = Member { bell, has: 0, alone: false, priority, claims: false, called: None };
        self.consumers.insert(consumer, member);
    }

    /// The consumer is gone; what it has should have been given back before.
    pub(super) fn leave(&mut self, consumer: u64) {
        let priority = self.consumers.remove(&consumer).map_or(0, |member| member.priority);
        self.stop_waiting(consumer);
        if priority != 0 {
            self.ranked -= 1;
            self.wake(self.waiting.len());
        }
        if self.active == Some(consumer) {
            self.active = None;
            if let Some(next) = self.elect() {
                self.notify(next);
            }
        }
    }

    /// The single active consumer; if there is none, one becomes it.
    pub(super) fn elect(&mut self) -> Option<u64> {
        if self.active.is_none() {
            let all = self.consumers.iter();
            let first = all.max_by_key(|&(&consumer, member)| (member.priority, std::cmp::Reverse(consumer)));
            self.active = first.map(|(&consumer, _)| consumer);
        }
        self.active
    }

    /// Whether it is the single active one.
    pub(super) fn is_active(&mut self, consumer: u64) -> bool {
        self.elect() == Some(consumer)
    }

    /// Whether consumers have different priorities.
    pub(super) fn is_ranked(&self) -> bool {
        self.ranked > 0
    }

    /// It asks for messages: until it says otherwise it has room.
    pub(super) fn claim(&mut self, consumer: u64) {
        if let Some(member) = self.consumers.get_mut(&consumer) {
            member.claims = true;
            member.called = None;
        }
    }

    /// Whether somebody above has a claim to what is ready. He is called then, and who asks is woken when that may be over.
    pub(super) fn is_outranked(&mut self, consumer: u64, now: u64) -> bool {
        let Some(own) = self.consumers.get(&consumer) else { return false };
        let (priority, mut ends) = (own.priority, None::<u64>);
        for above in self.consumers.values_mut().filter(|other| other.priority > priority && other.claims) {
            let called = above.called.get_or_insert_with(|| {
                above.bell.ring();
                now
            });
            // The clock may have been set back meanwhile.
            *called = (*called).min(now);
            let until = called.saturating_add(PATIENCE_MS);
            if until > now {
                ends = Some(ends.map_or(until, |ends| ends.min(until)));
            }
        }
        let Some(ends) = ends else { return false };
        self.patience = Some(self.patience.map_or(ends, |patience| patience.min(ends)));
        self.wait(consumer);
        true
    }

    /// When [`Members::lose_patience`] is due.
    pub(super) fn patience(&self) -> Option<u64> {
        self.patience
    }

    /// Who waits for one that does not come looks again.
    pub(super) fn lose_patience(&mut self, now: u64) {
        if self.patience.is_some_and(|ends| ends <= now) {
            self.patience = None;
            self.wake(self.waiting.len());
        }
    }

    /// It wants nothing more. Another is woken in its stead: it may have been woken for something that it does not take.
    pub(super) fn stop_waiting(&mut self, consumer: u64) {
        self.waiting.retain(|&other| other != consumer);
        self.held_up.retain(|&other| other != consumer);
        if self.unclaim(consumer) {
            self.wake(self.waiting.len());
        }
        self.wake(1);
    }

    /// It has no claim any more. Whether others may have waited for that.
    fn unclaim(&mut self, consumer: u64) -> bool {
        let Some(member) = self.consumers.get_mut(&consumer) else { return false };
        std::mem::take(&mut member.claims) && self.ranked > 0
    }

    /// It wants more, and is woken when there is more.
    pub(super) fn wait(&mut self, consumer: u64) {
        if !self.waiting.contains(&consumer) {
            self.waiting.push_back(consumer);
        }
    }

    /// It wants more, and gets nothing as long as it has something. What it was woken for is another's, one's below it, too.
    pub(super) fn hold_up(&mut self, consumer: u64) {
        if !self.held_up.contains(&consumer) {
            self.held_up.push(consumer);
        }
        let woken = if self.unclaim(consumer) { self.waiting.len() } else { 1 };
        self.wake_waiting(woken);
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
            let Some(consumer) = self.next_waiting() else { return woken };
            self.notify(consumer);
        }
        count
    }

    /// The highest of those that wait, and of equals the one that has waited longest.
    fn next_waiting(&mut self) -> Option<u64> {
        if self.ranked == 0 {
            return self.waiting.pop_front();
        }
        let priority = |id: &u64| self.consumers.get(id).map_or(i32::MIN, |member| member.priority);
        let highest = self.waiting.iter().map(priority).max()?;
        let at = self.waiting.iter().position(|id| priority(id) == highest)?;
        self.waiting.remove(at)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn members(priorities: &[i32]) -> (Members, Vec<Arc<Bell>>) {
        let (mut members, mut bells) = (Members::default(), Vec::new());
        for (consumer, &priority) in (1..).zip(priorities) {
            let bell = Arc::new(Bell::default());
            members.join(consumer, Arc::clone(&bell), priority);
            bells.push(bell);
        }
        (members, bells)
    }

    fn rang(bell: &Bell) -> bool {
        use futures_util::FutureExt;
        bell.heard().now_or_never().is_some()
    }

    #[test]
    fn the_first_of_the_highest_is_active_until_it_leaves() {
        let (mut members, bells) = members(&[0, 5, 5]);
        assert_eq!(members.elect(), Some(2));
        members.join(4, Arc::default(), 9);
        assert_eq!(members.elect(), Some(2), "who comes later does not take its place");
        members.leave(4);
        members.leave(2);
        assert!(rang(&bells[2]) && !rang(&bells[0]));
        assert_eq!(members.elect(), Some(3));
    }

    #[test]
    fn who_has_a_claim_goes_first_for_as_long_as_patience_lasts() {
        let (mut members, bells) = members(&[0, 5]);
        assert!(members.is_ranked() && !members.is_outranked(1, 100), "it has not asked");
        members.claim(2);
        assert!(members.is_outranked(1, 100) && rang(&bells[1]), "it is called");
        assert!(members.is_outranked(1, 600) && !rang(&bells[1]), "once");
        assert_eq!(members.patience(), Some(100 + PATIENCE_MS));
        members.lose_patience(99 + PATIENCE_MS);
        assert!(!rang(&bells[0]));
        members.lose_patience(100 + PATIENCE_MS);
        assert!(rang(&bells[0]) && !members.is_outranked(1, 100 + PATIENCE_MS));
        members.claim(2);
        assert!(members.is_outranked(1, 5_000), "it has come since");
        assert!(
            members.is_outranked(1, 4_000) && !members.is_outranked(1, 4_000 + PATIENCE_MS),
            "the clock was set back"
        );
        members.claim(2);
        members.stop_waiting(2);
        assert!(rang(&bells[0]) && !members.is_outranked(1, 5_000), "it has no room");
        assert!(!members.is_outranked(2, 5_000));
    }

    #[test]
    fn the_highest_is_woken_first() {
        let (mut members, bells) = members(&[0, 5, -1, 5]);
        (1..=4).for_each(|consumer| members.wait(consumer));
        for expected in [1, 3, 0, 2] {
            members.wake(1);
            assert_eq!(bells.iter().map(|bell| rang(bell)).collect::<Vec<_>>(), {
                let mut rung = [false; 4];
                rung[expected] = true;
                rung
            });
        }
    }
}
