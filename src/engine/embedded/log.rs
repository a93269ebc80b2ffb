//! What the writer writes to: sled, and in front of it the journal. Every row that the writer changes goes through here.
//!
//! A small commit is durable when the journal has its rows; sled has them in memory, and its file follows before it lags
//! by [`SYNC_BYTES`], when the journal is full, and when nothing else is to be done. A large commit, and every one under
//! another policy than `fsync`, is made durable by sled itself.
//!
//! Rows that the journal may make durable are given to sled when those who waited were told, those of several commits
//! together where they come one at a time. Both have them in one order: the meta row `journal` says up to which record at
//! least sled has all rows; what it has beyond is of records. What sled brings back after a crash is the beginning of what it
//! was given, so that row, and the records behind it, make the rest again.

use std::io;
use std::path::Path;

use sled::IVec;

use super::disk::{Disk, SYNC_BYTES, Tree, Trees, io_error};
use super::format::KEYED_JOURNAL;
use super::journal::{self, JOURNAL_BYTES, Journal, RECORD_BYTES, Rows};
use super::marker::meta_number;
use super::open::{found_secret, secret};
use super::pack::Failed;

/// What a row costs in sled beside its bytes, about.
const ROW_COST: usize = 32;
/// The meta row that says up to which record sled has all rows.
const STORED: &str = "journal";

/// A row as it is to be; removed without a value.
type Row = (Tree, IVec, Option<IVec>);

/// See the module.
#[derive(Debug)]
pub(super) struct Log {
    journal: Option<Journal>,
    /// The newest record, or sync without one.
    number: u64,
    /// Rows that sled has not been given, because the journal may make them durable first.
    fresh: Vec<Row>,
    /// So many of these, from the first on, the journal has.
    kept: usize,
    /// The others, with what a record has beside them.
    fresh_bytes: usize,
    /// Sled was given rows of this commit, which a record would lack: sled is given the others at once, and makes the
    /// commit durable.
    direct: bool,
    record: Rows,
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
        let key = Some(secret(&disk.trees)?);
        let journal = journaled.then(|| Journal::open(&disk.path, key)).and_then(|opened| {
            opened
                .inspect_err(
                    |error| tracing::warn!(%error, "cannot make the journal: small commits are slower"),
                )
                .ok()
        });
        if journal.is_some() {
            number += 1;
            store_number(&disk.trees, number)?;
        } else if !journal::is_whole(&disk.path) {
            // There is none, and needs to be none: all that it had is here.
            number = 0;
            disk.trees.meta.remove(STORED)?;
        }
        Ok(Self {
            direct: journal.is_none(),
            journal,
            number,
            fresh: Vec::new(),
            kept: 0,
            fresh_bytes: 0,
            record: Rows::default(),
            written: 0,
            loose: 0,
            lag: 0,
        })
    }

    pub(super) fn insert(
        &mut self,
        disk: &Disk,
        tree: Tree,
        key: &[u8],
        value: impl Into<IVec>,
    ) -> Result<(), Failed> {
        self.write(disk, tree, key, Some(value.into()))
    }

    pub(super) fn remove(&mut self, disk: &Disk, tree: Tree, key: &[u8]) -> Result<(), Failed> {
        self.write(disk, tree, key, None)
    }

    fn write(&mut self, disk: &Disk, tree: Tree, key: &[u8], value: Option<IVec>) -> Result<(), Failed> {
        let bytes = key.len() + value.as_ref().map_or(0, |value| value.len()) + ROW_COST;
        if self.direct {
            give(disk, tree, key, value)?;
        } else {
            self.fresh.push((tree, key.into(), value));
            self.fresh_bytes += bytes;
        }
        self.written += bytes as u64;
        self.loose += bytes as u64;
        self.lag += bytes as u64;
        if self.lag > SYNC_BYTES {
            self.catch_up(disk)
        } else if self.fresh_bytes > RECORD_BYTES {
            self.give(disk)
        } else {
            Ok(())
        }
    }

    /// Gives sled the rows that it has not been given. What a commit wrote is not read from sled before.
    pub(super) fn give(&mut self, disk: &Disk) -> Result<(), Failed> {
        let mut fresh = std::mem::take(&mut self.fresh);
        let kept = std::mem::take(&mut self.kept);
        let mut rows = fresh.drain(..);
        let give = |(tree, key, value): Row| give(disk, tree, &key, value);
        rows.by_ref().take(kept).try_for_each(give)?;
        if kept > 0 {
            // Before anything that no record has: what the records have would be put over it again.
            self.say_stored(disk)?;
        }
        rows.by_ref().try_for_each(give)?;
        drop(rows);
        self.fresh = fresh;
        self.fresh_bytes = 0;
        self.direct |= self.is_loose();
        Ok(())
    }

    /// Whether sled lacks rows that are durable.
    pub(super) fn owes(&self) -> bool {
        self.kept > 0
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

    /// Makes what was written durable. If it is in the journal, sled is still to be [given](Log::give) it.
    pub(super) fn sync(&mut self, disk: &Disk) -> Result<(), Failed> {
        if !self.is_loose() {
            return Ok(());
        }
        let Self { journal, fresh, kept, record, .. } = self;
        if let Some(journal) = journal
            && !self.direct
        {
            record.clear();
            fresh.iter().skip(*kept).for_each(|(tree, key, value)| record.push(*tree, key, value.as_deref()));
            if journal.has_room(record) {
                self.number += 1;
                journal.append(self.number, record).map_err(|e| format!("the journal: {e}"))?;
                *kept = fresh.len();
                (self.loose, self.fresh_bytes) = (0, 0);
                return Ok(());
            }
        }
        self.catch_up(disk)
    }

    /// Makes what was written durable in sled, so that the journal may begin anew.
    pub(super) fn catch_up(&mut self, disk: &Disk) -> Result<(), Failed> {
        self.give(disk)?;
        if self.journal.is_some() {
            // A number of its own: a journal that goes on behind it shows that sled must have come so far.
            self.number += 1;
            self.say_stored(disk)?;
        }
        disk.sync().map_err(about_file)?;
        (self.loose, self.lag) = (0, 0);
        self.direct = self.journal.is_none();
        if let Some(journal) = &mut self.journal {
            journal.rewind();
        }
        Ok(())
    }

    fn say_stored(&mut self, disk: &Disk) -> Result<(), Failed> {
        store_number(&disk.trees, self.number).map_err(io_error).map_err(about_file)?;
        self.lag += ROW_COST as u64;
        Ok(())
    }
}

