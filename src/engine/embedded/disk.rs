//! The data directory: its lock, sled's trees, how a commit is made durable, the ballast and the free space.
//!
//! ```text
//! <data-dir>/lock      held while a process has the store
//! <data-dir>/store/    sled; beside it another one that is being made, see `fresh`
//! <data-dir>/journal   the newest small commits, see `journal`
//! <data-dir>/state     how far the store has come, see `marker`
//! <data-dir>/ballast   given up when the disk is full, so that settlements still find room
//! ```
//! Durable in sled is `flush()` (sled's log buffer reaches the file) and then fdatasync on a handle of our own: flush
//! alone ends in sync_file_range, which neither covers metadata nor the disk's cache.

use std::fs::{File, FileTimes};
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use sled::IVec;

use super::format::{FORMAT, OLDEST_FORMAT};
use super::fresh;
use super::log;
use super::marker::Marker;
use crate::engine::OpenError;
use crate::types::clock::now;

/// sled holds a segment for stable that may not have reached the disk; with large segments and a sync at least
/// every [`SYNC_BYTES`] none is freed before its replacement is there.
const SEGMENT_BYTES: usize = 8 << 20;
/// The most logical bytes between two syncs, under every policy.
pub(super) const SYNC_BYTES: u64 = 2 << 20;
/// For one row sled may write two leaves of 16 rows each again: with so many it does not fill a segment.
const LOOK_ROWS: u32 = 8;
/// What the file's time is set back by.
const BACK: Duration = Duration::from_secs(2);

/// Where sled's files are in the data directory.
pub(super) const STORE: &str = "store";
/// How long to wait for another process to let go of the store.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// The name of the ballast.
const BALLAST: &str = "ballast";

/// The trees of the store.
#[derive(Debug, Clone)]
pub(super) struct Trees {
    pub(super) meta: sled::Tree,
    pub(super) obj: sled::Tree,
    pub(super) sub: sled::Tree,
    pub(super) seq: sled::Tree,
    pub(super) head: sled::Tree,
    pub(super) body: sled::Tree,
    pub(super) part: sled::Tree,
    pub(super) done: sled::Tree,
    pub(super) dedup: sled::Tree,
}

/// One of them, with the number that it has in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tree {
    Meta = 0,
    Obj = 1,
    Sub = 2,
    Seq = 3,
    Head = 4,
    Body = 5,
    Part = 6,
    Done = 7,
    Dedup = 8,
}

impl Tree {
    pub(super) fn of(number: u8) -> Option<Self> {
        use Tree::{Body, Dedup, Done, Head, Meta, Obj, Part, Seq, Sub};
        [Meta, Obj, Sub, Seq, Head, Body, Part, Done, Dedup].into_iter().find(|tree| *tree as u8 == number)
    }
}

impl Trees {
    pub(super) fn get(&self, tree: Tree) -> &sled::Tree {
        match tree {
            Tree::Meta => &self.meta,
            Tree::Obj => &self.obj,
            Tree::Sub => &self.sub,
            Tree::Seq => &self.seq,
            Tree::Head => &self.head,
            Tree::Body => &self.body,
            Tree::Part => &self.part,
            Tree::Done => &self.done,
            Tree::Dedup => &self.dedup,
        }
    }
}

/// An open store.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) trees: Trees,
    pub(super) path: PathBuf,
    /// Where sled's files are.
    dir: PathBuf,
    db: sled::Db,
    file: File,
    /// The time of `file` while sled has written nothing to it since the last sync.
    synced_at: Mutex<Option<SystemTime>>,
    /// Rows that sled was given.
    rows: AtomicU32,
    ballast_bytes: u64,
    /// A write or sync failed: none follows, nor the sync that sled does when it is dropped.
    failed: AtomicBool,
    lock: Arc<File>,
}

pub(super) fn unusable(path: &Path, what: impl ToString) -> OpenError {
    OpenError::Unusable { path: path.to_owned(), what: what.to_string() }
}

pub(super) fn damaged(path: &Path, what: impl ToString) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), what: what.to_string() }
}

/// What went wrong in sled. Of an error of the system it keeps nothing but how it looks to a debugger: it is made again from
/// the code that stands there.
pub(super) fn io_error(error: sled::Error) -> io::Error {
    let sled::Error::Io(error) = error else { return io::Error::other(error) };
    let text = error.to_string();
    let code = text.split_once("Os { code: ").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
    code.map_or(error, io::Error::from_raw_os_error)
}

/// What a caught panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "the storage library gave up".to_owned())
}

