//! What the clients of all runs were promised and what they saw, and the comparison of the two.

use std::collections::{BTreeMap, HashMap, HashSet};

use parking_lot::{Mutex, MutexGuard};
use stafett::grpc::proto::v1;

use super::queues::{LINES, ONCE, WORK};
use super::roaming::Roam;
use crate::below::{Chance, Promises};

/// A message as the clients send it: a number that no other has, and who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Sent {
    pub(super) number: u64,
    /// One whose messages come in their order.
    pub(super) line: u64,
}

impl Sent {
    pub(super) fn payload(self) -> Vec<u8> {
        // Sizes from a few bytes to several parts.
        let size = match self.number % 200 {
            0 => 40_000,
            1..=8 => 5_000,
            _ => 50,
        };
        let mut payload = format!("{} {} ", self.number, self.line).into_bytes();
        payload.resize(payload.len() + size, b'.');
        payload
    }

    pub(super) fn of(payload: &[u8]) -> Self {
        let text = std::str::from_utf8(payload).unwrap();
        let mut words = text.split(' ').map(|word| word.parse().unwrap());
        Self { number: words.next().unwrap(), line: words.next().unwrap() }
    }
}

/// The newest message of each line that one reader has seen.
#[derive(Debug, Default)]
pub(super) struct Order(HashMap<u64, u64>);

impl Order {
    /// Whether it comes behind all that was seen of its line.
    pub(super) fn goes_on(&mut self, sent: Sent) -> bool {
        let last = self.0.entry(sent.line).or_default();
        let goes_on = sent.number > *last;
        *last = sent.number.max(*last);
        goes_on
    }
}

/// A session that outlives its connections.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) said: Promises,
    /// Its subscription was acknowledged.
    pub(super) known: bool,
    /// How often each message was delivered.
    pub(super) received: HashMap<u64, u32>,
    /// Of what was delivered for the first time.
    pub(super) order: Order,
}

/// Something that has one value at a time: numbers of what it was set to, or cleared.
#[derive(Debug, Default)]
pub(super) struct Register {
    acknowledged: u64,
    /// Whether there is a value after each of these; the acknowledged one and later ones.
    sent: BTreeMap<u64, bool>,
}

impl Register {
    pub(super) fn send(&mut self, number: u64, is_value: bool) {
        self.sent.insert(number, is_value);
    }

    pub(super) fn acknowledge(&mut self, number: u64) {
        self.acknowledged = self.acknowledged.max(number);
        self.sent = self.sent.split_off(&self.acknowledged);
    }

    /// Whether this value may be there, or none.
    fn check(&self, found: Option<u64>) -> Result<(), String> {
        let holds = match found {
            Some(number) => self.sent.get(&number) == Some(&true),
            None => self.acknowledged == 0 || self.sent.values().any(|is_value| !is_value),
        };
        let Self { acknowledged, sent } = self;
        holds
            .then_some(())
            .ok_or_else(|| format!("found {found:?}; {acknowledged} was acknowledged of {sent:?}"))
    }
}

/// How far a message of QoS 2 is that its publisher has under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct UnderWay {
    pub(super) packet_id: u16,
    pub(super) sent: Sent,
    /// PUBREC has come.
    pub(super) received: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct State {
    number: u64,
    /// Those whose definition was acknowledged.
    pub(super) queues: BTreeMap<&'static str, Promises>,
    /// At QoS 1.
    pub(super) live: Session,
    /// At QoS 2.
    pub(super) exact: Session,
    /// Of the session that goes from door to door.
    pub(super) roam: Roam,
    /// What the publisher for `exact` has to finish, in its order, and whether its session is known.
    pub(super) under_way: Vec<UnderWay>,
    pub(super) publisher_known: bool,
    /// What the subscriber `exact` has of each packet id, between PUBLISH and PUBREL.
    pub(super) holding: HashMap<u16, Sent>,
    pub(super) registers: BTreeMap<String, Register>,
    /// When a delayed message may come at the earliest, in milliseconds since 1970.
    pub(super) not_before: HashMap<u64, u64>,
    /// The key of what came of [`LINES`], and the newest of each key that is settled.
    line_of: HashMap<u64, u64>,
    lines: HashMap<u64, u64>,
    /// Those that were sent in one batch, to be stored whole in [`WORK`].
    pub(super) whole: Vec<Vec<u64>>,
    /// Named messages of which it is not known whether they are stored, and what was said of those that are.
    unsure: Vec<Sent>,
    once: BTreeMap<u64, (Sent, String, u64)>,
    /// Asynchronous calls that were acknowledged, by their ids, and those that somebody was handed.
    pub(super) calls: HashMap<String, u64>,
    pub(super) handed: HashSet<u64>,
    /// What a consumer has leased in this run.
    pub(super) held: HashMap<u64, &'static str>,
    /// What was seen to be wrong at once.
    wrong: Vec<String>,
}

