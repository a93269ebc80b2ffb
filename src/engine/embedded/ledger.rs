//! Which packs are still needed, and why.
//!
//! A pack may go when all its ADDs are settled and no pack that its SETTLE and MARK records name is left to be
//! brought back without them: each named pack is gone itself or has a checkpoint as recent as this pack. The packs of a
//! chain go after its first, whose ADDs theirs are; where each has its own, the last goes after all others.
//! Whoever removes a pack does so a sync later than what justified it.
//!
//! The writer's alone; no lock, no disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasherDefault;

use rustc_hash::FxHasher;
use smallvec::SmallVec;

use super::format::{Done, Location, Mark};

type Map<K, V> = HashMap<K, V, BuildHasherDefault<FxHasher>>;

/// What is known of a pack.
#[derive(Debug, Default)]
struct Pack {
    adds: u32,
    live: u32,
    /// Bytes of its rows.
    bytes: u32,
    /// Large bodies.
    slots: u16,
    /// One bit for each ADD.
    settled: SmallVec<[u64; 2]>,
    /// Of ADDs that are not settled, by ordinal.
    marks: BTreeMap<u32, Mark>,
    /// Packs that this one's records name and that are still there without a checkpoint since.
    needs: u32,
    /// Packs whose records name this one since its last checkpoint.
    needed_by: SmallVec<[u64; 2]>,
    /// How many of its chain are there after which this one goes.
    after: u32,
    /// Those of its chain that go after this one.
    others: Vec<u64>,
    /// Logical bytes written when it was: its age.
    written_at: u64,
}

impl Pack {
    /// How many bytes more it has then.
    fn grow(&mut self, bytes: usize) -> u64 {
        let before = self.bytes;
        self.bytes = before.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        u64::from(self.bytes - before)
    }
}

/// All packs of the store.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    packs: BTreeMap<u64, Pack>,
    /// Packs with dependents since their last checkpoint.
    dirty: HashSet<u64, BuildHasherDefault<FxHasher>>,
    /// Nothing needs them any more.
    free: Vec<u64>,
    /// Where rewritten messages went that may still be named by their old place.
    moved: Map<Location, Location>,
    /// Recovery: the packs whose records say what the marks of ADDs are.
    marked: Map<Location, u64>,
    /// Packs that became mostly dead since they were last looked at.
    sparse: Vec<u64>,
    bytes: u64,
    live: u64,
}

impl Ledger {
    /// A pack is begun; until it is sealed it is needed.
    pub(super) fn begin(&mut self, pack: u64, clock: u64) {
        self.packs.insert(pack, Pack { needs: 1, written_at: clock, ..Pack::default() });
    }

    /// A pack that was begun is of a chain, and goes after `other` of it.
    pub(super) fn follow(&mut self, pack: u64, other: u64) {
        let Some(entry) = self.packs.get_mut(&other) else { return };
        entry.others.push(pack);
        if let Some(entry) = self.packs.get_mut(&pack) {
            entry.after += 1;
        }
    }

    /// One more ADD whose body lies in this pack. Returns its ordinal.
    pub(super) fn add(&mut self, pack: u64) -> Option<u32> {
        let entry = self.packs.get_mut(&pack)?;
        let ordinal = entry.adds;
        entry.adds += 1;
        entry.live += 1;
        if ordinal % 64 == 0 {
            entry.settled.push(0);
        }
        self.live += 1;
        Some(ordinal)
    }

    /// Recovery: a large body lies in this pack, whichever head of its chain has the ADD. Those of a pack come in their order.
    pub(super) fn add_large(&mut self, pack: u64, slot: u16, bytes: usize) {
        let Some(entry) = self.packs.get_mut(&pack).filter(|entry| slot >= entry.slots) else { return };
        entry.slots = slot.saturating_add(1);
        self.bytes += entry.grow(bytes);
    }

    /// A pack was written. `names`: packs that its records name, or that must go before it.
    pub(super) fn seal(&mut self, pack: u64, bytes: usize, slots: u16, names: &mut Vec<u64>) {
        names.sort_unstable();
        names.dedup();
        let mut needs = 0;
        for &name in names.iter().filter(|&&name| name != pack) {
            if let Some(named) = self.packs.get_mut(&name) {
                named.needed_by.push(pack);
                self.dirty.insert(name);
                needs += 1;
            }
        }
        names.clear();
        let Some(entry) = self.packs.get_mut(&pack) else { return };
        needs += entry.after;
        entry.slots = entry.slots.max(slots);
        entry.needs = needs;
        self.bytes += entry.grow(bytes);
        if entry.live == 0 && needs == 0 {
            self.free.push(pack);
        }
    }

