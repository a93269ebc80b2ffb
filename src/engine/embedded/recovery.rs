//! Reads the store back: definitions, then the heads in their order. Bodies are not read, but for retained values.
//!
//! A message is alive when the newest ADD of its target and sequence is not settled, by a SETTLE record or by its
//! pack's checkpoint. What a crash left half done (an unfinished chain, bodies without a head, checkpoints of
//! packs that are gone) is cleared.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::adds::Adds;
use super::bodies::Bodies;
use super::body::decode_message;
use super::dedup::{self, Dedup};
use super::disk::{Disk, Trees, io_error, unusable};
use super::entry::Entry;
use super::format::{
    self, CHECKSUM_BYTES, CONTINUED, CONTINUES, Done, Head, INLINE, Location, Record, WHOLE,
};
use super::index::Names;
use super::ledger::Ledger;
use super::objects;
use super::order::Key;
use super::shared::Registry;
use super::target::{Settings, Target};
use crate::engine::{Definition, OpenError, OpenProgress, Stored, StoredSession, StoredStream};
use crate::types::clock::{now, unix_now};
use crate::types::{TargetId, TopicName, UnixMillis};

/// What was read back.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) registry: Registry,
    pub(super) ledger: Ledger,
    pub(super) next_pack: u64,
    pub(super) next_target: u32,
    pub(super) retained: HashMap<TopicName, (u64, Location)>,
    pub(super) next_retained: u64,
    pub(super) dedup: Dedup,
    /// Targets whose next sequence is proven by packs alone.
    pub(super) dirty_sequences: Vec<TargetId>,
    /// What newer ones have the place of, to be settled.
    pub(super) replaced: Vec<(Arc<Target>, Entry)>,
    pub(super) stored: Stored,
}

/// From so many ADDs of one target on its index takes the room for them at once.
const MANY: usize = 1024;
/// How often people are told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Reads a store back. Writes only to clear what a crash left half done.
pub(super) fn recover(disk: &Disk, bodies: &Bodies, progress: &OpenProgress) -> Result<Recovered, OpenError> {
    let path = disk.path.clone();
    let mut reading = Reading::new(&path, disk);
    reading.definitions()?;
    reading.heads(progress)?;
    reading.clear_leftovers()?;
    reading.finish(bodies)
}

struct Reading<'a> {
    path: &'a Path,
    disk: &'a Disk,
    trees: &'a Trees,
    registry: Registry,
    ledger: Ledger,
    stored: Stored,
    sessions: HashMap<TargetId, usize>,
    streams: HashMap<TargetId, usize>,
    sequences: HashMap<u32, u64>,
    /// Every ADD of every head, by target.
    adds: HashMap<u32, Adds>,
    /// Of those that have one, by target and sequence.
    names: HashMap<(u32, u64), Names>,
    /// Those that newer ones have the place of, and are still stored.
    replaced: Vec<(Arc<Target>, Entry)>,
    last_pack: u64,
    /// The newest pack that a checkpoint covers. It may be gone; its number must not come again.
    covered: u64,
    max_target: u32,
    chain: Vec<(u64, usize, Head)>,
    told: Instant,
}

impl<'a> Reading<'a> {
    fn new(path: &'a Path, disk: &'a Disk) -> Self {
        Self {
            path,
            disk,
            trees: &disk.trees,
            registry: Registry::default(),
            ledger: Ledger::default(),
            stored: Stored::default(),
            sessions: HashMap::new(),
            streams: HashMap::new(),
            sequences: HashMap::new(),
            adds: HashMap::new(),
            names: HashMap::new(),
            replaced: Vec::new(),
            last_pack: 0,
            covered: 0,
            max_target: format::RETAINED,
            chain: Vec::new(),
            told: now(),
        }
    }

    fn damaged(&self, what: impl std::fmt::Display) -> OpenError {
        damaged(self.path, what)
    }

