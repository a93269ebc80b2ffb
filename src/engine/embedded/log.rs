//! What the writer writes to: sled, and in front of it the journal. Every row that the writer changes goes through here.
//!
//! A small commit is durable when the journal has its rows; sled has them in memory, and its file follows before it lags
//! by [`SYNC_BYTES`], when the journal is full, and when nothing else is to be done. A large commit, and every one under
//! another policy than `fsync`, is made durable by sled itself.
//!
//! Both are told in one order: the meta row `journal` says up to which record sled has all rows. What sled brings back
//! after a crash is the beginning of what it was given, so that row, and the records behind it, make the rest again.

use std::path::Path;

use super::disk::{Disk, SYNC_BYTES, Tree, Trees};
use super::journal::{self, Journal, Rows};
use super::marker::meta_number;
use super::pack::Failed;

/// What a row costs in sled beside its bytes, about.
const ROW_COST: usize = 32;
/// The meta row that says up to which record sled has all rows.
const STORED: &str = "journal";

/// See the module.
#[derive(Debug)]
pub(super) struct Log {
    journal: Option<Journal>,
    /// The newest record, or sync without one.
    number: u64,
    /// What the next record will hold.
    rows: Rows,
    /// Logical bytes written since the start.
    pub(super) written: u64,
    /// Of these, not durable.
    loose: u64,
    /// Of these, not in sled's file.
    lag: u64,
}

impl Log {
    /// Goes on where the store of `disk` ends. Small commits go to the journal if `journaled`; the next sync of sled says
    /// that there is one.
    pub(super) fn open(disk: &Disk, journaled: bool) -> sled::Result<Self> {
        let mut number = meta_number(&disk.trees, STORED)?;
        let journal = journaled.then(|| Journal::open(&disk.path)).and_then(|opened| {
            opened
                .inspect_err(
                    |error| tracing::warn!(%error, "cannot make the journal: small commits are slower"),
                )
                .ok()
        });
        if journal.is_some() {
            number += 1;
            store_number(&disk.trees, number)?;
        }
        Ok(Self { journal, number, rows: Rows::default(), written: 0, loose: 0, lag: 0 })
    }

    pub(super) fn insert(
        &mut self,
        disk: &Disk,
        tree: Tree,
        key: &[u8],
        value: impl Into<sled::IVec>,
    ) -> Result<(), Failed> {
        let value = value.into();
        self.note(tree, key, Some(&value));
        let bytes = key.len() + value.len();
        disk.trees.get(tree).insert(key, value).map_err(|e| e.to_string())?;
        self.wrote(disk, bytes)
    }

    pub(super) fn remove(&mut self, disk: &Disk, tree: Tree, key: &[u8]) -> Result<(), Failed> {
        self.note(tree, key, None);
        disk.trees.get(tree).remove(key).map_err(|e| e.to_string())?;
        self.wrote(disk, key.len())
    }

    fn note(&mut self, tree: Tree, key: &[u8], value: Option<&[u8]>) {
        // What is too much already goes to sled whole.
        if self.journal.is_some() && !self.rows.are_too_many() {
            self.rows.push(tree, key, value);
        }
    }

    fn wrote(&mut self, disk: &Disk, bytes: usize) -> Result<(), Failed> {
        let bytes = (bytes + ROW_COST) as u64;
        self.written += bytes;
        self.loose += bytes;
        self.lag += bytes;
        if self.lag > SYNC_BYTES { self.catch_up(disk) } else { Ok(()) }
    }

    /// Whether something written is not durable.
    pub(super) fn is_loose(&self) -> bool {
        self.loose > 0
    }

    /// Whether sled's file lacks something.
    pub(super) fn lags(&self) -> bool {
        self.lag > 0
    }

    /// Whether sled's file should be brought up before the next commit makes it.
    pub(super) fn lags_much(&self) -> bool {
        self.lag > SYNC_BYTES / 2
    }

    /// Makes what was written durable.
    pub(super) fn sync(&mut self, disk: &Disk) -> Result<(), Failed> {
        let Self { journal, rows, .. } = self;
        match journal {
            Some(journal) if !rows.is_empty() && !rows.are_too_many() && journal.has_room(rows) => {
                self.number += 1;
                journal.append(self.number, rows).map_err(|e| format!("the journal: {e}"))?;
                rows.clear();
                self.loose = 0;
                self.say_stored(disk)
            }
            _ => self.catch_up(disk),
        }
    }

    /// Makes what was written durable in sled, so that the journal may begin anew.
    pub(super) fn catch_up(&mut self, disk: &Disk) -> Result<(), Failed> {
        if self.journal.is_some() {
            // A number of its own: a journal that goes on behind it shows that sled must have come so far.
            self.number += 1;
            self.say_stored(disk)?;
        }
        disk.sync().map_err(|e| e.to_string())?;
        self.rows.clear();
        (self.loose, self.lag) = (0, 0);
        if let Some(journal) = &mut self.journal {
            journal.rewind();
        }
        Ok(())
    }

    fn say_stored(&mut self, disk: &Disk) -> Result<(), Failed> {
        store_number(&disk.trees, self.number).map_err(|e| e.to_string())?;
        self.lag += ROW_COST as u64;
        Ok(())
    }
}

fn store_number(trees: &Trees, number: u64) -> sled::Result<()> {
    trees.meta.insert(STORED, &number.to_be_bytes()).map(drop)
}

