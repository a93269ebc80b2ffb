//! The one thread that writes: takes what waits, writes it, makes it durable, tells who waited.
//!
//! Group commit without a timer: what comes in while a commit is made durable is the next commit.
//!
//! Invariants:
//! - what is told (tickets, the index) is durable under the policy before;
//! - sequences are given out here alone, in the order of the commits;
//! - after a failed write or sync nothing is acknowledged any more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::disk::SYNC_BYTES;
use super::format::{Add, Location, Mark, Place, RETAINED, Record};
use super::lanes::{Next, Prepared, PreparedPublish, Reply, SettleReply, Work, deadline};
use super::ledger::Ledger;
use super::pack::{Books, Failed, Packer};
use super::shared::Shared;
use super::target::{Entry, Settings, Target};
use super::{objects, upkeep};
use crate::engine::{Append, Durability, Health, Outcome, Refusal};
use crate::types::clock::{now, unix_now};
use crate::types::{Priority, Qos, Sequence, TargetId, TopicName, UnixMillis};

/// What one commit takes of each lane, in bytes.
const COMMIT_BYTES: usize = 768 << 10;
/// How often the free space is looked at.
const SPACE_EVERY: Duration = Duration::from_secs(1);
/// How long the writer sleeps when there is upkeep to do.
const UPKEEP_EVERY: Duration = Duration::from_millis(50);

/// What happens when the commit is durable.
enum Effect {
    Push(Arc<Target>, Entry, Mark),
    Incoming(Arc<Target>, u16, u64, Location),
    Released(Arc<Target>, u16),
    Relocate(Arc<Target>, Entry),
    Gone(Arc<Target>),
}

/// Who is told when the commit is durable.
enum Answer {
    Commit(Reply<Vec<Outcome>>, Vec<Outcome>),
    Done(Reply<()>),
    Count(Reply<u64>, u64),
}

