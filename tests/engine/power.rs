//! The work of `crash` on a disk whose power fails: `tests/power/shim.c` lies below the child, keeps apart what was synced
//! and what was only written, and loses of the latter what chance says. Its head says how.
//!
//! `STAFETT_CUTS` and `STAFETT_SEED` make it longer or repeat a run.

use std::path::Path;

use bytes::Bytes;
use stafett::engine::embedded::Embedded;
use stafett::engine::{Append, Definition, Durability, Engine, Op, View};
use stafett::types::{Message, MessageIds, TargetId};

use crate::below::{Chance, Disk, Fault, Report, setting};
use crate::bench::{publish, settings, spec};
use crate::crash::{History, all_of, child_has, child_of, message, number, run_until, say};

/// No child lives for so many calls.
const NEVER: usize = usize::MAX;

/// A store on such a disk.
struct Machine {
    disk: Disk,
    history: History,
    durability: Durability,
}

impl Machine {
    fn new(durability: Durability, seed: u64) -> Self {
        Self { disk: Disk::new(seed), history: History::default(), durability }
    }

    /// Runs the child until its end, and puts what the disk has left in the place of the store.
    fn run(&mut self, seed: u64, order: &str) -> Report {
        self.run_telling(seed, order).1
    }

    /// The same, and whether the store was open.
    fn run_telling(&mut self, seed: u64, order: &str) -> (bool, Report) {
        self.disk.order(order);
        let environment = self.disk.environment(seed);
        let ready = self.history.run(&self.disk.data(), self.durability, NEVER, &environment);
        (ready, self.disk.restart())
    }

