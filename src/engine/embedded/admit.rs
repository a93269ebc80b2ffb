//! What a message is to a target before it is written: new, known there already, or refused.

use std::collections::{HashMap, HashSet};
use std::iter::once;
use std::sync::Arc;

use super::dedup::First;
use super::hash::TextHash;
use super::lanes::PreparedPublish;
use super::overflow::{self, Leavers};
use super::pack::Failed;
use super::target::{Target, WhenFull};
use super::writer::Writer;
use crate::engine::{Append, Outcome, Refusal};
use crate::types::clock::unix_now;
use crate::types::{TargetId, UnixMillis};

/// What a publish is to one of its targets.
pub(super) enum Slot<'a> {
    /// It is stored there.
    Open(Arc<Target>, &'a Append),
    /// It was stored there before, at this place.
    Known(u64),
    /// It is not: the target is gone, or drops it.
    None,
}

/// How there is room for several messages in a queue that is full.
pub(super) enum Room<'a> {
    /// As its overflow says.
    Made(&'a mut Leavers),
    /// A message of so many bytes leaves this target; nothing else goes.
    Freed(TargetId, u64),
}

/// What of a batch one target takes.
#[derive(Default)]
struct Share {
    messages: u64,
    bytes: u64,
    ids: HashSet<TextHash>,
}

impl Writer {
    /// Writes messages for one target each, all or none.
    pub(super) fn stage_all(&mut self, items: Vec<PreparedPublish>) -> Result<Outcome, Failed> {
        let at = unix_now();
        let mut leavers = Leavers::default();
        if let Err((index, refusal)) = self.admit_all(&items, at, &mut Room::Made(&mut leavers)) {
            Self::stay(leavers);
            return Ok(self.refused(Refusal::Item { index, refusal: Box::new(refusal) }));
        }
        self.leave(leavers.before())?;
        let (packer, mut books) = self.books();
        let all = items.iter().map(|item| (item.records(), item.body.len()));
        packer.begin_all(&mut books, once((leavers.len(), 0)).chain(all))?;
        packer.begin_op(&mut books, leavers.len(), 0)?;
        self.leave(leavers)?;
        self.stage_admitted(items, at)
    }

    /// Writes what was admitted, and ends the operation.
    pub(super) fn stage_admitted(
        &mut self,
        items: Vec<PreparedPublish>,
        at: UnixMillis,
    ) -> Result<Outcome, Failed> {
        let mut outcomes = Vec::with_capacity(items.len());
        for item in items {
            let outcome = self.stage_publish(item, Some(at))?;
            if let Outcome::Refused(refusal) = outcome {
                return Err(format!("a message was admitted and then refused: {refusal}"));
            }
            outcomes.push(outcome);
        }
        let (packer, mut books) = self.books();
        packer.end_all(&mut books)?;
        Ok(Outcome::All(outcomes))
    }

    /// Which of these is the first that would be refused once those before it are stored.
    pub(super) fn admit_all(
        &mut self,
        items: &[PreparedPublish],
        at: UnixMillis,
        room: &mut Room<'_>,
    ) -> Result<(), (usize, Refusal)> {
        let mut shares = HashMap::<TargetId, Share>::new();
        for (index, item) in items.iter().enumerate() {
            for append in &item.targets {
                let refuse = |refusal| (index, refusal);
                let target = self.shared.target(append.target);
                let target = target.map_err(|_| refuse(Refusal::Gone(append.target)))?;
                let share = shares.entry(append.target).or_default();
                if let Some((id, _)) = item.dedup {
                    if share.ids.contains(&id) {
                        continue;
                    }
                    let known = self.known(&target, id, share.ids.len() + 1, at).map_err(refuse)?;
                    if known.is_some() {
                        continue;
                    }
                    if target.settings.load().dedup_window.is_some() {
                        share.ids.insert(id);
                    }
                }
                share.messages += 1;
                share.bytes += item.body.len() as u64;
                if target.settings.load().when_full == WhenFull::DropNew {
                    // It does so when its turn comes.
                    continue;
                }
                let (messages, bytes) = (share.messages, share.bytes);
                let full = match room {
                    Room::Made(leavers) => self.make_room(&target, (messages, bytes), leavers),
                    Room::Freed(from, len) if *from == target.id => {
                        overflow::room(&target, messages - 1, bytes.saturating_sub(*len))
                    }
                    Room::Freed(..) => overflow::room(&target, messages, bytes),
                };
                if let Some(bound) = full {
                    return Err(refuse(target.refusal(bound)));
                }
            }
        }
        Ok(())
    }

