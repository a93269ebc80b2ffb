//! Which deduplication ids each queue remembers, and where their messages came to lie.
//!
//! An id is remembered from the commit of its message on, whatever becomes of the message, until the queue's window is
//! over. It counts from the time of the message, by the wall clock. In memory an id takes 100 to 200 bytes.
//!
//! ```text
//! dedup  [queue u32 BE][first sequence u64 BE]
//!        [crc32 u32 LE] and for each message: [id's hash 16 bytes][message id 16 bytes][sequence u64 LE]
//! ```
//! A row has what one pack added to one queue, by sequence. It is written before the head that adds the messages, and the
//! rows that say which sequences were given out come behind that head: what is remembered of sequences that the queue has
//! not given out was never committed, and recovery drops it. An id stands here as its hash alone, see `hash`; a queue's rows go
//! when their time is over, a bounded number at a time.
//!
//! The writer's alone; no lock, no disk.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use rustc_hash::FxHasher;
use smallvec::SmallVec;

use super::format::{FormatError, decode_checked, encode_checked};
use super::hash::TextHash;
use crate::types::clock::now;
use crate::types::{MessageId, TargetId, UnixMillis};

/// Ids of one row: 40 bytes each, so that a row stays below what sled keeps in a leaf.
const ROW_IDS: usize = 400;
const ID_BYTES: usize = 40;
/// How often it is looked for what is over.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// So many ids are forgotten at once, to the end of a row; nothing is acknowledged meanwhile.
const SWEEP_IDS: usize = 4096;
/// It is gone on after this time.
const SWEEP_ON: Duration = Duration::from_millis(50);

/// The message that had an id first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct First {
    pub(super) id: MessageId,
    pub(super) sequence: u64,
}

impl First {
    fn is_over(&self, window: Duration, now: UnixMillis) -> bool {
        self.id.time().after(window) <= now
    }
}

#[derive(Debug)]
struct Row {
    first: u64,
    last: u64,
    newest: UnixMillis,
    ids: SmallVec<[TextHash; 1]>,
}

/// What one queue remembers.
#[derive(Debug, Default)]
struct Ids {
    known: HashMap<TextHash, First, BuildHasherDefault<FxHasher>>,
    /// In the order of their sequences.
    rows: VecDeque<Row>,
}

impl Ids {
    /// Forgets the first row if it is over, and gives its key to `dropped`. How many ids it had.
    fn forget_row(
        &mut self,
        queue: TargetId,
        window: Duration,
        now: UnixMillis,
        dropped: &mut VecDeque<Key>,
    ) -> Option<usize> {
        if self.rows.front().is_some_and(|row| row.newest > now) {
            // The clock was ahead of what it is: they are new now, lest they are so for as long as it was ahead.
            self.rows.iter_mut().for_each(|row| row.newest = row.newest.min(now));
        }
        let row = self.rows.pop_front_if(|row| row.newest.after(window) <= now)?;
        for id in &row.ids {
            // One that was over before its row may be known again, of a later message.
            if self.known.get(id).is_some_and(|first| first.sequence <= row.last) {
                self.known.remove(id);
            }
        }
        dropped.push_back(key(queue, row.first));
        Some(row.ids.len())
    }

    /// Gives the memory of what was forgotten back.
    fn shrink(&mut self) {
        if self.known.capacity() > 1024 && self.known.len() < self.known.capacity() / 4 {
            self.known.shrink_to(self.known.len() * 2);
        }
        if self.rows.capacity() > 1024 && self.rows.len() < self.rows.capacity() / 4 {
            self.rows.shrink_to(self.rows.len() * 2);
        }
    }

    fn add_row(&mut self, ids: &[(TextHash, First)]) {
        let (Some((_, first)), Some((_, last))) = (ids.first(), ids.last()) else { return };
        let newest = ids.iter().map(|(_, first)| first.id.time()).max().unwrap_or_default();
        let hashes = ids.iter().map(|(id, _)| *id).collect();
        self.rows.push_back(Row { first: first.sequence, last: last.sequence, newest, ids: hashes });
    }
}

