//! Kills a process that appends to streams and commits cursors, and cuts its power, again and again on the same data, and
//! looks what is there.
//!
//! The child says what it was promised, a line each: `P s n` message n has place s in a stream that keeps everything, `B s n`
//! the same in one that keeps few, `C s` the cursor is at s.
//!
//! `STAFETT_KILLS`, `STAFETT_CUTS` and `STAFETT_SEED` make it longer or repeat a run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stafett::engine::embedded::Embedded;
use stafett::engine::{
    Append, Cursor, Definition, Durability, Engine, Op, Outcome, StreamAppend, StreamSpec,
};
use stafett::types::clock::unix_now;
use stafett::types::{CursorName, MessageIds, Sequence, TargetId};

use super::{kept, messages};
use crate::below::{Chance, Disk, setting};
use crate::bench::{publish, settings, within};
use crate::crash::{child_has, child_of, message, number, run_until};

const WHOLE: TargetId = TargetId(1);
const FEW: TargetId = TargetId(2);
const KEPT: u64 = 50;
const DURABILITY: &str = "STAFETT_STREAMS_DURABILITY";

/// The child. Does nothing when the tests run it as a test.
#[test]
fn child() {
    let Some((directory, first)) = child_has() else { return };
    let durability = std::env::var(DURABILITY).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work(&directory, first, durability));
}

fn tell(line: String) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