    /// Counts what is refused for want of room.
    pub(super) fn refused_full(&self, refusal: Refusal) -> Outcome {
        self.shared.counts.refused_full.add(1);
        Outcome::Refused(refusal)
    }

    /// The same where it may be refused for something else.
    pub(super) fn refused(&self, refusal: Refusal) -> Outcome {
        let is_full = match &refusal {
            Refusal::Item { refusal, .. } => matches!(**refusal, Refusal::Full { .. }),
            refusal => matches!(refusal, Refusal::Full { .. }),
        };
        if is_full { self.refused_full(refusal) } else { Outcome::Refused(refusal) }
    }

    /// What a queue with a window took by this id before; else it may remember `more`.
    pub(super) fn known(
        &mut self,
        target: &Target,
        id: TextHash,
        more: usize,
        at: UnixMillis,
    ) -> Result<Option<First>, Refusal> {
        let Some(window) = target.settings.load().dedup_window else { return Ok(None) };
        if let Some(first) = self.dedup.find(target.id, id, window, at) {
            return Ok(Some(first));
        }
        let max = self.shared.settings.max_dedup_ids;
        if self.dedup.has_room(target.id, more, max, window, at) {
            return Ok(None);
        }
        Err(Refusal::Full { target: target.id, bound: format!("max_dedup_ids {max}") })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Embedded;
    use super::super::disk::Disk;
    use super::super::testing::{publish, settings};
    use crate::engine::{Definition, Engine, GroupSpec, Op, Publish};
    use crate::types::Qos;
    use crate::types::topic::FilterSpec;

    const COUNT: u64 = 40;

    /// As when the power is cut while the packs of a batch are on their way to the file, whose beginning is left.
    #[tokio::test]
    async fn a_batch_that_is_not_all_there_never_was() {
        let mut missing = 0;
        loop {
            let directory = tempfile::tempdir().unwrap();
            let engine = Embedded::open(settings(directory.path())).unwrap();
            let filter = FilterSpec::parse(&"$share/g/t".into()).unwrap();
            let spec = GroupSpec { filter, max_messages: u64::MAX, max_bytes: u64::MAX };
            let id = engine.next_target();
            engine.commit(vec![Op::Define(id, Definition::Group(spec))]).await.unwrap();
            engine.commit(vec![publish(id, "before", Qos::AtLeastOnce)]).await.unwrap();
            let item = |_| {
                let Op::Publish(Publish { mut message, targets, .. }) = publish(id, "", Qos::AtLeastOnce)
                else {
                    unreachable!("a publish is a publish")
                };
                message.payload = vec![b'x'; 3000].into();
                (message, targets[0])
            };
            engine.commit(vec![Op::AppendAll((0..COUNT).map(item).collect())]).await.unwrap();
            engine.close().unwrap();
            drop(engine);

            let disk = Disk::open_existing(directory.path(), 1 << 20).unwrap();
            let heads: Vec<_> = disk.trees.head.iter().keys().map(Result::unwrap).collect();
            let of_batch = heads.len() - 1;
            assert!(of_batch > 5, "the batch fills {of_batch} packs");
            for head in heads.iter().rev().take(missing) {
                disk.trees.head.remove(head).unwrap();
            }
            disk.sync().unwrap();
            drop(disk);
            let engine = Embedded::open(settings(directory.path())).unwrap();
            let expected = if missing == 0 { 1 + COUNT } else { 1 };
            assert_eq!(
                engine.stats(id).unwrap().ready,
                expected,
                "{missing} of {of_batch} packs are missing"
            );
            engine.commit(vec![publish(id, "after", Qos::AtLeastOnce)]).await.unwrap();
            assert_eq!(engine.stats(id).unwrap().ready, expected + 1);
            if missing == of_batch {
                return;
            }
            missing += 1;
        }
    }
}