/// The key of a row.
pub(super) type Key = [u8; 12];

fn key(queue: TargetId, first: u64) -> Key {
    let mut key = [0; 12];
    let (a, b) = key.split_at_mut(4);
    a.copy_from_slice(&queue.0.to_be_bytes());
    b.copy_from_slice(&first.to_be_bytes());
    key
}

/// See the module.
#[derive(Debug)]
pub(super) struct Dedup {
    queues: HashMap<TargetId, Ids, BuildHasherDefault<FxHasher>>,
    /// Those of the pack that is being built.
    fresh: Vec<(TargetId, TextHash, First)>,
    /// Rows that are over.
    dropped: VecDeque<Key>,
    next_sweep: Instant,
}

impl Default for Dedup {
    fn default() -> Self {
        Self {
            queues: HashMap::default(),
            fresh: Vec::new(),
            dropped: VecDeque::new(),
            next_sweep: now() + SWEEP_EVERY,
        }
    }
}

impl Dedup {
    /// The message of a queue that had this id within the window.
    pub(super) fn find(
        &self,
        queue: TargetId,
        id: TextHash,
        window: Duration,
        now: UnixMillis,
    ) -> Option<First> {
        self.queues.get(&queue)?.known.get(&id).filter(|first| !first.is_over(window, now)).copied()
    }

    /// Whether a queue may remember `more` ids, of at most `max`.
    pub(super) fn has_room(
        &mut self,
        queue: TargetId,
        more: usize,
        max: usize,
        window: Duration,
        now: UnixMillis,
    ) -> bool {
        let Some(ids) = self.queues.get_mut(&queue) else { return more <= max };
        while ids.known.len() + more > max {
            if ids.forget_row(queue, window, now, &mut self.dropped).is_none() {
                return false;
            }
        }
        true
    }

    /// A message of the pack that is being built has this id.
    pub(super) fn remember(&mut self, queue: TargetId, id: TextHash, first: First) {
        self.queues.entry(queue).or_default().known.insert(id, first);
        self.fresh.push((queue, id, first));
    }

