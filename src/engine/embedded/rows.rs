//! Walks through a tree of which parts may be damaged.

use std::fmt;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sled::IVec;

use super::disk::panic_text;

/// Calls sled, which panics on some damage.
pub(super) fn guarded<T, E: fmt::Display>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => Err(panic_text(&*panic)),
    }
}

/// A row, or why rows from the last one on cannot be read.
pub(super) type Row = Result<(IVec, IVec), String>;

/// The rows of a tree in order; behind what cannot be read it goes on with the next that can.
pub(super) struct Rows<'a> {
    tree: &'a sled::Tree,
    from: Option<Bound<Vec<u8>>>,
    /// Bytes of the number that a key begins with.
    width: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(tree: &'a sled::Tree, width: usize) -> Self {
        Self { tree, from: Some(Bound::Unbounded), width }
    }

    /// One at a time: an iterator that is kept holds on to whole leaves.
    fn read(&self, from: Bound<Vec<u8>>) -> Result<Option<(IVec, IVec)>, String> {
        guarded(|| self.tree.range((from, Bound::Unbounded)).next().transpose())
    }

    fn key(&self, number: u64) -> Bound<Vec<u8>> {
        let bytes = number.to_be_bytes();
        Bound::Included(bytes.get(8 - self.width..).unwrap_or_default().to_vec())
    }

    /// The number that the keys behind `from` begin with at least.
    fn number(&self, from: &Bound<Vec<u8>>) -> u64 {
        let (Bound::Included(key) | Bound::Excluded(key)) = from else { return 0 };
        let mut bytes = [0; 8];
        for (to, byte) in bytes.iter_mut().skip(8 - self.width).zip(key) {
            *to = *byte;
        }
        u64::from_be_bytes(bytes)
    }

    /// The least place behind `from` at which rows can be read again.
    fn behind(&self, from: &Bound<Vec<u8>>) -> Option<Bound<Vec<u8>>> {
        let last = if self.width < 8 { (1 << (8 * self.width)) - 1 } else { u64::MAX };
        let reads = |number| self.read(self.key(number)).is_ok();
        let (mut bad, mut step) = (self.number(from), 1_u64);
        let mut good = loop {
            let next = bad.saturating_add(step).min(last);
            if reads(next) {
                break next;
            }
            if next == last {
                return None;
            }
            (bad, step) = (next, step.saturating_mul(2));
        };
        while good - bad > 1 {
            let middle = bad + (good - bad) / 2;
            if reads(middle) { good = middle } else { bad = middle }
        }
        Some(self.key(good))
    }
}

impl Iterator for Rows<'_> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        let from = self.from.take()?;
        match self.read(from.clone()) {
            Ok(Some((key, value))) => {
                self.from = Some(Bound::Excluded(key.to_vec()));
                Some(Ok((key, value)))
            }
            Ok(None) => None,
            Err(what) => {
                self.from = self.behind(&from);
                Some(Err(what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_order_and_a_place_behind_any_of_them_is_found() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let tree = db.open_tree("rows").unwrap();
        let keys: Vec<u64> = (1..200).map(|n| n * n).collect();
        for key in &keys {
            tree.insert(key.to_be_bytes(), vec![7; 1000]).unwrap();
        }
        let read: Vec<u64> = Rows::new(&tree, 8)
            .map(|row| u64::from_be_bytes(row.unwrap().0.as_ref().try_into().unwrap()))
            .collect();
        assert_eq!(read, keys);
        let rows = Rows::new(&tree, 4);
        let from = Bound::Excluded(vec![0, 0, 1, 2, b'a', b'/']);
        assert_eq!(rows.number(&from), 0x102);
        assert_eq!(rows.key(0x103), Bound::Included(vec![0, 0, 1, 3]));
        assert_eq!(
            rows.behind(&from),
            Some(rows.key(0x103)),
            "nothing is damaged: the next number is readable"
        );
    }

    #[test]
    fn a_panic_is_an_error() {
        let caught = guarded(|| -> Result<(), String> { panic!("unexpected pull") });
        assert_eq!(caught, Err("unexpected pull".to_owned()));
    }
}
