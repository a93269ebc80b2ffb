//! The ADDs of one target as a start reads them: in pieces, each of which is given back as soon as its messages are in the
//! index. A backlog is never there twice.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use rustc_hash::FxHasher;

use super::entry::Entry;
use super::format::Location;

/// ADDs of a piece: 2 MiB.
const PIECE: usize = 64 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Adds {
    pieces: Vec<Vec<Entry>>,
    /// The packet ids of those that came with QoS 2.
    incoming: HashMap<Location, u16, BuildHasherDefault<FxHasher>>,
    /// The highest sequence.
    last: u64,
    unsorted: bool,
}

impl Adds {
    pub(super) fn push(&mut self, entry: Entry, incoming: Option<u16>) {
        if let Some(packet_id) = incoming {
            self.incoming.insert(entry.location(), packet_id);
        }
        self.unsorted |= entry.sequence < self.last;
        self.last = self.last.max(entry.sequence);
        match self.pieces.last_mut().filter(|piece| piece.len() < PIECE) {
            Some(piece) => piece.push(entry),
            None => {
                // A target with few has little.
                let mut piece = Vec::with_capacity(if self.pieces.is_empty() { 4 } else { PIECE });
                piece.push(entry);
                self.pieces.push(piece);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.iter().map(Vec::len).sum()
    }

    /// The one that was read first.
    pub(super) fn first(&self) -> Option<&Entry> {
        self.pieces.first()?.first()
    }

    /// The highest sequence.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// All by sequence, of the same sequence by pack.
    pub(super) fn in_order(self) -> impl Iterator<Item = (Entry, Option<u16>)> {
        let Self { mut pieces, mut incoming, unsorted, .. } = self;
        if unsorted {
            let mut all: Vec<Entry> = pieces.drain(..).flatten().collect();
            all.sort_by_key(|entry| (entry.sequence, entry.pack));
            pieces.push(all);
        }
        pieces.into_iter().flatten().map(move |entry| (entry, incoming.remove(&entry.location())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sequence: u64, pack: u64) -> Entry {
        Entry::new(
            sequence,
            Location { pack, ordinal: 0 },
            0,
            1,
            false,
            None,
            (crate::types::Qos::AtLeastOnce, false),
            crate::types::Priority::default(),
        )
    }

    #[test]
    fn they_come_in_order_with_their_packet_ids() {
        let mut adds = Adds::default();
        let count = 2 * PIECE as u64 + 5;
        for sequence in 1..=count {
            adds.push(entry(sequence, sequence), (sequence % 1000 == 0).then_some(7));
        }
        assert_eq!((adds.last(), adds.pieces.len()), (count, 3));
        let expected = (1..=count).map(|n| (entry(n, n), (n % 1000 == 0).then_some(7)));
        assert!(adds.in_order().eq(expected));

        let mut adds = Adds::default();
        for (sequence, pack) in [(5, 1), (6, 1), (5, 9), (2, 3), (5, 4)] {
            adds.push(entry(sequence, pack), None);
        }
        assert_eq!(adds.last(), 6);
        let order: Vec<_> = adds.in_order().map(|(entry, _)| (entry.sequence, entry.pack)).collect();
        assert_eq!(order, [(2, 3), (5, 1), (5, 4), (5, 9), (6, 1)]);
    }
}