fn give(disk: &Disk, tree: Tree, key: &[u8], value: Option<IVec>) -> Result<(), Failed> {
    let tree = disk.trees.get(tree);
    match value {
        Some(value) => tree.insert(key, value),
        None => tree.remove(key),
    }
    .map_err(io_error)
    .and_then(|_| disk.gave())
    .map_err(about_file)
}

fn about_file(error: io::Error) -> Failed {
    format!("the store's file: {error}")
}

fn store_number(trees: &Trees, number: u64) -> sled::Result<()> {
    trees.meta.insert(STORED, &number.to_be_bytes()).map(drop)
}

/// Puts into the store of `disk` what stands in the journal of `data_dir` and was not in sled's file yet. Returns how many commits
/// came from it.
///
/// # Errors
/// What stands there is damaged, or not all of it.
pub(super) fn replay(disk: &Disk, data_dir: &Path) -> Result<u64, String> {
    let trees = &disk.trees;
    let number = |key| meta_number(trees, key).map_err(|e| e.to_string());
    let stored = number(STORED)?;
    let about = |what: String| format!("the file {}: {what}", journal::NAME);
    let found = journal::read(data_dir).map_err(|e| about(e.to_string()))?;
    let lacks = match found.as_ref().map(Vec::len) {
        None => Some("it is missing".to_owned()),
        Some(len) if len != JOURNAL_BYTES => Some(format!("it has {len} bytes instead of {JOURNAL_BYTES}")),
        Some(_) => None,
    };
    // A store that was closed has no need of it.
    if let Some(lacks) = lacks
        && stored > 0
        && number("closed")? != number("boot")?
    {
        return Err(about(format!("{lacks}, and the store was not closed")));
    }
    let format = trees.meta.get("format").map_err(|e| e.to_string())?;
    let format = format.as_deref().and_then(<[u8]>::first_chunk).map_or(0, |it| u32::from_be_bytes(*it));
    let is_keyed = format >= KEYED_JOURNAL;
    let key = if is_keyed { found_secret(trees).map_err(|e| e.to_string())? } else { None };
    let bytes = found.unwrap_or_default();
    let mut count = 0;
    for record in journal::records(&bytes, stored, &key).map_err(about)? {
        if record.number <= stored {
            continue;
        }
        for row in record.rows() {
            let (tree, key, value) = row.map_err(about)?;
            give(disk, tree, key, value.map(IVec::from))?;
        }
        store_number(trees, record.number).map_err(|e| e.to_string())?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

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
            self.sync();
        }

        fn sync(&mut self) {
            self.log.sync(&self.disk).unwrap();
            self.log.give(&self.disk).unwrap();
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
        bench.sync();
        bench.put("was not synced", b"");
        let image = bench.image();
        let before = Disk::open_existing(image.path(), 1 << 20).unwrap();
        assert_eq!(value(&before, "stays"), None, "sled's file had it already");
        assert_eq!(replay(&before, image.path()).unwrap(), 4);
        assert_eq!(replay(&before, image.path()).unwrap(), 0);
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
        bench.sync();
        assert!(!bench.log.lags());
        let disk = open(&bench.image()).unwrap();
        assert_eq!(value(&disk, "k").unwrap(), b"2", "an older record came behind what is newer");
        assert_eq!(value(&disk, "large 39").unwrap(), [39; 10_000]);
        bench.commit("k", b"3");
        assert!(bench.log.lags());
        assert_eq!(value(&open(&bench.image()).unwrap(), "k").unwrap(), b"3");
    }

    #[test]
    fn a_commit_that_sled_was_given_in_part_is_whole_after_a_crash() {
        let mut bench = Bench::new();
        bench.put("first half", b"1");
        bench.log.give(&bench.disk).unwrap();
        bench.put("second half", b"2");
        bench.sync();
        let disk = open(&bench.image()).unwrap();
        assert_eq!(value(&disk, "first half").unwrap(), b"1");
        assert_eq!(value(&disk, "second half").unwrap(), b"2");
    }

    #[test]
    fn what_several_commits_wrote_is_given_together_and_before_what_no_record_has() {
        let mut bench = Bench::new();
        for n in 0..3 {
            bench.put("k", &[n]);
            bench.log.sync(&bench.disk).unwrap();
        }
        assert!(bench.log.owes());
        assert_eq!(value(&bench.disk, "k"), None, "sled was given it already");
        assert_eq!(value(&open(&bench.image()).unwrap(), "k").unwrap(), [2]);
        bench.put("k", b"in no record");
        bench.log.give(&bench.disk).unwrap();
        assert!(!bench.log.owes());
        bench.disk.sync().unwrap();
        let disk = open(&bench.image()).unwrap();
        assert_eq!(value(&disk, "k").unwrap(), b"in no record", "a record was put over what came later");
        bench.sync();
        assert_eq!(value(&open(&bench.image()).unwrap(), "k").unwrap(), b"in no record");
    }

    #[test]
    fn the_longest_key_comes_back() {
        let mut bench = Bench::new();
        let key = "k".repeat(70_000);
        bench.commit(&key, b"1");
        bench.commit("k", b"2");
        let disk = open(&bench.image()).unwrap();
        assert_eq!(value(&disk, &key).unwrap(), b"1");
        assert_eq!(value(&disk, "k").unwrap(), b"2");
    }

    #[test]
    fn what_a_message_says_is_taken_for_no_record() {
        let mut bench = Bench::new();
        bench.commit("says", &journal::tests::forged(1 << 40).repeat(100));
        bench.log.catch_up(&bench.disk).unwrap();
        bench.commit("k", b"1");
        let disk = open(&bench.image()).unwrap();
        assert_eq!(value(&disk, "k").unwrap(), b"1");
    }

    #[test]
    fn a_store_that_goes_on_without_its_journal_needs_none() {
        let mut bench = Bench::new();
        bench.commit("k", b"1");
        bench.log.insert(&bench.disk, Tree::Meta, b"closed", &1_u64.to_be_bytes()).unwrap();
        bench.log.catch_up(&bench.disk).unwrap();
        std::fs::remove_file(bench.directory.path().join(journal::NAME)).unwrap();
        bench.disk.trees.meta.insert("boot", &2_u64.to_be_bytes()).unwrap();
        bench.log = Log::open(&bench.disk, false).unwrap();
        bench.commit("k", b"2");
        let image = tempfile::tempdir().unwrap();
        bench.copy(image.path(), &["store/conf", "store/db"]);
        assert_eq!(value(&open(&image).unwrap(), "k").unwrap(), b"2");
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
        for len in [0, 100, JOURNAL_BYTES as u64 - 1] {
            File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
            assert!(refusal(&image).contains(&format!("it has {len} bytes instead of")));
        }
        let image = bench.image();
        let path = image.path().join(journal::NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(refusal(&image).contains("cannot be read, but record 7 follows"));
    }
}
