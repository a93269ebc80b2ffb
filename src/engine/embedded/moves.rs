//! A message goes from one target to another in one operation.

use std::iter::once;

use smallvec::SmallVec;

use super::format::Mark;
use super::lanes::PreparedMove;
use super::overflow::{Leavers, room};
use super::pack::Failed;
use super::target::WhenFull;
use super::writer::Writer;
use crate::engine::{Outcome, Refusal};

impl Writer {
    pub(super) fn stage_move(&mut self, moved: PreparedMove) -> Result<Outcome, Failed> {
        let PreparedMove { from, sequence, view, to, body, key, priority, expires_at, bounded, leaving } =
            moved;
        let (source, destination) = match (self.shared.target(from), self.shared.target(to)) {
            (Ok(source), Ok(destination)) => (source, destination),
            (Err(_), _) => return Ok(Outcome::Refused(Refusal::Gone(from))),
            (_, Err(_)) => return Ok(Outcome::Refused(Refusal::Gone(to))),
        };
        let bounded = bounded && destination.settings.load().when_full != WhenFull::DropNew;
        if let Some(low) = self.low_disk().filter(|_| bounded) {
            return Ok(self.refused(low));
        }
        // What lies in a queue moves when there is room, and nothing newer; what was said to a call is new to the queue.
        let is_new = source.settings.load().when_full == WhenFull::DropNew;
        let mut leavers = Leavers::default();
        let value = self.value_of(&destination, &body);
        if let Some(value) = value {
            if is_new {
                self.replace(&destination, value, None, &mut leavers);
            } else if self.has_value(&destination, value) {
                let property = destination.settings.load().last_value_key.clone().unwrap_or_default();
                return Ok(Outcome::Refused(Refusal::Newer { target: to, property }));
            }
        }
        let len = body.len() as u64;
        let full = match bounded {
            true if is_new => self.make_room(&destination, (1, len), &mut leavers),
            true => room(&destination, 1, len, &leavers),
            false => None,
        };
        if let Some(bound) = full {
            self.stay(leavers);
            return Ok(self.refused(Refusal::Full { target: to, bound }));
        }
        let taken = source.state.lock().take_for_move(view, sequence.0);
        let Some(entry) = taken else {
            self.stay(leavers);
            return Ok(Outcome::Refused(Refusal::NotLeased));
        };
        self.begin_all(leavers, once((2, body.len())))?;
        let (packer, mut books) = self.books();
        packer.begin_op(&mut books, 2, body.len())?;
        let place = packer.body(&mut books, &body)?;
        self.stage_end(&source, &entry)?;
        if leaving {
            source.left(&entry);
        }
        let how = (entry.qos(), entry.retain(), priority);
        let moved = self.stage_add(destination, place, how, expires_at, (key, value), Mark::default())?;
        let (packer, mut books) = self.books();
        packer.end_all(&mut books)?;
        Ok(Outcome::Published(SmallVec::from_elem(Some(moved), 1)))
    }
}
