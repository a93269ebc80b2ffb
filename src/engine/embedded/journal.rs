//! A file of a fixed size in front of sled: a small commit is durable after one write in place and one fdatasync,
//! while sled would make its own file longer and write the page that it stopped in once more.
//!
//! ```text
//! <data-dir>/journal   records from the start on, one behind the other; what stands behind them is older or zero
//! record               [bytes of rows u32 LE][crc32 u32 LE of the store's secret and all else][number u64 LE][rows]
//! row                  [tree u8][bytes of key u32 LE][bytes of value u32 LE, or REMOVED][key][value]
//! ```
//! Numbers are consecutive and never given out again, so what follows the newest record cannot be taken for the next. Nor can
//! what a message says, older ones included: its sender does not know the secret. Up to format 3 the checksum was without it.
//! [`super::log`] says what is written here and when the file begins anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::{Buf, BufMut};
use rustix::fs::{OFlags, fcntl_setfl};

use super::disk::Tree;

/// Its name in the data directory.
pub(super) const NAME: &str = "journal";
/// Its size.
pub(super) const JOURNAL_BYTES: usize = 4 << 20;
/// The rows of a record have no more.
pub(super) const RECORD_BYTES: usize = 256 << 10;
/// Before the rows of a record.
const HEADER_BYTES: usize = 16;
/// The length of a value that says that the row was removed.
const REMOVED: u32 = u32::MAX;
/// What is written past the page cache begins and ends at multiples of this.
const BLOCK_BYTES: usize = 4096;

/// What the checksums begin with: the secret of the store, or nothing.
pub(super) type Key = Option<[u8; 16]>;

/// The open file.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    key: Key,
    position: usize,
    /// What is written past the page cache, if the file system can do that.
    blocks: Option<Blocks>,
}

/// The blocks that a record comes into: what stands in the first one before it, the record, and zeros up to the end of
/// the last one.
#[derive(Debug)]
struct Blocks {
    memory: Box<[u8]>,
    /// Where they begin: at a multiple of [`BLOCK_BYTES`] in memory.
    start: usize,
    /// Bytes of the first one before the record.
    before: usize,
}

/// The rows of one commit.
#[derive(Debug, Default)]
pub(super) struct Rows(Vec<u8>);

/// A record that was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) number: u64,
    rows: &'a [u8],
}

/// A row of a record: its tree, its key, and its value unless it was removed.
pub(super) type Row<'a> = (Tree, &'a [u8], Option<&'a [u8]>);

impl Rows {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn push(&mut self, tree: Tree, key: &[u8], value: Option<&[u8]>) {
        if self.0.is_empty() {
            self.0.put_bytes(0, HEADER_BYTES);
        }
        self.0.put_u8(tree as u8);
        self.0.put_u32_le(key.len() as u32);
        self.0.put_u32_le(value.map_or(REMOVED, |value| value.len() as u32));
        self.0.put_slice(key);
        self.0.put_slice(value.unwrap_or_default());
    }

    fn finish(&mut self, number: u64, key: &Key) -> &[u8] {
        let len = self.0.len().saturating_sub(HEADER_BYTES) as u32;
        let mut header = [0; HEADER_BYTES];
        header.as_mut_slice().put_u32_le(len);
        if let Some(to) = header.get_mut(8..) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        if let Some(to) = self.0.first_chunk_mut() {
            *to = header;
        }
        let crc = checksum(&self.0, key);
        if let Some(to) = self.0.get_mut(4..8) {
            to.copy_from_slice(&crc.to_le_bytes());
        }
        &self.0
    }
}

/// Of a record, without the bytes that hold it.
fn checksum(record: &[u8], key: &Key) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    key.iter().for_each(|key| hasher.update(key));
    hasher.update(record.get(..4).unwrap_or_default());
    hasher.update(record.get(8..).unwrap_or_default());
    hasher.finalize()
}

