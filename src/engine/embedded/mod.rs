//! The embedded engine: a log of packs in sled 0.34.7.
//!
//! The messages of a group commit are packed into few rows and made durable together; what is in memory is an
//! index of 32 bytes a message and a bounded cache of bodies. `format` has the layout, `writer` what writes, `pen`
//! who lets it, `recovery` what happens at open.
//!
//! Invariant: commits, reads and timers have threads of their own; an async task blocks on the disk only where it asked
//! to, with a commit that is alone ([`Engine::commit_alone`]).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use self::bodies::Bodies;
use self::body::decode_message;
use self::consumer::EmbeddedConsumer;
use self::counts::Counts;
use self::disk::Disk;
use self::entry::Entry;
use self::keeper::{Job, Tasks};
use self::lanes::{Lanes, SettleReply, Work};
use self::log::Log;
use self::marker::Marker;
use self::pack::Packer;
use self::pen::Pen;
use self::prepare::prepare_all;
use self::shared::Shared;
use self::streams::EmbeddedStreamReader;
use self::target::Target;
use self::writer::Writer;
use super::settings::EngineSettings;
use super::{
    Capabilities, Consumer, ConsumerOptions, Durability, Engine, EngineError, Health, LeaseError, LeaseRef,
    Nack, Op, OpenError, OpenProgress, Page, Pending, Publish, Removed, Settled, Stored, StreamReader,
    StreamStats, TargetStats, Ticket, Usage, View,
};
use crate::bell::Bell;
use crate::types::clock::unix_now;
use crate::types::{Sequence, TargetId, UnixMillis};

mod admit;
mod bodies;
mod body;
mod burial;
pub mod check;
mod consumer;
mod counts;
mod dedup;
mod disk;
mod entry;
pub mod export;
mod format;
mod forward;
mod giving_back;
mod hash;
mod index;
mod journal;
mod keeper;
mod lanes;
mod leases;
mod ledger;
mod level;
mod log;
mod marker;
mod members;
mod objects;
mod offline;
mod order;
mod overflow;
mod pack;
mod pen;
mod prepare;
mod recovery;
mod retries;
mod returns;
mod rows;
mod shared;
mod space;
mod stage;
mod streams;
mod survey;
mod target;
#[cfg(test)]
mod testing;
mod upkeep;
mod writer;

/// sled's own cache. With it, its fixed cost and the bodies, the engine's memory is about 130 MB and the budget.
const SLED_CACHE_BYTES: u64 = 64 << 20;
/// A body cache below this could not hold what is read ahead.
const MIN_BODY_CACHE_BYTES: u64 = 4 << 20;
/// How many messages one settlement in the writer's lane covers at most.
const SETTLE_CHUNK: usize = 32 << 10;

/// The engine. Dropping it without [`Engine::close`] loses nothing that was acknowledged.
pub struct Embedded {
    shared: Arc<Shared>,
    pen: Arc<Pen>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("data_dir", &self.shared.settings.data_dir).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the store in the data directory, or makes one, and reads back what is there. Blocks; says how far it
    /// is when that takes long.
    ///
    /// # Errors
    /// [`OpenError`] when another process has the store, it is damaged or newer, or the directory cannot be used.
    pub fn open(settings: EngineSettings) -> Result<Self, OpenError> {
        Self::open_telling(settings, &OpenProgress::default())
    }

