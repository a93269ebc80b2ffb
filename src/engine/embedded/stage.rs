//! Writes one piece of work into the open pack, gives sequences out, and notes what is to happen when it is durable.

use std::iter::once;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::admit::Slot;
use super::dedup::First;
use super::disk::Tree;
use super::entry::Entry;
use super::format::{Add, Location, Mark, Place, RETAINED, Record};
use super::hash::TextHash;
use super::index::Names;
use super::lanes::{OnlyIf, Prepared, PreparedPublish, SettleReply, Work};
use super::objects;
use super::order::Key;
use super::overflow::Leavers;
use super::pack::{Failed, Packer};
use super::target::{Settings, Target, WhenFull};
use super::writer::{Answer, Effect, Writer};
use crate::engine::{Outcome, Refusal};
use crate::types::clock::unix_now;
use crate::types::{Priority, Qos, Sequence, TargetId, UnixMillis};

impl Writer {
    /// Writes one piece of work into the open pack.
    pub(super) fn stage(&mut self, work: Work) -> Result<(), Failed> {
        match work {
            Work::Commit { ops, reply } => {
                let mut outcomes = Vec::with_capacity(ops.len());
                for op in ops {
                    outcomes.push(self.stage_op(op)?);
                }
                self.answers.push(Answer::Commit(reply, outcomes));
            }
            Work::Settle { target, entries, reply } => {
                let mut bytes = 0;
                let mut count = 0;
                for (sequence, place, len) in entries {
                    if self.stage_settle(&target, sequence, place)? {
                        count += 1;
                        bytes += u64::from(len);
                    }
                }
                target.messages.fetch_sub(count, Ordering::Relaxed);
                target.bytes.fetch_sub(bytes, Ordering::Relaxed);
                match reply {
                    SettleReply::Nobody => {}
                    SettleReply::Done(reply) => self.answers.push(Answer::Done(reply)),
                    SettleReply::Count(reply, count) => self.answers.push(Answer::Count(reply, count)),
                }
            }
            Work::Mark { target, marks, reply } => {
                for (sequence, place, mark) in marks {
                    // It was made before it came here. What the peer knows the message by changes here alone, and may
                    // have since.
                    let outgoing = self.ledger.mark_of(self.ledger.current(place)).outgoing;
                    self.stage_mark(target.id, sequence, place, Mark { outgoing, ..mark })?;
                }
                if let Some(reply) = reply {
                    self.answers.push(Answer::Done(reply));
                }
            }
            Work::Retain(target) => self.stage_retention(&target)?,
        }
        Ok(())
    }

    /// Whether the message was there.
    pub(super) fn stage_settle(
        &mut self,
        target: &Target,
        sequence: u64,
        place: Location,
    ) -> Result<bool, Failed> {
        let of = self.ledger.current(place);
        if !self.ledger.settle(of) {
            return Ok(false);
        }
        let (packer, mut books) = self.books();
        packer.record(&mut books, &Record::Settle { target: target.id.0, sequence, of })?;
        Ok(true)
    }

    /// A message that is settled here is stored no more.
    pub(super) fn stage_end(&mut self, target: &Target, entry: &Entry) -> Result<(), Failed> {
        if self.stage_settle(target, entry.sequence, entry.location())? {
            target.messages.fetch_sub(1, Ordering::Relaxed);
            target.bytes.fetch_sub(u64::from(entry.len), Ordering::Relaxed);
        }
        Ok(())
    }

    fn stage_mark(
        &mut self,
        target: TargetId,
        sequence: u64,
        place: Location,
        mark: Mark,
    ) -> Result<(), Failed> {
        let of = self.ledger.current(place);
        if self.ledger.mark(of, mark) {
            let (packer, mut books) = self.books();
            packer.record(&mut books, &Record::Mark { target: target.0, sequence, of, mark })?;
        }
        Ok(())
    }

    /// What takes room of a disk that is nearly full, messages for queues and sessions aside.
    fn grows(&self, op: &Prepared) -> bool {
        match op {
            Prepared::AppendStream(_) | Prepared::Subscribe(..) => true,
            Prepared::Define(id, definition) => !self.takes_no_room(*id, definition),
            _ => false,
        }
    }

    fn stage_op(&mut self, op: Prepared) -> Result<Outcome, Failed> {
        // Messages are looked at one by one: what is known already needs no room.
        if let Some(low) = self.low_disk()
            && self.grows(&op)
        {
            return Ok(self.refused(low));
        }
        match op {
            Prepared::Publish(publish) => self.stage_publish(*publish, None),
            Prepared::All(items) => self.stage_all(items),
            Prepared::Move(moved) => self.stage_move(*moved),
            Prepared::Forward(forward) => self.stage_forward(*forward),
            Prepared::AppendStream(append) => self.stage_stream_append(*append),
            other => self.stage_rare(other),
        }
    }