    fn definitions(&mut self) -> Result<(), OpenError> {
        for row in self.trees.obj.iter() {
            let (key, value) = row.map_err(|e| self.damaged(e))?;
            let id = target_key(&key).ok_or_else(|| self.damaged("a definition has a wrong key"))?;
            let definition = objects::decode(&value).map_err(|e| self.damaged(e))?;
            self.registry.define(id, Settings::from(&definition));
            self.max_target = self.max_target.max(id.0);
            match definition {
                Definition::Queue(spec) => self.stored.queues.push((id, spec)),
                Definition::Group(spec) => self.stored.groups.push((id, spec)),
                Definition::Backlog(spec) => self.stored.backlogs.push((id, spec)),
                Definition::Stream(spec) => {
                    self.streams.insert(id, self.stored.streams.len());
                    self.stored.streams.push(StoredStream { id, spec, cursors: Vec::new() });
                }
                Definition::Session(spec) => {
                    self.sessions.insert(id, self.stored.sessions.len());
                    self.stored.sessions.push(StoredSession {
                        id,
                        spec,
                        subscriptions: Vec::new(),
                        incoming: Vec::new(),
                    });
                }
            }
        }
        for row in self.trees.sub.iter() {
            let (key, value) = row.map_err(|e| self.damaged(e))?;
            let (id, filter) =
                key.split_at_checked(4).ok_or_else(|| self.damaged("a subscription has a wrong key"))?;
            let stream = target_key(id).and_then(|id| self.streams.get(&id));
            if let Some(stream) = stream.and_then(|&at| self.stored.streams.get_mut(at)) {
                stream
                    .cursors
                    .push(objects::decode_cursor(filter, &value).map_err(|e| damaged(self.path, e))?);
                continue;
            }
            let subscription = objects::decode_subscription(filter, &value).map_err(|e| self.damaged(e))?;
            let session = target_key(id).and_then(|id| self.sessions.get(&id));
            match session.and_then(|&at| self.stored.sessions.get_mut(at)) {
                Some(session) => session.subscriptions.push(subscription),
                // Its session was deleted, and a crash came before the rest.
                None => self.remove(&self.trees.sub, &key)?,
            }
        }
        for row in self.trees.seq.iter() {
            let (key, value) = row.map_err(|e| self.damaged(e))?;
            let next = value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            let (Some(id), Some(next)) = (target_key(&key), next) else {
                return Err(self.damaged("a sequence row is not a number"));
            };
            self.sequences.insert(id.0, next);
        }
        Ok(())
    }

    fn remove(&self, tree: &sled::Tree, key: &[u8]) -> Result<(), OpenError> {
        tree.remove(key).map_err(|e| match e {
            sled::Error::Io(_) => unusable(self.path, io_error(e)),
            other => self.damaged(other),
        })?;
        self.disk.gave().map_err(|e| unusable(self.path, e))
    }

    fn heads(&mut self, progress: &OpenProgress) -> Result<(), OpenError> {
        let started = now();
        let trees = self.trees;
        let pack_of = |row: Option<(sled::IVec, _)>| row.and_then(|(key, _)| format::key_pack(&key));
        let first = pack_of(trees.head.first().map_err(|e| self.damaged(e))?).unwrap_or(0);
        let last = pack_of(trees.head.last().map_err(|e| self.damaged(e))?).unwrap_or(0);
        for (count, row) in trees.head.iter().enumerate() {
            let (key, value) = row.map_err(|e| self.damaged(e))?;
            let pack = format::key_pack(&key).ok_or_else(|| self.damaged("a head has a wrong key"))?;
            let head = format::decode_head(&value).map_err(|e| self.damaged(format!("pack {pack}: {e}")))?;
            self.head(pack, value.len(), head)?;
            if count % 1024 == 0 {
                progress.tell(pack.saturating_sub(first), (last - first).saturating_add(1));
            }
            if count % 1024 == 0 && now() >= self.told + TELL_EVERY {
                self.told = now();
                let (percent, seconds) = (progress.percent(), started.elapsed().as_secs());
                tracing::info!(packs = count + 1, percent, seconds, "reading the store back");
            }
        }
        // The crash came in the middle of an operation: none of it happened.
        for (pack, ..) in std::mem::take(&mut self.chain) {
            self.remove(&trees.body, &pack.to_be_bytes())?;
            self.remove(&trees.head, &pack.to_be_bytes())?;
        }
        Ok(())
    }

