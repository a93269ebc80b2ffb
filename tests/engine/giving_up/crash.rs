//! Kills a process whose messages fail and expire, again and again on the same data, and looks where they are.
//!
//! The child says what it did, a line each: `F n` message n failed, and rests for an hour; `X n` n is stored and its time
//! is over; `D n` n is stored in a queue that drops its oldest; `O n` n is stored in a queue that moves its oldest on.
//!
//! `STAFETT_KILLS` and `STAFETT_SEED` make it longer or repeat a run.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use stafett::engine::embedded::Embedded;
use stafett::engine::{
    Append, Browsed, ConsumerOptions, Definition, Durability, Engine, LeaseRef, Nack, Op, Outcome, Overflow,
    QueueSpec, View,
};
use stafett::types::clock::unix_now;
use stafett::types::{MessageIds, Sequence, TargetId, UnixMillis};

use super::HOUR;
use crate::below::{Chance, setting};
use crate::bench::{publish, settings, spec, with_dead_letters};
use crate::crash::{child_has, child_of, message, number, run_until, say};

const RESTING: TargetId = TargetId(1);
const EXPIRING: TargetId = TargetId(2);
const DEAD: TargetId = TargetId(3);
const DROPPING: TargetId = TargetId(4);
const MOVING: TargetId = TargetId(5);
const MOVED: TargetId = TargetId(6);
/// What each of the queues that overflow holds.
const FULL: usize = 20;

/// The child. Does nothing when the tests run it as a test.
#[test]
fn child() {
    let Some((directory, first)) = child_has() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work(&directory, first));
}

async fn work(directory: &Path, first: u64) {
    let engine = Arc::new(Embedded::open(settings(directory, Durability::Fsync)).unwrap());
    if engine.stored().queues.is_empty() {
        let resting = QueueSpec { retry_min_backoff: Some(HOUR), ..spec("resting") };
        let expiring = QueueSpec { dead_letter_expired: true, ..with_dead_letters("expiring", 5, "dead") };
        let define = |id, spec| Op::Define(id, Definition::Queue(spec));
        let full = |name, overflow| QueueSpec {
            max_messages: FULL as u64,
            overflow,
            ..with_dead_letters(name, 5, "moved")
        };
        let all = [
            define(RESTING, resting),
            define(EXPIRING, expiring),
            define(DEAD, spec("dead")),
            define(DROPPING, full("dropping", Overflow::DropOldest)),
            define(MOVING, full("moving", Overflow::DeadLetter)),
            define(MOVED, spec("moved")),
        ];
        engine.commit(all.into()).await.unwrap();
    }
    println!("ready");
    let ids = Arc::new(MessageIds::new());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(fail(engine.clone(), ids.clone(), first));
    tasks.spawn(expire(engine.clone(), ids.clone(), first + 20_000));
    tasks.spawn(overflow(engine.clone(), ids.clone(), first + 40_000, DROPPING, 'D'));
    tasks.spawn(overflow(engine, ids, first + 60_000, MOVING, 'O'));
    tasks.join_next().await.unwrap().unwrap();
}

async fn fail(engine: Arc<Embedded>, ids: Arc<MessageIds>, first: u64) {
    let consumer = engine.consumer(RESTING, ConsumerOptions::default()).unwrap();
    for n in first.. {
        engine.commit(vec![publish(message(&ids, n), [Append::to(RESTING)])]).await.unwrap();
        let mut leased = Vec::new();
        consumer.take(10, usize::MAX, &mut leased).unwrap();
        let leases: Vec<_> = leased.iter().map(|leased| LeaseRef::of(leased.sequence)).collect();
        engine.nack(RESTING, &leases, Nack::Failed(None), None).unwrap().durable.await.unwrap();
        say('F', leased.iter().map(|leased| number(&leased.message)));
    }
}

async fn expire(engine: Arc<Embedded>, ids: Arc<MessageIds>, first: u64) {
    let consumer = engine.consumer(EXPIRING, ConsumerOptions::default()).unwrap();
    for n in first.. {
        let over = Append { expires_at: Some(UnixMillis(1)), ..Append::to(EXPIRING) };
        engine.commit(vec![publish(message(&ids, n), [over])]).await.unwrap();
        say('X', [n]);
        consumer.take(10, usize::MAX, &mut Vec::new()).unwrap();
    }
}

/// Now and then more at once than there is room for.
async fn overflow(engine: Arc<Embedded>, ids: Arc<MessageIds>, first: u64, queue: TargetId, what: char) {
    let mut next = first;
    for round in 0_u64.. {
        let count = if round % 8 == 7 { FULL as u64 * 2 } else { 1 + round % 4 };
        let ops = (next..next + count).map(|n| publish(message(&ids, n), [Append::to(queue)])).collect();
        for outcome in engine.commit(ops).await.unwrap() {
            assert!(matches!(outcome, Outcome::Published(_)), "{outcome:?}");
        }
        say(what, next..next + count);
        next += count;
    }
}