/// See the module.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) ledger: Ledger,
    pub(super) packer: Packer,
    /// Where the retained value of each topic stands.
    pub(super) retained: HashMap<TopicName, (u64, Location)>,
    pub(super) next_retained: u64,
    /// Packs to be removed, with the sync that must have happened before.
    pub(super) removable: VecDeque<(u64, u64)>,
    /// Targets whose next sequence is not written since it changed.
    pub(super) dirty_sequences: HashSet<TargetId>,
    pub(super) syncs: u64,
    pub(super) upkeep: upkeep::Upkeep,
    effects: Vec<Effect>,
    answers: Vec<Answer>,
    low_disk: Option<(u64, u64)>,
    last_sync: Instant,
    next_space_check: Instant,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        ledger: Ledger,
        next_pack: u64,
        retained: HashMap<TopicName, (u64, Location)>,
        next_retained: u64,
    ) -> Self {
        let packer = Packer::new(shared.boot, next_pack);
        Self {
            shared,
            ledger,
            packer,
            retained,
            next_retained,
            removable: VecDeque::new(),
            dirty_sequences: HashSet::new(),
            syncs: 0,
            upkeep: upkeep::Upkeep::default(),
            effects: Vec::new(),
            answers: Vec::new(),
            low_disk: None,
            last_sync: now(),
            next_space_check: now(),
        }
    }

    /// Runs until the lanes are closed and empty, or a write fails.
    pub(super) fn run(mut self) {
        let result = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let failure = match result {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                Some(
                    text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()))
                        .unwrap_or_default(),
                )
            }
        };
        let Some(why) = failure else { return };
        let error = self.shared.fail(&why);
        for answer in self.answers.drain(..) {
            match answer {
                Answer::Commit(reply, _) => drop(reply.send(Err(error.clone()))),
                Answer::Done(reply) => drop(reply.send(Err(error.clone()))),
                Answer::Count(reply, _) => drop(reply.send(Err(error.clone()))),
            }
        }
        let mut work = Vec::new();
        while !matches!(self.shared.lanes.next(&mut work, usize::MAX, None), Next::Closed) {
            work.drain(..).for_each(|work| work.fail(&error));
        }
    }

    fn serve(&mut self) -> Result<(), Failed> {
        let mut work = Vec::new();
        loop {
            let until = self.wait_until();
            let next = self.shared.lanes.next(&mut work, COMMIT_BYTES, until);
            if matches!(next, Next::Closed) {
                self.upkeep_round()?;
                self.seal()?;
                return self.sync();
            }
            if now() >= self.next_space_check {
                self.check_space();
            }
            coalesce(&mut work);
            for work in work.drain(..) {
                self.stage(work)?;
            }
            self.upkeep_round()?;
            self.seal()?;
            self.make_durable()?;
            self.apply();
        }
    }

    fn wait_until(&self) -> Option<Instant> {
        let busy = self.upkeep_waits();
        let interval = match self.shared.capabilities.durability {
            Durability::Interval => self.shared.settings.sync_interval,
            _ => SPACE_EVERY,
        };
        let sync = (self.packer.unsynced > 0).then_some(self.last_sync + interval);
        let upkeep = busy.then(|| deadline(UPKEEP_EVERY));
        let space = self.low_disk.map(|_| deadline(SPACE_EVERY));
        let checkpoint = self.upkeep.checkpoint_at(&self.ledger);
        [sync, upkeep, space, checkpoint].into_iter().flatten().min()
    }

    pub(super) fn books(&mut self) -> (&mut Packer, Books<'_>) {
        let Self { packer, shared, ledger, .. } = self;
        (packer, Books { disk: &shared.disk, bodies: &shared.bodies, ledger })
    }

    pub(super) fn seal(&mut self) -> Result<(), Failed> {
        let (packer, mut books) = self.books();
        packer.seal(&mut books, 0)
    }

    pub(super) fn sync(&mut self) -> Result<(), Failed> {
        self.packer.sync(&self.shared.disk)?;
        self.syncs += 1;
        self.last_sync = now();
        self.after_sync();
        Ok(())
    }

    fn make_durable(&mut self) -> Result<(), Failed> {
        if self.packer.unsynced == 0 {
            return Ok(());
        }
        let due = match self.shared.capabilities.durability {
            Durability::Fsync => true,
            Durability::Interval => now() >= self.last_sync + self.shared.settings.sync_interval,
            Durability::Memory => now() >= self.last_sync + SPACE_EVERY,
        };
        if due || self.packer.unsynced > SYNC_BYTES / 2 { self.sync() } else { Ok(()) }
    }

    /// Writes one piece of work into the open pack.
    fn stage(&mut self, work: Work) -> Result<(), Failed> {
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
                    self.stage_mark(target.id, sequence, place, mark)?;
                }
                if let Some(reply) = reply {
                    self.answers.push(Answer::Done(reply));
                }
            }
        }
        Ok(())
    }

    /// Whether the message was there.
    fn stage_settle(&mut self, target: &Target, sequence: u64, place: Location) -> Result<bool, Failed> {
        let of = self.ledger.current(place);
        if !self.ledger.settle(of) {
            return Ok(false);
        }
        let (packer, mut books) = self.books();
        packer.record(&mut books, &Record::Settle { target: target.id.0, sequence, of })?;
        Ok(true)
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

    fn stage_op(&mut self, op: Prepared) -> Result<Outcome, Failed> {
        if let Some((free_bytes, watermark_bytes)) = self.low_disk
            && matches!(op, Prepared::Publish(_) | Prepared::Define(..) | Prepared::Subscribe(..))
        {
            return Ok(Outcome::Refused(Refusal::LowDisk { free_bytes, watermark_bytes }));
        }
        let trees = self.shared.disk.trees.clone();
        let row = |result: sled::Result<Option<sled::IVec>>| result.map(drop).map_err(|e| e.to_string());
        match op {
            Prepared::Publish(publish) => return self.stage_publish(*publish),
            Prepared::Move { from, sequence, to, body, priority, expires_at } => {
                return self.stage_move(from, sequence, to, &body, priority, expires_at);
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
                let bytes = objects::encode(&definition);
                self.packer.note_written(&self.shared.disk, bytes.len() + 64)?;
                row(trees
                    .meta
                    .insert("next_target", &self.shared.next_target.load(Ordering::Relaxed).to_be_bytes()))?;
                row(trees.obj.insert(id.0.to_be_bytes(), bytes))?;
                // Known at once: nobody can name it before its ticket completes, or it was known before.
                self.shared.registry.write().define(id, Settings::from(&*definition));
            }
            Prepared::Delete { id, only_if_empty } => {
                if only_if_empty && let Ok(target) = self.shared.target(id) {
                    let messages = target.messages.load(Ordering::Relaxed);
                    if messages > 0 {
                        return Ok(Outcome::Refused(Refusal::NotEmpty { messages }));
                    }
                }
                let Some(target) = self.shared.registry.write().remove(id) else {
                    return Ok(Outcome::Refused(Refusal::Gone(id)));
                };
                row(trees.obj.remove(id.0.to_be_bytes()))?;
                for key in trees.sub.scan_prefix(id.0.to_be_bytes()).keys() {
                    row(trees.sub.remove(key.map_err(|e| e.to_string())?))?;
                }
                row(trees.seq.remove(id.0.to_be_bytes()))?;
                self.dirty_sequences.remove(&id);
                self.packer.note_written(&self.shared.disk, 256)?;
                self.effects.push(Effect::Gone(target));
            }
            Prepared::Subscribe(session, filter, options) => {
                if self.shared.target(session).is_err() {
                    return Ok(Outcome::Refused(Refusal::Gone(session)));
                }
                let key = subscription_key(session, &filter.to_string());
                self.packer.note_written(&self.shared.disk, key.len() + 64)?;
                row(trees.sub.insert(key, objects::encode_subscription(&options)))?;
            }
            Prepared::Unsubscribe(session, filter) => {
                let key = subscription_key(session, &filter.to_string());
                self.packer.note_written(&self.shared.disk, key.len() + 64)?;
                row(trees.sub.remove(key))?;
            }
        }
        Ok(Outcome::Done)
    }

    fn stage_publish(&mut self, publish: PreparedPublish) -> Result<Outcome, Failed> {
        let len = publish.body.len() as u64;
        let mut open = SmallVec::<[Option<(Arc<Target>, &Append)>; 2]>::new();
        for append in &publish.targets {
            let Ok(target) = self.shared.target(append.target) else {
                if publish.targets.len() == 1 && publish.incoming.is_none() && publish.retained.is_none() {
                    return Ok(Outcome::Refused(Refusal::Gone(append.target)));
                }
                open.push(None);
                continue;
            };
            match room(&target, len) {
                None => open.push(Some((target, append))),
                Some(_) if !target.settings.load().rejects => {
                    target.totals.dropped.fetch_add(1, Ordering::Relaxed);
                    open.push(None);
                }
                Some(bound) => return Ok(Outcome::Refused(Refusal::Full { target: append.target, bound })),
            }
        }
        let incoming =
            publish.incoming.and_then(|(session, id)| Some((self.shared.target(session).ok()?, id)));
        let stores =
            open.iter().any(Option::is_some) || publish.retained.as_ref().is_some_and(|it| !it.clear);
        let (packer, mut books) = self.books();
        packer.begin_op(&mut books, publish.targets.len() + 3, publish.body.len())?;
        let place = if stores { Some(packer.body(&mut books, &publish.body)?) } else { None };
        let mut sequences = SmallVec::with_capacity(open.len());
        for slot in open {
            let (Some((target, append)), Some(place)) = (slot, place) else {
                sequences.push(None);
                continue;
            };
            let expires_at = [append.expires_at, publish.expires_at].into_iter().flatten().min();
            let mark = Mark { not_before: append.not_before, ..Mark::default() };
            let how = (append.qos, append.retain, append.priority);
            sequences.push(Some(self.stage_add(target, place, how, expires_at, mark)?));
        }
        if let Some(retained) = publish.retained {
            if let Some((sequence, of)) = self.retained.remove(&retained.topic) {
                let of = self.ledger.current(of);
                if self.ledger.settle(of) {
                    let (packer, mut books) = self.books();
                    packer.record(&mut books, &Record::Settle { target: RETAINED, sequence, of })?;
                }
            }
            if let (false, Some(place)) = (retained.clear, place) {
                let sequence = self.next_retained;
                self.next_retained += 1;
                self.dirty_sequences.insert(TargetId(RETAINED));
                let add = bodiless(RETAINED, sequence, place, publish.expires_at, None);
                let (packer, mut books) = self.books();
                let location = packer.add(&mut books, add)?;
                self.retained.insert(retained.topic.detached(), (sequence, location));
            }
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
        Ok(Outcome::Published(sequences))
    }

    fn next_sequence(&mut self, target: &Target) -> u64 {
        self.dirty_sequences.insert(target.id);
        target.next_sequence.fetch_add(1, Ordering::Relaxed)
    }

    fn stage_add(
        &mut self,
        target: Arc<Target>,
        place: Place,
        (qos, retain, priority): (Qos, bool, Priority),
        expires_at: Option<UnixMillis>,
        mark: Mark,
    ) -> Result<Sequence, Failed> {
        let sequence = self.next_sequence(&target);
        let priority = if target.settings.load().priorities { priority } else { Priority::default() };
        let add = Add {
            target: target.id.0,
            sequence,
            place,
            qos,
            retain,
            priority,
            expires_at,
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
        self.effects.push(Effect::Push(target, entry, mark));
        Ok(Sequence(sequence))
    }

    fn stage_move(
        &mut self,
        from: TargetId,
        sequence: Sequence,
        to: TargetId,
        body: &bytes::Bytes,
        priority: Priority,
        expires_at: Option<UnixMillis>,
    ) -> Result<Outcome, Failed> {
        let (source, destination) = match (self.shared.target(from), self.shared.target(to)) {
            (Ok(source), Ok(destination)) => (source, destination),
            (Err(_), _) => return Ok(Outcome::Refused(Refusal::Gone(from))),
            (_, Err(_)) => return Ok(Outcome::Refused(Refusal::Gone(to))),
        };
        let Some(entry) = source.state.lock().settle_for_move(sequence.0) else {
            return Ok(Outcome::Refused(Refusal::NotLeased));
        };
        let (packer, mut books) = self.books();
        packer.begin_op(&mut books, 2, body.len())?;
        let place = packer.body(&mut books, body)?;
        if self.stage_settle(&source, sequence.0, entry.location())? {
            source.messages.fetch_sub(1, Ordering::Relaxed);
            source.bytes.fetch_sub(u64::from(entry.len), Ordering::Relaxed);
        }
        let how = (entry.qos(), entry.retain(), priority);
        let moved = self.stage_add(destination, place, how, expires_at, Mark::default())?;
        Ok(Outcome::Published(SmallVec::from_elem(Some(moved), 1)))
    }

    /// A message of an old pack is written again. Its old place leads to the new one from now on.
    pub(super) fn stage_rewrite(
        &mut self,
        old: Location,
        mut add: Add,
        body: &bytes::Bytes,
    ) -> Result<(), Failed> {
        let target =
            if add.target == RETAINED { None } else { self.shared.target(TargetId(add.target)).ok() };
        let (packer, mut books) = self.books();
        packer.begin_op(&mut books, 1, body.len())?;
        if add.incoming.is_none() {
            add.place = packer.body(&mut books, body)?;
        }
        packer.depend_on(&mut books, old.pack);
        add.place.pack = None;
        let new = packer.add(&mut books, add.clone())?;
        self.ledger.moved(old, new);
        match (target, add.incoming) {
            (None, _) => {
                for (_, place) in self.retained.values_mut().filter(|(_, place)| *place == old) {
                    *place = new;
                }
            }
            (Some(target), Some(id)) => {
                self.effects.push(Effect::Incoming(target, id, add.sequence, new));
            }
            (Some(target), None) => {
                let Place { offset, len, crc, .. } = add.place;
                let how = (add.qos, add.retain);
                let entry = Entry::new(
                    add.sequence,
                    new,
                    offset,
                    len,
                    crc.is_some(),
                    add.expires_at,
                    how,
                    add.priority,
                );
                self.effects.push(Effect::Relocate(target, entry));
            }
        }
        Ok(())
    }

    /// The commit is durable: the index learns of it, then who waited.
    fn apply(&mut self) {
        let at = unix_now();
        let mut effects = std::mem::take(&mut self.effects).into_iter().peekable();
        while let Some(effect) = effects.next() {
            match effect {
                Effect::Push(target, entry, mark) => {
                    let mut state = target.state.lock();
                    let mut pushed = 1;
                    let mut dead = SmallVec::<[Location; 4]>::new();
                    push(&mut state, entry, mark, at, &mut dead);
                    while let Some(Effect::Push(_, entry, mark)) = effects.next_if(
                        |next| matches!(next, Effect::Push(other, ..) if Arc::ptr_eq(other, &target)),
                    ) {
                        push(&mut state, entry, mark, at, &mut dead);
                        pushed += 1;
                    }
                    state.wake(pushed);
                    self.shared.tasks.register(&target, &mut state, at);
                    drop(state);
                    for place in dead {
                        self.ledger.settle(place);
                    }
                }
                Effect::Incoming(session, id, sequence, place) => {
                    session.state.lock().incoming.insert(id, (sequence, place));
                }
                Effect::Released(session, id) => {
                    session.state.lock().incoming.remove(&id);
                }
                Effect::Relocate(target, entry) => {
                    target.state.lock().relocate(entry.sequence, &entry);
                }
                Effect::Gone(target) => {
                    let (entries, incoming) = {
                        let mut state = target.state.lock();
                        state.end();
                        (state.drain_whole(), std::mem::take(&mut state.incoming))
                    };
                    let places =
                        entries.iter().map(Entry::location).chain(incoming.into_values().map(|(_, p)| p));
                    for place in places {
                        let place = self.ledger.current(place);
                        self.ledger.settle(place);
                    }
                }
            }
        }
        for answer in self.answers.drain(..) {
            match answer {
                Answer::Commit(reply, outcomes) => drop(reply.send(Ok(outcomes))),
                Answer::Done(reply) => drop(reply.send(Ok(()))),
                Answer::Count(reply, count) => drop(reply.send(Ok(count))),
            }
        }
    }

    /// Looks at the free space: refuses below the watermark, gives the ballast up when there is next to nothing.
    fn check_space(&mut self) {
        self.next_space_check = deadline(SPACE_EVERY);
        let watermark_bytes = self.shared.settings.watermark_free_bytes;
        let Ok(free_bytes) = self.shared.disk.free_bytes() else { return };
        let ballast = self.shared.disk.ballast_bytes();
        if free_bytes < watermark_bytes {
            if self.low_disk.is_none() {
                tracing::warn!(
                    free_bytes,
                    watermark_bytes,
                    "the disk is nearly full: new messages are refused"
                );
            }
            if free_bytes < ballast && self.shared.disk.drop_ballast() {
                tracing::warn!(ballast, "gave up the ballast, so that settlements find room");
            }
            self.low_disk = Some((free_bytes, watermark_bytes));
            self.shared.health.send_if_modified(|health| {
                let low = Health::LowDisk { free_bytes, watermark_bytes };
                let new = matches!(health, Health::Ok);
                if new {
                    *health = low;
                }
                new
            });
        } else if self.low_disk.is_some() && free_bytes >= watermark_bytes + ballast / 2 {
            tracing::info!(free_bytes, "there is room on the disk again");
            self.low_disk = None;
            if let Err(error) = self.shared.disk.put_ballast() {
                tracing::warn!(%error, "cannot reserve the ballast again");
            }
            self.shared.health.send_if_modified(|health| {
                let low = matches!(health, Health::LowDisk { .. });
                if low {
                    *health = Health::Ok;
                }
                low
            });
        }
    }
}

fn push(
    state: &mut super::target::State,
    entry: Entry,
    mark: Mark,
    at: UnixMillis,
    dead: &mut SmallVec<[Location; 4]>,
) {
    if state.gone {
        dead.push(entry.location());
    } else {
        state.push(entry, mark, at);
    }
}

fn bodiless(
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
        incoming,
        mark: Mark::default(),
    }
}

/// The key of a subscription: its session and its filter.
pub(super) fn subscription_key(session: TargetId, filter: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + filter.len());
    key.extend_from_slice(&session.0.to_be_bytes());
    key.extend_from_slice(filter.as_bytes());
    key
}

