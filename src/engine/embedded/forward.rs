//! Settles one message and stores what follows from it, as one operation.
//!
//! Invariant: everything that can be refused is refused before anything is changed.

use std::iter::once;
use std::sync::atomic::Ordering;

use super::admit::Room;
use super::lanes::PreparedForward;
use super::pack::Failed;
use super::writer::Writer;
use crate::engine::{Outcome, Refusal};
use crate::types::clock::unix_now;

impl Writer {
    pub(super) fn stage_forward(&mut self, forward: PreparedForward) -> Result<Outcome, Failed> {
        let PreparedForward { from, lease, messages } = forward;
        let Ok(source) = self.shared.target(from) else { return Ok(Outcome::Refused(Refusal::Gone(from))) };
        let at = unix_now();
        let settled = source.state.lock().entry(lease.sequence.0);
        let mut room = Room::Freed(from, settled.map_or(0, |entry| u64::from(entry.len)));
        if let Err((_, refusal)) = self.admit_all(&messages, at, &mut room) {
            return Ok(self.refused(refusal));
        }
        let Ok(entry) = source.state.lock().settle(&lease) else {
            return Ok(Outcome::Refused(Refusal::NotLeased));
        };
        source.totals.acked.fetch_add(1, Ordering::Relaxed);
        let (packer, mut books) = self.books();
        let all = messages.iter().map(|message| (message.records(), message.body.len()));
        packer.begin_all(&mut books, once((1, 0)).chain(all))?;
        packer.begin_op(&mut books, 1, 0)?;
        if self.stage_settle(&source, entry.sequence, entry.location())? {
            source.messages.fetch_sub(1, Ordering::Relaxed);
            source.bytes.fetch_sub(u64::from(entry.len), Ordering::Relaxed);
        }
        self.stage_admitted(messages, at)
    }
}
