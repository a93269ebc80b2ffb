//! Messages of one key come one at a time, in their order.
//!
//! Of each key one message is its *front*: ready, delayed, leased or on its way out, wherever the index has it. The others wait
//! here, and the next becomes the front when the front is gone for good: settled, expired, dropped, purged, or moved to another
//! queue. A front that is given back stays the front, also while it rests. A delayed message joins its key when it is due:
//! before those that wait and came later, behind the front.
//!
//! One that waits and is to be moved or dropped is *set aside*: it is elsewhere, but has its place here until that is done. When
//! its turn comes meanwhile it is the front, and its key goes on when it is gone or comes back.
//!
//! A key is known by 64 bits of its hash: two keys that are taken for one come one at a time together, nothing worse.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;
use std::num::NonZeroU64;

use rustc_hash::FxHasher;

use super::entry::Entry;
use super::hash::TextHash;
use super::level::Level;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<FxHasher>>;

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key(NonZeroU64);

impl From<TextHash> for Key {
    fn from(hash: TextHash) -> Self {
        Self(NonZeroU64::new(hash.0 as u64).unwrap_or(NonZeroU64::MIN))
    }
}

#[derive(Debug)]
struct Line {
    front: u64,
    rest: Option<Box<Rest>>,
}

/// Behind a front.
#[derive(Debug, Default)]
struct Rest {
    waiting: Level,
    aside: BTreeSet<u64>,
}

impl Line {
    fn of(front: u64) -> Self {
        Self { front, rest: None }
    }

    fn first(&self) -> Option<(u8, u64)> {
        self.rest.as_ref()?.waiting.first().map(place)
    }

    /// The front is gone. Gives the next one if it may be delivered; or whether there is none.
    fn step(&mut self) -> Result<Option<Entry>, Empty> {
        let rest = self.rest.as_mut().ok_or(Empty)?;
        let first = rest.waiting.first().map(|entry| entry.sequence);
        if let Some(&aside) = rest.aside.first()
            && first.is_none_or(|first| aside < first)
        {
            rest.aside.pop_first();
            self.front = aside;
            return Ok(None);
        }
        let next = rest.waiting.pop().ok_or(Empty)?;
        rest.waiting.shrink();
        self.front = next.sequence;
        Ok(Some(next))
    }
}

/// Nothing more has this key.
struct Empty;