impl Journal {
    /// Opens the file in `data_dir`, or makes it: all of it is written once, so that no later write has to find room or
    /// to say where it found it. What stands in it must be in sled, durably.
    pub(super) fn open(data_dir: &Path, key: Key) -> io::Result<Self> {
        let path = data_dir.join(NAME);
        if !is_whole(data_dir) {
            let new = data_dir.join(".journal");
            let made = File::create(&new).and_then(|file| {
                file.write_all_at(&vec![0; JOURNAL_BYTES], 0).and_then(|()| file.sync_all())
            });
            if let Err(error) = made {
                drop(std::fs::remove_file(&new));
                return Err(error);
            }
            std::fs::rename(&new, &path)?;
            File::open(data_dir)?.sync_all()?;
        }
        let file = File::options().write(true).open(path)?;
        let blocks = fcntl_setfl(&file, OFlags::DIRECT).is_ok().then(Blocks::new);
        Ok(Self { file, key, position: 0, blocks })
    }

    /// Whether a record has room before the end of the file.
    pub(super) fn has_room(&self, rows: &Rows) -> bool {
        self.position + rows.0.len() <= JOURNAL_BYTES
    }

    /// Makes the record durable.
    pub(super) fn append(&mut self, number: u64, rows: &mut Rows) -> io::Result<()> {
        let record = rows.finish(number, &self.key);
        self.write(record)?;
        self.file.sync_data()?;
        self.position += record.len();
        Ok(())
    }

    fn write(&mut self, record: &[u8]) -> io::Result<()> {
        if let Some(blocks) = &mut self.blocks {
            let written = blocks.with(record).and_then(|bytes| {
                self.file.write_all_at(bytes, (self.position / BLOCK_BYTES * BLOCK_BYTES) as u64)
            });
            match written {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    // A file system that takes the flag and not what goes with it.
                    fcntl_setfl(&self.file, OFlags::empty())?;
                    self.blocks = None;
                }
                written => return written.map(|()| blocks.go_on(record.len())),
            }
        }
        self.file.write_all_at(record, self.position as u64)
    }

    /// Begins anew: sled has all that stands here.
    pub(super) fn rewind(&mut self) {
        self.position = 0;
        if let Some(blocks) = &mut self.blocks {
            blocks.before = 0;
        }
    }
}

impl Blocks {
    fn new() -> Self {
        let memory = vec![0; RECORD_BYTES + HEADER_BYTES + 3 * BLOCK_BYTES].into_boxed_slice();
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, start, before: 0 }
    }

    /// The blocks of `record`, which comes next.
    fn with(&mut self, record: &[u8]) -> io::Result<&[u8]> {
        let end = self.before + record.len();
        let whole = end.next_multiple_of(BLOCK_BYTES);
        let blocks = self.memory.get_mut(self.start..).and_then(|aligned| aligned.get_mut(..whole));
        let blocks = blocks.ok_or(io::ErrorKind::InvalidInput)?;
        let (filled, rest) = blocks.split_at_mut(end);
        if let Some(to) = filled.get_mut(self.before..) {
            to.copy_from_slice(record);
        }
        rest.fill(0);
        Ok(blocks)
    }

    /// What comes next begins behind a record of `len` bytes.
    fn go_on(&mut self, len: usize) {
        let end = self.before + len;
        let last = end / BLOCK_BYTES * BLOCK_BYTES;
        if last > 0 {
            self.memory.copy_within(self.start + last..self.start + end, self.start);
        }
        self.before = end - last;
    }
}

/// Whether there is one, of its size.
pub(super) fn is_whole(data_dir: &Path) -> bool {
    std::fs::metadata(data_dir.join(NAME)).is_ok_and(|found| found.len() == JOURNAL_BYTES as u64)
}

/// What stands in the file, if there is one.
pub(super) fn read(data_dir: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(data_dir.join(NAME)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        bytes => bytes.map(Some),
    }
}

fn record<'a>(bytes: &'a [u8], key: &Key) -> Option<(Record<'a>, &'a [u8])> {
    let mut header = bytes.get(..HEADER_BYTES)?;
    let len = header.get_u32_le() as usize;
    let crc = header.get_u32_le();
    let number = header.get_u64_le();
    let (record, rest) = bytes.split_at_checked(HEADER_BYTES.checked_add(len)?)?;
    let rows = record.get(HEADER_BYTES..)?;
    (len > 0 && checksum(record, key) == crc).then_some((Record { number, rows }, rest))
}

