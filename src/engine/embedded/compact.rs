//! Rewrites a store into a file that holds no more than is needed: sled's own keeps the size that it once had.
//!
//! The rows are copied as they are into a new store beside the old one (`copy`, `fresh`), which takes its place after it
//! was synced, opened again and read from end to end. Until then nothing of the old one is touched.

use std::io;
use std::path::{Path, PathBuf};

use super::bodies::Bodies;
use super::copy::{Failed, copy_all, sum_of};
use super::disk::Disk;
use super::fresh::Fresh;
use super::offline::{Offline, Progress};
use super::recovery::{Recovered, recover};
use crate::engine::{EngineSettings, OpenError, OpenProgress};

/// sled's cache of each of the two stores.
const CACHE_BYTES: u64 = 32 << 20;
/// A file below this is not worth it at start.
const WORTH_BYTES: u64 = 64 << 20;
/// Nor one of which more than this part is in use.
const WORTH_SHARE: u64 = 8;
/// What the new file takes beside twice its rows, at most.
const EXTRA_BYTES: u64 = 64 << 20;

/// What it came to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactReport {
    /// Of the file before.
    pub before_bytes: u64,
    /// Of the file after.
    pub after_bytes: u64,
    /// Of the rows.
    pub row_bytes: u64,
}

/// Why a store is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// It cannot be opened, or not be replaced.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The disk is too full.
    #[error("{free_bytes} bytes are free in {}, up to {needed_bytes} are needed", path.display())]
    Room {
        /// The data directory.
        path: PathBuf,
        /// What is free.
        free_bytes: u64,
        /// What may be needed.
        needed_bytes: u64,
    },
    /// Something cannot be read or written.
    #[error("cannot copy the store in {}, it stays as it was: {what}", path.display())]
    Copy {
        /// The data directory.
        path: PathBuf,
        /// What went wrong.
        what: String,
    },
}

/// Rewrites the store in a data directory that nobody serves. Blocks. Whenever it ends, the directory has the whole old
/// store or the whole new one.
///
/// # Errors
/// [`CompactError`]; the store is as it was.
pub fn compact(data_dir: &Path, tell: &mut dyn FnMut(Progress)) -> Result<CompactReport, CompactError> {
    let disk = Offline::open(data_dir)?.sound(data_dir)?;
    let recovered = recover(&disk, &Bodies::new(0), &OpenProgress::default())?;
    let row_bytes = recovered.ledger.totals().0;
    drop(recovered);
    rewrite(disk, row_bytes, 0, &mut |progress| {
        tell(progress);
        Ok(())
    })
}

/// Whether a store that is about to be served is worth it, and may be done at once: what was read back says how much is
/// in use. Returns those bytes.
pub(super) fn is_due(disk: &Disk, recovered: &Recovered, settings: &EngineSettings) -> Option<u64> {
    let row_bytes = recovered.ledger.totals().0;
    let file_bytes = disk.file_bytes().unwrap_or(0);
    let due = file_bytes >= WORTH_BYTES
        && row_bytes <= file_bytes / WORTH_SHARE
        && settings.compact_at_start_bytes.is_some_and(|most| row_bytes <= most);
    due.then_some(row_bytes)
}

/// Rewrites a store that has about so many bytes of rows, at start. Ends if they turn out to be many more.
pub(super) fn at_start(
    disk: Disk,
    row_bytes: u64,
    settings: &EngineSettings,
) -> Result<CompactReport, CompactError> {
    let most = settings.compact_at_start_bytes.unwrap_or(0).saturating_mul(2);
    rewrite(disk, row_bytes, settings.watermark_free_bytes, &mut |progress| {
        if progress.done <= most { Ok(()) } else { Err("more is in use than was known".to_owned()) }
    })
}

/// Whether `needed_bytes` fit on the disk of `path`, and `kept_bytes` stay.
pub(super) fn has_room(path: &Path, needed_bytes: u64, kept_bytes: u64) -> Result<(), CompactError> {
    let needed_bytes = needed_bytes.saturating_add(kept_bytes);
    let free = || {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    };
    let free_bytes = free().map_err(|e: io::Error| copy_failed(path, e.to_string()))?;
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(CompactError::Room { path: path.to_owned(), free_bytes, needed_bytes })
}

/// What a file for so many bytes of rows takes at most, about.
pub(super) fn needed_for(row_bytes: u64) -> u64 {
    row_bytes.saturating_mul(2).saturating_add(EXTRA_BYTES)
}

fn copy_failed(path: &Path, what: String) -> CompactError {
    CompactError::Copy { path: path.to_owned(), what }
}

/// What went wrong with the new one says nothing of the old one.
fn about_new(path: &Path, error: OpenError) -> CompactError {
    match error {
        OpenError::Unusable { what, .. } => copy_failed(path, what),
        other => copy_failed(path, other.to_string()),
    }
}

fn rewrite(
    disk: Disk,
    row_bytes: u64,
    kept_bytes: u64,
    tell: &mut dyn FnMut(Progress) -> Result<(), Failed>,
) -> Result<CompactReport, CompactError> {
    let path = disk.path.clone();
    has_room(&path, needed_for(row_bytes), kept_bytes)?;
    let before_bytes = disk.file_bytes().map_err(|e| copy_failed(&path, e.to_string()))?;
    let failed = |error| about_new(&path, error);
    let mut fresh = Fresh::make(&path, disk.lock(), CACHE_BYTES).map_err(failed)?;
    let (mut done, total) = (0, Some(row_bytes));
    let mut count = |bytes| {
        done += bytes;
        tell(Progress { phase: "bytes copied", done, total })
    };
    let copied = copy_all(&disk, fresh.disk()?, &mut count).map_err(|what| copy_failed(&path, what))?;
    // Nobody may have the old one open when it goes.
    drop(disk);
    let copied_bytes = copied.iter().map(|(_, sum)| sum.bytes).sum();
    let (mut done, total) = (0, Some(copied_bytes));
    let mut count = |bytes| {
        done += bytes;
        tell(Progress { phase: "bytes compared", done, total })
    };
    let found =
        sum_of(fresh.reopen().map_err(failed)?, &mut count).map_err(|what| copy_failed(&path, what))?;
    if found != copied {
        let what = "what was written is not what was read".to_owned();
        return Err(copy_failed(&path, what));
    }
    let after_bytes = fresh.disk()?.file_bytes().map_err(|e| copy_failed(&path, e.to_string()))?;
    fresh.put_in_place().map_err(failed)?;
    Ok(CompactReport { before_bytes, after_bytes, row_bytes: copied_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_how_much_is_free_and_how_much_is_needed() {
        let directory = tempfile::tempdir().unwrap();
        has_room(directory.path(), 1, 1).unwrap();
        let error = has_room(directory.path(), needed_for(1 << 60), 0).unwrap_err().to_string();
        assert!(error.contains("bytes are free in"), "{error}");
        assert!(error.contains(&format!("up to {} are needed", (2_u64 << 60) + (64 << 20))), "{error}");
    }
}