    /// `pack` may not go before `on`, though its records do not say so.
    pub(super) fn depend(&mut self, pack: u64, on: u64) {
        if pack == on || !self.packs.contains_key(&pack) {
            return;
        }
        let Some(named) = self.packs.get_mut(&on) else { return };
        named.needed_by.push(pack);
        self.dirty.insert(on);
        if let Some(entry) = self.packs.get_mut(&pack) {
            entry.needs += 1;
        }
    }

    /// Where an ADD stands now.
    pub(super) fn current(&self, mut place: Location) -> Location {
        while let Some(&next) = self.moved.get(&place) {
            place = next;
        }
        place
    }

    /// An ADD is settled. False if it was before, or is not known.
    pub(super) fn settle(&mut self, place: Location) -> bool {
        let Some(entry) = self.packs.get_mut(&place.pack) else { return false };
        let bit = 1_u64 << (place.ordinal % 64);
        let Some(word) = entry.settled.get_mut(place.ordinal as usize / 64) else { return false };
        if *word & bit != 0 || place.ordinal >= entry.adds {
            return false;
        }
        *word |= bit;
        entry.live -= 1;
        self.live -= 1;
        entry.marks.remove(&place.ordinal);
        if entry.live == 0 && entry.needs == 0 {
            self.free.push(place.pack);
        } else if entry.live > 0 && entry.live == entry.adds / 4 {
            self.sparse.push(place.pack);
        }
        true
    }

    /// An ADD has a mark now. False if it is settled or not known, or has this mark already.
    pub(super) fn mark(&mut self, place: Location, mark: Mark) -> bool {
        let Some(entry) = self.packs.get_mut(&place.pack) else { return false };
        let bit = 1_u64 << (place.ordinal % 64);
        if entry.settled.get(place.ordinal as usize / 64).is_none_or(|word| word & bit != 0) {
            return false;
        }
        entry.marks.insert(place.ordinal, mark) != Some(mark)
    }

    /// The mark of an ADD.
    pub(super) fn mark_of(&self, place: Location) -> Mark {
        self.packs
            .get(&place.pack)
            .and_then(|entry| entry.marks.get(&place.ordinal))
            .copied()
            .unwrap_or_default()
    }

    /// Whether an ADD is there and not settled.
    pub(super) fn is_live(&self, place: Location) -> bool {
        let entry = self.packs.get(&place.pack);
        let word = entry.and_then(|entry| entry.settled.get(place.ordinal as usize / 64));
        word.is_some_and(|word| word & (1 << (place.ordinal % 64)) == 0)
            && entry.is_some_and(|entry| place.ordinal < entry.adds)
    }

    /// A message was written again elsewhere.
    pub(super) fn moved(&mut self, from: Location, to: Location) {
        self.moved.insert(from, to);
        self.settle(from);
    }

    /// Nobody names old places any more.
    pub(super) fn forget_moved(&mut self) {
        self.moved.clear();
    }

