//! Copies what is stored at one moment into a directory of its own, which is a data directory then, while commits go on.
//!
//! The moment is between two commits: who has the pen notes the newest pack and takes the rows that change in place
//! (definitions, checkpoints, numbers) into memory. Rows of packs never change, so they are copied afterwards, one at a
//! time; until then upkeep removes none. The copy is read back and compared before it gets its name.
//!
//! Invariant: a directory with the name of a backup is a whole one.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::compact::{CompactError, has_room, needed_for};
use super::copy::{OF_PACKS, Sum, Walk, copy_tree, detach, sum_of_tree};
use super::disk::{Disk, STORE, lock};
use super::marker::{Marker, meta_number};
use super::pack::Failed;
use super::pen::Pen;
use super::shared::Shared;
use super::writer::Writer;
use crate::engine::backup::{BackedUp, BackingUp, BackupError, Course};
use crate::types::clock::unix_now;
use crate::types::{BackupName, UnixMillis};

/// sled's cache of the copy.
const CACHE_BYTES: u64 = 16 << 20;
/// Rows between two looks at the free space.
const LOOK_ROWS: u64 = 4096;

/// Key and value.
type Row = (Box<[u8]>, Box<[u8]>);

/// All that is needed of one moment.
#[derive(Debug)]
pub(super) struct Frozen {
    at: UnixMillis,
    /// The newest pack.
    last: u64,
    /// About how many bytes the rows of packs have.
    bytes: u64,
    /// The rows that change in place, by tree.
    rows: Vec<(Vec<u8>, Vec<Row>)>,
}

/// The one that is being made, if any.
#[derive(Debug, Default)]
pub(super) struct Backups(Mutex<Option<(Arc<Course>, JoinHandle<()>)>>);

impl Backups {
    pub(super) fn start(
        &self,
        shared: &Arc<Shared>,
        pen: &Arc<Pen>,
        name: &BackupName,
    ) -> Result<BackingUp, BackupError> {
        let directory = shared.settings.backup_dir.as_ref().ok_or(BackupError::NotConfigured)?;
        let mut running = self.0.lock();
        if running.as_ref().is_some_and(|(course, thread)| !course.is_over() && !thread.is_finished()) {
            return Err(BackupError::Running);
        }
        let target = directory.join(name.as_str());
        if target.exists() {
            return Err(BackupError::Exists(name.to_string()));
        }
        let partial = directory.join(format!(".{name}.partial"));
        let course = Arc::<Course>::default();
        let (end, backing_up) = BackingUp::new(course.clone());
        let (shared, pen, watched) = (shared.clone(), pen.clone(), course.clone());
        let thread = std::thread::Builder::new().name("store-backup".to_owned());
        let thread = thread.spawn(move || {
            let made = make(&shared, &pen, &watched, &partial, &target);
            if let Err(error) = &made {
                tracing::warn!(%error, path = %target.display(), "no backup was made");
                drop(std::fs::remove_dir_all(&partial));
            }
            drop((shared, pen));
            watched.end();
            drop(end.send(made));
        });
        *running = Some((course, thread.map_err(|e| BackupError::Failed(e.to_string()))?));
        Ok(backing_up)
    }

    /// Ends the one that is being made, and waits for that.
    pub(super) fn close(&self) {
        if let Some((course, thread)) = self.0.lock().take() {
            course.stop();
            drop(thread.join());
        }
    }
}

/// Lets upkeep remove packs again.
struct Held<'a>(&'a Pen);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}

fn failed(error: impl ToString) -> BackupError {
    BackupError::Failed(error.to_string())
}

fn no_room(error: CompactError) -> BackupError {
    match error {
        CompactError::Room { free_bytes, needed_bytes, .. } => BackupError::Room { free_bytes, needed_bytes },
        other => failed(other),
    }
}

