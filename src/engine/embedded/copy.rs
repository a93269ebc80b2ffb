//! Copies the rows of a store into an empty one, as they are: whatever they mean, their meaning stays.

use std::collections::VecDeque;
use std::ops::Bound;

use sled::{IVec, Tree};

use super::disk::{Disk, SYNC_BYTES};
use super::open::{TOKENS, random};
use super::rows::guarded;

/// The trees whose rows are many and large; their keys begin with the number of a pack.
pub(super) const OF_PACKS: [&[u8]; 3] = [b"part", b"body", b"head"];
/// So many rows are made empty before the first of them is filled: see `pack`.
const AHEAD: usize = 64;
/// Bytes between two syncs of what is made.
const SYNC_EVERY: u64 = 16 * SYNC_BYTES;

/// What was copied of a tree, or is there. Two trees with the same sum have the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) rows: u64,
    /// Of keys and values.
    pub(super) bytes: u64,
    crc: u32,
}

/// Of all trees, by their names.
pub(super) type Sums = Vec<(Vec<u8>, Sum)>;

impl Sum {
    /// Of no row yet.
    pub(super) fn of_tree(name: &[u8]) -> Self {
        Self { rows: 0, bytes: 0, crc: crc32fast::hash(name) }
    }

    pub(super) fn row(&mut self, key: &[u8], value: &[u8]) {
        self.rows += 1;
        self.bytes += (key.len() + value.len()) as u64;
        let mut hasher = crc32fast::Hasher::new_with_initial(self.crc);
        hasher.update(&(key.len() as u64).to_le_bytes());
        hasher.update(key);
        hasher.update(&(value.len() as u64).to_le_bytes());
        hasher.update(value);
        self.crc = hasher.finalize();
    }
}

/// Why rows could not be copied.
pub(super) type Failed = String;

/// Hears of the bytes of each row, and may end it.
pub(super) type Tell<'a> = &'a mut dyn FnMut(u64) -> Result<(), Failed>;

/// The rows of a tree, one at a time: an iterator that is kept holds on to whole leaves.
pub(super) struct Walk<'a> {
    tree: &'a Tree,
    from: Bound<IVec>,
    to: Bound<IVec>,
}

impl<'a> Walk<'a> {
    pub(super) fn all(tree: &'a Tree) -> Self {
        Self { tree, from: Bound::Unbounded, to: Bound::Unbounded }
    }

    /// Those whose key begins with no higher number of a pack.
    pub(super) fn up_to(tree: &'a Tree, pack: u64) -> Self {
        let end = pack.checked_add(1).map(|end| IVec::from(&end.to_be_bytes()));
        Self { tree, from: Bound::Unbounded, to: end.map_or(Bound::Unbounded, Bound::Excluded) }
    }

    fn next(&mut self) -> Result<Option<(IVec, IVec)>, Failed> {
        let row = guarded(|| self.tree.range((self.from.clone(), self.to.clone())).next().transpose())?;
        if let Some((key, _)) = &row {
            self.from = Bound::Excluded(key.clone());
        }
        Ok(row)
    }
}

/// Copies the rows of `walk` into the tree of this name.
pub(super) fn copy_tree(name: &[u8], mut walk: Walk<'_>, to: &Disk, tell: Tell<'_>) -> Result<Sum, Failed> {
    let tree = to.tree(name).map_err(|e| e.to_string())?;
    let ahead = if OF_PACKS.contains(&name) { AHEAD } else { 0 };
    let mut sum = Sum::of_tree(name);
    let mut synced = 0;
    let mut waiting: VecDeque<(IVec, IVec)> = VecDeque::new();
    loop {
        let row = walk.next()?;
        let more = row.is_some();
        if let Some((key, value)) = row {
            if ahead > 0 {
                tree.insert(&key, &[]).map_err(|e| e.to_string())?;
            }
            waiting.push_back((key, value));
        }
        while waiting.len() > if more { ahead } else { 0 } {
            let Some((key, value)) = waiting.pop_front() else { break };
            sum.row(&key, &value);
            tell((key.len() + value.len()) as u64)?;
            tree.insert(key, value).map_err(|e| e.to_string())?;
            if sum.bytes - synced >= SYNC_EVERY {
                synced = sum.bytes;
                to.sync().map_err(|e| e.to_string())?;
            }
        }
        if !more {
            return Ok(sum);
        }
    }
}

/// What is there of a tree, read from end to end.
pub(super) fn sum_of_tree(name: &[u8], tree: &Tree, tell: Tell<'_>) -> Result<Sum, Failed> {
    let mut sum = Sum::of_tree(name);
    let mut walk = Walk::all(tree);
    while let Some((key, value)) = walk.next()? {
        sum.row(&key, &value);
        tell((key.len() + value.len()) as u64)?;
    }
    Ok(sum)
}

/// Copies all trees of a store that nobody writes to.
pub(super) fn copy_all(from: &Disk, to: &Disk, tell: Tell<'_>) -> Result<Sums, Failed> {
    let trees = from.all_trees().map_err(|e| e.to_string())?;
    let copied = trees.into_iter().map(|(name, tree)| {
        let sum = copy_tree(&name, Walk::all(&tree), to, tell)?;
        Ok((name.to_vec(), sum))
    });
    copied.collect()
}

/// What is there.
pub(super) fn sum_of(disk: &Disk, tell: Tell<'_>) -> Result<Sums, Failed> {
    let trees = disk.all_trees().map_err(|e| e.to_string())?;
    trees.into_iter().map(|(name, tree)| Ok((name.to_vec(), sum_of_tree(&name, &tree, tell)?))).collect()
}

/// Makes a copy a store of its own: it has no journal, it knows no token of the other, and its end is in order. The secret
/// stays: hashes that are stored were made with it.
pub(super) fn detach(disk: &Disk) -> sled::Result<()> {
    let meta = &disk.trees.meta;
    let boot = meta.get("boot")?;
    meta.remove("journal")?;
    meta.insert(TOKENS, &random())?;
    if let Some(boot) = boot {
        meta.insert("closed", boot)?;
    }
    Ok(())
}
