//! A store that is made beside the one that is there, or where none is, and put in its place when it is whole.
//!
//! ```text
//! <data-dir>/store.new   being made
//! <data-dir>/store.old   what was replaced. Where there is no `store` beside it, it was not, and is `store` again
//! ```
//! Both go at the next open. Invariant: whenever it ends, by kill -9 or a power cut, the data directory has the whole old
//! store or the whole new one.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, STORE, unusable};
use crate::engine::OpenError;

const NEW: &str = "store.new";
pub(super) const OLD: &str = "store.old";

/// See the module. Dropping it removes what was made, unless it was put in its place.
#[derive(Debug)]
pub(super) struct Fresh {
    data_dir: PathBuf,
    lock: Arc<File>,
    cache_bytes: u64,
    disk: Option<Disk>,
    placed: bool,
}

/// Ends what a crash left half done. Whoever calls it has the lock.
pub(super) fn settle(data_dir: &Path) -> io::Result<()> {
    let [store, old, new] = [STORE, OLD, NEW].map(|name| data_dir.join(name));
    if !store.exists() && old.exists() {
        std::fs::rename(&old, &store)?;
        sync(data_dir)?;
    }
    [old, new].iter().filter(|left| left.exists()).try_for_each(std::fs::remove_dir_all)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

impl Fresh {
    /// An empty one.
    pub(super) fn make(data_dir: &Path, lock: &Arc<File>, cache_bytes: u64) -> Result<Self, OpenError> {
        let dir = data_dir.join(NEW);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unusable(data_dir, e)),
            _ => {}
        }
        let mut fresh = Self {
            data_dir: data_dir.to_owned(),
            lock: lock.clone(),
            cache_bytes,
            disk: None,
            placed: false,
        };
        fresh.disk = Some(Disk::open_beside(data_dir, &dir, cache_bytes, lock)?);
        Ok(fresh)
    }

    /// The store, which is open.
    pub(super) fn disk(&self) -> Result<&Disk, OpenError> {
        self.disk.as_ref().ok_or_else(|| unusable(&self.data_dir, "the new store is closed"))
    }

    /// Makes durable what was put in, closes it, and reads it back from the disk.
    pub(super) fn reopen(&mut self) -> Result<&Disk, OpenError> {
        self.close()?;
        let dir = self.data_dir.join(NEW);
        Ok(self.disk.insert(Disk::open_beside(&self.data_dir, &dir, self.cache_bytes, &self.lock)?))
    }

    fn close(&mut self) -> Result<(), OpenError> {
        let Some(disk) = self.disk.take() else { return Ok(()) };
        disk.sync().and_then(|()| disk.sync_beside()).map_err(|e| unusable(&self.data_dir, e))
    }

    /// Makes it the store of the data directory; what was, which nobody may have open, is removed.
    pub(super) fn put_in_place(mut self) -> Result<(), OpenError> {
        self.close()?;
        let replace = || {
            let [store, old, new] = [STORE, OLD, NEW].map(|name| self.data_dir.join(name));
            if store.exists() {
                std::fs::rename(&store, &old)?;
                sync(&self.data_dir)?;
            }
            std::fs::rename(new, store)?;
            sync(&self.data_dir)?;
            if old.exists() { std::fs::remove_dir_all(old) } else { Ok(()) }
        };
        replace().map_err(|e| unusable(&self.data_dir, e))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.placed {
            drop(self.disk.take());
            drop(std::fs::remove_dir_all(self.data_dir.join(NEW)));
        }
    }
}