/// Which bound one more message would break.
fn room(target: &Target, len: u64) -> Option<String> {
    let settings = target.settings.load();
    if target.messages.load(Ordering::Relaxed) >= settings.max_messages {
        return Some(format!("max_messages {}", settings.max_messages));
    }
    let bytes = target.bytes.load(Ordering::Relaxed);
    (bytes + len > settings.max_bytes).then(|| format!("max_bytes {}", settings.max_bytes))
}

/// Of retained values that nobody waits for, only the last of each topic is written.
fn coalesce(work: &mut [Work]) {
    let newest_only =
        |op: &Prepared| matches!(op, Prepared::Publish(p) if p.newest_only && p.targets.is_empty());
    let ops = |work: &Work| matches!(work, Work::Commit { ops, .. } if ops.iter().any(newest_only));
    if work.iter().filter(|work| ops(work)).count() == 0 {
        return;
    }
    let mut seen = HashSet::new();
    for work in work.iter_mut().rev() {
        let Work::Commit { ops, .. } = work else { continue };
        for op in ops.iter_mut().rev() {
            let Prepared::Publish(publish) = op else { continue };
            let Some(retained) = &publish.retained else { continue };
            let first = seen.insert(retained.topic.clone());
            if !first && publish.newest_only && publish.targets.is_empty() {
                publish.retained = None;
            }
        }
    }
}