impl State {
    pub(super) fn next(&mut self, line: u64) -> Sent {
        self.number += 1;
        Sent { number: self.number, line }
    }

    pub(super) fn queue(&mut self, name: &'static str) -> &mut Promises {
        self.queues.entry(name).or_default()
    }

    pub(super) fn register(&mut self, name: &str) -> &mut Register {
        self.registers.entry(name.to_owned()).or_default()
    }

    pub(super) fn wrong(&mut self, what: String) {
        self.wrong.push(what);
    }

    /// A consumer was given a message of a queue.
    pub(super) fn leased(&mut self, queue: &'static str, sent: Sent, at: u64) {
        let n = sent.number;
        if self.queue(queue).settled.contains(&n) {
            self.wrong(format!("{queue}: {n} was settled and is delivered again"));
        }
        if let Some(other) = self.held.insert(n, queue) {
            self.wrong(format!("{queue}: {n} is leased though a consumer of {other} has it"));
        }
        if queue == LINES {
            let other = self.lines.get(&sent.line).copied().filter(|&other| other >= n);
            let tried = &self.queues[LINES].tried;
            let held = self.held.iter().any(|(&other, _)| {
                other != n && !tried.contains(&other) && self.line_of.get(&other) == Some(&sent.line)
            });
            self.line_of.insert(n, sent.line);
            if other.is_some() || held {
                self.wrong(format!(
                    "{queue}: {n} came though {other:?} was settled, another with a consumer: {held}"
                ));
            }
        }
        if let Some(&not_before) = self.not_before.get(&n)
            && at < not_before
        {
            self.wrong(format!("{queue}: {n} came {} ms too early", not_before - at));
        }
    }

    /// A named message to send: a new one, or one that may be stored, or one that is, with what was said of it.
    pub(super) fn name(&mut self, chance: &mut Chance) -> (Sent, Option<(String, u64)>) {
        if let Some(sent) = self.unsure.first() {
            return (*sent, None);
        }
        let old = chance.below(2 * self.number + 2);
        if let Some((sent, id, sequence)) = self.once.range(old..).next().map(|(_, it)| it.clone()) {
            return (sent, Some((id, sequence)));
        }
        let sent = self.next(8);
        self.unsure.push(sent);
        (sent, None)
    }

    /// What was answered to a named message that was sent, perhaps twice at a time.
    pub(super) fn stored_once(
        &mut self,
        sent: Sent,
        before: Option<(String, u64)>,
        answers: &[v1::EnqueueResponse],
    ) {
        let n = sent.number;
        let said = |answer: &v1::EnqueueResponse| (answer.message_id.clone(), answer.sequence);
        let (Some(first), stored) = (answers.first(), answers.iter().filter(|it| !it.duplicate).count())
        else {
            return;
        };
        let expected = before.clone().unwrap_or_else(|| said(first));
        if answers.iter().any(|answer| said(answer) != expected) {
            self.wrong(format!("{n} came to lie at {expected:?}, then at {answers:?}"));
        }
        if stored > usize::from(before.is_none()) {
            self.wrong(format!("{n} was stored again: {answers:?}"));
        }
        self.unsure.retain(|unsure| *unsure != sent);
        self.queue(ONCE).stored.insert(n);
        self.once.insert(n, (sent, expected.0, expected.1));
    }

    /// A consumer has these no longer.
    pub(super) fn given_back(&mut self, numbers: &[u64]) {
        self.held.retain(|n, _| !numbers.contains(n));
    }

