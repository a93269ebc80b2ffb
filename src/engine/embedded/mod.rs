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
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use self::backup::Backups;
use self::body::decode_message;
use self::consumer::EmbeddedConsumer;
use self::entry::Entry;
use self::keeper::Job;
use self::lanes::{SettleReply, Work};
use self::pen::Pen;
use self::prepare::prepare_all;
use self::readers::EmbeddedStreamReader;
use self::shared::Shared;
use self::target::Target;
use super::backup::{BackingUp, BackupError};
use super::{
    Capabilities, Consumer, ConsumerOptions, Engine, EngineError, Health, LeaseError, LeaseRef, Nack, Op,
    Page, Pending, Publish, Removed, Settled, Stored, StreamReader, StreamStats, TargetStats, Ticket, Usage,
    View,
};
use crate::bell::Bell;
use crate::types::clock::unix_now;
use crate::types::{BackupName, Sequence, TargetId, TopicFilter, UnixMillis};

mod adds;
mod admit;
mod backup;
mod bodies;
mod body;
mod burial;
pub mod check;
pub mod compact;
mod consumer;
mod copy;
mod counts;
mod dedup;
mod disk;
mod entry;
pub mod export;
mod format;
mod forward;
mod fresh;
mod giving_back;
mod hash;
pub mod import;
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
mod moves;
mod objects;
mod offline;
mod open;
mod order;
mod overflow;
mod pack;
mod pen;
mod prepare;
mod readers;
mod recovery;
mod retries;
mod returns;
mod rows;
mod shared;
mod space;
mod stage;
pub mod stats;
mod streams;
mod survey;
mod target;
#[cfg(test)]
mod testing;
mod upkeep;
mod values;
mod writer;

/// How many messages one settlement in the writer's lane covers at most.
const SETTLE_CHUNK: usize = 32 << 10;

/// The engine. Dropping it without [`Engine::close`] loses nothing that was acknowledged.
pub struct Embedded {
    shared: Arc<Shared>,
    pen: Arc<Pen>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    backups: Backups,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("data_dir", &self.shared.settings.data_dir).finish_non_exhaustive()
    }
}

impl Embedded {
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
        self.shared.token_secret
    }

    fn stored(&self) -> Stored {
        std::mem::take(&mut self.shared.stored.lock())
    }

    fn next_target(&self) -> TargetId {
        loop {
            // They come round, and those of the upper half are not the engine's: what is there keeps its number.
            let id = TargetId(self.shared.next_target.fetch_add(1, Ordering::Relaxed) & (u32::MAX >> 1));
            if id.0 != format::RETAINED && self.shared.target(id).is_err() {
                return id;
            }
        }
    }

    fn commit(&self, ops: Vec<Op>) -> Ticket {
        if let Some(error) = self.shared.failure() {
            return Ticket::ready(Err(error));
        }
        let (reply, ticket) = Ticket::new();
        let ops = prepare_all(ops, &self.shared.hash_secret);
        self.shared.lanes.push(Work::Commit { ops, reply });
        ticket
    }

    fn commit_alone(&self, publish: Publish) -> Ticket {
        if self.shared.settings.callers_wait.is_zero() {
            return self.commit(vec![Op::Publish(publish)]);
        }
        if let Some(error) = self.shared.failure() {
            return Ticket::ready(Err(error));
        }
        let (reply, ticket) = Ticket::new();
        let ops = prepare_all(vec![Op::Publish(publish)], &self.shared.hash_secret);
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

    fn stream_reader(
        &self,
        target: TargetId,
        filter: Option<TopicFilter>,
    ) -> Result<Box<dyn StreamReader>, EngineError> {
        let target = self.shared.stream(target)?;
        let id = self.shared.next_consumer.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(EmbeddedStreamReader::join(self.shared.clone(), target, id, filter)))
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

    fn back_up(&self, name: &BackupName) -> Result<BackingUp, BackupError> {
        self.backups.start(&self.shared, &self.pen, name)
    }

    fn close(&self) -> Result<(), EngineError> {
        self.backups.close();
        // This end is in order: leases that it ends are not counted.
        for target in self.shared.registry.read().all() {
            let marks = target.state.lock().unnote();
            keeper::write_marks(&self.shared, &target, marks);
        }
        self.shared.lanes.close();
        self.shared.tasks.close();
        self.shared.pages.close();
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