    fn head(&mut self, pack: u64, bytes: usize, head: Head) -> Result<(), OpenError> {
        let continued = head.flags & CONTINUED != 0;
        if !continued && !self.chain.is_empty() {
            return Err(self.damaged(format!("pack {pack} follows an unfinished chain")));
        }
        if continued && head.flags & WHOLE == 0 && self.chain.is_empty() {
            // The first of its chain is gone, with all that the chain added: it was about to be removed too.
            self.remove(&self.trees.body, &pack.to_be_bytes())?;
            self.remove(&self.trees.head, &pack.to_be_bytes())?;
            self.last_pack = self.last_pack.max(pack);
            return Ok(());
        }
        let goes_on = head.flags & CONTINUES != 0;
        if goes_on || continued {
            self.chain.push((pack, bytes, head));
            if !goes_on {
                let chain = std::mem::take(&mut self.chain);
                let all: Vec<u64> = chain.iter().map(|(pack, ..)| *pack).collect();
                let (first, others) = (all.first().copied().unwrap_or(pack), all.len().saturating_sub(1));
                for (at, (pack, bytes, head)) in chain.into_iter().enumerate() {
                    let whole = head.flags & WHOLE != 0;
                    let home = if whole { pack } else { first };
                    let goes_after = match at {
                        0 => 0..0,
                        _ if !whole => 0..1,
                        _ if at == others => 0..others,
                        _ => 0..0,
                    };
                    self.accept(pack, home, all.get(goes_after).unwrap_or_default(), bytes, head);
                }
            }
        } else {
            self.accept(pack, pack, &[], bytes, head);
        }
        Ok(())
    }

    /// Takes over the records of a head of so many bytes; the bodies of its ADDs lie in `home`, and it goes after these.
    fn accept(&mut self, pack: u64, home: u64, goes_after: &[u64], bytes: usize, head: Head) {
        self.last_pack = self.last_pack.max(pack);
        self.ledger.begin(pack, 0);
        goes_after.iter().for_each(|&other| self.ledger.follow(pack, other));
        let mut names = Vec::new();
        // Of its body row, which is not read.
        let mut body_bytes = 0;
        for record in head.records {
            match record {
                Record::Add(add) => {
                    let Some(ordinal) = self.ledger.add(home) else { continue };
                    let location = Location { pack: home, ordinal };
                    if !add.mark.is_empty() {
                        self.ledger.mark(location, add.mark);
                    }
                    let large = add.place.crc.is_some();
                    if large {
                        self.ledger.add_large(home, add.place.offset, add.place.len as usize);
                    } else if home == pack && head.flags & INLINE == 0 {
                        let end = CHECKSUM_BYTES + usize::from(add.place.offset) + add.place.len as usize;
                        body_bytes = body_bytes.max(end);
                    }
                    let place = (add.place.offset, add.place.len);
                    let how = (add.qos, add.retain);
                    let entry = Entry::new(
                        add.sequence,
                        location,
                        place.0,
                        place.1,
                        large,
                        add.expires_at,
                        how,
                        add.priority,
                    );
                    self.max_target = self.max_target.max(add.target);
                    if add.key.is_some() || add.value.is_some() {
                        let names = Names { key: add.key.map(Key::from), value: add.value.map(Box::new) };
                        self.names.insert((add.target, add.sequence), names);
                    }
                    self.adds.entry(add.target).or_default().push(entry, add.incoming);
                }
                Record::Settle { of, .. } => {
                    names.push(of.pack);
                    self.ledger.settle(of);
                }
                Record::Mark { of, mark, .. } => {
                    names.push(of.pack);
                    self.ledger.read_mark(of, mark, pack);
                }
            }
        }
        self.ledger.seal(pack, bytes + body_bytes, 0, &mut names);
    }

