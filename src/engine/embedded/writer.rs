//! What writes: stages what was handed in, makes it durable, tells who waited. Who has the [`pen`](super::pen) lets it work.
//!
//! Group commit without a timer: what comes in while a commit is made durable is the next commit.
//!
//! Invariants:
//! - what is told (tickets, the index) is durable under the policy before;
//! - sequences are given out here alone, in the order of the commits;
//! - after a failed write or sync nothing is acknowledged any more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHasher;
use smallvec::SmallVec;

use super::burial::SetAside;
use super::dedup::Dedup;
use super::disk::Tree;
use super::entry::Entry;
use super::format::{Location, Mark};
use super::hash::TextHash;
use super::index::Names;
use super::keeper;
use super::lanes::{Prepared, Reply, Work, deadline};
use super::ledger::Ledger;
use super::marker::Marker;
use super::pack::{Books, Failed, Packer};
use super::shared::Shared;
use super::target::Target;
use super::upkeep;
use crate::engine::{Durability, Outcome};
use crate::types::clock::{now, unix_now};
use crate::types::{TargetId, TopicName, UnixMillis};

/// How often the free space is looked at.
pub(super) const SPACE_EVERY: Duration = Duration::from_secs(1);
/// What is durable in the journal is given to sled after this time at the latest.
const GIVE_EVERY: Duration = Duration::from_millis(25);
/// How long the writer sleeps when there is upkeep to do.
const UPKEEP_EVERY: Duration = Duration::from_millis(50);

/// What happens when the commit is durable.
pub(super) enum Effect {
    Push(Arc<Target>, Entry, Mark, Names),
    Incoming(Arc<Target>, u16, u64, Location),
    Released(Arc<Target>, u16),
    Relocate(Arc<Target>, Entry),
    Defined(Arc<Target>),
    Gone(Arc<Target>),
    /// To the dead letter queue, for want of room; with its mark and names if it is not in the index yet.
    Bury(Arc<Target>, Entry, Option<(Mark, Names)>),
    /// What was to happen does not.
    None,
}