/// What the children have said.
#[derive(Default)]
struct Said {
    failed: HashSet<u64>,
    expired: HashSet<u64>,
    dropping: BTreeSet<u64>,
    moving: HashSet<u64>,
}

impl Said {
    fn note(&mut self, line: &str) {
        let Some((what, n)) = line.split_once(' ') else { return };
        let Ok(n) = n.parse() else { return };
        match what {
            "F" => drop(self.failed.insert(n)),
            "X" => drop(self.expired.insert(n)),
            "D" => drop(self.dropping.insert(n)),
            "O" => drop(self.moving.insert(n)),
            _ => {}
        }
    }

    async fn check(&self, engine: &Embedded) -> Result<(), String> {
        let now = unix_now();
        let resting = by_number(browse(engine, RESTING).await);
        for n in &self.failed {
            let rests = |seen: &Browsed| {
                seen.view == View::Delayed && seen.attempts > 0 && seen.until.is_some_and(|at| at > now)
            };
            match resting.get(n).map(Vec::as_slice) {
                Some([one]) if rests(one) => {}
                found => return Err(format!("{n} failed and does not rest: {found:?}")),
            }
        }
        // All that is over is on its way before the store is looked at.
        let consumer = engine.consumer(EXPIRING, ConsumerOptions::default()).unwrap();
        while !browse(engine, EXPIRING).await.is_empty() {
            consumer.take(1, usize::MAX, &mut Vec::new()).unwrap();
        }
        let dead = by_number(browse(engine, DEAD).await);
        for n in &self.expired {
            match dead.get(n).map(Vec::as_slice) {
                Some([one]) if reason(one) == Some("expired") => {}
                found => {
                    return Err(format!("{n} expired and is not once in its dead letter queue: {found:?}"));
                }
            }
        }
        // Dropping and storing is one act: there are never more than there may be, and never fewer; the newest.
        let left: Vec<u64> =
            browse(engine, DROPPING).await.iter().map(|seen| number(&seen.message)).collect();
        let newest: Vec<u64> = self.dropping.iter().rev().take(FULL).rev().copied().collect();
        let whole = self.dropping.len() < FULL || left.len() == FULL;
        let goes_on = newest.iter().filter(|n| **n >= left.first().copied().unwrap_or_default());
        if !whole || left.len() > FULL || !left.is_sorted() || !goes_on.clone().all(|n| left.contains(n)) {
            return Err(format!("{left:?} is left of {newest:?}"));
        }
        // No message is in both or in none.
        let (moving, moved) =
            (by_number(browse(engine, MOVING).await), by_number(browse(engine, MOVED).await));
        for n in &self.moving {
            let here = moving.get(n).map_or(0, Vec::len);
            let there = moved.get(n).map_or(&[][..], Vec::as_slice);
            if here + there.len() != 1 || there.iter().any(|one| reason(one) != Some("overflow")) {
                return Err(format!("{n} is {here} times here, and there {there:?}"));
            }
        }
        Ok(())
    }
}

fn reason(seen: &Browsed) -> Option<&str> {
    Some(&*seen.message.extras.as_ref()?.dead_letter.as_ref()?.reason)
}

async fn browse(engine: &Embedded, queue: TargetId) -> Vec<Browsed> {
    let (mut all, mut from) = (Vec::new(), Sequence(0));
    loop {
        let page = engine.browse(queue, View::All, from, 500, usize::MAX).await.unwrap();
        all.extend(page.messages);
        match page.next {
            Some(next) => from = next,
            None => return all,
        }
    }
}

fn by_number(seen: Vec<Browsed>) -> HashMap<u64, Vec<Browsed>> {
    let mut found: HashMap<u64, Vec<Browsed>> = HashMap::new();
    for seen in seen {
        found.entry(number(&seen.message)).or_default().push(seen);
    }
    found
}

#[test]
fn what_failed_rests_and_what_is_given_up_is_in_one_place_after_kill_9() {
    let kills = setting("STAFETT_KILLS", 6);
    let mut chance = Chance(setting("STAFETT_SEED", 1));
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut said = Said::default();
    for kill in 0..kills {
        let command = child_of("giving_up::crash::child", directory.path(), kill * 100_000 + 1);
        let lines = 1 + chance.below(600) as usize;
        assert!(run_until(command, lines, |line| said.note(line)), "the store did not open");
        let engine = Embedded::open(settings(directory.path(), Durability::Fsync)).unwrap();
        if let Err(what) = runtime.block_on(said.check(&engine)) {
            panic!("kill {kill}: {what}");
        }
        engine.close().unwrap();
        let Said { failed, expired, dropping, moving } = &said;
        let counts = [failed.len(), expired.len(), dropping.len(), moving.len()];
        println!("kill {} of {kills}: failed, expired, dropping, moving {counts:?}", kill + 1);
    }
    assert!(
        said.failed.len() as u64 > kills && said.expired.len() as u64 > kills,
        "hardly anything was done"
    );
    assert!(said.dropping.len() > 2 * FULL && said.moving.len() > 2 * FULL, "hardly anything was too much");
}
