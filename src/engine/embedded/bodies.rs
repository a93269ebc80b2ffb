//! The bodies of packs: in memory within a budget, else read back.
//!
//! Invariant: reading back is the business of the engine's threads; an async task only asks whether a body is here.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use bytes::{Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHasher;

use super::disk::Trees;
use super::entry::Entry;
use super::format::{self, INLINE, part_key};
use crate::engine::EngineError;

/// Identifies bytes in memory: the bodies of a pack, or one large body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BodyKey {
    pack: u64,
    /// Of a large body.
    slot: Option<u16>,
}

impl BodyKey {
    pub(super) fn pack(pack: u64) -> Self {
        Self { pack, slot: None }
    }

    pub(super) fn large(pack: u64, slot: u16) -> Self {
        Self { pack, slot: Some(slot) }
    }

    fn of(entry: &Entry) -> Self {
        Self { pack: entry.pack, slot: entry.is_large().then_some(entry.offset) }
    }
}

#[derive(Debug, Default)]
struct Cache {
    map: HashMap<BodyKey, Bytes, BuildHasherDefault<FxHasher>>,
    order: VecDeque<BodyKey>,
    bytes: usize,
}

/// Bodies in memory, the oldest given up first.
#[derive(Debug)]
pub(super) struct Bodies {
    cache: Mutex<Cache>,
    budget: usize,
    /// Whether messages are known whose rows sled is not given yet.
    owed: Mutex<bool>,
    given: Condvar,
}

/// What a kept row costs beside its bytes.
const OVERHEAD: usize = 96;

impl Bodies {
    pub(super) fn new(budget: usize) -> Self {
        Self { cache: Mutex::default(), budget, owed: Mutex::default(), given: Condvar::new() }
    }

    /// Says whether messages are known whose rows sled is not given yet. Those who write give them soon.
    pub(super) fn owe(&self, owed: bool) {
        *self.owed.lock() = owed;
        if !owed {
            self.given.notify_all();
        }
    }

    /// Keeps bytes, and gives up the oldest beyond the budget.
    pub(super) fn put(&self, key: BodyKey, bytes: Bytes) {
        let mut cache = self.cache.lock();
        cache.bytes += bytes.len() + OVERHEAD;
        match cache.map.insert(key, bytes) {
            Some(old) => cache.bytes -= old.len() + OVERHEAD,
            None => cache.order.push_back(key),
        }
        while cache.bytes > self.budget
            && let Some(oldest) = cache.order.pop_front()
        {
            if let Some(old) = cache.map.remove(&oldest) {
                cache.bytes -= old.len() + OVERHEAD;
            }
        }
    }

    /// A pack was removed from the store.
    pub(super) fn drop_pack(&self, pack: u64, slots: u16) {
        let mut cache = self.cache.lock();
        for key in
            std::iter::once(BodyKey::pack(pack)).chain((0..slots).map(|slot| BodyKey::large(pack, slot)))
        {
            if let Some(old) = cache.map.remove(&key) {
                cache.bytes -= old.len() + OVERHEAD;
            }
        }
        if cache.order.len() > 64 && cache.order.len() > cache.map.len() * 2 {
            let Cache { map, order, .. } = &mut *cache;
            order.retain(|key| map.contains_key(key));
        }
    }

    /// A reader that looks each row up once in a run of entries.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader { bodies: self, last: None }
    }

    /// Reads an entry's bytes, from memory or from disk; keeps what it read. Blocks.
    pub(super) fn load(&self, trees: &Trees, entry: &Entry) -> Result<Bytes, EngineError> {
        if let Some(bytes) = self.reader().get(entry) {
            return Ok(bytes);
        }
        let (key, bytes) = self.fetch(trees, entry)?;
        self.put(key, bytes.clone());
        cut(&bytes, entry)
    }

    fn fetch(&self, trees: &Trees, entry: &Entry) -> Result<(BodyKey, Bytes), EngineError> {
        let key = BodyKey::of(entry);
        let read = || match key.slot {
            Some(slot) => read_large(trees, entry.pack, slot, entry.len as usize),
            None => read_pack(trees, entry.pack),
        };
        // What is so new that sled has not been given it is in memory, unless that is full of what is newer still.
        let bytes = read().or_else(|_| {
            self.given.wait_while(&mut self.owed.lock(), |owed| *owed);
            read()
        })?;
        Ok((key, bytes))
    }
}