/// Lower priorities go first when there must be room, then older ones.
fn place(entry: &Entry) -> (u8, u64) {
    (entry.priority, entry.sequence)
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Order {
    lines: Map<Key, Line>,
    /// Of all messages that have one.
    keys: Map<u64, Key>,
    /// Of all that wait here.
    waiting: BTreeSet<u64>,
    /// The first that waits of each key, once somebody has asked for them.
    firsts: Option<BTreeSet<(u8, u64)>>,
}

impl Order {
    /// A message of the queue has this key.
    pub(super) fn know(&mut self, sequence: u64, key: Key) {
        self.keys.insert(sequence, key);
    }

    /// A message is due: given back if it may be delivered, else it waits here.
    pub(super) fn join(&mut self, entry: Entry) -> Option<Entry> {
        let Some(&key) = self.keys.get(&entry.sequence) else { return Some(entry) };
        match self.lines.entry(key) {
            Slot::Vacant(slot) => {
                slot.insert(Line::of(entry.sequence));
                Some(entry)
            }
            Slot::Occupied(line) if line.get().front == entry.sequence => Some(entry),
            Slot::Occupied(_) => {
                self.edit(key, |line| {
                    let rest = line.rest.get_or_insert_default();
                    rest.aside.remove(&entry.sequence);
                    rest.waiting.put(entry);
                });
                self.waiting.insert(entry.sequence);
                None
            }
        }
    }

    /// Changes a line, and what is known of all lines with it.
    fn edit<R>(&mut self, key: Key, change: impl FnOnce(&mut Line) -> R) -> Option<R> {
        let line = self.lines.get_mut(&key)?;
        let first = line.first();
        let changed = change(line);
        if let Some(firsts) = &mut self.firsts {
            let now = line.first();
            if now != first {
                first.map(|first| firsts.remove(&first));
                firsts.extend(now);
            }
        }
        Some(changed)
    }

    /// A message is on its way out or rests, and has its place until it is gone or joins again.
    pub(super) fn set_aside(&mut self, sequence: u64) {
        let Some(&key) = self.keys.get(&sequence) else { return };
        match self.lines.entry(key) {
            Slot::Vacant(slot) => drop(slot.insert(Line::of(sequence))),
            Slot::Occupied(line) if line.get().front == sequence => {}
            Slot::Occupied(_) => {
                self.edit(key, |line| {
                    let rest = line.rest.get_or_insert_default();
                    rest.waiting.remove(sequence);
                    rest.aside.insert(sequence);
                });
                self.waiting.remove(&sequence);
            }
        }
    }

    /// A message is gone for good, and does not wait here. Gives the one that may be delivered now.
    pub(super) fn leave(&mut self, sequence: u64) -> Option<Entry> {
        let key = self.keys.remove(&sequence)?;
        let stepped = self.edit(key, |line| {
            if line.front == sequence {
                return line.step();
            }
            if let Some(rest) = &mut line.rest {
                rest.aside.remove(&sequence);
            }
            Ok(None)
        })?;
        match stepped {
            Ok(next) => {
                if let Some(next) = &next {
                    self.waiting.remove(&next.sequence);
                }
                next
            }
            Err(Empty) => {
                self.lines.remove(&key);
                self.shrink();
                None
            }
        }
    }

    /// Gives the memory of a drained backlog back.
    fn shrink(&mut self) {
        if self.keys.capacity() > 1024 && self.keys.len() < self.keys.capacity() / 8 {
            self.keys.shrink_to(self.keys.len() * 2);
            self.lines.shrink_to(self.lines.len() * 2);
        }
        if self.waiting.is_empty() {
            self.firsts = None;
        }
    }

    fn get(&self, sequence: u64) -> Option<&Entry> {
        let line = self.lines.get(self.keys.get(&sequence)?)?;
        line.rest.as_ref()?.waiting.get(sequence)
    }

    /// A message that waits here.
    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Entry> {
        let line = self.lines.get_mut(self.keys.get(&sequence)?)?;
        line.rest.as_mut()?.waiting.get_mut(sequence)
    }

    /// Whether a message waits here.
    pub(super) fn has(&self, sequence: u64) -> bool {
        self.waiting.contains(&sequence)
    }

    /// Whether a message is the front of its key.
    pub(super) fn is_front(&self, sequence: u64) -> bool {
        let line = self.keys.get(&sequence).and_then(|key| self.lines.get(key));
        line.is_some_and(|line| line.front == sequence)
    }

    /// Takes a message out that waits here.
    pub(super) fn take(&mut self, sequence: u64) -> Option<Entry> {
        if !self.waiting.remove(&sequence) {
            return None;
        }
        let key = *self.keys.get(&sequence)?;
        self.edit(key, |line| line.rest.as_mut()?.waiting.remove(sequence))?
    }

    /// Takes those out that wait here and are such.
    pub(super) fn take_all(&mut self, out: &mut Vec<Entry>, mut is_such: impl FnMut(&Entry) -> bool) {
        let before = out.len();
        for rest in self.lines.values_mut().filter_map(|line| line.rest.as_mut()) {
            rest.waiting.take_all(out, &mut is_such);
        }
        for entry in out.iter().skip(before) {
            self.waiting.remove(&entry.sequence);
            self.firsts = None;
        }
    }

    /// The first of each key that wait here.
    fn firsts(&mut self) -> &BTreeSet<(u8, u64)> {
        let lines = &self.lines;
        self.firsts.get_or_insert_with(|| lines.values().filter_map(Line::first).collect())
    }

    /// Which of those that wait goes first when there must be room, and its priority: of those of the lowest the oldest, each key's
    /// in their order.
    pub(super) fn first_to_go(&mut self) -> Option<(u8, u64)> {
        if self.waiting.is_empty() {
            return None;
        }
        self.firsts().first().copied()
    }

    /// The one with the first place of all that wait here.
    pub(super) fn oldest(&self) -> Option<&Entry> {
        self.get(*self.waiting.first()?)
    }

    /// How many wait here.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The first `max` that wait here from a sequence on, in its order.
    pub(super) fn list(&self, from: u64, max: usize) -> impl Iterator<Item = &Entry> {
        self.waiting.range(from..).take(max).filter_map(|&sequence| self.get(sequence))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::format::Location;
    use super::*;
    use crate::types::{Priority, Qos};

    fn entry(sequence: u64) -> Entry {
        let place = Location { pack: 1, ordinal: 0 };
        Entry::new(sequence, place, 0, 1, false, None, (Qos::AtLeastOnce, false), Priority::default())
    }

    fn key(key: u128) -> Key {
        TextHash(key).into()
    }

    fn join(order: &mut Order, sequence: u64, of: u128) -> bool {
        order.know(sequence, key(of));
        order.join(entry(sequence)).is_some()
    }

    fn sequence(entry: Option<Entry>) -> Option<u64> {
        entry.map(|entry| entry.sequence)
    }

    #[test]
    fn of_each_key_one_is_in_front() {
        let mut order = Order::default();
        assert!(join(&mut order, 1, 7) && join(&mut order, 2, 8));
        assert!(!join(&mut order, 3, 7) && !join(&mut order, 4, 7));
        assert!(order.join(entry(5)).is_some(), "it has no key");
        assert_eq!((order.waiting(), order.has(3), order.has(1)), (2, true, false));
        assert!(order.join(entry(1)).is_some(), "what was given back is still in front");
        assert_eq!(sequence(order.leave(1)), Some(3));
        assert_eq!(sequence(order.leave(2)), None);
        assert_eq!((sequence(order.leave(3)), sequence(order.leave(4))), (Some(4), None));
        assert!(order.lines.is_empty() && order.keys.is_empty() && order.waiting() == 0);
    }

    #[test]
    fn what_joins_late_goes_before_what_came_later() {
        let mut order = Order::default();
        order.know(1, key(7));
        for sequence in [2, 3, 4] {
            join(&mut order, sequence, 7);
        }
        assert!(order.join(entry(1)).is_none(), "2 is in front");
        assert_eq!((sequence(order.leave(2)), sequence(order.leave(1))), (Some(1), Some(3)));
    }

    #[test]
    fn what_rests_holds_its_key_up() {
        let mut order = Order::default();
        order.know(1, key(7));
        order.set_aside(1);
        assert!(!join(&mut order, 2, 7));
        assert!(order.join(entry(1)).is_some());
        assert_eq!(sequence(order.leave(1)), Some(2));
    }

    #[test]
    fn who_leaves_from_the_middle_is_not_missed() {
        let mut order = Order::default();
        for sequence in 1..=5 {
            join(&mut order, sequence, 7);
        }
        assert_eq!(sequence(order.take(3)), Some(3));
        assert_eq!(sequence(order.leave(3)), None);
        let mut out = Vec::new();
        order.take_all(&mut out, |entry| entry.sequence == 4);
        assert_eq!(out.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [4]);
        order.leave(4);
        assert_eq!(order.list(0, 9).map(|entry| entry.sequence).collect::<Vec<_>>(), [2, 5]);
        order.get_mut(5).unwrap().pack = 9;
        assert_eq!((sequence(order.leave(1)), order.leave(2).map(|entry| entry.pack)), (Some(2), Some(9)));
        assert_eq!(order.waiting(), 0);
    }

    #[test]
    fn who_looks_is_shown_no_more_than_was_asked_for() {
        let mut order = Order::default();
        for sequence in 0..1000 {
            join(&mut order, sequence, u128::from(sequence % 100));
        }
        let listed: Vec<_> = order.list(250, 10).map(|entry| entry.sequence).collect();
        assert_eq!(listed, (250..260).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_set_aside_keeps_its_place_until_it_is_gone_or_back() {
        let mut order = Order::default();
        for sequence in 1..=5 {
            join(&mut order, sequence, 7);
        }
        assert_eq!(order.first_to_go(), Some((4, 2)));
        order.set_aside(2);
        order.set_aside(3);
        assert_eq!((order.first_to_go(), order.waiting(), order.has(2)), (Some((4, 4)), 2, false));
        assert_eq!(sequence(order.leave(1)), None, "2 is not here, and 4 does not pass it");
        assert!(order.is_front(2));
        assert!(order.join(entry(3)).is_none());
        assert!(order.join(entry(2)).is_some(), "it came back in its turn");
        assert_eq!((sequence(order.leave(2)), sequence(order.leave(3))), (Some(3), Some(4)));
        order.know(6, key(8));
        order.set_aside(6);
        assert!(!join(&mut order, 7, 8), "one that never waited has its place, too");
        assert_eq!((sequence(order.leave(6)), sequence(order.leave(7))), (Some(7), None));
    }

    /// What is done to messages of three keys.
    #[derive(Debug, Clone)]
    enum Act {
        Come(u128),
        GoFront(usize),
        Aside(usize),
        Back(usize),
        GoAside(usize),
        Take(usize),
        GoFirst,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (1..4_u128).prop_map(Act::Come),
            3 => (0..3_usize).prop_map(Act::GoFront),
            1 => (0..20_usize).prop_map(Act::Aside),
            1 => (0..20_usize).prop_map(Act::Back),
            1 => (0..20_usize).prop_map(Act::GoAside),
            1 => (0..20_usize).prop_map(Act::Take),
            1 => Just(Act::GoFirst),
        ]
    }

    /// Where a message of a model is.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum At {
        Ready,
        Waiting,
        Aside,
    }

    proptest! {
        #[test]
        fn no_key_is_held_up_by_what_is_gone(acts in prop::collection::vec(act(), 0..300)) {
            let mut order = Order::default();
            let mut model: Vec<(u64, u128, At)> = Vec::new();
            let mut next = 1;
            // Takes a message out of the model; what may be delivered now is what the order has said.
            let gone = |model: &mut Vec<(u64, u128, At)>, order: &mut Order, at: usize| {
                let (sequence, key, _) = model.remove(at);
                let told = order.leave(sequence).map(|entry| entry.sequence);
                let first = model.iter_mut().find(|(_, other, _)| *other == key);
                let expected = first.filter(|(.., at)| *at == At::Waiting).map(|it| { it.2 = At::Ready; it.0 });
                (told, expected)
            };
            for act in acts {
                let of = |model: &[(u64, u128, At)], at: At, n: usize| {
                    let such: Vec<_> = (0..model.len()).filter(|&i| model[i].2 == at).collect();
                    such.get(n).copied()
                };
                match act {
                    Act::Come(key) => {
                        let ready = join(&mut order, next, key);
                        let vacant = !model.iter().any(|(_, other, _)| *other == key);
                        prop_assert_eq!(ready, vacant);
                        model.push((next, key, if vacant { At::Ready } else { At::Waiting }));
                        next += 1;
                    }
                    Act::GoFront(n) => if let Some(at) = of(&model, At::Ready, n) {
                        let (told, expected) = gone(&mut model, &mut order, at);
                        prop_assert_eq!(told, expected);
                    }
                    Act::GoAside(n) => if let Some(at) = of(&model, At::Aside, n) {
                        let (_, key, _) = model[at];
                        let is_front = model.iter().position(|(_, other, _)| *other == key) == Some(at);
                        let (told, expected) = gone(&mut model, &mut order, at);
                        prop_assert_eq!(told, expected.filter(|_| is_front));
                    }
                    Act::Take(n) => if let Some(at) = of(&model, At::Waiting, n) {
                        let sequence = model.remove(at).0;
                        prop_assert_eq!(order.take(sequence).map(|entry| entry.sequence), Some(sequence));
                        prop_assert_eq!(order.leave(sequence), None);
                    }
                    Act::Aside(n) => if let Some(at) = of(&model, At::Waiting, n).or(of(&model, At::Ready, n)) {
                        order.set_aside(model[at].0);
                        model[at].2 = At::Aside;
                    }
                    Act::Back(n) => if let Some(at) = of(&model, At::Aside, n) {
                        let (sequence, key, _) = model[at];
                        let is_front = model.iter().position(|(_, other, _)| *other == key) == Some(at);
                        prop_assert_eq!(order.join(entry(sequence)).is_some(), is_front);
                        model[at].2 = if is_front { At::Ready } else { At::Waiting };
                    }
                    Act::GoFirst => {
                        let first = model.iter().find(|(.., at)| *at == At::Waiting).map(|it| it.0);
                        prop_assert_eq!(order.first_to_go().map(|(_, sequence)| sequence), first);
                        prop_assert_eq!(order.oldest().map(|entry| entry.sequence), first);
                        let listed: Vec<_> = order.list(0, 1000).map(|entry| entry.sequence).collect();
                        let waiting = model.iter().filter(|(.., at)| *at == At::Waiting).map(|it| it.0);
                        prop_assert_eq!(listed, waiting.collect::<Vec<_>>());
                        if let Some(at) = of(&model, At::Waiting, 0) {
                            order.set_aside(model[at].0);
                            model[at].2 = At::Aside;
                        }
                    }
                }
                prop_assert_eq!(order.waiting(), model.iter().filter(|(.., at)| *at == At::Waiting).count());
            }
            while let Some(at) = model.iter().position(|(.., at)| *at != At::Waiting) {
                let (told, expected) = gone(&mut model, &mut order, at);
                if told.is_some() {
                    prop_assert_eq!(told, expected);
                }
            }
            prop_assert!(model.is_empty() && order.lines.is_empty() && order.keys.is_empty(), "{:?}", model);
        }
    }
}