    /// Whether old places may still be named.
    pub(super) fn has_moved(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Packs that nothing needs any more; the caller removes them when what freed them is synced.
    pub(super) fn take_free(&mut self) -> Vec<u64> {
        let mut free = std::mem::take(&mut self.free);
        free.retain(|pack| self.packs.get(pack).is_some_and(|entry| entry.live == 0 && entry.needs == 0));
        free.sort_unstable();
        free
    }

    /// How many large bodies a pack has.
    pub(super) fn slots(&self, pack: u64) -> u16 {
        self.packs.get(&pack).map_or(0, |entry| entry.slots)
    }

    /// Whether packs wait to be taken by [`Ledger::take_free`].
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether a checkpoint would free anything.
    pub(super) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// A pack was removed from the store.
    pub(super) fn removed(&mut self, pack: u64) {
        let Some(entry) = self.packs.remove(&pack) else { return };
        self.bytes -= u64::from(entry.bytes);
        self.dirty.remove(&pack);
        self.release(&entry.needed_by, u64::MAX);
        self.release(&entry.others, u64::MAX);
    }

    fn release(&mut self, needed_by: &[u64], up_to: u64) {
        for dependent in needed_by.iter().filter(|&&dependent| dependent <= up_to) {
            if let Some(entry) = self.packs.get_mut(dependent) {
                entry.needs = entry.needs.saturating_sub(1);
                if entry.needs == 0 && entry.live == 0 {
                    self.free.push(*dependent);
                }
            }
        }
    }

    /// Packs that deserve a checkpoint: somebody depends on them and they are not about to go. What its chain keeps may be
    /// there for long, with all its messages settled.
    pub(super) fn dirty(&self) -> Vec<u64> {
        let stays = |entry: &Pack| entry.live > 0 || entry.after > 0 && entry.needs > 0;
        self.dirty.iter().copied().filter(|pack| self.packs.get(pack).is_some_and(stays)).collect()
    }

    /// What a checkpoint of a pack says.
    /// `as_of` is the newest pack that was written.
    pub(super) fn checkpoint(&self, pack: u64, as_of: u64) -> Option<Done> {
        let entry = self.packs.get(&pack)?;
        let marks = entry.marks.iter().map(|(&ordinal, &mark)| (ordinal, mark));
        Some(Done { as_of, settled: entry.settled.to_vec(), marks: marks.collect() })
    }

    /// A checkpoint of a pack is durable: who named it up to `as_of` needs it no more.
    pub(super) fn checkpointed(&mut self, pack: u64, as_of: u64) {
        let Some(entry) = self.packs.get_mut(&pack) else { return };
        let needed_by = std::mem::take(&mut entry.needed_by);
        entry.needed_by = needed_by.iter().copied().filter(|&dependent| dependent > as_of).collect();
        if entry.needed_by.is_empty() {
            self.dirty.remove(&pack);
        }
        self.release(&needed_by, as_of);
    }

    /// An old pack of which less than a quarter is alive.
    pub(super) fn take_sparse(&mut self, written_before: u64) -> Option<u64> {
        let at = self.sparse.iter().position(|pack| {
            self.packs.get(pack).is_none_or(|e| e.live == 0 || e.written_at < written_before)
        })?;
        let pack = self.sparse.swap_remove(at);
        self.packs.get(&pack).is_some_and(|e| e.live > 0 && e.live <= e.adds / 4).then_some(pack)
    }

    /// Recovery: a record of `pack` marks an ADD. Packs come in their order.
    pub(super) fn read_mark(&mut self, place: Location, mark: Mark, pack: u64) {
        self.mark(place, mark);
        if self.is_live(place) {
            self.marked.insert(place, pack);
        }
    }

    /// Recovery: what a checkpoint says, after all records. What packs say that came after it is newer.
    pub(super) fn restore(&mut self, pack: u64, done: &Done) {
        let Some(adds) = self.packs.get(&pack).map(|entry| entry.adds) else { return };
        for ordinal in 0..adds {
            let word = done.settled.get(ordinal as usize / 64).copied().unwrap_or(0);
            if word & (1 << (ordinal % 64)) != 0 {
                self.settle(Location { pack, ordinal });
            }
        }
        for &(ordinal, mark) in &done.marks {
            let place = Location { pack, ordinal };
            if self.marked.get(&place).is_none_or(|&by| by <= done.as_of) {
                self.mark(place, mark);
            }
        }
    }

    /// Recovery: all is read.
    pub(super) fn is_read(&mut self) {
        self.marked = Map::default();
    }

    /// Whether the pack is there.
    pub(super) fn contains(&self, pack: u64) -> bool {
        self.packs.contains_key(&pack)
    }

    /// The newest pack.
    pub(super) fn last(&self) -> Option<u64> {
        self.packs.last_key_value().map(|(&pack, _)| pack)
    }

    /// Bytes of all rows, and ADDs that are not settled.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.bytes, self.live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Ledger {
        fn insert(&mut self, pack: u64, adds: u32, bytes: usize, names: &mut Vec<u64>, clock: u64) {
            self.begin(pack, clock);
            for ordinal in 0..adds {
                assert_eq!(self.add(pack), Some(ordinal));
            }
            self.seal(pack, bytes, 0, names);
        }
    }

    fn at(pack: u64, ordinal: u32) -> Location {
        Location { pack, ordinal }
    }

    #[test]
    fn a_settling_pack_stays_as_long_as_what_it_settles() {
        let mut ledger = Ledger::default();
        ledger.insert(1, 2, 100, &mut vec![], 0);
        ledger.settle(at(1, 0));
        ledger.insert(2, 0, 100, &mut vec![1], 0);
        assert!(ledger.take_free().is_empty(), "pack 1 is alive, so pack 2 must stay");
        ledger.settle(at(1, 1));
        ledger.insert(3, 0, 100, &mut vec![1], 0);
        assert_eq!(ledger.take_free(), [1]);
        ledger.removed(1);
        assert_eq!(ledger.take_free(), [2, 3]);
    }

    #[test]
    fn a_checkpoint_frees_who_named_its_pack_before() {
        let mut ledger = Ledger::default();
        ledger.insert(1, 2, 100, &mut vec![], 0);
        ledger.settle(at(1, 0));
        ledger.insert(2, 0, 100, &mut vec![1], 0);
        assert_eq!(ledger.dirty(), [1]);
        let done = ledger.checkpoint(1, 1).unwrap();
        assert_eq!(done.settled, [1]);
        ledger.insert(3, 0, 100, &mut vec![1], 0);
        ledger.checkpointed(1, 2);
        assert_eq!(ledger.take_free(), [2], "pack 3 came later than the checkpoint");
        assert_eq!(ledger.dirty(), [1]);
    }

