//! Who gets a call that anyone may answer.

use std::sync::Arc;

use smallvec::SmallVec;

use super::call::Call;
use super::device::NotAsked;
use super::state::{State, Wakes};
use crate::core::TooLarge;
use crate::types::clock;

/// Of so many responders with room the one with the least in hand is chosen; asking all would cost more than it gains.
const ASKED: usize = 32;

/// What has become of a call that was to be handed to somebody.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Handed {
    /// A responder has it.
    Yes,
    /// All that can take it are busy: it waits.
    Busy,
    /// Those who have room take none as large: it waits for the others.
    Passed,
    /// Too much waits for each of them to read.
    Full,
    /// None of them takes a packet as large; the largest that one takes.
    TooLarge(TooLarge),
    /// There is nobody.
    Nobody,
}

impl State {
    /// The responder that gets the next call, `passed` left out: of the group with the least in hand the one with the least,
    /// in turn among equals.
    fn choose(&mut self, passed: &[usize]) -> Option<usize> {
        self.turn = (self.turn + 1) % self.places.len().max(1);
        let mut best: Option<((usize, usize), usize)> = None;
        let mut asked = 0;
        for at in (self.turn..self.places.len()).chain(0..self.turn) {
            let Some(Some(entry)) = self.places.get(at) else { continue };
            if !entry.has_room() || passed.contains(&at) {
                continue;
            }
            let load = (self.groups.in_hand(entry.group), entry.in_hand.len());
            if best.is_none_or(|(least, _)| load < least) {
                best = Some((load, at));
            }
            asked += 1;
            if load == (0, 0) || asked == ASKED {
                break;
            }
        }
        best.map(|(_, at)| at)
    }

    /// Hands a call to whoever is chosen. One that takes nothing now is passed over.
    pub(super) fn hand(&mut self, call: &Arc<Call>, wakes: &mut Wakes) -> Handed {
        let mut passed: SmallVec<[usize; 4]> = SmallVec::new();
        // Of all that were passed over, if they were for this.
        let mut too_large: SmallVec<[TooLarge; 4]> = SmallVec::new();
        while let Some(at) = self.choose(&passed) {
            match self.assign(at, call, wakes) {
                Ok(()) => return Handed::Yes,
                Err(NotAsked::Left) => self.stop(at, wakes),
                Err(why) => {
                    if let NotAsked::TooLarge(what) = why {
                        too_large.push(what);
                    }
                    if let Some(entry) = self.entry(at) {
                        entry.unread = Some(clock::now());
                    }
                    passed.push(at);
                }
            }
        }
        match self.takers {
            0 => Handed::Nobody,
            // Those that are left have something in hand, whose end is when to look again.
            takers if takers > passed.len() && too_large.is_empty() => Handed::Busy,
            takers if takers > passed.len() => Handed::Passed,
            takers if takers == too_large.len() => {
                let largest = too_large.into_iter().max_by_key(|what| what.max);
                largest.map_or(Handed::Full, Handed::TooLarge)
            }
            _ => Handed::Full,
        }
    }
}