async fn work(directory: &Path, first: u64, durability: Durability) {
    let engine = Arc::new(Embedded::open(settings(directory, durability)).unwrap());
    if engine.stored().streams.is_empty() {
        let few = StreamSpec { max_messages: KEPT, ..kept("few") };
        let define = |id, spec| Op::Define(id, Definition::Stream(spec));
        engine.commit(vec![define(WHOLE, kept("whole")), define(FEW, few)]).await.unwrap();
    }
    println!("ready");
    let (next, ids) = (Arc::new(AtomicU64::new(first)), Arc::new(MessageIds::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..3_u64 {
        let (engine, next, ids) = (engine.clone(), next.clone(), ids.clone());
        tasks.spawn(async move {
            for round in 0_u64.. {
                let count = 1 + (round + writer) % 7;
                let from = next.fetch_add(count, Ordering::Relaxed);
                let outcomes = if writer == 0 {
                    let messages = (from..from + count).map(|n| message(&ids, n)).collect();
                    let append = StreamAppend { target: WHOLE, messages, expected: None };
                    engine.commit(vec![Op::AppendStream(append)]).await.unwrap()
                } else {
                    let to = [Append::to(WHOLE), Append::to(FEW)];
                    let ops = (from..from + count).map(|n| publish(message(&ids, n), to)).collect();
                    engine.commit(ops).await.unwrap()
                };
                let mut lines = String::new();
                let mut numbers = from..;
                for outcome in outcomes {
                    let Outcome::Published(sequences) = outcome else { panic!("{outcome:?}") };
                    let place = |at: usize| sequences[at].unwrap().0;
                    if writer == 0 {
                        for (at, n) in (0..sequences.len()).zip(&mut numbers) {
                            lines += &format!("P {} {n}\n", place(at));
                        }
                    } else {
                        let n = numbers.next().unwrap();
                        lines += &format!("P {} {n}\nB {} {n}\n", place(0), place(1));
                    }
                }
                tell(lines);
            }
        });
    }
    tasks.spawn(async move {
        let name = CursorName::parse("reader").unwrap();
        loop {
            let sequence = Sequence(engine.stream_stats(WHOLE).unwrap().ends.next.0 - 1);
            let cursor = Cursor { sequence, committed_at: unix_now() };
            engine.commit(vec![Op::SetCursor(WHOLE, name.clone(), Some(cursor))]).await.unwrap();
            tell(format!("C {}\n", sequence.0));
        }
    });
    tasks.join_next().await.unwrap().unwrap();
}

/// What the children were promised, and what was seen afterwards.
#[derive(Default)]
struct Said {
    whole: BTreeMap<u64, u64>,
    few: BTreeMap<u64, u64>,
    cursor: u64,
    seen: BTreeMap<u64, u64>,
}

impl Said {
    fn note(&mut self, line: &str) {
        let mut words = line.split(' ');
        let what = words.next();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        match (what, number(), number()) {
            (Some("P"), Some(place), Some(n)) => {
                assert_eq!(self.whole.insert(place, n), None, "{place} twice")
            }
            (Some("B"), Some(place), Some(n)) => assert_eq!(self.few.insert(place, n), None, "{place} twice"),
            (Some("C"), Some(place), None) => self.cursor = place,
            _ => {}
        }
    }

    async fn check(&mut self, directory: &Path) -> Result<(), String> {
        let engine = Embedded::open(settings(directory, Durability::Fsync)).map_err(|e| e.to_string())?;
        let mut streams = engine.stored().streams;
        if streams.is_empty() {
            let nothing = self.whole.is_empty() && self.cursor == 0;
            return if nothing { Ok(()) } else { Err("the streams are lost".to_owned()) };
        }
        let whole = read(&engine, WHOLE).await;
        for (place, n) in self.whole.iter().chain(&self.seen) {
            if whole.get(place) != Some(n) {
                return Err(format!("{n} was at {place}, where {:?} is", whole.get(place)));
            }
        }
        if !whole.keys().copied().eq(1..=whole.len() as u64) {
            return Err("the places of the stream have a gap".to_owned());
        }
        let few = read(&engine, FEW).await;
        let next = engine.stream_stats(FEW).unwrap().ends.next.0;
        if few.len() as u64 > KEPT || next > KEPT && (few.len() as u64) < KEPT {
            return Err(format!("{} are kept of {KEPT}", few.len()));
        }
        for (place, n) in self.few.range(next.saturating_sub(KEPT)..) {
            if few.get(place) != Some(n) {
                return Err(format!("{n} was at {place}, where {:?} is; {next} is next", few.get(place)));
            }
        }
        let cursors = &streams.iter_mut().find(|stream| stream.id == WHOLE).unwrap().cursors;
        let cursor = cursors.first().map_or(0, |(_, cursor)| cursor.sequence.0);
        if cursor < self.cursor || cursor > whole.len() as u64 {
            return Err(format!("the cursor is at {cursor}, and was at {}", self.cursor));
        }
        self.seen = whole;
        engine.close().map_err(|e| e.to_string())
    }
}

async fn read(engine: &Embedded, stream: TargetId) -> BTreeMap<u64, u64> {
    let reader = engine.stream_reader(stream, None).unwrap();
    let ends = engine.stream_stats(stream).unwrap().ends;
    let (mut at, mut read) = (ends.first, BTreeMap::new());
    while at < ends.next {
        let page = reader.read(at, 500, 1 << 20).unwrap();
        if page.found.is_empty() {
            within("what is stored", reader.ready().heard()).await;
        }
        for logged in messages(page) {
            assert!(logged.sequence >= at, "{at:?} is passed by {:?}", logged.sequence);
            read.insert(logged.sequence.0, number(&logged.message));
            at = Sequence(logged.sequence.0 + 1);
        }
    }
    read
}

fn command(directory: &Path, round: u64, durability: Durability) -> std::process::Command {
    let mut command = child_of("streams::crash::child", directory, round * 100_000 + 1);
    command.env(DURABILITY, durability.name());
    command
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn what_was_appended_keeps_its_place_after_kill_9() {
    let kills = setting("STAFETT_KILLS", 6);
    let mut chance = Chance(setting("STAFETT_SEED", 1));
    let directory = tempfile::tempdir().unwrap();
    let mut said = Said::default();
    for kill in 0..kills {
        let lines = 1 + chance.below(3000) as usize;
        let command = command(directory.path(), kill, Durability::Fsync);
        assert!(run_until(command, lines, |line| said.note(line)), "the store did not open");
        if let Err(what) = runtime().block_on(said.check(directory.path())) {
            panic!("kill {kill}: {what}");
        }
        println!("kill {} of {kills}: {} appended, cursor {}", kill + 1, said.whole.len(), said.cursor);
    }
    assert!(said.few.len() as u64 > 2 * KEPT && said.cursor > 0, "hardly anything was done");
}

/// Runs the child on a disk whose power is cut at a call.
fn cut(disk: &mut Disk, said: &mut Said, round: u64, at: u64, durability: Durability) -> Result<(), String> {
    disk.order(&format!("cut any {at}"));
    let mut command = command(&disk.data(), round, durability);
    command.envs(disk.environment(round + 1));
    run_until(command, usize::MAX, |line| said.note(line));
    disk.restart();
    runtime().block_on(said.check(disk.copy().path()))
}

#[test]
fn what_was_appended_keeps_its_place_after_a_power_cut() {
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    let (mut disk, mut said) = (Disk::new(first), Said::default());
    let cuts = setting("STAFETT_CUTS", 6);
    for round in 0..cuts {
        let at = 1 + if round % 4 == 3 { chance.below(40) } else { chance.below(1500) };
        if let Err(what) = cut(&mut disk, &mut said, round, at, Durability::Fsync) {
            panic!("cut {round}, at call {at}: {what}");
        }
    }
    assert!(disk.seen.of("syncs") > cuts && disk.seen.of("unsynced") > 0, "the disk saw nothing");
    assert!(said.whole.len() as u64 > cuts && said.cursor > 0, "hardly anything was stored");
}

#[test]
fn a_stream_that_acknowledges_before_its_sync_is_caught() {
    let mut chance = Chance(7);
    for round in 0..20 {
        let (mut disk, mut said) = (Disk::new(7), Said::default());
        let at = 200 + chance.below(400);
        if cut(&mut disk, &mut said, round, at, Durability::Memory).is_err() {
            return;
        }
    }
    panic!("what policy memory loses was not seen");
}