    fn clear_leftovers(&mut self) -> Result<(), OpenError> {
        for row in self.trees.done.iter() {
            let (key, value) = row.map_err(|e| self.damaged(e))?;
            let pack = format::key_pack(&key).ok_or_else(|| self.damaged("a checkpoint has a wrong key"))?;
            if self.ledger.contains(pack) {
                let done = Done::decode(&value).map_err(|e| self.damaged(format!("pack {pack}: {e}")))?;
                self.ledger.restore(pack, &done);
                if done.as_of != u64::MAX {
                    self.covered = self.covered.max(done.as_of);
                }
            } else {
                self.remove(&self.trees.done, &key)?;
            }
        }
        self.ledger.is_read();
        let beyond = (self.last_pack + 1).to_be_bytes();
        for tree in [&self.trees.body, &self.trees.part] {
            for key in tree.range(beyond..).keys() {
                let key = key.map_err(|e| self.damaged(e))?;
                self.remove(tree, &key)?;
            }
        }
        Ok(())
    }

    /// What is not settled, one by one. A rewritten message stands twice: what counts is where it was written last.
    fn newest(
        &mut self,
        adds: Adds,
        mut each: impl FnMut(&mut Self, Entry, Option<u16>) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let mut adds = adds.in_order().peekable();
        while let Some((entry, incoming)) = adds.next() {
            if let Some((newer, _)) = adds.peek().filter(|(newer, _)| newer.sequence == entry.sequence) {
                self.ledger.settle(entry.location());
                self.ledger.depend(newer.pack, entry.pack);
            } else if self.ledger.is_live(entry.location()) {
                each(self, entry, incoming)?;
            }
        }
        Ok(())
    }

    fn finish(mut self, bodies: &Bodies) -> Result<Recovered, OpenError> {
        let at = unix_now();
        let mut retained = HashMap::new();
        let mut dirty_sequences = Vec::new();
        let mut next_retained = self.sequences.get(&format::RETAINED).copied().unwrap_or(1);
        for (id, adds) in std::mem::take(&mut self.adds) {
            let next = adds.last() + 1;
            let known = self.sequences.insert(id, next).unwrap_or(1);
            if known < next {
                dirty_sequences.push(TargetId(id));
            }
            let next = next.max(known);
            self.sequences.insert(id, next);
            if id == format::RETAINED {
                next_retained = next;
                self.newest(adds, |reading, entry, _| {
                    let message = bodies
                        .load(reading.trees, &entry)
                        .map_err(|e| reading.damaged(e))
                        .and_then(|bytes| decode_message(bytes).map_err(|e| reading.damaged(e)))?;
                    retained.insert(message.topic.detached(), (entry.sequence, entry.location()));
                    reading.stored.retained.push(message);
                    Ok(())
                })?;
                continue;
            }
            let Some(target) = self.registry.get(TargetId(id)).cloned() else {
                self.newest(adds, |reading, entry, _| {
                    reading.ledger.settle(entry.location());
                    Ok(())
                })?;
                continue;
            };
            let mut state = target.state.lock();
            // A backlog mostly has one priority alone: no growing step by step.
            let priority = adds.first().map(|first| first.priority).filter(|_| adds.len() > MANY);
            if let Some(priority) = priority {
                state.level(priority).fresh.reserve(adds.len());
            }
            self.newest(adds, |reading, entry, incoming| {
                if let Some(packet_id) = incoming {
                    state.incoming.insert(packet_id, (entry.sequence, entry.location()));
                    if let Some(session) =
                        reading.sessions.get(&target.id).and_then(|&at| reading.stored.sessions.get_mut(at))
                    {
                        session.incoming.push(packet_id);
                    }
                    return Ok(());
                }
                target.messages.fetch_add(1, Ordering::Relaxed);
                target.bytes.fetch_add(u64::from(entry.len), Ordering::Relaxed);
                let names = reading.names.remove(&(id, entry.sequence)).unwrap_or_default();
                let mark = reading.ledger.mark_of(entry.location());
                reading
                    .replaced
                    .extend(state.push(entry, mark, names, at).map(|older| (target.clone(), older)));
                Ok(())
            })?;
            // Most of it may be settled.
            if let Some(priority) = priority {
                state.level(priority).shrink();
            }
        }
        for target in self.registry.all() {
            let next = self.sequences.get(&target.id.0).copied().unwrap_or(1);
            target.next_sequence.store(next, Ordering::Relaxed);
            target.earlier.store(next, Ordering::Relaxed);
            target.read_back(next);
        }
        let dedup = self.dedup(at)?;
        let known = self.trees.meta.get("next_target").map_err(|e| self.damaged(e))?;
        let known =
            known.as_deref().and_then(<[u8]>::first_chunk).map_or(1, |bytes| u32::from_be_bytes(*bytes));
        Ok(Recovered {
            registry: self.registry,
            next_pack: self.last_pack.max(self.ledger.last().unwrap_or(0)).max(self.covered) + 1,
            ledger: self.ledger,
            next_target: known.max(self.max_target + 1),
            retained,
            next_retained,
            dedup,
            dirty_sequences,
            replaced: self.replaced,
            stored: self.stored,
        })
    }
}

