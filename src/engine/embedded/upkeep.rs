//! What the writer does beside commits: removes packs that nothing needs, writes settlement checkpoints, rewrites
//! packs that are mostly dead. Each at a bounded share of the writing.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::disk::Tree;
use super::entry::Entry;
use super::format::{self, Add, CONTINUED, Location, Place, RETAINED, Record, WHOLE};
use super::lanes::deadline;
use super::ledger::Ledger;
use super::pack::Failed;
use super::writer::{Effect, Writer};
use crate::types::TargetId;
use crate::types::clock::{now, unix_now};

/// Checkpoints are written after so many logical bytes …
const CHECKPOINT_BYTES: u64 = 64 << 20;
/// … or after this time, if there is something to checkpoint.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// How many packs one round removes.
const REMOVE_PACKS: usize = 1024;
/// How many rows of deduplication ids one round removes.
const REMOVE_ROWS: usize = 1024;
/// Packs are removed together, so that what goes before them is written seldom.
const REMOVE_EVERY: Duration = Duration::from_millis(50);
/// How many packs one round checkpoints.
const CHECKPOINT_PACKS: usize = 512;
/// A pack is old after so many logical bytes.
const OLD_BYTES: u64 = 16 << 20;

/// What the upkeep remembers.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// Checkpoints that wait for their sync: pack and newest pack that they cover.
    checkpoints: Vec<(u64, u64)>,
    checkpoint_written: u64,
    checkpoint_time: Instant,
    removed_time: Instant,
    /// Settlements handed in before this number may name old places.
    fence: Option<u64>,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self {
            checkpoints: Vec::new(),
            checkpoint_written: 0,
            checkpoint_time: now(),
            removed_time: now(),
            fence: None,
        }
    }
}

impl Upkeep {
    /// When a checkpoint is due, if there is something to checkpoint.
    pub(super) fn checkpoint_at(&self, ledger: &Ledger) -> Option<Instant> {
        ledger.has_dirty().then(|| self.checkpoint_time + CHECKPOINT_EVERY)
    }
}

impl Writer {
    /// Whether the writer should look again soon though nobody hands work in.
    pub(super) fn upkeep_waits(&self) -> bool {
        !self.removable.is_empty() || self.ledger.has_free() || self.dedup.has_dropped()
    }

    /// Does a bounded part of what there is to do, within the current commit.
    pub(super) fn upkeep_round(&mut self) -> Result<(), Failed> {
        self.lift_fence();
        self.checkpoint()?;
        self.rewrite()?;
        for pack in self.ledger.take_free() {
            self.removable.push_back((self.syncs, pack));
        }
        self.forget_ids()?;
        self.remove()
    }

    /// Removes what queues need not remember any more.
    fn forget_ids(&mut self) -> Result<(), Failed> {
        let Self { dedup, shared, packer, .. } = self;
        dedup.sweep(unix_now(), |id| shared.target(id).ok()?.settings.load().dedup_window);
        for key in dedup.take_dropped(REMOVE_ROWS) {
            packer.log.remove(&shared.disk, Tree::Dedup, &key)?;
        }
        Ok(())
    }

    /// What was written before this sync is durable now.
    pub(super) fn after_sync(&mut self) {
        for (pack, as_of) in std::mem::take(&mut self.upkeep.checkpoints) {
            self.ledger.checkpointed(pack, as_of);
        }
    }

    fn remove(&mut self) -> Result<(), Failed> {
        if self.keeps_packs {
            return Ok(());
        }
        let due = self.removable.len() >= REMOVE_PACKS || now() >= self.upkeep.removed_time + REMOVE_EVERY;
        let ready = self.removable.front().is_some_and(|&(sync, _)| sync < self.syncs);
        if !due || !ready {
            // Nothing else may be written for a while: the sync that these wait for must still come. What is staged and
            // not sealed is not synced either.
            let synced = !self.packer.log.is_loose() && self.packer.is_sealed();
            if !self.removable.is_empty() && synced && !ready {
                self.syncs += 1;
            }
            return Ok(());
        }
        self.upkeep.removed_time = now();
        self.write_sequences()?;
        let (log, disk) = (&mut self.packer.log, &self.shared.disk);
        for _ in 0..REMOVE_PACKS {
            let Some(&(sync, pack)) = self.removable.front() else { break };
            if sync >= self.syncs {
                break;
            }
            self.removable.pop_front();
            let key = pack.to_be_bytes();
            let slots = self.ledger.slots(pack);
            log.remove(disk, Tree::Body, &key)?;
            if slots > 0 {
                for part in disk.trees.part.scan_prefix(key).keys() {
                    log.remove(disk, Tree::Part, &part.map_err(|e| e.to_string())?)?;
                }
            }
            // The head before its checkpoint, which stands for records that are gone already.
            log.remove(disk, Tree::Head, &key)?;
            log.remove(disk, Tree::Done, &key)?;
            self.shared.bodies.drop_pack(pack, slots);
            self.ledger.removed(pack);
        }
        Ok(())
    }