fn make(
    shared: &Shared,
    pen: &Pen,
    course: &Course,
    partial: &Path,
    target: &Path,
) -> Result<BackedUp, BackupError> {
    let directory = target.parent().unwrap_or(target);
    let kept = shared.settings.watermark_free_bytes;
    std::fs::create_dir_all(directory).map_err(failed)?;
    drop(std::fs::remove_dir_all(partial));
    std::fs::create_dir(partial).map_err(failed)?;
    let locked = lock(partial).map_err(failed)?;
    let frozen = pen.freeze().map_err(failed)?;
    let held = Held(pen);
    has_room(partial, needed_for(frozen.bytes), kept).map_err(no_room)?;
    course.tell(0, frozen.bytes);
    let (mut done, mut rows) = (0, 0_u64);
    let mut tell = |bytes| {
        (done, rows) = (done + bytes, rows + 1);
        course.tell(done, frozen.bytes.max(done));
        if course.is_stopped() {
            return Err(STOPPED.to_owned());
        }
        if rows % LOOK_ROWS == 0 {
            // What is not removed meanwhile takes room too.
            has_room(partial, 0, kept)
                .and_then(|()| has_room(&shared.disk.path, 0, kept))
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    let store = partial.join(STORE);
    let open = || Disk::open_beside(partial, &store, CACHE_BYTES, &locked).map_err(failed);
    let copy = open()?;
    let sums = copy_frozen(shared, &frozen, &copy, &mut tell).map_err(ended)?;
    drop(held);
    copy.sync().and_then(|()| copy.sync_beside()).map_err(failed)?;
    drop(copy);
    let copy = open()?;
    let mut bytes = 0;
    for (name, sum) in sums {
        let found = copy.tree(&name).map_err(|e| e.to_string());
        let found = found.and_then(|tree| {
            sum_of_tree(&name, &tree, &mut |_| {
                if course.is_stopped() { Err(STOPPED.to_owned()) } else { Ok(()) }
            })
        });
        if found.map_err(ended)? != sum {
            return Err(BackupError::Failed("what was copied is not what was read".to_owned()));
        }
        bytes += sum.bytes;
    }
    detach(&copy).map_err(failed)?;
    let boot = meta_number(&copy.trees, "boot").map_err(failed)?;
    copy.sync().and_then(|()| copy.sync_beside()).map_err(failed)?;
    drop(copy);
    Marker { boot, closed: true }.write(partial).map_err(failed)?;
    std::fs::rename(partial, target).map_err(failed)?;
    File::open(directory).and_then(|it| it.sync_all()).map_err(failed)?;
    let path = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
    tracing::info!(path = %path.display(), bytes, "made a backup");
    Ok(BackedUp { path, at: frozen.at, bytes })
}

/// What is said where it was ended.
const STOPPED: &str = "stopped";

fn ended(what: Failed) -> BackupError {
    if what == STOPPED { BackupError::Stopped } else { BackupError::Failed(what) }
}

fn copy_frozen(
    shared: &Shared,
    frozen: &Frozen,
    copy: &Disk,
    tell: &mut dyn FnMut(u64) -> Result<(), Failed>,
) -> Result<Vec<(Vec<u8>, Sum)>, Failed> {
    let mut sums = Vec::new();
    for (name, rows) in &frozen.rows {
        let mut sum = Sum::of_tree(name);
        let tree = copy.tree(name).map_err(|e| e.to_string())?;
        for (key, value) in rows {
            sum.row(key, value);
            tell((key.len() + value.len()) as u64)?;
            tree.insert(key, &**value).map_err(|e| e.to_string())?;
        }
        sums.push((name.clone(), sum));
    }
    for name in OF_PACKS {
        let tree = shared.disk.tree(name).map_err(|e| e.to_string())?;
        let sum = copy_tree(name, Walk::up_to(&tree, frozen.last), copy, tell)?;
        sums.push((name.to_vec(), sum));
    }
    Ok(sums)
}

impl Writer {
    /// Takes what is needed of this moment; until it is let go, no pack is removed.
    pub(super) fn freeze(&mut self) -> Result<Frozen, Failed> {
        self.seal()?;
        let disk = &self.shared.disk;
        self.packer.log.give(disk)?;
        self.shared.bodies.owe(false);
        let mut rows = Vec::new();
        for (name, tree) in disk.all_trees().map_err(|e| e.to_string())? {
            if OF_PACKS.contains(&&*name) {
                continue;
            }
            let boxed = |row: sled::Result<(sled::IVec, sled::IVec)>| {
                row.map(|(key, value)| (Box::from(&*key), Box::from(&*value))).map_err(|e| e.to_string())
            };
            rows.push((name.to_vec(), tree.iter().map(boxed).collect::<Result<_, _>>()?));
        }
        let (bytes, _) = self.ledger.totals();
        self.keeps_packs = true;
        Ok(Frozen { at: unix_now(), last: self.packer.last(), bytes, rows })
    }
}