/// Puts into sled what stands in the journal of `data_dir` and was not in sled's file yet. Returns how many commits
/// came from it.
///
/// # Errors
/// What stands there is damaged, or not all of it.
pub(super) fn replay(trees: &Trees, data_dir: &Path) -> Result<u64, String> {
    let number = |key| meta_number(trees, key).map_err(|e| e.to_string());
    let stored = number(STORED)?;
    let about = |what: String| format!("the file {}: {what}", journal::NAME);
    let Some(bytes) = journal::read(data_dir).map_err(|e| about(e.to_string()))? else {
        // A store that was closed has no need of it.
        return if stored == 0 || number("closed")? == number("boot")? {
            Ok(0)
        } else {
            Err(about("it is missing, and the store was not closed".to_owned()))
        };
    };
    let mut count = 0;
    for record in journal::records(&bytes, stored).map_err(about)? {
        if record.number <= stored {
            continue;
        }
        for row in record.rows() {
            let (tree, key, value) = row.map_err(about)?;
            let tree = trees.get(tree);
            match value {
                Some(value) => tree.insert(key, value),
                None => tree.remove(key),
            }
            .map_err(|e| e.to_string())?;
        }
        store_number(trees, record.number).map_err(|e| e.to_string())?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::OpenError;

    struct Bench {
        directory: tempfile::TempDir,
        disk: Disk,
        log: Log,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let disk = Disk::open(directory.path(), 1 << 20, 0).unwrap();
            disk.trees.meta.insert("boot", &1_u64.to_be_bytes()).unwrap();
            let log = Log::open(&disk, true).unwrap();
            disk.sync().unwrap();
            Self { directory, disk, log }
        }

        fn put(&mut self, key: &str, value: &[u8]) {
            self.log.insert(&self.disk, Tree::Seq, key.as_bytes(), value).unwrap();
        }

        fn commit(&mut self, key: &str, value: &[u8]) {
            self.put(key, value);
            self.log.sync(&self.disk).unwrap();
        }

        fn copy(&self, to: &Path, files: &[&str]) {
            std::fs::create_dir_all(to.join("store")).unwrap();
            for file in files {
                std::fs::copy(self.directory.path().join(file), to.join(file)).unwrap();
            }
        }

        /// What a crash leaves.
        fn image(&self) -> tempfile::TempDir {
            let image = tempfile::tempdir().unwrap();
            self.copy(image.path(), &["store/conf", "store/db", journal::NAME]);
            image
        }
    }

    fn open(image: &tempfile::TempDir) -> Result<Disk, OpenError> {
        Disk::open(image.path(), 1 << 20, 0)
    }

    fn refusal(image: &tempfile::TempDir) -> String {
        let Err(OpenError::Damaged { what, .. }) = open(image) else { panic!("the store was opened") };
        what
    }

    fn value(disk: &Disk, key: &str) -> Option<Vec<u8>> {
        disk.trees.seq.get(key).unwrap().map(|value| value.to_vec())
    }

    #[test]
    fn a_small_commit_comes_back_from_the_journal() {
        let mut bench = Bench::new();
        bench.commit("stays", b"1");
        bench.commit("goes", b"1");
        bench.commit("stays", b"2");
        bench.log.remove(&bench.disk, Tree::Seq, b"goes").unwrap();
        bench.log.sync(&bench.disk).unwrap();
        bench.put("was not synced", b"");
        let image = bench.image();
        let before = Disk::open_existing(image.path(), 1 << 20).unwrap();
        assert_eq!(value(&before, "stays"), None, "sled's file had it already");
        assert_eq!(replay(&before.trees, image.path()).unwrap(), 4);
        assert_eq!(replay(&before.trees, image.path()).unwrap(), 0);
        drop(before);
        let disk = open(&image).unwrap();
        assert_eq!(value(&disk, "stays").unwrap(), b"2");
        assert_eq!(value(&disk, "goes"), None);
        assert_eq!(value(&disk, "was not synced"), None);
    }

    #[test]
    fn what_is_large_goes_to_sled_itself_and_order_is_kept() {
        let mut bench = Bench::new();
        bench.commit("k", b"1");
        bench.put("k", b"2");
        for n in 0..40 {
            bench.put(&format!("large {n}"), &[n; 10_000]);
        }
        bench.log.sync(&bench.disk).unwrap();
        assert!(!bench.log.lags());
        let disk = open(&bench.image()).unwrap();
        assert_eq!(value(&disk, "k").unwrap(), b"2", "an older record came behind what is newer");
        assert_eq!(value(&disk, "large 39").unwrap(), [39; 10_000]);
        bench.commit("k", b"3");
        assert!(bench.log.lags());
        assert_eq!(value(&open(&bench.image()).unwrap(), "k").unwrap(), b"3");
    }

    #[test]
    fn a_journal_that_is_full_begins_anew() {
        let mut bench = Bench::new();
        for n in 0..100_u8 {
            bench.commit(&format!("k{}", n % 3), &[n; 100_000]);
        }
        let disk = open(&bench.image()).unwrap();
        let newest: Vec<u8> = (0..3).map(|k| value(&disk, &format!("k{k}")).unwrap()[0]).collect();
        assert_eq!(newest, [99, 97, 98]);
    }

    #[test]
    fn what_was_promised_and_is_not_there_is_said() {
        let mut bench = Bench::new();
        let early = tempfile::tempdir().unwrap();
        bench.copy(early.path(), &["store/conf", "store/db"]);
        for n in 0..3_u8 {
            bench.commit("k", &[n]);
        }
        bench.log.catch_up(&bench.disk).unwrap();
        bench.commit("k", b"behind");
        bench.commit("k", b"the end");
        bench.copy(early.path(), &[journal::NAME]);
        assert!(refusal(&early).contains("the store has come to 1 only"));
        let image = bench.image();
        std::fs::remove_file(image.path().join(journal::NAME)).unwrap();
        assert!(refusal(&image).contains("it is missing"));
        let image = bench.image();
        let path = image.path().join(journal::NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(refusal(&image).contains("cannot be read, but record 7 follows"));
    }
}
