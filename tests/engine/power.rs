//! The work of `crash` on a disk whose power fails: `tests/power/shim.c` lies below the child, keeps apart what was synced
//! and what was only written, and loses of the latter what chance says. Its head says how.
//!
//! `STAFETT_CUTS` and `STAFETT_SEED` make it longer or repeat a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use stafett::engine::Durability;
use tempfile::TempDir;

use crate::crash::{Chance, History, setting};

/// No child lives for so many calls.
const NEVER: usize = usize::MAX;

/// The shim, built by the C compiler of the machine.
fn shim() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("power-{}.so", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/power/shim.c");
        let built = Command::new("cc")
            .args(["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .args(["-ldl", "-lpthread"])
            .status();
        assert!(built.expect("a C compiler, cc").success(), "the shim was not built");
        library
    })
}

/// What the shim says at its end.
#[derive(Debug, Default)]
struct Report {
    calls: u64,
    syncs: u64,
    lost_writes: u64,
    lost_names: u64,
}

impl Report {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("the shim saw the end");
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse().unwrap()
        };
        Self {
            calls: of("calls "),
            syncs: of("syncs "),
            lost_writes: of("lost_writes "),
            lost_names: of("lost_names "),
        }
    }

    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.syncs += other.syncs;
        self.lost_writes += other.lost_writes;
        self.lost_names += other.lost_names;
    }
}

/// A store on such a disk.
struct Machine {
    directory: TempDir,
    history: History,
    durability: Durability,
    seen: Report,
}

impl Machine {
    fn new(durability: Durability) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("data")).unwrap();
        Self { directory, history: History::default(), durability, seen: Report::default() }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Runs the child until its end, and puts what the disk has left in the place of the store.
    fn run(&mut self, seed: u64, how: &[(&str, u64)]) -> Report {
        let image = self.directory.path().join("image");
        let mut environment = vec![
            ("LD_PRELOAD", shim().to_str().unwrap().to_owned()),
            ("SHIM_DIR", self.data().to_str().unwrap().to_owned()),
            ("SHIM_IMAGE", image.to_str().unwrap().to_owned()),
            ("SHIM_SEED", seed.to_string()),
        ];
        environment.extend(how.iter().map(|(name, value)| (*name, value.to_string())));
        self.history.run(&self.data(), self.durability, NEVER, &environment);
        let report = Report::read(&image.join("report"));
        fs::remove_dir_all(self.data()).unwrap();
        fs::rename(image.join("tree"), self.data()).unwrap();
        fs::remove_dir_all(image).unwrap();
        self.seen.add(&report);
        report
    }

    fn check(&self) -> Result<(), String> {
        self.history.check(&self.data(), self.durability)
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_comes_back_after_a_power_cut() {
    let cuts = setting("STAFETT_CUTS", 8);
    let first = setting("STAFETT_SEED", 1);
    let mut chance = Chance(first);
    let mut machine = Machine::new(Durability::Fsync);
    for cut in 0..cuts {
        // Some come while the store is opened.
        let at = 1 + if cut % 4 == 3 { chance.below(40) } else { chance.below(1500) };
        let report = machine.run(first + cut, &[("SHIM_CUT", at)]);
        if let Err(what) = machine.check() {
            let kept = machine.directory.keep();
            panic!("cut {cut} of seed {first}, at call {at}: {what}; the store is in {}", kept.display());
        }
        println!(
            "cut {} of {cuts} at call {at}: {} syncs, {} writes and {} names lost, {} stored, {} settled, none lost",
            cut + 1,
            report.syncs,
            report.lost_writes,
            report.lost_names,
            machine.history.stored.len(),
            machine.history.settled.len(),
        );
    }
    assert!(
        machine.seen.syncs > cuts && machine.seen.lost_writes > 0,
        "the shim saw nothing: {:?}",
        machine.seen
    );
    assert!(machine.history.stored.len() as u64 > cuts, "hardly anything was stored between the cuts");
    assert!(cuts < 2 || machine.history.alone > 0, "no caller committed by itself");
}

#[test]
fn a_store_that_acknowledges_before_its_sync_is_caught() {
    let mut chance = Chance(7);
    for round in 0..20 {
        let mut machine = Machine::new(Durability::Memory);
        machine.run(round, &[("SHIM_CUT", 200 + chance.below(400))]);
        if machine.check().is_err() {
            return;
        }
    }
    panic!("what policy memory loses was not seen");
}

#[test]
fn a_write_or_sync_that_fails_ends_the_acknowledgements() {
    const EIO: u64 = 5;
    const ENOSPC: u64 = 28;
    let mut chance = Chance(setting("STAFETT_SEED", 1));
    let mut machine = Machine::new(Durability::Fsync);
    for round in 0..setting("STAFETT_CUTS", 8) {
        let (at, errno) = (60 + chance.below(600), if round % 2 == 0 { EIO } else { ENOSPC });
        machine.run(round, &[("SHIM_FAIL_AT", at), ("SHIM_ERRNO", errno)]);
        if let Err(what) = machine.check() {
            let kept = machine.directory.keep();
            panic!("round {round}, errno {errno} at call {at}: {what}; the store is in {}", kept.display());
        }
    }
    assert!(machine.history.stored.len() > 8, "hardly anything was stored");
}