impl Disk {
    /// Opens or makes the store in `path`. Waits a little for a process that is about to let go of it: one that was
    /// killed is gone only when the system has closed its files.
    pub(super) fn open(path: &Path, cache_bytes: u64, ballast_bytes: u64) -> Result<Self, OpenError> {
        patiently(|| Self::open_once(path, cache_bytes, ballast_bytes))
    }

    fn open_once(path: &Path, cache_bytes: u64, ballast_bytes: u64) -> Result<Self, OpenError> {
        make_directory(path)?;
        let lock = lock(path)?;
        fresh::settle(path).map_err(|e| unusable(path, e))?;
        let fresh = !path.join(STORE).join("db").exists();
        let mut disk = Self::open_locked(path, &path.join(STORE), cache_bytes, lock)?;
        disk.ballast_bytes = ballast_bytes;
        let current = has_current_format(path, &disk.trees, fresh)?;
        match log::replay(&disk, path) {
            Ok(0) => {}
            Ok(commits) => tracing::info!(commits, "the journal had what the store's file had not"),
            Err(what) => return Err(damaged(path, what)),
        }
        if let Some(what) = Marker::missing(path, &disk.trees) {
            return Err(damaged(path, what));
        }
        if !current {
            disk.trees.meta.insert("format", &FORMAT.to_be_bytes()).map_err(|e| damaged(path, e))?;
        }
        disk.sync().map_err(|e| unusable(path, e))?;
        if fresh {
            disk.sync_beside().map_err(|e| unusable(path, e))?;
        }
        Ok(disk)
    }

    /// sled syncs its data, not what stands beside them.
    pub(super) fn sync_beside(&self) -> io::Result<()> {
        [&self.dir.join("conf"), &self.dir, &self.path]
            .into_iter()
            .try_for_each(|made| File::open(made)?.sync_all())
    }

    /// Opens or makes sled's files in `dir`, which stands in the data directory `path` beside those that are served.
    pub(super) fn open_beside(
        path: &Path,
        dir: &Path,
        cache_bytes: u64,
        lock: &Arc<File>,
    ) -> Result<Self, OpenError> {
        patiently(|| Self::open_locked(path, dir, cache_bytes, lock.clone()))
    }

    /// Holds the data directory while it lives.
    pub(super) fn lock(&self) -> &Arc<File> {
        &self.lock
    }

    /// All trees by their names, in that order.
    pub(super) fn all_trees(&self) -> sled::Result<Vec<(IVec, sled::Tree)>> {
        let mut names = self.db.tree_names();
        names.retain(|name| **name != *self.db.name());
        names.sort_unstable();
        names.into_iter().map(|name| Ok((name.clone(), self.db.open_tree(name)?))).collect()
    }

    /// Opens a store that is there, whatever its format, and writes nothing of its own.
    pub(super) fn open_existing(path: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        let is_directory = std::fs::metadata(path).map_err(|e| unusable(path, e))?.is_dir();
        if !is_directory {
            return Err(unusable(path, "it is a file, not a directory"));
        }
        if !path.join(STORE).join("db").is_file() && !path.join(fresh::OLD).is_dir() {
            return Err(unusable(path, "there is no store in it"));
        }
        let lock = lock(path)?;
        fresh::settle(path).map_err(|e| unusable(path, e))?;
        Self::open_locked(path, &path.join(STORE), cache_bytes, lock)
    }

    /// Opens a copy, in `scratch`, of a store that sled does not open: without sled's snapshots it reads its log from
    /// the beginning and takes what stands before the damage.
    pub(super) fn open_copy(path: &Path, scratch: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        let lock = lock(path)?;
        let (from, to) = (path.join(STORE), scratch.join(STORE));
        std::fs::create_dir_all(&to).map_err(|e| unusable(scratch, e))?;
        for file in ["conf", "db"] {
            std::fs::copy(from.join(file), to.join(file)).map_err(|e| unusable(scratch, e))?;
        }
        Self::open_locked(scratch, &to, cache_bytes, lock)
    }