    /// The same, telling `progress` how far it is.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_telling(settings: EngineSettings, progress: &OpenProgress) -> Result<Self, OpenError> {
        let disk = Disk::open(&settings.data_dir, SLED_CACHE_BYTES, settings.ballast_bytes)?;
        let bodies = Bodies::new(
            usize::try_from(settings.body_cache_bytes.max(MIN_BODY_CACHE_BYTES)).unwrap_or(usize::MAX),
        );
        let recovered = recovery::recover(&disk, &bodies, progress)?;
        let unusable = |what: String| OpenError::Unusable { path: settings.data_dir.clone(), what };
        let (boot, secret) = marker::begin(&disk).map_err(|e| unusable(e.to_string()))?;
        let journaled = settings.durability == Durability::Fsync;
        let log = Log::open(&disk, journaled).map_err(|e| unusable(e.to_string()))?;
        disk.sync().map_err(|e| unusable(e.to_string()))?;
        Marker { boot, closed: false }.write(&settings.data_dir).map_err(|e| unusable(e.to_string()))?;
        if let Err(error) = disk.put_ballast() {
            tracing::warn!(%error, "cannot reserve the ballast: settlements may fail on a full disk");
        }
        let shared = Arc::new(Shared {
            capabilities: Capabilities { name: "embedded", durability: settings.durability },
            settings,
            boot,
            secret,
            disk,
            bodies,
            registry: RwLock::new(recovered.registry),
            lanes: Lanes::default(),
            tasks: Tasks::default(),
            counts: Counts::default(),
            health: watch::Sender::new(Health::Ok),
            failed: AtomicBool::new(false),
            next_target: AtomicU32::new(recovered.next_target),
            next_consumer: AtomicU64::new(1),
            stored: Mutex::new(recovered.stored),
        });
        for target in shared.registry.read().all() {
            let mut state = target.state.lock();
            shared.tasks.register(&target, &mut state, unix_now());
        }
        let mut writer = Writer::new(
            shared.clone(),
            recovered.ledger,
            Packer::new(boot, recovered.next_pack, log),
            recovered.retained,
            recovered.next_retained,
            recovered.dedup,
        );
        writer.dirty_sequences.extend(recovered.dirty_sequences);
        let pen = Arc::new(Pen::new(writer));
        let (writing, writer) = (shared.clone(), pen.clone());
        let (timer, reader) = (shared.clone(), shared.clone());
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|e| OpenError::Unusable {
                path: shared.settings.data_dir.clone(),
                what: format!("no thread could be started: {e}"),
            })
        };
        let threads = vec![
            spawn("store-writer", Box::new(move || writer.run(&writing)))?,
            spawn("store-timer", Box::new(move || keeper::keep_time(&timer)))?,
            spawn("store-reader", Box::new(move || keeper::read_back(&reader)))?,
        ];
        Ok(Self { shared, pen, threads: Mutex::new(threads) })
    }

    fn push_settle(&self, target: &Arc<Target>, entries: Vec<Entry>, mut last: SettleReply) {
        let mut entries =
            entries.into_iter().map(|entry| (entry.sequence, entry.location(), entry.len)).peekable();
        loop {
            let chunk: Vec<_> = entries.by_ref().take(SETTLE_CHUNK).collect();
            let more = entries.peek().is_some();
            let reply =
                if more { SettleReply::Nobody } else { std::mem::replace(&mut last, SettleReply::Nobody) };
            self.shared.lanes.push(Work::Settle { target: target.clone(), entries: chunk, reply });
            if !more {
                return;
            }
        }
    }
}

impl Engine for Embedded {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    fn boot(&self) -> u64 {
        self.shared.boot
    }

    fn secret(&self) -> [u8; 16] {
        self.shared.secret
    }

    fn stored(&self) -> Stored {
        std::mem::take(&mut self.shared.stored.lock())
    }

    fn next_target(&self) -> TargetId {
        TargetId(self.shared.next_target.fetch_add(1, Ordering::Relaxed))
    }

    fn commit(&self, ops: Vec<Op>) -> Ticket {
        if let Some(error) = self.shared.failure() {
            return Ticket::ready(Err(error));
        }
        let (reply, ticket) = Ticket::new();
        let ops = prepare_all(ops, &self.shared.secret);
        self.shared.lanes.push(Work::Commit { ops, reply });
        ticket
    }

    fn commit_alone(&self, publish: Publish) -> Ticket {
        if self.shared.settings.callers_wait.is_zero()
            || self.shared.capabilities.durability != Durability::Fsync
        {
            return self.commit(vec![Op::Publish(publish)]);
        }
        if let Some(error) = self.shared.failure() {
            return Ticket::ready(Err(error));
        }
        let (reply, ticket) = Ticket::new();
        let ops = prepare_all(vec![Op::Publish(publish)], &self.shared.secret);
        if let Some(work) = self.pen.commit_alone(&self.shared, Work::Commit { ops, reply }) {
            self.shared.lanes.push(work);
        }
        ticket
    }

    fn consumer(&self, target: TargetId, options: ConsumerOptions) -> Result<Box<dyn Consumer>, EngineError> {
        let target = self.shared.target(target)?;
        let id = self.shared.next_consumer.fetch_add(1, Ordering::Relaxed);
        let bell = Arc::new(Bell::default());
        target.state.lock().members.join(id, bell.clone(), options.priority);
        Ok(Box::new(EmbeddedConsumer {
            shared: self.shared.clone(),
            target,
            id,
            bell,
            lease: options.lease,
            keep_leases: options.keep_leases,
            reading: AtomicBool::new(false),
            preferred: AtomicBool::new(false),
        }))
    }

    fn settle(&self, target: TargetId, leases: &[LeaseRef]) -> Result<Settled, EngineError> {
        let target = self.shared.target(target)?;
        let _placing = self.shared.lanes.placing();
        let mut failed = Vec::new();
        let mut entries = Vec::with_capacity(leases.len());
        {
            let mut state = target.state.lock();
            for (at, lease) in leases.iter().enumerate() {
                match state.settle(lease) {
                    Ok(entry) => entries.push(entry),
                    Err(error) => failed.push((at, error)),
                }
            }
        }
        if entries.is_empty() {
            return Ok(Settled { failed, durable: Ticket::ready(Ok(())) });
        }
        target.totals.acked.fetch_add(entries.len() as u64, Ordering::Relaxed);
        let (reply, durable) = Ticket::new();
        self.push_settle(&target, entries, SettleReply::Done(reply));
        Ok(Settled { failed, durable })
    }