    #[test]
    fn a_chain_stays_whole_whatever_is_checkpointed() {
        let mut ledger = Ledger::default();
        ledger.insert(1, 2, 100, &mut vec![], 0);
        ledger.begin(2, 0);
        ledger.follow(2, 1);
        ledger.seal(2, 100, 0, &mut vec![]);
        ledger.insert(3, 0, 100, &mut vec![1], 0);
        ledger.settle(at(1, 0));
        ledger.checkpointed(1, 3);
        assert_eq!(ledger.take_free(), [3], "what lives in pack 2 is counted in pack 1");
        ledger.settle(at(1, 1));
        assert_eq!(ledger.take_free(), [1]);
        ledger.removed(1);
        assert_eq!(ledger.take_free(), [2]);
    }

    #[test]
    fn what_a_chain_keeps_keeps_nothing_else() {
        let mut ledger = Ledger::default();
        for pack in 1..=3 {
            ledger.begin(pack, 0);
            ledger.add(pack);
        }
        ledger.follow(3, 1);
        ledger.follow(3, 2);
        for pack in 1..=3 {
            ledger.seal(pack, 100, 0, &mut vec![]);
        }
        ledger.settle(at(2, 0));
        ledger.settle(at(3, 0));
        ledger.insert(4, 0, 100, &mut vec![2, 3], 0);
        assert_eq!(ledger.take_free(), [2], "it has no part of 1");
        ledger.removed(2);
        assert!(ledger.take_free().is_empty(), "4 says what is settled of 3, and 3 that 1 is whole");
        assert_eq!(ledger.dirty(), [3]);
        ledger.checkpointed(3, 4);
        assert_eq!(ledger.take_free(), [4]);
        ledger.removed(4);
        ledger.settle(at(1, 0));
        assert_eq!(ledger.take_free(), [1]);
        ledger.removed(1);
        assert_eq!(ledger.take_free(), [3]);
    }

    #[test]
    fn settling_twice_counts_once() {
        let mut ledger = Ledger::default();
        ledger.insert(1, 2, 100, &mut vec![], 0);
        assert!(ledger.settle(at(1, 1)));
        assert!(!ledger.settle(at(1, 1)));
        assert!(!ledger.settle(at(1, 2)));
        assert!(!ledger.settle(at(9, 0)));
        assert_eq!(ledger.totals(), (100, 1));
    }

    #[test]
    fn an_old_place_leads_to_the_new_one() {
        let mut ledger = Ledger::default();
        ledger.insert(1, 8, 100, &mut vec![], 0);
        (0..6).for_each(|n| assert!(ledger.settle(at(1, n))));
        assert_eq!(ledger.take_sparse(1), Some(1));
        ledger.insert(5, 2, 100, &mut vec![1], 1);
        ledger.moved(at(1, 6), at(5, 0));
        ledger.moved(at(1, 7), at(5, 1));
        assert_eq!(ledger.take_free(), [1]);
        assert!(ledger.settle(ledger.current(at(1, 6))));
        assert!(ledger.settle(ledger.current(at(1, 7))));
        assert!(ledger.take_free().is_empty(), "pack 5 must outlive pack 1, which it replaces");
        ledger.removed(1);
        assert_eq!(ledger.take_free(), [5]);
    }

    #[test]
    fn a_checkpoint_is_restored() {
        let mut ledger = Ledger::default();
        ledger.insert(1, 70, 100, &mut vec![], 0);
        ledger.settle(at(1, 69));
        ledger.mark(at(1, 3), Mark { attempts: 2, ..Mark::default() });
        let done = ledger.checkpoint(1, 1).unwrap();
        let mut again = Ledger::default();
        again.insert(1, 70, 100, &mut vec![], 0);
        again.restore(1, &done);
        assert_eq!(again.totals(), (100, 69));
        assert_eq!(again.mark_of(at(1, 3)).attempts, 2);
        assert!(!again.is_live(at(1, 69)));
    }
    #[test]
    fn a_mark_that_is_newer_than_a_checkpoint_stays() {
        let mark = |attempts| Mark { attempts, ..Mark::default() };
        for (as_of, known) in [(2, 3), (3, 2), (u64::MAX, 2)] {
            let mut ledger = Ledger::default();
            ledger.insert(1, 1, 100, &mut vec![], 0);
            ledger.read_mark(at(1, 0), mark(1), 2);
            ledger.read_mark(at(1, 0), mark(3), 3);
            ledger.restore(1, &Done { as_of, settled: vec![0], marks: vec![(0, mark(2))] });
            assert_eq!(ledger.mark_of(at(1, 0)).attempts, known, "as of {as_of}");
        }
    }
}
