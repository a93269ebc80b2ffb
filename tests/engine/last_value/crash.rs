//! Kills a process that stores messages of a few values, again and again on the same data, and looks which are left.
//!
//! The child says what it did, a line each: `E n` message n, of the value n % [`VALUES`], is stored; `T n` it is about to settle
//! n; `S n` n is settled.
//!
//! `STAFETT_KILLS` and `STAFETT_SEED` make it longer or repeat a run.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stafett::engine::embedded::Embedded;
use stafett::engine::{Append, ConsumerOptions, Definition, Durability, Engine, LeaseRef, Op};
use stafett::types::{Message, MessageIds, TargetId};

use super::{keeping, of};
use crate::below::{Chance, setting};
use crate::bench::{publish, settings};
use crate::crash::{all_of, child_has, child_of, message, number, run_until, say};

const QUEUE: TargetId = TargetId(1);
const VALUES: u64 = 20;

/// The child. Does nothing when the tests run it as a test.
#[test]
fn child() {
    let Some((directory, first)) = child_has() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work(&directory, first));
}

fn valued(ids: &MessageIds, n: u64) -> Message {
    of(message(ids, n), &(n % VALUES).to_string())
}

async fn work(directory: &Path, first: u64) {
    let engine = Arc::new(Embedded::open(settings(directory, Durability::Fsync)).unwrap());
    if engine.stored().queues.is_empty() {
        engine.commit(vec![Op::Define(QUEUE, Definition::Queue(keeping("q")))]).await.unwrap();
    }
    println!("ready");
    let (next, ids) = (Arc::new(AtomicU64::new(first)), Arc::new(MessageIds::new()));
    let mut tasks = tokio::task::JoinSet::new();
    // One who stores: the newest of a value is the one with the highest number.
    let (storing, numbers) = (engine.clone(), next.clone());
    tasks.spawn(async move {
        for round in 0_u64.. {
            let from = numbers.fetch_add(30, Ordering::Relaxed);
            let items = (from..from + 30).map(|n| (valued(&ids, n), Append::to(QUEUE)));
            let ops = match round % 2 {
                0 => vec![Op::AppendAll(items.collect())],
                _ => items.map(|(message, append)| publish(message, [append])).collect(),
            };
            storing.commit(ops).await.unwrap();
            say('E', from..from + 30);
        }
    });
    tasks.spawn(async move {
        let consumer = engine.consumer(QUEUE, ConsumerOptions::default()).unwrap();
        loop {
            let mut leased = Vec::new();
            consumer.take(7, usize::MAX, &mut leased).unwrap();
            if leased.is_empty() {
                consumer.ready().heard().await;
                continue;
            }
            // Some are held until they have been replaced.
            leased.retain(|leased| !number(&leased.message).is_multiple_of(3));
            let numbers: Vec<_> = leased.iter().map(|leased| number(&leased.message)).collect();
            say('T', numbers.iter().copied());
            let leases: Vec<_> = leased.iter().map(|leased| LeaseRef::of(leased.sequence)).collect();
            engine.settle(QUEUE, &leases).unwrap().durable.await.unwrap();
            say('S', numbers);
        }
    });
    tasks.join_next().await.unwrap().unwrap();
}

#[derive(Default)]
struct Said {
    stored: BTreeSet<u64>,
    tried: HashSet<u64>,
}

impl Said {
    fn note(&mut self, line: &str) {
        let Some((what, Ok(n))) = line.split_once(' ').map(|(what, n)| (what, n.parse())) else { return };
        match what {
            "E" => drop(self.stored.insert(n)),
            "T" | "S" => drop(self.tried.insert(n)),
            _ => {}
        }
    }

    /// Of each value the newest is there, unless somebody was about to settle it; or one that nobody was told of.
    fn check(&self, left: &[u64]) -> Result<(), String> {
        for value in 0..VALUES {
            let newest = self.stored.iter().rev().find(|&n| n % VALUES == value).copied();
            let there: Vec<u64> = left.iter().filter(|&n| n % VALUES == value).copied().collect();
            let right = match (newest, &there[..]) {
                (None, found) => found.len() <= 1,
                (Some(newest), []) => self.tried.iter().any(|n| n % VALUES == value && *n >= newest),
                (Some(newest), [one]) => *one >= newest,
                _ => false,
            };
            if !right {
                return Err(format!("of the value {value} {there:?} are there, {newest:?} was the newest"));
            }
        }
        Ok(())
    }
}

#[test]
fn of_each_value_the_newest_is_there_after_kill_9() {
    let kills = setting("STAFETT_KILLS", 6);
    let mut chance = Chance(setting("STAFETT_SEED", 1));
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut said = Said::default();
    for kill in 0..kills {
        let command = child_of("last_value::crash::child", directory.path(), kill * 100_000 + 1);
        let lines = 1 + chance.below(2000) as usize;
        assert!(run_until(command, lines, |line| said.note(line)), "the store did not open");
        let engine = Embedded::open(settings(directory.path(), Durability::Fsync)).unwrap();
        let left: Vec<u64> =
            runtime.block_on(all_of(&engine, QUEUE)).iter().map(|seen| number(&seen.message)).collect();
        if let Err(what) = said.check(&left) {
            panic!("kill {kill}: {what}");
        }
        engine.close().unwrap();
        println!("kill {} of {kills}: {} stored, {} left", kill + 1, said.stored.len(), left.len());
    }
    assert!(said.stored.len() as u64 > kills * VALUES && !said.tried.is_empty(), "hardly anything was done");
}