/// The records, from the start of the file on, of a store whose rows have come to record `stored` at least.
///
/// # Errors
/// One is missing or cannot be read, and a later one shows that it had been written whole.
pub(super) fn records<'a>(bytes: &'a [u8], stored: u64, key: &Key) -> Result<Vec<Record<'a>>, String> {
    let mut found: Vec<Record<'a>> = Vec::new();
    let mut rest = bytes;
    while let Some((next, behind)) = record(rest, key)
        && found.last().is_none_or(|last| next.number == last.number + 1)
    {
        found.push(next);
        rest = behind;
    }
    if let Some(first) = found.first()
        && first.number > stored + 1
    {
        return Err(format!(
            "it begins with record {}, but the store has come to {stored} only",
            first.number
        ));
    }
    // Those at the start may be older than what began anew over them.
    let last = found.last().map_or(stored, |last| last.number.max(stored));
    let at = bytes.len() - rest.len();
    // A record is written when the one before it is durable. What is older the store has.
    for from in at + 1..(at + HEADER_BYTES + RECORD_BYTES + 1).min(bytes.len()) {
        let number =
            bytes.get(from + 8..).and_then(<[u8]>::first_chunk).map_or(0, |n| u64::from_le_bytes(*n));
        if number > last && bytes.get(from..).and_then(|it| record(it, key)).is_some() {
            return Err(format!("its record at byte {at} cannot be read, but record {number} follows"));
        }
    }
    Ok(found)
}

impl<'a> Record<'a> {
    /// Its rows in their order.
    pub(super) fn rows(&self) -> impl Iterator<Item = Result<Row<'a>, String>> + use<'a> {
        let mut rest = self.rows;
        std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| {
                let row = row(&mut rest);
                if row.is_none() {
                    rest = &[];
                }
                row.ok_or_else(|| "a record has a row of an unknown form".to_owned())
            })
        })
    }
}