/// See [`Bodies::reader`].
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bodies: &'a Bodies,
    last: Option<(BodyKey, Bytes)>,
}

impl Reader<'_> {
    /// The bytes of an entry if they are in memory.
    pub(super) fn get(&mut self, entry: &Entry) -> Option<Bytes> {
        let key = BodyKey::of(entry);
        if self.last.as_ref().is_none_or(|(last, _)| *last != key) {
            let bytes = self.bodies.cache.lock().map.get(&key)?.clone();
            self.last = Some((key, bytes));
        }
        self.last.as_ref().and_then(|(_, bytes)| slice(bytes, entry))
    }

    /// The bytes of an entry, from memory or from disk; what it read is kept for the next entry alone. Blocks.
    pub(super) fn read(&mut self, trees: &Trees, entry: &Entry) -> Result<Bytes, EngineError> {
        if let Some(bytes) = self.get(entry) {
            return Ok(bytes);
        }
        let (_, bytes) = self.last.insert(self.bodies.fetch(trees, entry)?);
        cut(bytes, entry)
    }
}

fn cut(bytes: &Bytes, entry: &Entry) -> Result<Bytes, EngineError> {
    slice(bytes, entry).ok_or_else(|| {
        let Entry { pack, sequence, .. } = entry;
        EngineError::Damaged(format!("the bodies of pack {pack} end before message {sequence}"))
    })
}

fn slice(bytes: &Bytes, entry: &Entry) -> Option<Bytes> {
    let start = if entry.is_large() { 0 } else { entry.offset as usize };
    let end = start.checked_add(entry.len as usize)?;
    (end <= bytes.len()).then(|| bytes.slice(start..end))
}

/// The bodies of a pack, checked. Blocks.
pub(super) fn read_pack(trees: &Trees, pack: u64) -> Result<Bytes, EngineError> {
    let damaged = |e: format::FormatError| EngineError::Damaged(format!("pack {pack}: {e}"));
    let row = trees.body.get(pack.to_be_bytes()).map_err(failed)?;
    if let Some(row) = row.filter(|row| !row.is_empty()) {
        return format::decode_checked(&row, "a body row").map_err(damaged);
    }
    if let Some(row) = trees.head.get(pack.to_be_bytes()).map_err(failed)? {
        let head = format::decode_head(&row).map_err(damaged)?;
        if head.flags & INLINE != 0
            && let Some(inline) = head.inline
        {
            return Ok(inline);
        }
    }
    Err(EngineError::Damaged(format!("the bodies of pack {pack} are missing")))
}

/// A large body. Its checksum is compared by `check`, not here: parts are as likely to be damaged as any row of
/// the store, and sled has a checksum of its own on each. Blocks.
pub(super) fn read_large(trees: &Trees, pack: u64, slot: u16, len: usize) -> Result<Bytes, EngineError> {
    let mut bytes = BytesMut::with_capacity(len);
    for n in 0.. {
        if bytes.len() >= len {
            break;
        }
        match trees.part.get(part_key(pack, slot, n)).map_err(failed)? {
            Some(row) if !row.is_empty() => bytes.extend_from_slice(&row),
            _ => {
                return Err(EngineError::Damaged(format!(
                    "part {n} of message {slot} in pack {pack} is missing"
                )));
            }
        }
    }
    Ok(bytes.freeze())
}

fn failed(error: sled::Error) -> EngineError {
    match error {
        sled::Error::Corruption { .. } => EngineError::Damaged(error.to_string()),
        error => EngineError::Failed(error.to_string()),
    }
}