    fn open_locked(path: &Path, dir: &Path, cache_bytes: u64, lock: Arc<File>) -> Result<Self, OpenError> {
        clear_leftovers(dir).map_err(|e| unusable(path, e))?;
        let config = sled::Config::new()
            .path(dir)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(cache_bytes)
            .flush_every_ms(None);
        // A process that was killed has left what it did not sync to the system. Of what that replaces sled writes over
        // the old.
        match File::open(dir.join("db")).and_then(|file| file.sync_all()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unusable(path, e)),
            _ => {}
        }
        // sled panics on some damage instead of saying so.
        let db = catch_unwind(AssertUnwindSafe(|| config.open()))
            .map_err(|panic| damaged(path, panic_text(&*panic)))?
            .map_err(|error| match error {
                sled::Error::Io(e) if e.kind() != io::ErrorKind::Other => unusable(path, io_error(e.into())),
                sled::Error::Io(e) if e.to_string().contains("lock") => OpenError::Locked(path.to_owned()),
                other => damaged(path, other),
            })?;
        // At its end sled would write and sync, and panic if that fails as well: see the end of `Disk`.
        let (trees, file) = begin(path, dir, &db).inspect_err(|_| std::mem::forget(db.clone()))?;
        let failed = AtomicBool::new(false);
        let (path, dir) = (path.to_owned(), dir.to_owned());
        let (synced_at, rows) = (Mutex::default(), AtomicU32::new(0));
        Ok(Self { trees, path, dir, db, file, synced_at, rows, ballast_bytes: 0, failed, lock })
    }

    /// Makes what was inserted durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        let mut synced_at = self.synced_at.lock();
        self.flush()?;
        self.file.sync_data().inspect_err(|_| self.give_up())?;
        let found = self.file.metadata().and_then(|it| it.modified()).ok();
        if found != *synced_at {
            // Whatever is written from now on, and however coarse times are, it is another one then.
            let back = found.and_then(|found| found.checked_sub(BACK));
            back.map(|back| self.file.set_times(FileTimes::new().set_modified(back)));
            *synced_at = self.file.metadata().and_then(|it| it.modified()).ok();
        }
        Ok(())
    }

    /// Sled was given a row. What it writes for one, of those beside it too, is much more than the row where rows are removed
    /// or segments are cleaned: what it has written by itself, a segment at a time, is synced before it fills the next one.
    pub(super) fn gave(&self) -> io::Result<()> {
        if !self.rows.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_ROWS) {
            return Ok(());
        }
        let found = self.file.metadata()?.modified().ok();
        if found == *self.synced_at.lock() { Ok(()) } else { self.sync() }
    }

    /// Hands what was inserted to the operating system: survives this process, not the machine.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.db.flush().map(drop).map_err(io_error).inspect_err(|_| self.give_up())
    }

    /// Nothing is written to sled's file any more.
    pub(super) fn give_up(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    /// A tree by its name; made if it is absent.
    pub(super) fn tree(&self, name: &[u8]) -> sled::Result<sled::Tree> {
        self.db.open_tree(name)
    }

    /// Bytes of sled's file.
    pub(super) fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Bytes that are free for this process on the disk of the store.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Reserves the ballast.
    pub(super) fn put_ballast(&self) -> io::Result<()> {
        if self.ballast_bytes == 0 {
            return Ok(());
        }
        let file = File::options().create(true).truncate(false).write(true).open(self.path.join(BALLAST))?;
        if file.metadata()?.len() == self.ballast_bytes {
            return Ok(());
        }
        let result = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.ballast_bytes);
        if let Err(error) = result {
            drop(std::fs::remove_file(self.path.join(BALLAST)));
            return Err(error.into());
        }
        Ok(())
    }

    /// Gives the ballast up. Whether there was one.
    pub(super) fn drop_ballast(&self) -> bool {
        std::fs::remove_file(self.path.join(BALLAST)).is_ok()
    }

    /// How much the ballast holds.
    pub(super) fn ballast_bytes(&self) -> u64 {
        self.ballast_bytes
    }
}

impl Drop for Disk {
    /// At its end sled writes what it has and syncs, and panics if that fails. It has no end where it would not do so in
    /// vain: its file stays locked until the process is over.
    fn drop(&mut self) {
        if self.failed.load(Ordering::SeqCst) || self.sync().is_err() {
            std::mem::forget(self.db.clone());
        }
    }
}

/// Opens what is in a store that sled has just opened.
fn begin(path: &Path, dir: &Path, db: &sled::Db) -> Result<(Trees, File), OpenError> {
    // sled has put a new snapshot in the place of the old one, and will reuse what only that one needs.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| unusable(path, e))?;
    let trees = catch_unwind(AssertUnwindSafe(|| open_trees(db)))
        .map_err(|panic| damaged(path, panic_text(&*panic)))?
        .map_err(|e| damaged(path, e))?;
    let file = File::open(dir.join("db")).map_err(|e| unusable(path, e))?;
    Ok((trees, file))
}

fn open_trees(db: &sled::Db) -> sled::Result<Trees> {
    Ok(Trees {
        meta: db.open_tree("meta")?,
        obj: db.open_tree("obj")?,
        sub: db.open_tree("sub")?,
        seq: db.open_tree("seq")?,
        head: db.open_tree("head")?,
        body: db.open_tree("body")?,
        part: db.open_tree("part")?,
        done: db.open_tree("done")?,
        dedup: db.open_tree("dedup")?,
    })
}