    fn stage_rare(&mut self, op: Prepared) -> Result<Outcome, Failed> {
        match op {
            Prepared::Publish(_)
            | Prepared::All(_)
            | Prepared::Move(_)
            | Prepared::Forward(_)
            | Prepared::AppendStream(_) => {}
            Prepared::SetCursor(stream, name, cursor) => {
                if self.shared.target(stream).is_err() {
                    return Ok(Outcome::Refused(Refusal::Gone(stream)));
                }
                let key = subscription_key(stream, name.as_str());
                let (log, disk) = (&mut self.packer.log, &self.shared.disk);
                match cursor {
                    Some(cursor) => log.insert(disk, Tree::Sub, &key, objects::encode_cursor(cursor))?,
                    None => log.remove(disk, Tree::Sub, &key)?,
                }
            }
            Prepared::Outgoing { target, sequence, outgoing } => {
                let Ok(target) = self.shared.target(target) else {
                    return Ok(Outcome::Refused(Refusal::Gone(target)));
                };
                let found = target.state.lock().set_outgoing(sequence.0, outgoing);
                let Some((place, mark)) = found else { return Ok(Outcome::Refused(Refusal::NotLeased)) };
                self.stage_mark(target.id, sequence.0, place, mark)?;
            }
            Prepared::ReleaseIncoming { session, packet_id } => {
                let Ok(target) = self.shared.target(session) else {
                    return Ok(Outcome::Refused(Refusal::Gone(session)));
                };
                let found = target.state.lock().incoming.get(&packet_id).copied();
                if let Some((sequence, place)) = found {
                    self.stage_settle(&target, sequence, place)?;
                    self.effects.push(Effect::Released(target, packet_id));
                }
            }
            Prepared::Define(id, definition) => {
                let (log, disk) = (&mut self.packer.log, &self.shared.disk);
                let next = self.shared.next_target.load(Ordering::Relaxed).to_be_bytes();
                log.insert(disk, Tree::Meta, b"next_target", &next)?;
                log.insert(disk, Tree::Obj, &id.0.to_be_bytes(), objects::encode(&definition))?;
                // Known at once: nobody can name it before its ticket completes, or it was known before.
                let target = self.shared.registry.write().define(id, Settings::from(&*definition));
                self.effects.push(Effect::Defined(target));
            }
            Prepared::Delete { id, only } => {
                if let Ok(target) = self.shared.target(id)
                    && let Some(refusal) = only.and_then(|only| minds(&target, only))
                {
                    return Ok(Outcome::Refused(refusal));
                }
                let Some(target) = self.shared.registry.write().remove(id) else {
                    return Ok(Outcome::Refused(Refusal::Gone(id)));
                };
                // What went elsewhere before is there before it can be gone here.
                self.seal()?;
                let (log, disk, key) = (&mut self.packer.log, &self.shared.disk, id.0.to_be_bytes());
                log.give(disk)?;
                log.remove(disk, Tree::Obj, &key)?;
                for subscription in disk.trees.sub.scan_prefix(key).keys() {
                    log.remove(disk, Tree::Sub, &subscription.map_err(|e| e.to_string())?)?;
                }
                log.remove(disk, Tree::Seq, &key)?;
                self.dirty_sequences.remove(&id);
                self.dedup.delete(id);
                self.effects.push(Effect::Gone(target));
            }
            Prepared::Subscribe(session, filter, options) => {
                if self.shared.target(session).is_err() {
                    return Ok(Outcome::Refused(Refusal::Gone(session)));
                }
                let key = subscription_key(session, &filter.to_string());
                let options = objects::encode_subscription(&options);
                self.packer.log.insert(&self.shared.disk, Tree::Sub, &key, options)?;
            }
            Prepared::Unsubscribe(session, filter) => {
                let key = subscription_key(session, &filter.to_string());
                self.packer.log.remove(&self.shared.disk, Tree::Sub, &key)?;
            }
        }
        Ok(Outcome::Done)
    }

