//! Queues that keep the last value: of the messages that say the same of one property the newest is stored.
//!
//! The one before it goes in the operation that stores it, wherever it is. What waited is gone at once. What somebody has is
//! *replaced*: it may be settled as any other, but it does not come back; a crash forgets it.
//!
//! A value is known by 128 bits of its hash. In memory a message that has one takes 50 to 110 bytes beside its entry.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use rustc_hash::FxHasher;

use super::body::decode_message;
use super::entry::Entry;
use super::hash::{Text, TextHash};
use super::index::State;
use super::overflow::{Leavers, Replaced};
use super::target::Target;
use super::writer::{Effect, Writer};
use crate::engine::View;
use crate::types::Message;

type Hash = BuildHasherDefault<FxHasher>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Values {
    newest: HashMap<TextHash, u64, Hash>,
    /// Of the messages that are the newest of theirs.
    of: HashMap<u64, TextHash, Hash>,
    /// With somebody, though there is a newer one, or was.
    replaced: HashSet<u64, Hash>,
}

impl Values {
    /// A message with this value is stored. Gives the one before it.
    fn know(&mut self, sequence: u64, value: TextHash) -> Option<u64> {
        let older = self.newest.insert(value, sequence);
        self.of.insert(sequence, value);
        older.filter(|older| self.of.remove(older).is_some())
    }

    /// A message that somebody has is replaced, once.
    fn replace(&mut self, sequence: u64) {
        let value = self.of.remove(&sequence);
        if let Some(value) = value.filter(|value| self.newest.get(value) == Some(&sequence)) {
            self.newest.remove(&value);
        }
        self.replaced.insert(sequence);
    }

    /// A message is gone.
    pub(super) fn forget(&mut self, sequence: u64) {
        self.replaced.remove(&sequence);
        let Some(value) = self.of.remove(&sequence) else { return };
        if self.newest.get(&value) == Some(&sequence) {
            self.newest.remove(&value);
        }
        if self.of.capacity() > 1024 && self.of.len() < self.of.capacity() / 8 {
            self.of.shrink_to(self.of.len() * 2);
            self.newest.shrink_to(self.newest.len() * 2);
        }
    }
}

/// What a message says of the property `name`.
pub(super) fn value_of(message: &Message, name: &ByteString, secret: &[u8; 16]) -> Option<TextHash> {
    let (_, value) = message.extras.as_ref()?.properties.iter().find(|(key, _)| key == name)?;
    Some(TextHash::new(secret, Text::LastValue, value))
}

impl State {
    /// A stored message has this value. Gives the one whose place it takes, if that was not seen to before.
    pub(super) fn know_value(&mut self, sequence: u64, value: Option<TextHash>) -> Option<Entry> {
        let older = self.values.as_mut()?.know(sequence, value?)?;
        self.replace(older)
    }

    /// A newer one takes its place: it is out, or stays with who has it. Gives where it lies.
    pub(super) fn replace(&mut self, sequence: u64) -> Option<Entry> {
        if let (Some(lease), Some(values)) = (self.leases.get(sequence), &mut self.values) {
            values.replace(sequence);
            return Some(lease.entry);
        }
        let (entry, _) = self.take_waiting(View::All, sequence)?;
        self.forget(&entry);
        self.members.go_on();
        Some(entry)
    }

    /// Whether a newer one has the place of this one, which somebody has.
    pub(super) fn is_replaced(&self, sequence: u64) -> bool {
        self.values.as_ref().is_some_and(|values| values.replaced.contains(&sequence))
    }

    /// The message with this value: taken out, and when it would have been due, if it waits; else as it is with somebody.
    /// `but`: one that goes anyhow.
    fn take_older(&mut self, value: TextHash, but: Option<u64>) -> Option<(Entry, Replaced)> {
        let sequence = *self.values.as_ref()?.newest.get(&value).filter(|&&older| Some(older) != but)?;
        if let Some(lease) = self.leases.get(sequence) {
            return Some((lease.entry, Replaced::Leased));
        }
        let (entry, until) = self.take_waiting(View::All, sequence)?;
        // One that is delayed has a place already, or none until it is due.
        if let Some(order) = self.order.as_mut().filter(|_| until == 0) {
            order.set_aside(sequence);
        }
        Some((entry, Replaced::Waiting { until }))
    }
}

impl Writer {
    /// What a message says of the property that a queue keeps the last value of.
    pub(super) fn value_of(&self, target: &Target, body: &Bytes) -> Option<TextHash> {
        let settings = target.settings.load();
        let name = settings.last_value_key.as_ref()?;
        value_of(&decode_message(body.clone()).ok()?, name, &self.shared.hash_secret)
    }

    /// Whether a queue has a message with this value, or is about to.
    pub(super) fn has_value(&self, target: &Target, value: TextHash) -> bool {
        self.newest.contains_key(&(target.id, value))
            || target.state.lock().values.as_ref().is_some_and(|values| values.newest.contains_key(&value))
    }