impl Reading<'_> {
    /// What the queues remember. What was never committed, is over, or is of a queue that is gone is cleared.
    fn dedup(&self, at: UnixMillis) -> Result<Dedup, OpenError> {
        let mut dedup = Dedup::default();
        for row in self.trees.dedup.iter() {
            let (key, value) = row.map_err(|e| self.damaged(e))?;
            let id = dedup::queue_of(&key)
                .ok_or_else(|| self.damaged("a row of deduplication ids has a wrong key"))?;
            let ids = dedup::decode(&value).map_err(|e| self.damaged(e))?;
            let window = self.registry.get(id).and_then(|target| target.settings.load().dedup_window);
            let next = self.sequences.get(&id.0).copied().unwrap_or(1);
            if !dedup.restore(id, &ids, next, window, at) {
                self.remove(&self.trees.dedup, &key)?;
            }
        }
        Ok(dedup)
    }
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), what: what.to_string() }
}

fn target_key(key: &[u8]) -> Option<TargetId> {
    key.first_chunk().map(|bytes| TargetId(u32::from_be_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Embedded;
    use super::super::testing::{publish, settings};
    use super::*;
    use crate::engine::{Append, ConsumerOptions, Engine, Forward, GroupSpec, LeaseRef, Op};
    use crate::types::topic::FilterSpec;
    use crate::types::{Message, Qos};

    /// Starts the engine, stores a message for a share group, and closes it.
    async fn start_and_store(data_dir: &Path, known: Option<TargetId>) -> TargetId {
        let engine = Embedded::open(settings(data_dir)).unwrap();
        let id = match known {
            Some(id) => id,
            None => {
                let filter = FilterSpec::parse(&"$share/g/t".into()).unwrap();
                let spec = GroupSpec { filter, max_messages: u64::MAX, max_bytes: u64::MAX };
                let id = engine.next_target();
                engine.commit(vec![Op::Define(id, Definition::Group(spec))]).await.unwrap();
                id
            }
        };
        engine.commit(vec![publish(id, "m", Qos::AtLeastOnce)]).await.unwrap();
        engine.close().unwrap();
        id
    }

    #[tokio::test]
    async fn numbers_of_packs_go_on_behind_what_a_checkpoint_covers() {
        let directory = tempfile::tempdir().unwrap();
        let group = start_and_store(directory.path(), None).await;
        let newest = |disk: &Disk| disk.trees.head.last().unwrap().unwrap().0;
        let disk = Disk::open_existing(directory.path(), 1 << 20).unwrap();
        let done = Done { as_of: 1000, settled: vec![0], marks: Vec::new() };
        disk.trees.done.insert(newest(&disk), done.encode()).unwrap();
        disk.sync().unwrap();
        drop(disk);
        start_and_store(directory.path(), Some(group)).await;
        let disk = Disk::open_existing(directory.path(), 1 << 20).unwrap();
        assert!(format::key_pack(&newest(&disk)).unwrap() > 1000, "a number came again");
    }

    #[tokio::test]
    async fn room_that_was_taken_for_what_is_settled_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let group = start_and_store(directory.path(), None).await;
        let engine = Embedded::open(settings(directory.path())).unwrap();
        engine.commit((0..5000).map(|_| publish(group, "m", Qos::AtLeastOnce)).collect()).await.unwrap();
        let consumer = engine.consumer(group, ConsumerOptions::default()).unwrap();
        let mut leased = Vec::new();
        while leased.len() < 5001 {
            consumer.take(5001, usize::MAX, &mut leased).unwrap();
            if leased.len() < 5001 {
                consumer.ready().heard().await;
            }
        }
        // Some of each pack stay.
        let settled = leased.iter().map(|it| LeaseRef::of(it.sequence)).filter(|it| it.sequence.0 % 50 != 0);
        let settled: Vec<_> = settled.collect();
        engine.settle(group, &settled).unwrap().durable.await.unwrap();
        drop(consumer);
        engine.close().unwrap();
        drop(engine);

        let disk = Disk::open_existing(directory.path(), 1 << 20).unwrap();
        let recovered = recover(&disk, &Bodies::new(1 << 20), &OpenProgress::default()).unwrap();
        let target = recovered.registry.get(group).unwrap();
        let state = target.state.lock();
        let levels = || state.levels.iter();
        assert_eq!(levels().map(|level| level.fresh.len() - level.holes).sum::<usize>(), 100);
        let room: usize = levels().map(|level| level.fresh.capacity()).sum();
        assert!(room <= MANY, "room for {room}");
    }

    #[tokio::test]
    async fn bodies_are_counted_where_they_lie_however_long_their_chain() {
        let directory = tempfile::tempdir().unwrap();
        let group = start_and_store(directory.path(), None).await;
        let engine = Embedded::open(settings(directory.path())).unwrap();
        let consumer = engine.consumer(group, ConsumerOptions::default()).unwrap();
        let mut leased = Vec::new();
        consumer.take(1, usize::MAX, &mut leased).unwrap();
        while leased.is_empty() {
            consumer.ready().heard().await;
            consumer.take(1, usize::MAX, &mut leased).unwrap();
        }
        let of = &leased[0];
        let message = |len| Message { payload: vec![b'x'; len].into(), ..of.message.clone() };
        let long = (0..1500).map(|_| (message(9000), Append::to(group)));
        let messages = long.chain((0..1500).map(|_| (message(7000), Append::to(group)))).collect();
        let lease = LeaseRef { attempt: Some(of.attempt), ..LeaseRef::of(of.sequence) };
        engine.commit(vec![Op::Forward(Forward { from: group, lease, messages })]).await.unwrap();
        drop(consumer);
        engine.close().unwrap();
        drop(engine);

        let disk = Disk::open_existing(directory.path(), 1 << 20).unwrap();
        let recovered = recover(&disk, &Bodies::new(1 << 20), &OpenProgress::default()).unwrap();
        let mut slots = HashMap::<u64, u16>::new();
        for key in disk.trees.part.iter().keys().map(Result::unwrap) {
            let slot = u16::from_be_bytes(*key[8..].first_chunk().unwrap());
            let known = slots.entry(format::key_pack(&key).unwrap()).or_default();
            *known = (*known).max(slot + 1);
        }
        assert!(slots.values().filter(|&&slots| slots > 100).count() > 1, "{slots:?}");
        for (pack, slots) in slots {
            assert_eq!(recovered.ledger.slots(pack), slots, "pack {pack}");
        }
        let mut bytes = 0;
        for tree in [&disk.trees.head, &disk.trees.body, &disk.trees.part] {
            bytes += tree.iter().values().map(|value| value.unwrap().len() as u64).sum::<u64>();
        }
        let (counted, _) = recovered.ledger.totals();
        assert!(counted.abs_diff(bytes) < bytes / 10, "{counted} of {bytes} bytes");
    }
}