/// sled takes a snapshot that a crash left half written for its newest, and its own settings, which it does not sync,
/// for what was asked of it; either keeps it from opening the store. There is another snapshot, or need of none, and
/// the settings are always the same.
fn clear_leftovers(dir: &Path) -> io::Result<()> {
    let found = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    for file in found {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "generating") {
            std::fs::remove_file(file)?;
        }
    }
    let conf = dir.join("conf");
    match std::fs::read(&conf) {
        Ok(bytes) => match bytes.split_last_chunk() {
            Some((settings, crc)) if crc32fast::hash(settings) == u32::from_le_bytes(*crc) => Ok(()),
            _ => std::fs::remove_file(conf),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes the name of a directory durable. Some file systems, of mount points, cannot and need not.
fn sync_name(directory: &Path) -> io::Result<()> {
    let above = directory.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(above) = File::open(above) else { return Ok(()) };
    above.sync_all().or_else(|e| if e.kind() == io::ErrorKind::InvalidInput { Ok(()) } else { Err(e) })
}

pub(super) fn make_directory(path: &Path) -> Result<(), OpenError> {
    let made: Vec<_> = path.ancestors().take_while(|it| !it.exists()).collect();
    std::fs::create_dir_all(path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            unusable(path, "a part of the path is a file, not a directory")
        }
        _ => unusable(path, e),
    })?;
    // Who made it without a store may have been killed right then.
    let unsure = (made.is_empty() && !path.join(STORE).exists()).then_some(path);
    made.into_iter().chain(unsure).try_for_each(sync_name).map_err(|e| unusable(path, e))?;
    // Found out here rather than in the middle of the first write.
    let probe = || {
        let file = path.join(".probe");
        let result = File::create(&file).and_then(|mut file| file.write_all(b"stafett"));
        drop(std::fs::remove_file(&file));
        result
    };
    match probe() {
        Err(e)
            if e.kind() == io::ErrorKind::StorageFull && std::fs::remove_file(path.join(BALLAST)).is_ok() =>
        {
            tracing::warn!("the disk is full: gave up the ballast to open the store");
            probe()
        }
        result => result,
    }
    .map_err(|e| unusable(path, e))
}

/// Takes the lock of a data directory.
pub(super) fn lock(path: &Path) -> Result<Arc<File>, OpenError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join("lock"))
        .map_err(|e| unusable(path, e))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
        rustix::io::Errno::WOULDBLOCK => OpenError::Locked(path.to_owned()),
        other => unusable(path, other),
    })?;
    Ok(Arc::new(file))
}

/// Waits a little for what is about to be let go of.
fn patiently<T>(open: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let deadline = now() + LOCK_WAIT;
    loop {
        match open() {
            Err(OpenError::Locked(_)) if now() < deadline => std::thread::sleep(LOCK_WAIT / 50),
            result => return result,
        }
    }
}

/// Whether the store has the format that this program writes. If not, it has one that this program reads.
fn has_current_format(path: &Path, trees: &Trees, fresh: bool) -> Result<bool, OpenError> {
    let found = trees.meta.get("format").map_err(|e| damaged(path, e))?;
    match found.as_deref().map(<[u8; 4]>::try_from) {
        Some(Ok(bytes)) => match u32::from_be_bytes(bytes) {
            FORMAT => Ok(true),
            OLDEST_FORMAT..FORMAT => Ok(false),
            found if found > FORMAT => Err(OpenError::Newer { path: path.to_owned(), found, known: FORMAT }),
            found => Err(damaged(path, format!("it has the unknown format {found}"))),
        },
        Some(Err(_)) => Err(damaged(path, "its format is not a number")),
        None if fresh || trees.head.is_empty() && trees.obj.is_empty() => Ok(false),
        None => Err(damaged(path, "it has data and no format")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_system_is_told_as_the_system_tells_it() {
        let full = || io::Error::from_raw_os_error(28);
        let first = sled::Error::Io(full());
        let copies = [first.clone(), first.clone().clone(), first];
        for error in copies {
            assert_eq!(io_error(error).to_string(), full().to_string());
        }
        let other = io::Error::other("could not acquire lock");
        assert_eq!(io_error(sled::Error::Io(other)).to_string(), "could not acquire lock");
        assert!(io_error(sled::Error::Unsupported("x".to_owned())).to_string().contains("Unsupported: x"));
    }
}