fn row<'a>(rest: &mut &'a [u8]) -> Option<Row<'a>> {
    let tree = Tree::of(rest.try_get_u8().ok()?)?;
    let key_len = rest.try_get_u32_le().ok()? as usize;
    let value_len = rest.try_get_u32_le().ok()?;
    let (key, behind) = rest.split_at_checked(key_len)?;
    if value_len == REMOVED {
        *rest = behind;
        return Some((tree, key, None));
    }
    let (value, behind) = behind.split_at_checked(value_len as usize)?;
    *rest = behind;
    Some((tree, key, Some(value)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const KEY: Key = Some(*b"nobody knows it.");

    fn rows(n: u8) -> Rows {
        let mut rows = Rows::default();
        rows.push(Tree::Head, &[n; 8], Some(&vec![n; usize::from(n) + 1]));
        rows.push(Tree::Body, &[n; 8], None);
        rows.push(Tree::Sub, b"", Some(b""));
        rows
    }

    /// What somebody writes who knows all but the key.
    pub(in super::super) fn forged(number: u64) -> Vec<u8> {
        rows(7).finish(number, &None).to_vec()
    }

    /// The numbers of what is read back.
    fn numbers(bytes: &[u8], stored: u64) -> Result<Vec<u64>, String> {
        Ok(records(bytes, stored, &KEY)?.iter().map(|record| record.number).collect())
    }

    fn written(directory: &Path, numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let mut journal = Journal::open(directory, KEY).unwrap();
        for number in numbers {
            journal.append(number, &mut rows(number as u8)).unwrap();
        }
        read(directory).unwrap().unwrap()
    }

    #[test]
    fn what_was_appended_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), None);
        let bytes = written(directory.path(), 7..10);
        let records = records(&bytes, 6, &KEY).unwrap();
        assert_eq!(records.iter().map(|record| record.number).collect::<Vec<_>>(), [7, 8, 9]);
        let read: Vec<_> = records[1].rows().map(Result::unwrap).collect();
        assert_eq!(
            read,
            [
                (Tree::Head, &[8; 8][..], Some(&[8; 9][..])),
                (Tree::Body, &[8; 8][..], None),
                (Tree::Sub, &b""[..], Some(&b""[..]))
            ]
        );
    }

    #[test]
    fn records_of_any_length_are_the_same_past_the_page_cache() {
        let lens = [1, 4040, 1, 55, 4096, 8192, 3, RECORD_BYTES - 64, 9000, 4096 - 25, 77];
        let written = [true, false].map(|past| {
            let directory = tempfile::tempdir().unwrap();
            let mut journal = Journal::open(directory.path(), KEY).unwrap();
            if !past {
                fcntl_setfl(&journal.file, OFlags::empty()).unwrap();
                journal.blocks = None;
            }
            // The second time over what is older.
            for (round, first) in [(0, 1), (1, 100)] {
                journal.rewind();
                for (n, len) in lens.into_iter().enumerate().skip(round) {
                    let mut rows = Rows::default();
                    rows.push(Tree::Body, b"", Some(&vec![n as u8; len]));
                    journal.append(first + n as u64, &mut rows).unwrap();
                }
            }
            let bytes = read(directory.path()).unwrap().unwrap();
            assert_eq!(numbers(&bytes, 100).unwrap(), (101..111).collect::<Vec<_>>(), "past: {past}");
            (journal.position, bytes)
        });
        let [(end, past), (same, through)] = written;
        assert_eq!(end, same);
        assert!(past[..end] == through[..end]);
    }

    #[test]
    fn what_is_older_does_not_follow_what_is_new() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), 1..20);
        let bytes = written(directory.path(), 21..24);
        assert_eq!(numbers(&bytes, 20).unwrap(), [21, 22, 23]);
        assert!(numbers(&bytes, 19).unwrap_err().contains("begins with record 21"));
        // Records of one length, so that an old one begins where the newest ends.
        let one = Rows::default;
        let same = |number| {
            let mut rows = one();
            rows.push(Tree::Seq, b"k", Some(b"v"));
            (number, rows)
        };
        let mut journal = Journal::open(directory.path(), KEY).unwrap();
        for (number, mut rows) in (30..40).chain([50]).map(same) {
            if number == 50 {
                journal.rewind();
            }
            journal.append(number, &mut rows).unwrap();
        }
        assert_eq!(numbers(&read(directory.path()).unwrap().unwrap(), 49).unwrap(), [50]);
    }

    #[test]
    fn a_torn_end_was_never_promised_and_a_torn_middle_was() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = written(directory.path(), 1..4);
        let ends: Vec<usize> = (1..4)
            .scan(0, |at, n| {
                *at += rows(n).0.len();
                Some(*at)
            })
            .collect();
        for at in 0..ends[2] {
            let mut torn = bytes.clone();
            torn[at] ^= 0x40;
            let read = numbers(&torn, 0);
            if at >= ends[1] {
                assert_eq!(read.unwrap(), [1, 2], "byte {at}");
            } else {
                let follows = if at >= ends[0] { "record 3 follows" } else { "follows" };
                assert!(read.unwrap_err().contains(follows), "byte {at}");
            }
        }
    }

    #[test]
    fn the_first_record_of_a_journal_that_began_anew_may_be_torn() {
        let directory = tempfile::tempdir().unwrap();
        let old = written(directory.path(), 1..60);
        let new = written(directory.path(), [61]);
        for kept in 0..256 {
            let mut torn = new.clone();
            for sector in (0..8).filter(|sector| kept & 1 << sector == 0) {
                let of_it = sector * 512..(sector + 1) * 512;
                torn[of_it.clone()].copy_from_slice(&old[of_it]);
            }
            let found = numbers(&torn, 60).unwrap_or_else(|what| panic!("sectors {kept:08b}: {what}"));
            assert!(found.iter().all(|number| (1..=61).contains(number)));
        }
        // What the store has is no loss, what it has not is one.
        let mut damaged = old.clone();
        damaged[20] ^= 1;
        assert!(numbers(&damaged, 58).unwrap_err().contains("record 59 follows"));
        assert!(numbers(&damaged, 59).unwrap().is_empty());
    }

    #[test]
    fn a_file_of_another_size_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(NAME), b"short").unwrap();
        assert_eq!(numbers(&written(directory.path(), [3]), 2).unwrap(), [3]);
    }
}