    fn check(&self) -> Result<(), Fault> {
        self.history.check(self.disk.copy().path(), self.durability)
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_comes_back_after_a_power_cut() {
    let cuts = setting("STAFETT_CUTS", 8);
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    let mut machine = Machine::new(Durability::Fsync, first);
    for cut in 0..cuts {
        // Some come while the store is opened.
        let at = 1 + if cut % 4 == 3 { chance.below(40) } else { chance.below(1500) };
        let report = machine.run(first + cut, &format!("cut any {at}"));
        if let Err(what) = machine.check() {
            panic!("cut {cut}, at call {at}: {what}");
        }
        println!(
            "cut {} of {cuts} at call {at}: {} syncs, {} writes and {} names lost, {} stored, {} settled, none lost",
            cut + 1,
            report.of("syncs"),
            report.of("lost_writes"),
            report.of("lost_names"),
            machine.history.said.stored.len(),
            machine.history.said.settled.len(),
        );
    }
    assert!(
        machine.disk.seen.of("syncs") > cuts && machine.disk.seen.of("unsynced") > 0,
        "the disk saw nothing: {:?}",
        machine.disk.seen
    );
    assert!(machine.history.said.stored.len() as u64 > cuts, "hardly anything was stored between the cuts");
    assert!(cuts < 2 || machine.history.alone > 0, "no caller committed by itself");
}

/// sled reuses what only the snapshot before the newest one needs: with that one it does not open the store any more.
#[test]
fn the_newest_snapshot_of_sled_outlives_a_power_cut() {
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    let mut machine = Machine::new(Durability::Fsync, first);
    let mut opened = 0;
    for round in 0..12 {
        let (ready, _) = machine.run_telling(first + round, &format!("cut any {}", 60 + chance.below(200)));
        opened += u32::from(ready);
        let store = std::fs::read_dir(machine.disk.data().join("store")).unwrap();
        let left: Vec<_> = store
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("snap."))
            .collect();
        assert!(
            !ready || left.len() <= 1 && !left.iter().any(|name| name.ends_with("generating")),
            "{left:?}"
        );
    }
    assert!(opened > 4, "the store was hardly ever open");
}

#[test]
fn a_data_directory_that_was_made_outlives_a_power_cut() {
    let first = setting("STAFETT_SEED", 1);
    for cut in 0..8 {
        let mut disk = Disk::new(first + cut);
        let mut child = child_of("crash::child", &disk.data().join("new/data"), 0);
        child.envs(disk.environment(first + cut));
        child.env(crate::crash::DURABILITY, Durability::Fsync.name());
        let mut stored = 0;
        run_until(child, usize::MAX, |line| {
            stored += u64::from(line.starts_with("E "));
            if stored == 1 {
                disk.order("cut any 1");
            }
        });
        disk.restart();
        assert!(stored > 0, "nothing was stored");
        assert!(disk.data().join("new/data/store/db").exists(), "cut {cut}: {stored} messages and no store");
    }
}

#[test]
fn a_store_that_acknowledges_before_its_sync_is_caught() {
    let mut chance = Chance(7);
    for round in 0..20 {
        let mut machine = Machine::new(Durability::Memory, 7);
        machine.run(round, &format!("cut any {}", 200 + chance.below(400)));
        match machine.check() {
            Ok(()) => {}
            Err(Fault::Promise(_)) => return,
            Err(Fault::Other(what)) => panic!("round {round}: {what}"),
        }
    }
    panic!("what policy memory loses was not seen");
}

#[test]
fn a_write_or_sync_that_fails_ends_the_acknowledgements() {
    const EIO: u64 = 5;
    const ENOSPC: u64 = 28;
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    let mut machine = Machine::new(Durability::Fsync, first);
    for round in 0..setting("STAFETT_CUTS", 8) {
        let (at, errno) = (60 + chance.below(600), if round % 2 == 0 { EIO } else { ENOSPC });
        machine.run(first + round, &format!("fail any {at} {errno} 0"));
        if let Err(what) = machine.check() {
            panic!("round {round}, errno {errno} at call {at}: {what}");
        }
    }
    assert!(machine.history.said.stored.len() > 8, "hardly anything was stored");
}

const DRAINED: TargetId = TargetId(1);
const KEPT: TargetId = TargetId(2);
/// So many large messages, of which each eighth is kept.
const LARGE: u64 = 1000;

fn large(ids: &MessageIds, n: u64) -> Message {
    let mut payload = format!("{n} ").into_bytes();
    payload.resize(100_000, b'.');
    Message { payload: Bytes::from(payload), ..message(ids, n) }
}

/// The child. Does nothing when the tests run it as a test.
#[test]
fn draining_child() {
    let Some((directory, _)) = child_has() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(drain(&directory));
}

/// Stores large messages of two queues in turn, empties one, and goes on with small ones.
async fn drain(directory: &Path) {
    let engine = Embedded::open(settings(directory, Durability::Fsync)).unwrap();
    let define = |id, name| Op::Define(id, Definition::Queue(spec(name)));
    engine.commit(vec![define(DRAINED, "drained"), define(KEPT, "kept")]).await.unwrap();
    let ids = MessageIds::new();
    for n in 0..LARGE {
        let to = if n % 8 == 0 { KEPT } else { DRAINED };
        engine.commit(vec![publish(large(&ids, n), [Append::to(to)])]).await.unwrap();
        if to == KEPT {
            say('E', [n]);
        }
    }
    println!("ready");
    engine.purge(DRAINED, View::Ready).unwrap().await.unwrap();
    for n in LARGE.. {
        engine.commit(vec![publish(message(&ids, n), [Append::to(KEPT)])]).await.unwrap();
        say('E', [n]);
    }
}

/// What is removed makes sled write what stays in its leaves again; where it was may be written over only when that is synced.
#[test]
fn what_stays_outlives_a_power_cut_while_much_is_removed() {
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    for cut in 0..setting("STAFETT_CUTS", 8) / 2 {
        let mut disk = Disk::new(first + cut);
        let mut child = child_of("power::draining_child", &disk.data(), 0);
        child.envs(disk.environment(first + cut));
        // sled says so of each segment that it has written.
        let at = match Disk::is_shim() {
            true => format!("range {}", 1 + chance.below(10)),
            false => format!("any {}", 1 + chance.below(2000)),
        };
        let mut promised = Vec::new();
        run_until(child, usize::MAX, |line| match line.split_once(' ') {
            Some(("E", n)) => promised.push(n.parse().unwrap()),
            _ if line.ends_with("ready") => disk.order(&format!("cut {at}")),
            _ => {}
        });
        let report = disk.restart();
        let copy = disk.copy();
        let engine = Embedded::open(settings(copy.path(), Durability::Fsync))
            .unwrap_or_else(|error| panic!("cut {cut} at {at}: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found: Vec<u64> =
            runtime.block_on(all_of(&engine, KEPT)).iter().map(|it| number(&it.message)).collect();
        let lost: Vec<u64> = promised.into_iter().filter(|n| !found.contains(n)).collect();
        assert!(lost.is_empty(), "cut {cut} at {at}: {lost:?} are lost");
        println!("cut {cut} at {at}: {} stay, {} writes lost", found.len(), report.of("lost_writes"));
    }
}