    /// A message with this value is about to be stored: the one before it goes with that operation, unless it is the one that
    /// goes anyhow.
    pub(super) fn replace(
        &mut self,
        target: &Arc<Target>,
        value: TextHash,
        but: Option<u64>,
        leavers: &mut Leavers,
    ) {
        let staged = self.newest.get(&(target.id, value)).copied();
        if let Some((at, effect)) = staged.and_then(|at| Some((at, self.effects.get_mut(at)?)))
            && let Effect::Push(_, entry, ..) = effect
        {
            let entry = *entry;
            let effect = std::mem::replace(effect, Effect::None);
            leavers.replace(target, entry, Replaced::Staged { at, effect: Box::new(effect) });
            return;
        }
        let older = target.state.lock().take_older(value, but);
        if let Some((entry, how)) = older {
            leavers.replace(target, entry, how);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Embedded;
    use super::super::disk::Disk;
    use super::super::format::{self, Record};
    use super::super::testing::{publish, settings, spec};
    use super::*;
    use crate::engine::{Append, ConsumerOptions, Definition, Engine, Op, QueueSpec};
    use crate::types::{Qos, Sequence, TargetId};

    #[test]
    fn of_each_value_the_newest_is_known() {
        let value = |n| TextHash(n);
        let mut values = Values::default();
        assert_eq!((values.know(1, value(7)), values.know(2, value(8))), (None, None));
        assert_eq!(values.know(3, value(7)), Some(1));
        values.forget(1);
        assert_eq!(values.newest.get(&value(7)), Some(&3), "an older one is gone, not the newest");
        values.replace(3);
        assert_eq!(values.know(4, value(7)), None, "it was seen to");
        values.forget(3);
        assert_eq!(values.newest.get(&value(7)), Some(&4));
        values.forget(4);
        values.forget(2);
        assert!(values.newest.is_empty() && values.of.is_empty() && values.replaced.is_empty());
    }

    /// More queues than the settlements of one operation.
    const QUEUES: u32 = 150;

    fn keeping(n: u32) -> Definition {
        Definition::Queue(QueueSpec { last_value_key: Some("sensor".into()), ..spec(&format!("q{n}")) })
    }

    /// Its pack goes while somebody has it.
    #[tokio::test]
    async fn what_is_replaced_is_not_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let engine = Embedded::open(settings(directory.path())).unwrap();
        let [queue, other] = [0, 1].map(|n| (engine.next_target(), keeping(n))).map(|(id, definition)| {
            drop(engine.commit(vec![Op::Define(id, definition)]));
            id
        });
        let put = |queue, payload| {
            let Op::Publish(mut one) = publish(queue, payload, Qos::AtLeastOnce) else {
                unreachable!("a publish is a publish")
            };
            one.message.extras_mut().properties.push(("sensor".into(), "a".into()));
            engine.commit(vec![Op::Publish(one)])
        };
        put(queue, "old").await.unwrap();
        let consumer = engine.consumer(queue, ConsumerOptions::default()).unwrap();
        let mut held = Vec::new();
        consumer.take(1, usize::MAX, &mut held).unwrap();
        let pack = {
            let target = engine.shared.target(queue).unwrap();
            let state = target.state.lock();
            state.leases.get(held[0].sequence.0).unwrap().entry.pack
        };
        let is_there = || engine.shared.disk.trees.head.contains_key(pack.to_be_bytes()).unwrap();
        while !is_there() {
            put(other, "else").await.unwrap();
        }
        // What is written now and then lets it go.
        while is_there() {
            put(queue, "new").await.unwrap();
        }
        put(queue, "new").await.unwrap();
        for (view, expected) in [(View::All, 1), (View::Leased, 0)] {
            let page = engine.browse(queue, view, Sequence(0), 10, usize::MAX).await.unwrap();
            assert_eq!((page.messages.len(), page.next), (expected, None));
            assert!(page.messages.iter().all(|seen| seen.message.payload == "new"));
        }
        let time = engine.oldest(queue).await.unwrap();
        assert!(time.is_some_and(|time| time >= held[0].message.id.time()));
        assert_eq!(engine.stats(queue).unwrap().leased, 1);
        drop(consumer);
        assert_eq!(engine.stats(queue).unwrap().leased, 0);
    }

    /// As when a crash comes between an operation and what goes behind it.
    #[tokio::test]
    async fn what_was_replaced_and_not_settled_is_so_by_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let engine = Embedded::open(settings(directory.path())).unwrap();
        let ids: Vec<_> = (0..QUEUES).map(|_| engine.next_target()).collect();
        let define = (0..).zip(&ids).map(|(n, id)| Op::Define(*id, keeping(n)));
        engine.commit(define.collect()).await.unwrap();
        for payload in ["old", "new"] {
            let Op::Publish(mut one) = publish(TargetId(0), payload, Qos::AtLeastOnce) else {
                unreachable!("a publish is a publish")
            };
            one.message.extras_mut().properties.push(("sensor".into(), "a".into()));
            one.targets = ids.iter().map(|id| Append::to(*id)).collect();
            engine.commit(vec![Op::Publish(one)]).await.unwrap();
        }
        engine.close().unwrap();
        drop(engine);

        let disk = Disk::open_existing(directory.path(), 1 << 20).unwrap();
        let (last, head) = disk.trees.head.last().unwrap().unwrap();
        let records = format::decode_head(&head).unwrap().records;
        assert!(records.len() > 20 && records.iter().all(|it| matches!(it, Record::Settle { .. })));
        disk.trees.head.remove(last).unwrap();
        disk.sync().unwrap();
        drop(disk);

        let left = |engine: &Embedded| ids.iter().map(|id| engine.stats(*id).unwrap().ready).sum::<u64>();
        let engine = Embedded::open(settings(directory.path())).unwrap();
        assert_eq!(left(&engine), u64::from(QUEUES));
        for id in &ids {
            engine.purge(*id, View::Ready).unwrap().await.unwrap();
        }
        engine.close().unwrap();
        drop(engine);
        let engine = Embedded::open(settings(directory.path())).unwrap();
        assert_eq!(left(&engine), 0, "what was replaced came back");
    }
}