    fn nack(
        &self,
        target: TargetId,
        leases: &[LeaseRef],
        how: Nack,
        delay: Option<Duration>,
    ) -> Result<Settled, EngineError> {
        self.give_back(target, leases, how, delay)
    }

    fn extend(
        &self,
        target: TargetId,
        leases: &[LeaseRef],
        lease: Duration,
    ) -> Result<Vec<(usize, LeaseError)>, EngineError> {
        let target = self.shared.target(target)?;
        let at = unix_now();
        let ends = at.after(lease).0;
        let mut state = target.state.lock();
        let failed = leases
            .iter()
            .enumerate()
            .filter_map(|(place, lease)| state.extend(lease, ends).err().map(|error| (place, error)))
            .collect();
        self.shared.tasks.register(&target, &mut state, at);
        Ok(failed)
    }

    fn browse(
        &self,
        target: TargetId,
        view: View,
        from: Sequence,
        max: usize,
        max_bytes: usize,
    ) -> Pending<Page> {
        let target = match self.shared.target(target) {
            Ok(target) => target,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let (reply, ticket) = Ticket::new();
        self.shared.tasks.push(Job::Browse { target, view, from, max, max_bytes, reply });
        Box::pin(ticket)
    }

    fn purge(&self, target: TargetId, view: View) -> Result<Ticket<u64>, EngineError> {
        let target = self.shared.target(target)?;
        let _placing = self.shared.lanes.placing();
        let entries = target.state.lock().drain(view);
        let count = entries.len() as u64;
        let (reply, ticket) = Ticket::new();
        self.push_settle(&target, entries, SettleReply::Count(reply, count));
        Ok(ticket)
    }

    fn remove(&self, target: TargetId, view: View, sequences: &[Sequence]) -> Result<Removed, EngineError> {
        let target = self.shared.target(target)?;
        let _placing = self.shared.lanes.placing();
        let entries = target.state.lock().remove(view, sequences.iter().map(|sequence| sequence.0));
        let sequences: Vec<_> = entries.iter().map(|entry| Sequence(entry.sequence)).collect();
        let (reply, durable) = Ticket::new();
        self.push_settle(&target, entries, SettleReply::Done(reply));
        Ok(Removed { sequences, durable })
    }

    fn stats(&self, target: TargetId) -> Result<TargetStats, EngineError> {
        Ok(self.shared.target(target)?.stats())
    }

    fn oldest(&self, target: TargetId) -> Pending<Option<UnixMillis>> {
        let target = match self.shared.target(target) {
            Ok(target) => target,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let oldest = target.state.lock().oldest();
        let Some(entry) = oldest else { return Box::pin(std::future::ready(Ok(None))) };
        let here = self.shared.bodies.reader().get(&entry).and_then(|bytes| decode_message(bytes).ok());
        if let Some(message) = here {
            return Box::pin(std::future::ready(Ok(Some(message.id.time()))));
        }
        let (reply, ticket) = Ticket::new();
        self.shared.tasks.push(Job::Oldest { target, reply });
        Box::pin(ticket)
    }

    fn stream_reader(&self, target: TargetId) -> Result<Box<dyn StreamReader>, EngineError> {
        let target = self.shared.stream(target)?;
        let id = self.shared.next_consumer.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(EmbeddedStreamReader::join(self.shared.clone(), target, id)))
    }

    fn stream_stats(&self, target: TargetId) -> Result<StreamStats, EngineError> {
        Ok(self.shared.stream(target)?.stream_stats())
    }

    fn stream_at(&self, target: TargetId, time: UnixMillis) -> Result<Sequence, EngineError> {
        Ok(self.shared.stream(target)?.stream_at(time))
    }

    fn usage(&self, target: TargetId) -> Result<Usage, EngineError> {
        Ok(self.shared.target(target)?.usage())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let (mut messages, mut bytes) = (0, 0);
        for target in self.shared.registry.read().iter() {
            messages += target.messages.load(Ordering::Relaxed);
            bytes += target.bytes.load(Ordering::Relaxed);
        }
        let mut counters = self.shared.counts.list();
        counters.extend([("messages_stored", messages), ("messages_stored_bytes", bytes)]);
        counters
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    fn close(&self) -> Result<(), EngineError> {
        // This end is in order: leases that it ends are not counted.
        for target in self.shared.registry.read().all() {
            let marks = target.state.lock().unnote();
            keeper::write_marks(&self.shared, &target, marks);
        }
        self.shared.lanes.close();
        self.shared.tasks.close();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                self.shared.fail("a thread of the store ended in a panic");
            }
        }
        self.shared.failure().map_or(Ok(()), Err)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // What was acknowledged is durable already; the rest nobody waits for any more.
        drop(self.close());
    }
}