    /// Whether ids wait for the head of the pack that is being built.
    pub(super) fn is_staged(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// The rows that are to be written before the head of the pack that is being built.
    pub(super) fn take_rows(&mut self) -> Vec<(Key, Vec<u8>)> {
        let mut rows = Vec::new();
        if self.fresh.is_empty() {
            return rows;
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.sort_by_key(|(queue, _, first)| (*queue, first.sequence));
        for ids in fresh.chunk_by(|(a, ..), (b, ..)| a == b) {
            let Some(&(queue, ..)) = ids.first() else { continue };
            for ids in ids.chunks(ROW_IDS) {
                let ids: SmallVec<[_; 1]> = ids.iter().map(|&(_, id, first)| (id, first)).collect();
                let Some((_, first)) = ids.first() else { continue };
                rows.push((key(queue, first.sequence), encode(&ids)));
                self.queues.entry(queue).or_default().add_row(&ids);
            }
        }
        fresh.clear();
        self.fresh = fresh;
        rows
    }

    /// A queue is gone.
    pub(super) fn delete(&mut self, queue: TargetId) {
        let Some(ids) = self.queues.remove(&queue) else { return };
        self.dropped.extend(ids.rows.iter().map(|row| key(queue, row.first)));
    }

    /// When it is to be looked for what is over.
    pub(super) fn sweep_at(&self) -> Option<Instant> {
        (!self.queues.is_empty()).then_some(self.next_sweep)
    }

    /// Forgets some of what is over, if it is time. `window` is that of a queue; none: it has none any more.
    pub(super) fn sweep(&mut self, at: UnixMillis, window: impl Fn(TargetId) -> Option<Duration>) {
        if self.queues.is_empty() || now() < self.next_sweep {
            return;
        }
        // Rows are forgotten no faster than they are removed.
        let mut left = if self.dropped.is_empty() { SWEEP_IDS } else { 0 };
        self.queues.retain(|&queue, ids| {
            // What is staged has no row yet.
            let (window, at) = window(queue).map_or((Duration::ZERO, UnixMillis(u64::MAX)), |it| (it, at));
            while left > 0
                && let Some(count) = ids.forget_row(queue, window, at, &mut self.dropped)
            {
                left = left.saturating_sub(count.max(1));
            }
            ids.shrink();
            !ids.known.is_empty() || !ids.rows.is_empty()
        });
        self.next_sweep = now() + if left > 0 { SWEEP_EVERY } else { SWEEP_ON };
    }

    /// Whether there are rows to be removed.
    pub(super) fn has_dropped(&self) -> bool {
        !self.dropped.is_empty()
    }

    /// At most `max` rows to be removed.
    pub(super) fn take_dropped(&mut self, max: usize) -> impl Iterator<Item = Key> + use<'_> {
        if self.dropped.is_empty() {
            self.dropped.shrink_to(1024);
        }
        let count = self.dropped.len().min(max);
        self.dropped.drain(..count)
    }

    /// Recovery: a row. Those of a queue come in the order of their keys. False if it is to be dropped: what it
    /// remembers was never committed, `next` being the next sequence of its queue, or is over.
    pub(super) fn restore(
        &mut self,
        queue: TargetId,
        ids: &[(TextHash, First)],
        next: u64,
        window: Option<Duration>,
        now: UnixMillis,
    ) -> bool {
        let Some(window) = window else { return false };
        let committed = ids.last().is_some_and(|(_, first)| first.sequence < next);
        if !committed || ids.iter().all(|(_, first)| first.is_over(window, now)) {
            return false;
        }
        let known = self.queues.entry(queue).or_default();
        known.known.extend(ids.iter().copied());
        known.add_row(ids);
        true
    }
}

/// The queue of a row.
pub(super) fn queue_of(key: &[u8]) -> Option<TargetId> {
    (key.len() == 12).then(|| key.first_chunk().map(|bytes| TargetId(u32::from_be_bytes(*bytes))))?
}

fn encode(ids: &[(TextHash, First)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ids.len() * ID_BYTES);
    for (id, first) in ids {
        bytes.put_u128_le(id.0);
        bytes.put_u128_le(first.id.to_u128());
        bytes.put_u64_le(first.sequence);
    }
    encode_checked(&bytes)
}

/// Reads a row.
pub(super) fn decode(row: &[u8]) -> Result<Vec<(TextHash, First)>, FormatError> {
    const WHAT: &str = "a row of deduplication ids";
    let mut bytes = decode_checked(row, WHAT)?;
    let mut ids = Vec::with_capacity(bytes.len() / ID_BYTES);
    while bytes.has_remaining() {
        if bytes.remaining() < ID_BYTES {
            return Err(FormatError::Short(WHAT));
        }
        let id = TextHash(bytes.get_u128_le());
        let message = MessageId::from_u128(bytes.get_u128_le());
        ids.push((id, First { id: message, sequence: bytes.get_u64_le() }));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::super::hash::Text;
    use super::*;

    const QUEUE: TargetId = TargetId(7);
    const MINUTE: Duration = Duration::from_secs(60);

    fn at(millis: u64, sequence: u64) -> First {
        First { id: MessageId::from_u128(u128::from(millis) << 80), sequence }
    }

    fn hash(id: &str) -> TextHash {
        TextHash::new(&[1; 16], Text::DedupId, id)
    }

    #[test]
    fn an_id_is_known_until_its_window_is_over() {
        let mut dedup = Dedup::default();
        dedup.remember(QUEUE, hash("a"), at(1_000, 5));
        let find = |dedup: &Dedup, id, now| dedup.find(QUEUE, hash(id), MINUTE, UnixMillis(now));
        assert_eq!(find(&dedup, "a", 60_999), Some(at(1_000, 5)));
        assert_eq!((find(&dedup, "a", 61_000), find(&dedup, "b", 1_000)), (None, None));
        assert_eq!(dedup.find(TargetId(8), hash("a"), MINUTE, UnixMillis(1_000)), None);
    }

    #[test]
    fn what_is_over_makes_room_and_its_rows_go() {
        let mut dedup = Dedup::default();
        dedup.remember(QUEUE, hash("a"), at(1_000, 1));
        dedup.remember(QUEUE, hash("b"), at(2_000, 2));
        assert_eq!(dedup.take_rows().len(), 1);
        dedup.remember(QUEUE, hash("c"), at(3_000, 3));
        assert_eq!(dedup.take_rows().len(), 1);
        let room = |dedup: &mut Dedup, now| dedup.has_room(QUEUE, 1, 3, MINUTE, UnixMillis(now));
        assert!(!room(&mut dedup, 61_500), "the row has one that is not over");
        assert!(room(&mut dedup, 62_000));
        assert_eq!(dedup.take_dropped(9).collect::<Vec<_>>(), [key(QUEUE, 1)]);
        assert_eq!(dedup.find(QUEUE, hash("c"), MINUTE, UnixMillis(62_000)), Some(at(3_000, 3)));
    }

    #[test]
    fn one_that_came_again_later_outlives_the_row_of_the_first() {
        let mut dedup = Dedup::default();
        dedup.remember(QUEUE, hash("a"), at(0, 1));
        dedup.take_rows();
        dedup.remember(QUEUE, hash("a"), at(60_000, 2));
        dedup.take_rows();
        assert!(!dedup.has_room(QUEUE, 1, 1, MINUTE, UnixMillis(70_000)));
        assert_eq!(dedup.take_dropped(9).count(), 1);
        assert_eq!(dedup.find(QUEUE, hash("a"), MINUTE, UnixMillis(70_000)), Some(at(60_000, 2)));
    }

    #[test]
    fn ids_from_a_clock_that_was_ahead_are_forgotten_a_window_after_it_is_right() {
        let mut dedup = Dedup::default();
        let right = 1_000_000;
        for (sequence, name) in [(1, "a"), (2, "b")] {
            dedup.remember(QUEUE, hash(name), at(right * 1_000, sequence));
            dedup.take_rows();
        }
        dedup.remember(QUEUE, hash("c"), at(right, 3));
        dedup.take_rows();
        let room = |dedup: &mut Dedup, now| dedup.has_room(QUEUE, 3, 3, MINUTE, UnixMillis(now));
        assert!(!room(&mut dedup, right));
        assert_eq!(dedup.find(QUEUE, hash("a"), MINUTE, UnixMillis(right)), Some(at(right * 1_000, 1)));
        assert!(!room(&mut dedup, right + 59_999));
        assert!(room(&mut dedup, right + 60_000));
        assert_eq!(dedup.find(QUEUE, hash("a"), MINUTE, UnixMillis(right + 60_000)), None);
        assert_eq!(dedup.take_dropped(9).count(), 3);
    }

    #[test]
    fn rows_come_back_and_what_was_not_committed_does_not() {
        let mut dedup = Dedup::default();
        for n in 0..1000 {
            dedup.remember(QUEUE, hash(&n.to_string()), at(n, n));
        }
        let rows = dedup.take_rows();
        assert_eq!(rows.iter().map(|(_, row)| row.len()).max(), Some(4 + ROW_IDS * ID_BYTES));
        let mut again = Dedup::default();
        let restored: Vec<_> = rows
            .iter()
            .map(|(key, row)| {
                assert_eq!(queue_of(key), Some(QUEUE));
                again.restore(QUEUE, &decode(row).unwrap(), 800, Some(MINUTE), UnixMillis(10_000))
            })
            .collect();
        assert_eq!(restored, [true, true, false]);
        let find = |n: u64| again.find(QUEUE, hash(&n.to_string()), MINUTE, UnixMillis(10_000));
        assert_eq!((find(799), find(800)), (Some(at(799, 799)), None));
        let late = UnixMillis(60_000 + 999);
        let row = decode(&rows[2].1).unwrap();
        assert!(!Dedup::default().restore(QUEUE, &row, 1000, Some(MINUTE), late), "it is over");
        assert!(!Dedup::default().restore(QUEUE, &row, 1000, None, UnixMillis(0)), "there is no window");
    }

    #[test]
    fn the_rows_of_a_queue_without_a_window_go() {
        let mut dedup = Dedup::default();
        dedup.remember(QUEUE, hash("a"), at(1, 1));
        dedup.take_rows();
        dedup.next_sweep = now();
        dedup.sweep(UnixMillis(2), |_| Some(MINUTE));
        assert!(!dedup.has_dropped() && dedup.sweep_at().is_some());
        dedup.next_sweep = now();
        dedup.sweep(UnixMillis(2), |_| None);
        assert!(dedup.has_dropped() && dedup.sweep_at().is_none());
        dedup.remember(QUEUE, hash("a"), at(1, 2));
        dedup.take_rows();
        dedup.delete(QUEUE);
        assert_eq!(dedup.take_dropped(1).count() + dedup.take_dropped(9).count(), 2);
    }

    #[test]
    fn a_sweep_forgets_a_part_and_the_next_goes_on() {
        let mut dedup = Dedup::default();
        let (count, of_row) = (3 * SWEEP_IDS as u64, 3);
        for n in 0..count {
            dedup.remember(QUEUE, hash(&n.to_string()), at(1, n));
            if n % of_row == of_row - 1 {
                dedup.take_rows();
            }
        }
        let known = |dedup: &Dedup| dedup.queues.get(&QUEUE).map_or(0, |ids| ids.known.len());
        let sweep = |dedup: &mut Dedup| {
            dedup.next_sweep = now();
            dedup.sweep(UnixMillis(1 << 40), |_| Some(MINUTE));
        };
        sweep(&mut dedup);
        let left = known(&dedup);
        assert!(left < count as usize && left + SWEEP_IDS + of_row as usize > count as usize, "{left}");
        let soon = dedup.sweep_at().unwrap();
        assert!(soon <= now() + SWEEP_ON, "it goes on soon");
        sweep(&mut dedup);
        assert_eq!(known(&dedup), left, "the rows of the first part are there");
        let mut rows = 0;
        while known(&dedup) > 0 {
            rows += dedup.take_dropped(usize::MAX).count();
            sweep(&mut dedup);
        }
        rows += dedup.take_dropped(usize::MAX).count();
        assert_eq!(rows as u64, count / of_row);
        assert!(!dedup.has_dropped() && dedup.sweep_at().is_none());
    }

    #[test]
    fn what_is_forgotten_takes_no_memory() {
        let mut dedup = Dedup::default();
        for n in 0..20_000 {
            dedup.remember(QUEUE, hash(&n.to_string()), at(if n < 19_990 { 1 } else { 1 << 40 }, n));
            dedup.take_rows();
        }
        while dedup.queues[&QUEUE].rows.len() > 10 {
            dedup.next_sweep = now();
            dedup.sweep(UnixMillis(1 << 40), |_| Some(MINUTE));
            drop(dedup.take_dropped(usize::MAX));
        }
        drop(dedup.take_dropped(usize::MAX));
        let ids = &dedup.queues[&QUEUE];
        let sizes = [ids.known.capacity(), ids.rows.capacity(), dedup.dropped.capacity()];
        assert!(sizes.iter().all(|&size| size < 2048), "{sizes:?}");
    }

    #[test]
    fn damage_is_seen_and_the_layout_stays() {
        let row = encode(&[(TextHash(1), at(0x0102, 3))]);
        let expected = [
            &crc32fast::hash(&row[4..]).to_le_bytes()[..],
            &1_u128.to_le_bytes(),
            &(0x0102_u128 << 80).to_le_bytes(),
            &[3, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(row, expected.concat());
        assert!(decode(&row[..row.len() - 1]).is_err());
    }
}