/// Who is told when the commit is durable.
pub(super) enum Answer {
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
    pub(super) dedup: Dedup,
    /// Packs to be removed, with the sync that must have happened before.
    pub(super) removable: VecDeque<(u64, u64)>,
    /// Somebody copies them: none is removed.
    pub(super) keeps_packs: bool,
    /// Targets whose next sequence is not written since it changed.
    pub(super) dirty_sequences: HashSet<TargetId, BuildHasherDefault<FxHasher>>,
    pub(super) syncs: u64,
    pub(super) upkeep: upkeep::Upkeep,
    pub(super) effects: Vec<Effect>,
    /// Up to which effect of this commit messages of a target have made room for later ones.
    pub(super) left: HashMap<TargetId, usize, BuildHasherDefault<FxHasher>>,
    /// Which effect of this commit is the newest with a value, in queues that keep the last.
    pub(super) newest: HashMap<(TargetId, TextHash), usize, BuildHasherDefault<FxHasher>>,
    pub(super) answers: Vec<Answer>,
    pub(super) low_disk: Option<(u64, u64)>,
    last_sync: Instant,
    /// What the last sync took.
    pub(super) sync_took: Duration,
    pub(super) next_space_check: Instant,
    /// The same in logical bytes written.
    pub(super) next_space_check_bytes: u64,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        ledger: Ledger,
        packer: Packer,
        retained: HashMap<TopicName, (u64, Location)>,
        next_retained: u64,
        dedup: Dedup,
    ) -> Self {
        Self {
            shared,
            ledger,
            packer,
            retained,
            next_retained,
            dedup,
            removable: VecDeque::new(),
            keeps_packs: false,
            dirty_sequences: HashSet::default(),
            syncs: 0,
            upkeep: upkeep::Upkeep::default(),
            effects: Vec::new(),
            left: HashMap::default(),
            newest: HashMap::default(),
            answers: Vec::new(),
            low_disk: None,
            last_sync: now(),
            sync_took: Duration::ZERO,
            next_space_check: now(),
            next_space_check_bytes: 0,
        }
    }

    /// Makes all durable, and says beside the store that this was the end.
    pub(super) fn close(&mut self) -> Result<(), Failed> {
        self.upkeep_round()?;
        self.seal()?;
        let boot = self.shared.boot;
        let (log, disk) = (&mut self.packer.log, &self.shared.disk);
        log.insert(disk, Tree::Meta, b"closed", &boot.to_be_bytes())?;
        log.catch_up(disk)?;
        if let Err(error) = (Marker { boot, closed: true }).write(&self.shared.settings.data_dir) {
            tracing::warn!(%error, "cannot note that the store was closed");
        }
        Ok(())
    }

    /// One commit of what waits, and what else is due.
    pub(super) fn round(&mut self, work: &mut Vec<Work>) -> Result<(), Failed> {
        self.give()?;
        if self.space_is_due() {
            self.check_space();
        }
        coalesce(work);
        for work in work.drain(..) {
            self.stage(work)?;
        }
        self.upkeep_round()?;
        self.finish()?;
        self.give()?;
        self.catch_up()
    }

    /// One commit of this alone. Sled is given its rows by a later round.
    pub(super) fn commit_alone(&mut self, work: Work) -> Result<(), Failed> {
        self.stage(work)?;
        self.finish()
    }

    /// Whether a commit would not wait for the disk, or not longer than a caller may.
    pub(super) fn waits_briefly(&self) -> bool {
        match self.shared.capabilities.durability {
            Durability::Fsync => self.sync_took <= self.shared.settings.callers_wait,
            _ => !self.sync_is_due(),
        }
    }

    /// Whether nothing but a commit is to be done.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.packer.log.lags_much() && !self.space_is_due()
    }

    fn space_is_due(&self) -> bool {
        now() >= self.next_space_check || self.packer.log.written >= self.next_space_check_bytes
    }

    fn finish(&mut self) -> Result<(), Failed> {
        self.seal()?;
        self.make_durable()?;
        if self.packer.log.owes() {
            self.shared.bodies.owe(true);
        }
        self.apply();
        Ok(())
    }

    fn give(&mut self) -> Result<(), Failed> {
        if self.packer.log.owes() {
            self.packer.log.give(&self.shared.disk)?;
            self.shared.bodies.owe(false);
        }
        Ok(())
    }

    /// Nothing is acknowledged any more; who waits is told.
    pub(super) fn give_up(&mut self, why: &str) {
        let error = self.shared.fail(why);
        if self.shared.disk.free_bytes().is_ok_and(|free| free < self.shared.disk.ballast_bytes()) {
            // The next start needs some room to recover.
            self.shared.disk.drop_ballast();
        }
        self.shared.bodies.owe(false);
        for answer in self.answers.drain(..) {
            match answer {
                Answer::Commit(reply, _) => drop(reply.send(Err(error.clone()))),
                Answer::Done(reply) => drop(reply.send(Err(error.clone()))),
                Answer::Count(reply, _) => drop(reply.send(Err(error.clone()))),
            }
        }
    }

    /// When there is something to do though nobody hands work in.
    pub(super) fn wait_until(&self) -> Option<Instant> {
        let busy = self.upkeep_waits();
        let interval = match self.shared.capabilities.durability {
            Durability::Interval => self.shared.settings.sync_interval,
            _ => SPACE_EVERY,
        };
        let give = self.packer.log.owes().then(|| deadline(GIVE_EVERY));
        let sync = self.packer.log.lags().then_some(self.last_sync + interval);
        let upkeep = busy.then(|| deadline(UPKEEP_EVERY));
        let space = self.low_disk.map(|_| deadline(SPACE_EVERY));
        let checkpoint = self.upkeep.checkpoint_at(&self.ledger);
        [give, sync, upkeep, space, checkpoint, self.dedup.sweep_at()].into_iter().flatten().min()
    }

    pub(super) fn books(&mut self) -> (&mut Packer, Books<'_>) {
        let Self { packer, shared, ledger, dedup, .. } = self;
        (packer, Books { disk: &shared.disk, bodies: &shared.bodies, ledger, dedup })
    }

    pub(super) fn seal(&mut self) -> Result<(), Failed> {
        let (packer, mut books) = self.books();
        packer.seal(&mut books, 0)
    }

    pub(super) fn sync(&mut self) -> Result<(), Failed> {
        let before = now();
        self.packer.log.sync(&self.shared.disk)?;
        self.syncs += 1;
        self.last_sync = now();
        self.sync_took = self.last_sync - before;
        self.after_sync();
        Ok(())
    }

    fn make_durable(&mut self) -> Result<(), Failed> {
        let log = &self.packer.log;
        if log.is_loose() && (self.sync_is_due() || log.lags_much()) { self.sync() } else { Ok(()) }
    }

    fn sync_is_due(&self) -> bool {
        match self.shared.capabilities.durability {
            Durability::Fsync => true,
            Durability::Interval => now() >= self.last_sync + self.shared.settings.sync_interval,
            Durability::Memory => now() >= self.last_sync + SPACE_EVERY,
        }
    }

    /// Nobody waits: what only the journal has goes to sled's file, when that lags much or nothing else comes.
    fn catch_up(&mut self) -> Result<(), Failed> {
        let log = &mut self.packer.log;
        let idle = log.lags() && !log.is_loose() && now() >= self.last_sync + SPACE_EVERY;
        if idle || log.lags_much() {
            log.catch_up(&self.shared.disk)?;
        }
        Ok(())
    }

    /// The commit is durable: the index learns of it, then who waited.
    fn apply(&mut self) {
        let at = unix_now();
        let mut done = std::mem::take(&mut self.effects);
        let mut leaving: Vec<(Arc<Target>, SetAside)> = Vec::new();
        let mut waiting = Vec::new();
        let mut effects = done.drain(..).peekable();
        while let Some(effect) = effects.next() {
            match effect {
                Effect::Push(target, entry, mark, names) => {
                    let mut state = target.state.lock();
                    let mut pushed = 1;
                    let mut dead = SmallVec::<[Location; 4]>::new();
                    let mut replaced = Vec::new();
                    replaced.extend(push(&mut state, entry, mark, names, at, &mut dead));
                    while let Some(Effect::Push(_, entry, mark, names)) = effects.next_if(
                        |next| matches!(next, Effect::Push(other, ..) if Arc::ptr_eq(other, &target)),
                    ) {
                        replaced.extend(push(&mut state, entry, mark, names, at, &mut dead));
                        pushed += 1;
                    }
                    let readers = state.announce(pushed);
                    self.shared.tasks.register(&target, &mut state, at);
                    drop(state);
                    waiting.extend(readers);
                    for place in dead {
                        self.ledger.settle(place);
                    }
                    keeper::settle_replaced(&self.shared, &target, &replaced);
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
                Effect::None => {}
                Effect::Bury(target, entry, new) => {
                    let mut state = target.state.lock();
                    if state.gone {
                        drop(state);
                        self.ledger.settle(entry.location());
                        continue;
                    }
                    if let Some((mark, names)) = new {
                        state.pass_by(entry, mark, names.key);
                    }
                    let attempts = state.marks.get(&entry.sequence).map_or(0, |mark| mark.attempts);
                    drop(state);
                    match leaving.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &target)) {
                        Some((_, entries)) => entries.push((entry, attempts)),
                        None => leaving.push((target, vec![(entry, attempts)])),
                    }
                }
                Effect::Defined(target) => {
                    let paused = target.settings.load().paused;
                    let mut state = target.state.lock();
                    state.pause(paused);
                    if target.look_again(&mut state) {
                        self.shared.tasks.register(&target, &mut state, at);
                    }
                    // Who may take, and what, may be another now.
                    state.members.wake_all();
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
        drop(effects);
        self.effects = done;
        self.left.clear();
        self.newest.clear();
        for (target, mut entries) in leaving {
            entries.sort_unstable_by_key(|(entry, _)| entry.sequence);
            keeper::make_room(&self.shared, &target, entries);
        }
        for answer in self.answers.drain(..) {
            match answer {
                Answer::Commit(reply, outcomes) => drop(reply.send(Ok(outcomes))),
                Answer::Done(reply) => drop(reply.send(Ok(()))),
                Answer::Count(reply, count) => drop(reply.send(Ok(count))),
            }
        }
        // They may be many: nobody's answer waits for that.
        waiting.iter().for_each(|reader| reader.ring());
    }
}

fn push(
    state: &mut super::index::State,
    entry: Entry,
    mark: Mark,
    names: Names,
    at: UnixMillis,
    dead: &mut SmallVec<[Location; 4]>,
) -> Option<Entry> {
    if state.gone {
        dead.push(entry.location());
        return None;
    }
    state.push(entry, mark, names, at)
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
