//! Kills a process that enqueues and settles, at any moment, again and again on the same data, and compares what is
//! left with what was promised.
//!
//! The child says what it did, a line each: `E n` message n is stored, `T n` it is about to settle n, `S n` n is
//! settled, `A n` n was stored by its caller's own commit. Lost is what was stored and nobody was about to settle;
//! resurrected is what was settled and comes again. `B n` is said before [`TOGETHER`] messages from n on are handed in
//! together: they are there whole or not at all. Every other child has many writers, the others one that waits for each
//! of its messages.
//!
//! `STAFETT_KILLS` and `STAFETT_SEED` make it longer or repeat a run.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use stafett::engine::embedded::Embedded;
use stafett::engine::{
    Append, Browsed, Consumer, ConsumerOptions, Definition, Durability, Engine, LeaseRef, Op, View,
};
use stafett::types::{Message, MessageIds, Qos, Sequence, TargetId, TopicName};

use crate::below::{Chance, Fault, Promises, setting};
use crate::bench::{publish, settings, spec};

const DIRECTORY: &str = "STAFETT_CRASH_DIRECTORY";
const FIRST: &str = "STAFETT_CRASH_FIRST";
const ALONE: &str = "STAFETT_CRASH_ALONE";
pub(crate) const DURABILITY: &str = "STAFETT_CRASH_DURABILITY";
const QUEUE: TargetId = TargetId(1);
const OTHER: TargetId = TargetId(2);
const PASSING: TargetId = TargetId(3);
/// Messages that one writer hands in together: more than the journal takes of one commit.
const TOGETHER: u64 = 300;

pub(crate) fn message(ids: &MessageIds, n: u64) -> Message {
    // Sizes from a few bytes to several parts.
    let size = match n % 50 {
        0 => 40_000,
        1..=5 => 5_000,
        _ => 50,
    };
    let mut payload = format!("{n} ").into_bytes();
    payload.resize(payload.len() + size, b'.');
    Message {
        id: ids.next_now(),
        topic: TopicName::parse("t".into()).unwrap(),
        payload: Bytes::from(payload),
        qos: Qos::AtLeastOnce,
        retain: false,
        expires_at: None,
        extras: None,
    }
}

