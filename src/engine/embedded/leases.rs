//! Who has which message of one target, and until when.
//!
//! Invariant: a lease that ends stands in `ends`, and in `young` until it is noted or over.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use rustc_hash::FxHasher;

use super::entry::Entry;
use crate::types::UnixMillis;

/// A lease of this age has its attempt written, so that it counts after a crash, in milliseconds.
const NOTE_AFTER_MS: u64 = 1_000;
/// Leases are noted together: at multiples of this time.
const NOTE_EVERY_MS: u64 = 500;
/// So many that are over may stand among the young ones, beside as many as there are leases.
const SLACK: usize = 64;

/// A message with a consumer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    pub(super) entry: Entry,
    pub(super) attempt: u32,
    pub(super) consumer: u64,
    /// When it began.
    pub(super) since: u64,
    /// `u64::MAX`: when its consumer ends.
    pub(super) ends: u64,
    /// Its attempt is written, or about to be.
    pub(super) noted: bool,
}

/// The leases of one target.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Keys are numbers of our own: no peer can choose them to collide.
    by_sequence: HashMap<u64, Lease, BuildHasherDefault<FxHasher>>,
    ends: BTreeSet<(u64, u64)>,
    /// Beginning and sequence of those whose attempt is not written yet, the oldest first. Some are over.
    young: VecDeque<(u64, u64)>,
}

impl Leases {
    pub(super) fn len(&self) -> usize {
        self.by_sequence.len()
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&Lease> {
        self.by_sequence.get(&sequence)
    }

    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Entry> {
        self.by_sequence.get_mut(&sequence).map(|lease| &mut lease.entry)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Lease> {
        self.by_sequence.values()
    }

    pub(super) fn insert(&mut self, lease: Lease) {
        let sequence = lease.entry.sequence;
        if lease.ends != u64::MAX {
            self.ends.insert((lease.ends, sequence));
            self.young.push_back((lease.since, sequence));
        }
        self.by_sequence.insert(sequence, lease);
        if self.young.len() > 2 * self.by_sequence.len() + SLACK {
            let leases = &self.by_sequence;
            self.young.retain(|&young| find(leases, young).is_some());
            self.young.shrink_to(2 * self.young.len() + SLACK);
        }
    }

    pub(super) fn remove(&mut self, sequence: u64) -> Option<Lease> {
        let lease = self.by_sequence.remove(&sequence)?;
        if lease.ends != u64::MAX {
            self.ends.remove(&(lease.ends, sequence));
        }
        while let Some(&young) = self.young.front()
            && find(&self.by_sequence, young).is_none()
        {
            self.young.pop_front();
        }
        Some(lease)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Lease> + use<'_> {
        self.ends.clear();
        self.young.clear();
        self.by_sequence.drain().map(|(_, lease)| lease)
    }

    pub(super) fn extend(&mut self, sequence: u64, ends: u64) {
        if let Some(lease) = self.by_sequence.get_mut(&sequence) {
            self.ends.remove(&(lease.ends, sequence));
            self.ends.insert((ends, sequence));
            lease.ends = ends;
        }
    }

    /// The lease that ends first: when, and the message.
    pub(super) fn first_end(&self) -> Option<(u64, u64)> {
        self.ends.first().copied()
    }

    /// When leases are to be noted, in milliseconds since 1970.
    pub(super) fn next_note(&self) -> Option<u64> {
        let (since, _) = self.young.front()?;
        Some(since.saturating_add(NOTE_AFTER_MS).next_multiple_of(NOTE_EVERY_MS))
    }

    /// Those that are old enough and not noted yet: now they are.
    pub(super) fn note(&mut self, now: UnixMillis) -> Vec<Lease> {
        let mut noted = Vec::new();
        while let Some(&young) = self.young.front() {
            if let Some(lease) = find(&self.by_sequence, young) {
                if lease.since.saturating_add(NOTE_AFTER_MS) > now.0 {
                    break;
                }
                noted.push(*lease);
                if let Some(lease) = self.by_sequence.get_mut(&young.1) {
                    lease.noted = true;
                }
            }
            self.young.pop_front();
        }
        noted
    }
}

/// The lease that began then, if it is not over.
fn find(
    leases: &HashMap<u64, Lease, BuildHasherDefault<FxHasher>>,
    (since, sequence): (u64, u64),
) -> Option<&Lease> {
    leases.get(&sequence).filter(|lease| lease.since == since && lease.ends != u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::format::Location;
    use super::*;
    use crate::types::{Priority, Qos};

    fn lease(sequence: u64, since: u64) -> Lease {
        let place = Location { pack: 1, ordinal: 0 };
        let how = (Qos::AtLeastOnce, false);
        let entry = Entry::new(sequence, place, 0, 1, false, None, how, Priority::default());
        Lease { entry, attempt: 1, consumer: 1, since, ends: since + 30_000, noted: false }
    }

    fn noted(leases: &mut Leases, now: u64) -> Vec<u64> {
        leases.note(UnixMillis(now)).iter().map(|lease| lease.entry.sequence).collect()
    }

    #[test]
    fn a_lease_is_noted_once_when_it_is_a_second_old() {
        let mut leases = Leases::default();
        assert_eq!(leases.next_note(), None);
        for (sequence, since) in [(1, 100), (2, 100), (3, 400), (4, 700)] {
            leases.insert(lease(sequence, since));
        }
        leases.remove(2);
        assert_eq!(leases.next_note(), Some(1_500));
        assert_eq!(noted(&mut leases, 1_099), [0; 0]);
        assert_eq!(noted(&mut leases, 1_500), [1, 3]);
        assert_eq!(leases.next_note(), Some(2_000));
        leases.extend(3, 90_000);
        // Over before it was noted, and leased again: another lease.
        leases.remove(4);
        leases.insert(lease(4, 1_600));
        assert_eq!(noted(&mut leases, 2_000), [0; 0]);
        assert_eq!(noted(&mut leases, 3_000), [4]);
        assert_eq!((noted(&mut leases, u64::MAX), leases.next_note()), (vec![], None));
        assert_eq!(leases.first_end(), Some((30_100, 1)));
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let mut leases = Leases::default();
        leases.insert(lease(0, 0));
        for sequence in 1..10_000 {
            leases.insert(lease(sequence, sequence));
            leases.remove(sequence);
        }
        assert!(leases.young.len() <= 2 * leases.len() + SLACK, "{}", leases.young.len());
        leases.remove(0);
        assert_eq!(leases.next_note(), None);
    }
}
