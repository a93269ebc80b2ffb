//! Batches of a process that is killed, or whose power fails, in their midst: each is there whole or not at all.
//!
//! The child says what it does, a line each: `B n` is said before [`TOGETHER`] messages from n on are handed in together,
//! `E n` when they are stored. `tests/power/shim.c` lies below it and ends it at a call.
//!
//! `STAFETT_CUTS` and `STAFETT_SEED` make it longer or repeat a run.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use stafett::engine::embedded::{Embedded, check};
use stafett::engine::{Append, Definition, Durability, Engine, Op};
use stafett::types::{MessageIds, TargetId};

use crate::below::{Chance, Disk, setting};
use crate::bench::{settings, spec};
use crate::crash::{all_of, child_has, child_of, message, number, run_until, say};

const QUEUE: TargetId = TargetId(1);
/// Many packs, and more than is written before the file is synced in between: messages of 5 kB, which [`message`] gives every
/// [`SIZE`]th number.
const TOGETHER: u64 = 500;
const SIZE: u64 = 50;

/// The child. Does nothing when the tests run it as a test.
#[test]
fn child() {
    let Some((directory, _)) = child_has() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(work(&directory));
}

async fn work(directory: &Path) {
    let engine = Embedded::open(settings(directory, Durability::Fsync)).unwrap();
    engine.commit(vec![Op::Define(QUEUE, Definition::Queue(spec("q")))]).await.unwrap();
    println!("ready");
    let ids = MessageIds::new();
    for first in (0..).step_by(TOGETHER as usize) {
        say('B', [first]);
        let numbered = |n| (message(&ids, n * SIZE + 1), Append::to(QUEUE));
        engine.commit(vec![Op::AppendAll((first..first + TOGETHER).map(numbered).collect())]).await.unwrap();
        say('E', [first]);
    }
}

/// What a child was told to store, and was told that it is.
#[derive(Default)]
struct Said {
    begun: BTreeSet<u64>,
    stored: BTreeSet<u64>,
}

impl Said {
    /// Runs a child until the end that it is given, on a disk of its own. What it has said, and the disk.
    fn run(seed: u64, order: &str) -> (Self, Disk) {
        let mut disk = Disk::new(seed);
        disk.order(order);
        let mut command = child_of("whole::child", &disk.data(), 0);
        command.envs(disk.environment(seed));
        let mut said = Self::default();
        run_until(command, usize::MAX, |line| {
            let Some((what, Ok(n))) = line.split_once(' ').map(|(what, n)| (what, n.parse())) else { return };
            match what {
                "B" => drop(said.begun.insert(n)),
                "E" => drop(said.stored.insert(n)),
                _ => {}
            }
        });
        if order.starts_with("cut") {
            disk.restart();
        }
        (said, disk)
    }

    /// How many batches are there, and how many packs of one that was cut off were.
    async fn check(&self, directory: &Path) -> Result<(u64, u64), String> {
        let looked = check::check(directory, &mut |_| {}).map_err(|e| e.to_string())?;
        if !looked.is_sound() {
            return Err(format!("before it is opened the store is said to be damaged: {:?}", looked.damages));
        }
        let engine = Embedded::open(settings(directory, Durability::Fsync)).map_err(|e| e.to_string())?;
        let mut left: HashMap<u64, u64> = HashMap::new();
        if !engine.stored().queues.is_empty() {
            for browsed in all_of(&engine, QUEUE).await {
                let n = number(&browsed.message) / SIZE;
                *left.entry(n - n % TOGETHER).or_default() += 1;
            }
        }
        for first in &self.stored {
            if left.get(first) != Some(&TOGETHER) {
                return Err(format!(
                    "of the batch {first}, which was stored, {:?} are there",
                    left.get(first)
                ));
            }
        }
        for (first, count) in &left {
            if *count != TOGETHER || !self.begun.contains(first) {
                return Err(format!("of the batch {first} {count} are there"));
            }
        }
        Ok((left.len() as u64, looked.unfinished))
    }
}

#[test]
fn a_batch_is_there_whole_or_not_at_all() {
    let seed = setting("STAFETT_SEED", 1);
    let mut chance = Chance(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut begun, mut there, mut cut_off) = (0, 0, 0);
    let rounds = setting("STAFETT_CUTS", 16);
    for round in 0..rounds {
        let at = 30 + chance.below(90);
        let order = format!("{} any {at}", if round % 2 == 0 { "cut" } else { "kill" });
        let (said, disk) = Said::run(seed + round, &order);
        let found = runtime.block_on(said.check(disk.copy().path()));
        let (found, packs) = found.unwrap_or_else(|what| panic!("round {round}, {order}: {what}"));
        let (begun_now, stored) = (said.begun.len(), said.stored.len());
        println!("{order}: {begun_now} begun, {stored} stored, {found} there, {packs} packs of another");
        begun += begun_now as u64;
        there += found;
        cut_off += u64::from(packs > 0);
    }
    assert!(begun > rounds && there > 0, "{there} of {begun} batches were stored");
    assert!(cut_off > 0, "none of {rounds} cuts fell within a batch");
}
