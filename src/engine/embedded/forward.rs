//! Settles one message and stores what follows from it, as one operation.
//!
//! Invariant: everything that can be refused is refused before anything is changed.

use std::iter::once;
use std::sync::atomic::Ordering;

use super::admit::Room;
use super::lanes::PreparedForward;
use super::overflow::Leavers;
use super::pack::Failed;
use super::writer::Writer;
use crate::engine::{Outcome, Refusal};
use crate::types::clock::unix_now;

impl Writer {
    pub(super) fn stage_forward(&mut self, forward: PreparedForward) -> Result<Outcome, Failed> {
        let PreparedForward { from, lease, messages } = forward;
        let Ok(source) = self.shared.target(from) else { return Ok(Outcome::Refused(Refusal::Gone(from))) };
        let at = unix_now();
        let sequence = lease.sequence.0;
        let settled = {
            let mut state = source.state.lock();
            state.entry(sequence).filter(|_| !state.is_replaced(sequence))
        };
        let room = Room::Freed { from, sequence, bytes: settled.map(|entry| u64::from(entry.len)) };
        let mut leavers = Leavers::default();
        if let Err((_, refusal)) = self.admit_all(&messages, at, room, &mut leavers) {
            self.stay(leavers);
            return Ok(self.refused(refusal));
        }
        let settled = source.state.lock().settle(&lease);
        let Ok(entry) = settled else {
            self.stay(leavers);
            return Ok(Outcome::Refused(Refusal::NotLeased));
        };
        source.totals.acked.fetch_add(1, Ordering::Relaxed);
        let all = messages.iter().map(|message| (message.records(), message.body.len()));
        self.begin_all(leavers, once((1, 0)).chain(all))?;
        let (packer, mut books) = self.books();
        packer.begin_op(&mut books, 1, 0)?;
        self.stage_end(&source, &entry)?;
        self.stage_admitted(messages, at)
    }
}
