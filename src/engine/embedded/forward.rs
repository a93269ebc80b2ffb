//! Settles one message and stores what follows from it, as one operation.
//!
//! Invariant: everything that can be refused is refused before anything is changed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::format::Mark;
use super::lanes::PreparedForward;
use super::pack::Failed;
use super::stage::room;
use super::target::Target;
use super::writer::Writer;
use crate::engine::{Outcome, Refusal};

/// What one operation puts into one queue, so far.
struct Filling {
    target: Arc<Target>,
    messages: u64,
    bytes: u64,
}

impl Writer {
    pub(super) fn stage_forward(&mut self, forward: PreparedForward) -> Result<Outcome, Failed> {
        let PreparedForward { from, lease, messages } = forward;
        let Ok(source) = self.shared.target(from) else { return Ok(Outcome::Refused(Refusal::Gone(from))) };
        let mut filling = SmallVec::<[Filling; 2]>::new();
        let mut targets = Vec::with_capacity(messages.len());
        for message in &messages {
            let id = message.append.target;
            let Ok(target) = self.shared.target(id) else { return Ok(Outcome::Refused(Refusal::Gone(id))) };
            let at = filling.iter().position(|filling| filling.target.id == id).unwrap_or(filling.len());
            if at == filling.len() {
                filling.push(Filling { target: Arc::clone(&target), messages: 0, bytes: 0 });
            }
            if let Some(filling) = filling.get_mut(at) {
                filling.messages += 1;
                filling.bytes += message.body.len() as u64;
            }
            targets.push(target);
        }
        for Filling { target, messages, bytes } in &filling {
            // What is settled makes room.
            let settled = source.state.lock().entry(lease.sequence.0).filter(|_| target.id == from);
            let (count, len) = settled.map_or((0, 0), |entry| (1, u64::from(entry.len)));
            if let Some(bound) = room(target, messages - count, bytes.saturating_sub(len)) {
                self.shared.counts.refused_full.add(1);
                return Ok(Outcome::Refused(Refusal::Full { target: target.id, bound }));
            }
        }
        let Ok(entry) = source.state.lock().settle(&lease) else {
            return Ok(Outcome::Refused(Refusal::NotLeased));
        };
        source.totals.acked.fetch_add(1, Ordering::Relaxed);
        let (packer, mut books) = self.books();
        let ops = messages.iter().map(|message| (1, message.body.len()));
        packer.begin_all(&mut books, std::iter::once((1, 0)).chain(ops))?;
        packer.begin_op(&mut books, 1, 0)?;
        if self.stage_settle(&source, entry.sequence, entry.location())? {
            source.messages.fetch_sub(1, Ordering::Relaxed);
            source.bytes.fetch_sub(u64::from(entry.len), Ordering::Relaxed);
        }
        let mut sequences = SmallVec::with_capacity(messages.len());
        for (message, target) in messages.iter().zip(targets) {
            let (packer, mut books) = self.books();
            packer.begin_op(&mut books, 1, message.body.len())?;
            let place = packer.body(&mut books, &message.body)?;
            let append = message.append;
            let mark = Mark { not_before: append.not_before, ..Mark::default() };
            let how = (append.qos, append.retain, append.priority);
            let stored = self.stage_add(target, place, how, append.expires_at, message.key, mark)?;
            sequences.push(Some(stored));
        }
        let (packer, mut books) = self.books();
        packer.end_all(&mut books)?;
        Ok(Outcome::Published(sequences))
    }
}