    /// `at`: when it was admitted, together with others, so that it is not refused here.
    pub(super) fn stage_publish(
        &mut self,
        publish: PreparedPublish,
        at: Option<UnixMillis>,
    ) -> Result<Outcome, Failed> {
        let len = publish.body.len() as u64;
        let mut open = SmallVec::<[Slot<'_>; 2]>::new();
        let mut leavers = Leavers::default();
        let mut duplicate = None;
        let low_disk = if at.is_none() { self.low_disk() } else { None };
        for append in &publish.targets {
            let Ok(target) = self.shared.target(append.target) else {
                if publish.targets.len() == 1 && publish.incoming.is_none() && publish.retained.is_none() {
                    return Ok(Outcome::Refused(Refusal::Gone(append.target)));
                }
                open.push(Slot::None);
                continue;
            };
            if let Some((id, _)) = publish.dedup {
                match self.known(&target, id, 1, at.unwrap_or_else(unix_now)) {
                    Ok(None) => {}
                    Ok(Some(first)) => {
                        self.shared.counts.duplicates.add(1);
                        duplicate = duplicate.or(Some(first));
                        open.push(Slot::Known(first.sequence));
                        continue;
                    }
                    Err(refusal) => {
                        self.stay(leavers);
                        return Ok(self.refused(low_disk.unwrap_or(refusal)));
                    }
                }
            }
            if let Some(low) = low_disk {
                return Ok(self.refused(low));
            }
            let value = self.value_of(&target, &publish.body);
            if let Some(value) = value {
                self.replace(&target, value, None, &mut leavers);
            }
            let is_dropping = || target.settings.load().when_full == WhenFull::DropNew;
            let full = match at {
                Some(_) if !is_dropping() => None,
                _ => self.make_room(&target, (1, len), &mut leavers),
            };
            match full {
                None => open.push(Slot::Open(target, append, value)),
                Some(_) if is_dropping() => {
                    target.totals.dropped.fetch_add(1, Ordering::Relaxed);
                    self.shared.counts.dropped.add(1);
                    open.push(Slot::None);
                }
                Some(bound) => {
                    self.stay(leavers);
                    return Ok(self.refused(target.refusal(bound)));
                }
            }
        }
        let incoming =
            publish.incoming.and_then(|(session, id)| Some((self.shared.target(session).ok()?, id)));
        let stores = open.iter().any(|slot| matches!(slot, Slot::Open(..)))
            || publish.retained.as_ref().is_some_and(|it| !it.clear);
        if let Some(First { id, sequence }) = duplicate
            && incoming.is_none()
            && publish.retained.is_none()
            && open.iter().all(|slot| matches!(slot, Slot::Known(_)))
        {
            return Ok(Outcome::Duplicate { id, sequence: Sequence(sequence) });
        }
        if let Some(low) = low_disk {
            return Ok(self.refused(low));
        }
        let (records, body) = (publish.records(), publish.body.len());
        let mut after = Leavers::default();
        if at.is_none() && Packer::chains(records) {
            let (before, behind) = leavers.around();
            self.leave(before)?;
            after = behind;
        } else if at.is_none() {
            self.begin_all(std::mem::take(&mut leavers), once((records, body)))?;
        }
        // What was admitted with others goes for one of them, and an item of those has records to spare.
        let more = if at.is_some() { 0 } else { leavers.len() };
        let (packer, mut books) = self.books();
        packer.begin_op(&mut books, records + more, body)?;
        let place = if stores { Some(packer.body(&mut books, &publish.body)?) } else { None };
        self.leave(leavers)?;
        // In the first pack, as what leaves: a later one goes with it, and it can go before what this settles.
        if let Some(retained) = &publish.retained
            && let Some((sequence, of)) = self.retained.remove(&retained.topic)
        {
            let of = self.ledger.current(of);
            if self.ledger.settle(of) {
                let (packer, mut books) = self.books();
                packer.record(&mut books, &Record::Settle { target: RETAINED, sequence, of })?;
            }
        }
        let mut sequences = SmallVec::with_capacity(open.len());
        for slot in open {
            let (target, append, value, place) = match (slot, place) {
                (Slot::Open(target, append, value), Some(place)) => (target, append, value, place),
                (Slot::Known(sequence), _) => {
                    sequences.push(Some(Sequence(sequence)));
                    continue;
                }
                _ => {
                    sequences.push(None);
                    continue;
                }
            };
            let expires_at = [append.expires_at, publish.expires_at].into_iter().flatten().min();
            let mark = Mark { not_before: append.not_before, ..Mark::default() };
            let how = (append.qos, append.retain, append.priority);
            let queue = publish.dedup.filter(|_| target.settings.load().dedup_window.is_some());
            let queue = queue.map(|(id, message)| (target.id, id, message));
            let sequence = self.stage_add(target, place, how, expires_at, (publish.key, value), mark)?;
            if let Some((queue, id, message)) = queue {
                self.dedup.remember(queue, id, First { id: message, sequence: sequence.0 });
            }
            sequences.push(Some(sequence));
        }
        if let Some(retained) = publish.retained.filter(|retained| !retained.clear)
            && let Some(place) = place
        {
            let sequence = self.next_retained;
            self.next_retained += 1;
            self.dirty_sequences.insert(TargetId(RETAINED));
            let add = bodiless(RETAINED, sequence, place, publish.expires_at, None);
            let (packer, mut books) = self.books();
            let location = packer.add(&mut books, add)?;
            self.retained.insert(retained.topic.detached(), (sequence, location));
        }
        if let Some((session, id)) = incoming {
            let sequence = self.next_sequence(&session);
            let nowhere = Place { pack: None, offset: 0, len: 0, crc: None };
            let add = bodiless(session.id.0, sequence, nowhere, None, Some(id));
            let (packer, mut books) = self.books();
            let location = packer.add(&mut books, add)?;
            self.effects.push(Effect::Incoming(session, id, sequence, location));
        }
        let (packer, mut books) = self.books();
        packer.end_op(&mut books)?;
        if at.is_none() {
            packer.end_all(&mut books)?;
        }
        self.leave(after)?;
        Ok(Outcome::Published(sequences))
    }

    fn next_sequence(&mut self, target: &Target) -> u64 {
        self.dirty_sequences.insert(target.id);
        target.next_sequence.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn stage_add(
        &mut self,
        target: Arc<Target>,
        place: Place,
        (qos, retain, priority): (Qos, bool, Priority),
        expires_at: Option<UnixMillis>,
        (key, value): (Option<TextHash>, Option<TextHash>),
        mark: Mark,
    ) -> Result<Sequence, Failed> {
        let sequence = self.next_sequence(&target);
        let (priority, key, expires_at) = {
            let settings = target.settings.load();
            let priority = if settings.priorities { priority } else { Priority::default() };
            // A stream keeps when it was appended instead; who reads looks at the message's own expiry.
            let expires_at = if settings.stream { Some(target.stamp(unix_now())) } else { expires_at };
            (priority, key.filter(|_| settings.ordered), expires_at)
        };
        let add = Add {
            target: target.id.0,
            sequence,
            place,
            qos,
            retain,
            priority,
            expires_at,
            key,
            value,
            incoming: None,
            mark,
        };
        let (packer, mut books) = self.books();
        let location = packer.add(&mut books, add)?;
        target.messages.fetch_add(1, Ordering::Relaxed);
        target.bytes.fetch_add(u64::from(place.len), Ordering::Relaxed);
        target.totals.enqueued.fetch_add(1, Ordering::Relaxed);
        let how = (qos, retain);
        let entry = Entry::new(
            sequence,
            location,
            place.offset,
            place.len,
            place.crc.is_some(),
            expires_at,
            how,
            priority,
        );
        if let Some(value) = value {
            self.newest.insert((target.id, value), self.effects.len());
        }
        let names = Names { key: key.map(Key::from), value: value.map(Box::new) };
        self.effects.push(Effect::Push(target, entry, mark, names));
        Ok(Sequence(sequence))
    }
}

/// An ADD without what only messages for queues and sessions have.
pub(super) fn bodiless(
    target: u32,
    sequence: u64,
    place: Place,
    expires_at: Option<UnixMillis>,
    incoming: Option<u16>,
) -> Add {
    Add {
        target,
        sequence,
        place,
        qos: Qos::AtMostOnce,
        retain: false,
        priority: Priority::default(),
        expires_at,
        key: None,
        value: None,
        incoming,
        mark: Mark::default(),
    }
}

/// Why a target is not deleted.
fn minds(target: &Target, only: OnlyIf) -> Option<Refusal> {
    match only {
        OnlyIf::Empty => {
            let messages = target.messages.load(Ordering::Relaxed);
            (messages > 0).then_some(Refusal::NotEmpty { messages })
        }
        OnlyIf::Unused(usage) => (target.usage() != usage || usage.busy).then_some(Refusal::InUse),
    }
}

/// The key of a subscription: its session and its filter. That of a cursor: its stream and its name.
pub(super) fn subscription_key(session: TargetId, filter: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + filter.len());
    key.extend_from_slice(&session.0.to_be_bytes());
    key.extend_from_slice(filter.as_bytes());
    key
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::lanes::{Reply, Work};
    use super::super::prepare::prepare_all;
    use super::super::testing::{publish, settings, spec};
    use super::super::{Embedded, Target};
    use super::*;
    use crate::engine::{
        Consumer, ConsumerOptions, Definition, Engine, Leased, Op, Outgoing, OutgoingState, SessionSpec,
        Ticket, View,
    };
    use crate::types::ClientId;

    fn session() -> Definition {
        Definition::Session(SessionSpec {
            client_id: ClientId::parse("away".to_owned()).unwrap(),
            principal: "".into(),
            expiry: Duration::MAX,
            created_at: UnixMillis(1),
            last_connected: UnixMillis(1),
            connected: true,
            max_messages: 10,
            max_bytes: u64::MAX,
        })
    }

    async fn next(consumer: &dyn Consumer) -> Leased {
        let mut out = Vec::new();
        while out.is_empty() {
            let ready = consumer.ready().heard();
            consumer.take(1, usize::MAX, &mut out).unwrap();
            if out.is_empty() {
                ready.await;
            }
        }
        out.remove(0)
    }

    /// As when the timer notes a lease while the writer has the packet id in its hands.
    #[tokio::test]
    async fn a_mark_that_is_older_than_the_packet_id_leaves_it() {
        let dir = tempfile::TempDir::new().unwrap();
        let engine = Embedded::open(settings(dir.path())).unwrap();
        let id = engine.next_target();
        engine.commit(vec![Op::Define(id, session())]).await.unwrap();
        engine.commit(vec![publish(id, "once", Qos::ExactlyOnce)]).await.unwrap();
        let consumer = engine.consumer(id, ConsumerOptions::default()).unwrap();
        let sequence = next(&*consumer).await.sequence;
        let place = {
            let target: std::sync::Arc<Target> = engine.shared.target(id).unwrap();
            let state = target.state.lock();
            state.leases.get(sequence.0).unwrap().entry.location()
        };
        let outgoing = Outgoing { packet_id: 3, state: OutgoingState::Received };
        engine.commit(vec![Op::Outgoing { target: id, sequence, outgoing }]).await.unwrap();
        let (reply, written): (Reply<()>, _) = Ticket::new();
        engine.shared.lanes.push(Work::Mark {
            target: engine.shared.target(id).unwrap(),
            marks: vec![(sequence.0, place, Mark { attempts: 1, ..Mark::default() })],
            reply: Some(reply),
        });
        written.await.unwrap();
        drop(consumer);
        engine.close().unwrap();
        drop(engine);

        let engine = Embedded::open(settings(dir.path())).unwrap();
        let consumer = engine.consumer(id, ConsumerOptions::default()).unwrap();
        let again = next(&*consumer).await;
        assert_eq!((again.sequence, again.outgoing), (sequence, Some(outgoing)));
        assert!(again.attempt >= 2, "the mark itself is not stored");
        drop(consumer);
        engine.close().unwrap();
    }

    /// As when the power is cut before the pack of a commit is written, and sled has what was written before.
    #[tokio::test]
    async fn what_moved_out_of_a_queue_outlives_the_end_of_that_queue() {
        let dir = tempfile::TempDir::new().unwrap();
        let engine = Embedded::open(settings(dir.path())).unwrap();
        let [from, to] = [engine.next_target(), engine.next_target()];
        let define = |id, name| Op::Define(id, Definition::Queue(spec(name)));
        engine.commit(vec![define(from, "from"), define(to, "to")]).await.unwrap();
        engine.commit(vec![publish(from, "kept", Qos::AtLeastOnce)]).await.unwrap();
        let message = engine.browse(from, View::Ready, Sequence(0), 1, 9).await.unwrap().messages.remove(0);
        let (sequence, message) = (message.sequence, message.message);
        let moved =
            Op::Move { from, sequence, view: View::Ready, to, message, priority: Priority::default() };
        let image = tempfile::TempDir::new().unwrap();
        engine.pen.with(|writer| {
            for op in [moved, Op::DeleteEmpty(from)] {
                let (reply, _answer) = Ticket::new();
                let ops = prepare_all(vec![op], &engine.shared.hash_secret);
                writer.stage(Work::Commit { ops, reply }).unwrap();
            }
            writer.packer.log.catch_up(&engine.shared.disk).unwrap();
            std::fs::create_dir(image.path().join("store")).unwrap();
            for file in ["store/conf", "store/db", "journal"] {
                std::fs::copy(dir.path().join(file), image.path().join(file)).unwrap();
            }
        });
        engine.close().unwrap();
        let engine = Embedded::open(settings(image.path())).unwrap();
        let left = [from, to].map(|id| engine.stats(id).map_or(0, |stats| stats.ready));
        assert_eq!(left.iter().sum::<u64>(), 1, "{left:?}");
        engine.close().unwrap();
    }
}