pub(crate) fn number(message: &Message) -> u64 {
    let text = std::str::from_utf8(&message.payload).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

pub(crate) fn say(what: char, numbers: impl IntoIterator<Item = u64>) {
    let lines: String = numbers.into_iter().map(|n| format!("{what} {n}\n")).collect();
    let mut out = std::io::stdout().lock();
    out.write_all(lines.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The child. Does nothing when the tests run it as a test.
#[test]
fn child() {
    let Some((directory, first)) = child_has() else { return };
    let durability = std::env::var(DURABILITY).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work(&directory, first, durability, std::env::var_os(ALONE).is_some()));
}

async fn work(directory: &Path, first: u64, durability: Durability, alone: bool) {
    let engine = Arc::new(Embedded::open(settings(directory, durability)).unwrap());
    if engine.stored().queues.len() < 2 {
        let define = |id, name| Op::Define(id, Definition::Queue(spec(name)));
        engine.commit(vec![define(QUEUE, "q"), define(OTHER, "other")]).await.unwrap();
    }
    println!("ready");
    let next = Arc::new(AtomicU64::new(first));
    let ids = Arc::new(MessageIds::new());
    if alone {
        return work_alone(&engine, &ids, first).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let (engine, next, ids) = (engine.clone(), next.clone(), ids.clone());
        tasks.spawn(async move {
            for round in 0_u64.. {
                let count = match writer {
                    0 => 1,
                    1 => TOGETHER,
                    _ => 20,
                };
                let from = next.fetch_add(count, Ordering::Relaxed);
                let numbers = from..from + count;
                let ops = if count == TOGETHER {
                    say('B', [from]);
                    vec![Op::AppendAll(numbers.map(|n| (message(&ids, n), Append::to(QUEUE))).collect())]
                } else {
                    let targets = [Append::to(QUEUE), Append::to(OTHER)];
                    numbers.map(|n| publish(message(&ids, n), targets)).collect()
                };
                engine.commit(ops).await.unwrap();
                say('E', from..from + count);
                if count == 1 && round % 8 == 0 {
                    // What comes and goes shares commits with what the others store.
                    let passing = Op::Define(PASSING, Definition::Queue(spec("passing")));
                    engine.commit(vec![passing]).await.unwrap();
                    engine.commit(vec![Op::Delete(PASSING)]).await.unwrap();
                }
            }
        });
    }
    for _ in 0..2 {
        let engine = engine.clone();
        tasks.spawn(async move {
            let consumer = engine.consumer(QUEUE, ConsumerOptions::default()).unwrap();
            let others = engine.consumer(OTHER, ConsumerOptions::default()).unwrap();
            loop {
                if !settle_some(&engine, &*consumer, &*others).await {
                    consumer.ready().heard().await;
                }
            }
        });
    }
    tasks.join_next().await.unwrap().unwrap();
}

/// Whether there was anything.
async fn settle_some(engine: &Embedded, consumer: &dyn Consumer, others: &dyn Consumer) -> bool {
    let mut leased = Vec::new();
    others.take(100, usize::MAX, &mut leased).unwrap();
    let leases: Vec<_> = leased.iter().map(|l| LeaseRef::of(l.sequence)).collect();
    engine.settle(OTHER, &leases).unwrap().durable.await.unwrap();
    leased.clear();
    consumer.take(37, usize::MAX, &mut leased).unwrap();
    let any = !leased.is_empty();
    // One of ten stays, so that packs stay partly alive.
    leased.retain(|leased| number(&leased.message) % 10 != 3);
    let numbers: Vec<_> = leased.iter().map(|leased| number(&leased.message)).collect();
    say('T', numbers.iter().copied());
    let leases: Vec<_> = leased.iter().map(|leased| LeaseRef::of(leased.sequence)).collect();
    engine.settle(QUEUE, &leases).unwrap().durable.await.unwrap();
    say('S', numbers);
    any
}

/// One message at a time, and now and then some settlements.
async fn work_alone(engine: &Embedded, ids: &MessageIds, first: u64) {
    let consumer = engine.consumer(QUEUE, ConsumerOptions::default()).unwrap();
    let others = engine.consumer(OTHER, ConsumerOptions::default()).unwrap();
    for n in first.. {
        let Op::Publish(publish) = publish(message(ids, n), [Append::to(QUEUE), Append::to(OTHER)]) else {
            unreachable!("a publish is a publish")
        };
        let mut ticket = engine.commit_alone(publish);
        let outcome = match ticket.try_now() {
            Some(outcome) => {
                say('A', [n]);
                outcome
            }
            None => ticket.await,
        };
        outcome.unwrap();
        say('E', [n]);
        if n % 64 == 0 {
            settle_some(engine, &*consumer, &*others).await;
        }
    }
}

/// A test of this program that is a child with a store, and the first number that it may use.
pub(crate) fn child_of(test: &str, directory: &Path, first: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(DIRECTORY, directory).env(FIRST, first.to_string());
    command
}

/// The store and the first number, in a child.
pub(crate) fn child_has() -> Option<(PathBuf, u64)> {
    let directory = std::env::var_os(DIRECTORY)?;
    Some((directory.into(), std::env::var(FIRST).unwrap().parse().unwrap()))
}

/// Runs a child until it has said `lines`, then kills it, or until it ends by itself. Whether its store was open.
pub(crate) fn run_until(mut command: Command, lines: usize, mut note: impl FnMut(&str)) -> bool {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut heard = 0;
    let mut ready = false;
    while let Some(Ok(line)) = out.next() {
        ready |= line.ends_with("ready");
        note(&line);
        heard += usize::from(ready);
        if heard == lines {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    ready
}

/// What the children have said.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) said: Promises,
    /// How many callers committed by themselves.
    pub(crate) alone: usize,
    /// The first of those that were handed in together.
    together: Vec<u64>,
    next: u64,
    runs: usize,
}

impl History {
    /// Runs the child until it has said `lines`, then kills it, or until it ends by itself; takes in what it said. Whether
    /// its store was open.
    pub(crate) fn run(
        &mut self,
        directory: &Path,
        durability: Durability,
        lines: usize,
        environment: &[(&'static str, String)],
    ) -> bool {
        let mut command = child_of("crash::child", directory, self.next);
        command
            .env(DURABILITY, durability.name())
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .envs((self.runs % 2 == 1).then_some((ALONE, "")));
        let ready = run_until(command, lines, |line| self.note(line));
        // More than a run stores; numbers of which nobody was told may be stored as well.
        self.next += 1_000_000_000;
        self.runs += 1;
        ready
    }

    fn note(&mut self, line: &str) {
        let Some((what, n)) = line.split_once(' ') else { return };
        let Ok(n) = n.parse() else { return };
        match what {
            "E" => drop(self.said.stored.insert(n)),
            "T" => drop(self.said.tried.insert(n)),
            "S" => drop(self.said.settled.insert(n)),
            "A" => self.alone += 1,
            "B" => self.together.push(n),
            _ => {}
        }
    }

    /// Compares what is left with what was said.
    pub(crate) fn check(&self, directory: &Path, durability: Durability) -> Result<(), Fault> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let engine =
            Embedded::open(settings(directory, durability)).map_err(|e| Fault::Other(e.to_string()))?;
        if self.next == 0 || engine.stored().queues.is_empty() {
            let nothing = self.said.stored.is_empty();
            return if nothing { Ok(()) } else { Err(Fault::Promise("the queues are lost".to_owned())) };
        }
        let left = runtime.block_on(async {
            let mut left: HashMap<u64, u32> = HashMap::new();
            for browsed in all_of(&engine, QUEUE).await {
                *left.entry(number(&browsed.message)).or_default() += 1;
            }
            left
        });
        for &first in &self.together {
            let there = |n: &u64| left.contains_key(n) || self.said.tried.contains(n);
            let count = (first..first + TOGETHER).filter(there).count() as u64;
            if count != 0 && count != TOGETHER {
                let what = format!("of the {TOGETHER} messages from {first} on {count} are there");
                return Err(Fault::Promise(what));
            }
        }
        self.said.check(&left).map_err(Fault::Promise)
    }
}

/// All messages of a target.
pub(crate) async fn all_of(engine: &Embedded, target: TargetId) -> Vec<Browsed> {
    let mut all = Vec::new();
    let mut from = Some(Sequence(0));
    while let Some(at) = from {
        let page = engine.browse(target, View::All, at, 500, 1 << 20).await.unwrap();
        all.extend(page.messages);
        from = page.next;
    }
    all
}

#[test]
fn nothing_acknowledged_is_lost_or_comes_back_after_kill_9() {
    let kills = setting("STAFETT_KILLS", 8) as usize;
    let mut chance = Chance(setting("STAFETT_SEED", 1));
    let directory = tempfile::tempdir().unwrap();
    let mut history = History::default();
    for kill in 0..kills {
        let lines = 1 + chance.below(4000) as usize;
        assert!(history.run(directory.path(), Durability::Fsync, lines, &[]), "the store did not open");
        history.check(directory.path(), Durability::Fsync).unwrap();
        let (stored, settled) = (history.said.stored.len(), history.said.settled.len());
        println!("kill {} of {kills}: {stored} stored, {settled} settled, none lost", kill + 1);
    }
    assert!(history.said.stored.len() > kills, "hardly anything was stored between the kills");
    assert!(!history.said.settled.is_empty(), "nothing was settled between the kills");
    assert!(!history.together.is_empty(), "nothing was handed in together");
    assert!(kills < 2 || history.alone > 0, "no caller committed by itself");
}