    /// The packs that prove which sequences were given out are about to go.
    pub(super) fn write_sequences(&mut self) -> Result<(), Failed> {
        if self.dedup.is_staged() {
            // What is remembered of a sequence that was given out is taken for committed: its head comes first.
            self.seal()?;
        }
        for id in std::mem::take(&mut self.dirty_sequences) {
            let next = match self.shared.target(id) {
                Ok(target) => {
                    let given = target.next_sequence.load(std::sync::atomic::Ordering::Relaxed);
                    let durable = target.durable_next().unwrap_or(given);
                    if durable < given {
                        self.dirty_sequences.insert(id);
                    }
                    durable
                }
                Err(_) if id.0 == format::RETAINED => self.next_retained,
                Err(_) => continue,
            };
            let (key, next) = (id.0.to_be_bytes(), next.to_be_bytes());
            self.packer.log.insert(&self.shared.disk, Tree::Seq, &key, &next)?;
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), Failed> {
        let due = self.packer.log.written - self.upkeep.checkpoint_written >= CHECKPOINT_BYTES
            || now() >= self.upkeep.checkpoint_time + CHECKPOINT_EVERY;
        if !due || !self.ledger.has_dirty() {
            return Ok(());
        }
        self.upkeep.checkpoint_written = self.packer.log.written;
        self.upkeep.checkpoint_time = deadline(Duration::ZERO);
        // A checkpoint says what is settled up to and with the newest sealed pack.
        self.seal()?;
        let as_of = self.packer.last();
        for pack in self.ledger.dirty().into_iter().take(CHECKPOINT_PACKS) {
            let Some(done) = self.ledger.checkpoint(pack, as_of) else { continue };
            self.packer.log.insert(&self.shared.disk, Tree::Done, &pack.to_be_bytes(), done.encode())?;
            self.upkeep.checkpoints.push((pack, as_of));
        }
        Ok(())
    }

    fn lift_fence(&mut self) {
        if !self.ledger.has_moved() {
            return;
        }
        let (put, taken) = self.shared.lanes.settlements();
        match self.upkeep.fence {
            None => self.upkeep.fence = Some(put),
            Some(fence) if taken >= fence => {
                self.upkeep.fence = None;
                self.ledger.forget_moved();
            }
            Some(_) => {}
        }
    }

    /// Writes what is alive of one old pack again, so that the pack can go.
    fn rewrite(&mut self) -> Result<(), Failed> {
        if self.ledger.has_moved() {
            return Ok(());
        }
        let Some(before) = self.packer.log.written.checked_sub(OLD_BYTES) else { return Ok(()) };
        let Some(pack) = self.ledger.take_sparse(before) else { return Ok(()) };
        let mut ordinal = 0;
        for at in pack.. {
            let Some(row) = self.shared.disk.trees.head.get(at.to_be_bytes()).map_err(|e| e.to_string())?
            else {
                break;
            };
            let head = format::decode_head(&row).map_err(|e| e.to_string())?;
            let whole = head.flags & WHOLE != 0;
            if at != pack && (head.flags & CONTINUED == 0 || whole) {
                break;
            }
            for record in head.records {
                let Record::Add(mut add) = record else { continue };
                let old = Location { pack, ordinal };
                ordinal += 1;
                if !self.ledger.is_live(old) {
                    continue;
                }
                add.mark = self.ledger.mark_of(old);
                let body = if add.incoming.is_some() {
                    bytes::Bytes::new()
                } else {
                    let place = add.place;
                    let how = (add.qos, add.retain);
                    let large = place.crc.is_some();
                    let entry = Entry::new(
                        add.sequence,
                        old,
                        place.offset,
                        place.len,
                        large,
                        None,
                        how,
                        add.priority,
                    );
                    self.shared.bodies.load(&self.shared.disk.trees, &entry).map_err(|e| e.to_string())?
                };
                self.stage_rewrite(old, add, &body)?;
            }
            if whole || head.flags & format::CONTINUES == 0 {
                break;
            }
        }
        Ok(())
    }

    /// A message of an old pack is written again. Its old place leads to the new one from now on.
    pub(super) fn stage_rewrite(&mut self, old: Location, mut add: Add, body: &Bytes) -> Result<(), Failed> {
        let target =
            if add.target == RETAINED { None } else { self.shared.target(TargetId(add.target)).ok() };
        let (packer, mut books) = self.books();
        packer.begin_op(&mut books, 1, body.len())?;
        if add.incoming.is_none() {
            add.place = packer.body(&mut books, body)?;
        }
        packer.depend_on(&mut books, old.pack);
        add.place.pack = None;
        let new = packer.add(&mut books, add.clone())?;
        self.ledger.moved(old, new);
        match (target, add.incoming) {
            (None, _) => {
                for (_, place) in self.retained.values_mut().filter(|(_, place)| *place == old) {
                    *place = new;
                }
            }
            (Some(target), Some(id)) => {
                self.effects.push(Effect::Incoming(target, id, add.sequence, new));
            }
            (Some(target), None) => {
                let Place { offset, len, crc, .. } = add.place;
                let how = (add.qos, add.retain);
                let entry = Entry::new(
                    add.sequence,
                    new,
                    offset,
                    len,
                    crc.is_some(),
                    add.expires_at,
                    how,
                    add.priority,
                );
                self.effects.push(Effect::Relocate(target, entry));
            }
        }
        Ok(())
    }
}