    /// That they are settled was acknowledged.
    pub(super) fn settled(&mut self, queue: &'static str, numbers: &[u64]) {
        self.given_back(numbers);
        self.queue(queue).settled.extend(numbers);
        for n in numbers {
            if let Some(&line) = self.line_of.get(n) {
                let last = self.lines.entry(line).or_default();
                *last = (*last).max(*n);
            }
        }
    }

    /// PUBREC has come.
    pub(super) fn recorded(&mut self, packet_id: u16) {
        let known = self.under_way.iter_mut().find(|at| at.packet_id == packet_id);
        let begun = known.expect("PUBREC of what is under way");
        begun.received = true;
        self.exact.said.stored.insert(begun.sent.number);
    }
}

/// The state, for many tasks.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<State>);

/// What is found in a store: numbers by queue, values by register.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) queues: BTreeMap<&'static str, HashMap<u64, u32>>,
    pub(super) registers: BTreeMap<String, Option<u64>>,
}

impl History {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Compares with what is in the store.
    pub(super) fn check(&self, found: &Found) -> Result<(), String> {
        let state = self.lock();
        if !state.wrong.is_empty() {
            return Err(state.wrong.join("; "));
        }
        for (queue, said) in &state.queues {
            let left = found.queues.get(queue).ok_or_else(|| format!("the queue {queue} is lost"))?;
            said.check(left).map_err(|what| format!("queue {queue}: {what}"))?;
        }
        if let (Some(left), Some(said)) = (found.queues.get(WORK), state.queues.get(WORK)) {
            let there = |n: &&u64| left.contains_key(n) || said.tried.contains(n);
            for batch in &state.whole {
                let count = batch.iter().filter(there).count();
                if count != 0 && count != batch.len() {
                    return Err(format!("{count} of the batch {batch:?} are there"));
                }
            }
        }
        for (name, register) in &state.registers {
            register
                .check(found.registers.get(name).copied().flatten())
                .map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(())
    }

    /// Compares with what the sessions were given, when nothing more is to come.
    pub(super) fn check_sessions(&self) -> Result<(), String> {
        let state = self.lock();
        if !state.wrong.is_empty() {
            return Err(state.wrong.join("; "));
        }
        state.roam.check().map_err(|what| format!("session roam: {what}"))?;
        // At least once.
        let live = state.live.received.keys().map(|&n| (n, 1)).collect();
        state.live.said.check(&live).map_err(|what| format!("session live: {what}"))?;
        state.exact.said.check(&state.exact.received).map_err(|what| format!("session exact: {what}"))
    }

    /// What nothing was promised of in any run.
    pub(super) fn idle(&self) -> Vec<String> {
        let state = self.lock();
        let targets = state.queues.iter().map(|(&name, said)| (name, said));
        let targets = targets.chain([("live", &state.live.said), ("exact", &state.exact.said)]);
        let idle = targets.filter(|(_, said)| said.stored.is_empty()).map(|(name, _)| name.to_owned());
        let set = state.registers.values().any(|register| register.acknowledged > 0);
        let (roamed, settled) = state.roamed();
        let roams = (roamed == 0 || settled == 0).then(|| "roam".to_owned());
        let unheard = [LINES, ONCE].into_iter().filter(|name| !state.queues.contains_key(name));
        let stored = |batch: &Vec<u64>| batch.iter().all(|n| state.queues[WORK].stored.contains(n));
        let batches = !state.whole.iter().any(stored);
        let missing = [(!set, "registers"), (batches, "whole batches")];
        let missing = missing.into_iter().filter(|(missing, _)| *missing).map(|(_, name)| name);
        idle.chain(unheard.chain(missing).map(str::to_owned)).chain(roams).collect()
    }

    /// How many messages were stored, and how many settled.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        let sessions = [&state.live, &state.exact];
        let stored =
            state.queues.values().chain(sessions.map(|s| &s.said)).map(|said| said.stored.len()).sum();
        let settled = state.queues.values().map(|said| said.settled.len()).sum::<usize>();
        (stored, settled + sessions.map(|session| session.received.len()).iter().sum::<usize>())
    }
}
