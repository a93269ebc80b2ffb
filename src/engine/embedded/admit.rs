//! What a message is to a target before it is written: new, known there already, or refused.

use std::collections::{HashMap, HashSet};
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
    /// It is stored there, with this value if the queue keeps the last one.
    Open(Arc<Target>, &'a Append, Option<TextHash>),
    /// It was stored there before, at this place.
    Known(u64),
    /// It is not: the target is gone, or drops it.
    None,
}

/// How there is room for several messages in a queue that is full.
#[derive(Debug, Clone, Copy)]
pub(super) enum Room {
    /// As its overflow says.
    Made,
    /// This message leaves this target; nothing else goes. So many bytes become free, or none if it is stored no more.
    Freed { from: TargetId, sequence: u64, bytes: Option<u64> },
}

/// What of a batch one target takes.
#[derive(Default)]
struct Share {
    messages: u64,
    bytes: u64,
    ids: HashSet<TextHash>,
    /// How many bytes have a value of which the queue keeps the last.
    values: HashMap<TextHash, u64>,
}

impl Writer {
    /// Writes messages for one target each, all or none.
    pub(super) fn stage_all(&mut self, items: Vec<PreparedPublish>) -> Result<Outcome, Failed> {
        let at = unix_now();
        let mut leavers = Leavers::default();
        if let Err((index, refusal)) = self.admit_all(&items, at, Room::Made, &mut leavers) {
            self.stay(leavers);
            return Ok(self.refused(Refusal::Item { index, refusal: Box::new(refusal) }));
        }
        self.begin_all(leavers, items.iter().map(|item| (item.records(), item.body.len())))?;
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
        room: Room,
        leavers: &mut Leavers,
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
                if let Some(low) = self.low_disk() {
                    return Err(refuse(low));
                }
                let len = item.body.len() as u64;
                let value = self.value_of(&target, &item.body);
                match value.and_then(|value| share.values.insert(value, len)) {
                    Some(older) => share.bytes -= older,
                    None => {
                        share.messages += 1;
                        let goes = match room {
                            Room::Freed { from, sequence, .. } if from == target.id => Some(sequence),
                            _ => None,
                        };
                        value.into_iter().for_each(|value| self.replace(&target, value, goes, leavers));
                    }
                }
                share.bytes += len;
                if target.settings.load().when_full == WhenFull::DropNew {
                    // It does so when its turn comes.
                    continue;
                }
                let (messages, bytes) = (share.messages, share.bytes);
                let full = match room {
                    Room::Made => self.make_room(&target, (messages, bytes), leavers),
                    Room::Freed { from, bytes: Some(len), .. } if from == target.id => {
                        overflow::room(&target, messages - 1, bytes.saturating_sub(len), leavers)
                    }
                    Room::Freed { .. } => overflow::room(&target, messages, bytes, leavers),
                };
                if let Some(bound) = full {
                    return Err(refuse(target.refusal(bound)));
                }
            }
        }
        Ok(())
    }

    /// Why nothing new is stored, while the disk is nearly full.
    pub(super) fn low_disk(&self) -> Option<Refusal> {
        let (free_bytes, watermark_bytes) = self.low_disk?;
        Some(Refusal::LowDisk { free_bytes, watermark_bytes })
    }

    /// Counts what is refused for want of room.
    pub(super) fn refused(&self, refusal: Refusal) -> Outcome {
        let why = match &refusal {
            Refusal::Item { refusal, .. } => refusal.as_ref(),
            refusal => refusal,
        };
        match why {
            Refusal::LowDisk { .. } => self.shared.counts.refused_disk.add(1),
            Refusal::Full { .. } | Refusal::Oversize { .. } => self.shared.counts.refused_full.add(1),
            _ => {}
        }
        Outcome::Refused(refusal)
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
    use std::time::Duration;

    use super::super::Embedded;
    use super::super::disk::Disk;
    use super::super::testing::{lose_packs, publish, settings, spec};
    use crate::engine::settings::EngineSettings;
    use crate::engine::{Append, Definition, Engine, Op, Outcome, Overflow, QueueSpec, Refusal, View};
    use crate::types::{Message, Qos, Sequence, TargetId};

    /// What the queue has before.
    const OLD: u64 = 130;
    /// What comes together, for which more go than are settled in one pack.
    const NEW: u64 = 120;

    /// A message that is named; what is new fills packs, all that is old lies in one.
    fn named(id: String) -> Message {
        let Op::Publish(mut publish) = publish(TargetId(0), "", Qos::AtLeastOnce) else {
            unreachable!("a publish is a publish")
        };
        publish.message.payload = vec![b'x'; if id.starts_with("new") { 1000 } else { 10 }].into();
        publish.message.extras_mut().dedup_id = Some(id.into());
        publish.message
    }

    async fn together(engine: &Embedded, queue: TargetId, ids: impl IntoIterator<Item = String>) -> Outcome {
        let all = ids.into_iter().map(|id| (named(id), Append::to(queue))).collect();
        engine.commit(vec![Op::AppendAll(all)]).await.unwrap().remove(0)
    }

    /// How many of a batch were known.
    fn known(outcome: &Outcome) -> usize {
        let Outcome::All(outcomes) = outcome else { panic!("{outcome:?}") };
        outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Duplicate { .. })).count()
    }

    fn ids(what: &str, count: u64) -> impl Iterator<Item = String> {
        (0..count).map(move |n| format!("{what} {n}"))
    }

    async fn define(engine: &Embedded, overflow: Overflow, max_messages: u64) -> TargetId {
        let id = engine.next_target();
        let dedup_window = Some(Duration::from_secs(3600));
        let spec = QueueSpec { overflow, max_messages, dedup_window, ..spec("q") };
        engine.commit(vec![Op::Define(id, Definition::Queue(spec))]).await.unwrap();
        id
    }

    /// As when the power is cut while the packs of a batch are on their way to the file, whose beginning is left: what was
    /// to go for it is there, and what is sent again is new.
    #[tokio::test]
    async fn a_batch_that_is_not_all_there_never_was() {
        let mut missing = 0;
        loop {
            let directory = tempfile::tempdir().unwrap();
            let engine = Embedded::open(settings(directory.path())).unwrap();
            let queue = define(&engine, Overflow::DropOldest, OLD).await;
            assert_eq!(known(&together(&engine, queue, ids("old", OLD)).await), 0);
            engine.close().unwrap();
            drop(engine);
            let before = lose_packs(Disk::open_existing(directory.path(), 1 << 20).unwrap(), 0);
            let engine = Embedded::open(settings(directory.path())).unwrap();
            assert_eq!(known(&together(&engine, queue, ids("new", NEW)).await), 0);
            assert_eq!(engine.stats(queue).unwrap().dropped_total, NEW);
            engine.close().unwrap();
            drop(engine);

            let disk = Disk::open_existing(directory.path(), 1 << 20).unwrap();
            let of_batch = lose_packs(disk, missing) - before;
            assert!(of_batch > 5, "the batch fills {of_batch} packs");
            let engine = Embedded::open(settings(directory.path())).unwrap();
            let seen = engine.browse(queue, View::All, Sequence(0), 1000, usize::MAX).await.unwrap().messages;
            let old = seen.iter().filter(|seen| {
                let id = seen.message.extras.as_ref().and_then(|extras| extras.dedup_id.as_deref());
                id.is_some_and(|id| id.starts_with("old"))
            });
            let expected = if missing == 0 { OLD - NEW } else { OLD };
            let told = format!("{missing} of {of_batch} packs are missing");
            assert_eq!((old.count() as u64, seen.len() as u64), (expected, OLD), "{told}");
            let again = known(&together(&engine, queue, ids("new", NEW)).await) as u64;
            assert_eq!(again, if missing == 0 { NEW } else { 0 }, "{told}");
            assert_eq!(engine.stats(queue).unwrap().ready, OLD);
            if missing == of_batch {
                return;
            }
            missing += 1;
        }
    }

    #[tokio::test]
    async fn what_is_known_needs_no_room_on_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let engine = Embedded::open(settings(directory.path())).unwrap();
        let queue = define(&engine, Overflow::Reject, u64::MAX).await;
        assert_eq!(known(&together(&engine, queue, ids("a", 3)).await), 0);
        engine.close().unwrap();
        drop(engine);
        let full = EngineSettings { watermark_free_bytes: u64::MAX, ..settings(directory.path()) };
        let engine = Embedded::open(full).unwrap();
        let alone = |id: &str| {
            let Op::Publish(mut one) = publish(queue, "", Qos::AtLeastOnce) else {
                unreachable!("a publish is a publish")
            };
            one.message.extras_mut().dedup_id = Some(id.into());
            engine.commit(vec![Op::Publish(one)])
        };
        let outcome = alone("b").await.unwrap().remove(0);
        assert!(matches!(outcome, Outcome::Refused(Refusal::LowDisk { .. })), "{outcome:?}");
        let outcome = alone("a 1").await.unwrap().remove(0);
        assert!(matches!(outcome, Outcome::Duplicate { .. }), "{outcome:?}");
        assert_eq!(known(&together(&engine, queue, ids("a", 3)).await), 3);
        let outcome = together(&engine, queue, ids("a", 5)).await;
        let Outcome::Refused(Refusal::Item { index: 3, refusal }) = outcome else { panic!("{outcome:?}") };
        assert!(matches!(*refusal, Refusal::LowDisk { .. }), "{refusal:?}");
        let refused = engine.counters().into_iter().find(|(name, _)| *name == "publishes_refused_disk_total");
        assert_eq!(refused.unwrap().1, 2);
    }
}
