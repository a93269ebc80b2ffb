//! What tests that cut the power share: a disk below a process ([`Disk`], made of `shim.c`, or of `witness.py` where
//! `STAFETT_WITNESS` is set), what was promised of numbered messages ([`Promises`]), and chance that a seed repeats.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::{fmt, fs};

use tempfile::TempDir;

/// A number of the environment, or what holds without it.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Numbers by chance that a seed repeats.
#[derive(Debug, Clone)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What was said of the messages of one target, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    /// Acknowledged to who sent them.
    pub(crate) stored: HashSet<u64>,
    /// Someone was about to settle them: they may be gone.
    pub(crate) tried: HashSet<u64>,
    /// Acknowledged to who settled them.
    pub(crate) settled: HashSet<u64>,
}

impl Promises {
    /// Compares with what is there, and how often.
    pub(crate) fn check(&self, left: &HashMap<u64, u32>) -> Result<(), String> {
        let lost: Vec<_> =
            self.stored.iter().filter(|n| !self.tried.contains(n) && !left.contains_key(n)).collect();
        let back: Vec<_> = self.settled.iter().filter(|n| left.contains_key(n)).collect();
        let twice: Vec<_> = left.iter().filter(|(_, count)| **count > 1).collect();
        if lost.is_empty() && back.is_empty() && twice.is_empty() {
            return Ok(());
        }
        Err(format!("stored and lost: {lost:?}; settled and back again: {back:?}; there twice: {twice:?}"))
    }
}

/// What a comparison found.
#[derive(Debug)]
pub(crate) enum Fault {
    /// What was promised does not hold.
    Promise(String),
    /// There was nothing to compare.
    Other(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Promise(what) | Self::Other(what)) = self;
        f.write_str(what)
    }
}

/// What the shim says at the end of its process: counts by their names.
#[derive(Debug, Default)]
pub(crate) struct Report(BTreeMap<String, u64>);

impl Report {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("the disk saw the end");
        let counts = text.lines().map(|line| line.split_once(' ').unwrap());
        Self(counts.map(|(name, count)| (name.to_owned(), count.parse().unwrap())).collect())
    }

    pub(crate) fn of(&self, name: &str) -> u64 {
        *self.0.get(name).unwrap_or(&0)
    }

    fn add(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            *self.0.entry(name.clone()).or_default() += count;
        }
    }
}

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

/// A disk below the data directory of a process. Its head in `shim.c` says what it does and how it is told. Where a test
/// fails, it stays, and says with which seed.
#[derive(Debug)]
pub(crate) struct Disk {
    directory: TempDir,
    seed: u64,
    /// Mounted at the data directory.
    witness: Option<Child>,
    /// The sum over all processes.
    pub(crate) seen: Report,
}

impl Disk {
    /// For a test of this seed.
    pub(crate) fn new(seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("data")).unwrap();
        Self { directory, seed, witness: None, seen: Report::default() }
    }

    /// The directory that lies on it.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn control(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    /// Where `witness.py` has what it shows.
    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// Whether calls are seen in the C library: the kernel tells of no sync_file_range, and lets no call fail.
    pub(crate) fn is_shim() -> bool {
        std::env::var_os("STAFETT_WITNESS").is_none()
    }

    /// Puts it below the process that is started next, with these variables.
    pub(crate) fn environment(&mut self, seed: u64) -> Vec<(&'static str, String)> {
        if !Self::is_shim() {
            self.mount(seed);
            return Vec::new();
        }
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        vec![
            ("LD_PRELOAD", text(shim())),
            ("SHIM_DIR", text(&self.data())),
            ("SHIM_IMAGE", text(&self.image())),
            ("SHIM_CONTROL", text(&self.control())),
            ("SHIM_SEED", seed.to_string()),
        ]
    }

    /// Tells it what to do from the next call on; see its head.
    pub(crate) fn order(&self, order: &str) {
        let new = self.directory.path().join("order");
        fs::write(&new, order).unwrap();
        fs::rename(new, self.control()).unwrap();
    }

    fn mount(&mut self, seed: u64) {
        fs::rename(self.data(), self.store()).unwrap();
        fs::create_dir(self.data()).unwrap();
        let mut child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/power/witness.py"))
            .args([self.data(), self.store(), self.image(), self.control()])
            .arg(seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("witness.py runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "witness.py has mounted nothing");
        self.witness = Some(child);
    }

    fn unmount(&mut self) {
        let Some(mut child) = self.witness.take() else { return };
        let unmounted = Command::new("umount").arg(self.data()).status().expect("umount runs");
        if !unmounted.success() {
            child.kill().unwrap();
        }
        let ended = child.wait().unwrap();
        assert!(unmounted.success() && ended.success(), "umount: {unmounted}, witness.py: {ended}");
        fs::remove_dir_all(self.store()).unwrap();
    }

    /// Puts what the disk has left in the place of what the process saw, now that it is gone.
    pub(crate) fn restart(&mut self) -> Report {
        self.unmount();
        let report = Report::read(&self.image().join("report"));
        assert!(report.of("calls") > 0, "the disk saw nothing: {report:?}");
        fs::remove_dir_all(self.data()).unwrap();
        fs::rename(self.image().join("tree"), self.data()).unwrap();
        fs::remove_dir_all(self.image()).unwrap();
        drop(fs::remove_file(self.control()));
        self.seen.add(&report);
        report
    }

    /// What is on it, elsewhere: who opens that leaves this as the power cut has left it.
    pub(crate) fn copy(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_below(&self.data(), copy.path());
        copy
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(mut child) = self.witness.take() {
            drop(Command::new("umount").arg("--lazy").arg(self.data()).status());
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            eprintln!("STAFETT_SEED={}; the store is in {}", self.seed, self.directory.path().display());
        }
    }
}

fn copy_below(from: &Path, to: &Path) {
    for found in fs::read_dir(from).unwrap() {
        let (from, to) = (found.as_ref().unwrap().path(), to.join(found.unwrap().file_name()));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            copy_below(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}
