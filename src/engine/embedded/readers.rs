//! Who reads a stream: each has a place of its own and holds at most one page.
//!
//! What is in memory is given at once. The rest is read by threads of their own, a page at a time for each reader and past the
//! cache of bodies, so that it keeps no consumer of a queue waiting.
//!
//! Invariant: a reader that was given nothing is rung when there may be more.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::body::{decode_message, decode_topic};
use super::entry::Entry;
use super::keeper::body_of;
use super::shared::Shared;
use super::target::Target;
use crate::bell::Bell;
use crate::engine::{EngineError, Found, Logged, StreamPage, StreamReader};
use crate::types::{Sequence, TopicFilter, UnixMillis};

/// So many threads read pages.
pub(super) const PAGE_THREADS: usize = 4;
/// So many messages are read from the disk at once, though the reader has room for fewer.
const PAGE_MESSAGES: usize = 256;
/// And so many bytes.
const PAGE_BYTES: usize = 64 << 10;

/// A page that is to be read.
#[derive(Debug)]
struct Job {
    target: Arc<Target>,
    entries: Vec<Entry>,
    slot: Arc<Slot>,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// Pages that are to be read, in the order in which they were asked for: one for each reader at most.
#[derive(Debug, Default)]
pub(super) struct Pages {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

impl Pages {
    fn push(&self, job: Job) {
        self.waiting.lock().jobs.push_back(job);
        self.more.notify_one();
    }

    fn next(&self) -> Option<Job> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                return Some(job);
            }
            if waiting.closed {
                return None;
            }
            self.more.wait(&mut waiting);
        }
    }

    /// Lets the threads end.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.more.notify_all();
    }
}

/// One of the threads that read pages.
pub(super) fn read_pages(shared: &Shared) {
    while let Some(Job { target, entries, slot }) = shared.pages.next() {
        slot.fill(shared, &target, entries);
    }
}

/// What a reader waits for.
#[derive(Debug, Default)]
enum Fetch {
    #[default]
    Nothing,
    /// A thread reads.
    Under,
    /// What it has read, with their lengths as they are stored, and was not given yet.
    Done(VecDeque<(u32, Found)>),
    Failed(EngineError),
}

/// What others know of one reader.
#[derive(Debug, Default)]
pub(super) struct Slot {
    bell: Arc<Bell>,
    filter: Option<TopicFilter>,
    /// It stands among those that an append rings. Changes under the lock of the target's state.
    pub(super) waits: AtomicBool,
    fetch: Mutex<Fetch>,
}

impl Slot {
    /// There is more.
    pub(super) fn ring(&self) {
        self.bell.ring();
    }

    /// Reads entries in a row. Blocks.
    fn fill(&self, shared: &Shared, target: &Target, entries: Vec<Entry>) {
        if Arc::strong_count(&self.bell) == 1 {
            return; // Its reader is gone.
        }
        let mut bodies = shared.bodies.reader();
        let mut page = VecDeque::with_capacity(entries.len());
        let mut failed = None;
        for entry in entries {
            let found = match body_of(target, &entry, |entry| bodies.read(&shared.disk.trees, entry)) {
                Ok(body) => self.found(shared, target, &entry, body),
                // What retention has taken since is not there for the reader either.
                Err(_) if target.state.lock().entry(entry.sequence).is_none() => break,
                Err(error @ EngineError::Damaged(_)) => unreadable(shared, target, &entry, &error),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            };
            page.push_back((entry.len, found));
        }
        *self.fetch.lock() = match failed.filter(|_| page.is_empty()) {
            Some(error) => Fetch::Failed(error),
            None => Fetch::Done(page),
        };
        self.ring();
    }

    /// What its reader gets of a message. What is not wanted is known by its topic alone.
    fn found(&self, shared: &Shared, target: &Target, entry: &Entry, body: Bytes) -> Found {
        let sequence = Sequence(entry.sequence);
        let read = || {
            if let Some(filter) = &self.filter
                && !filter.matches(&decode_topic(body.clone())?)
            {
                return Ok(Found::PassedOver(sequence));
            }
            let appended_at = entry.expires_at().unwrap_or(UnixMillis(0));
            Ok(Found::Message(Logged { sequence, appended_at, message: decode_message(body)? }))
        };
        read().unwrap_or_else(|error: super::format::FormatError| unreadable(shared, target, entry, &error))
    }
}

/// A message that cannot be read: its readers are told, and go on behind it.
fn unreadable(shared: &Shared, target: &Target, entry: &Entry, error: &dyn fmt::Display) -> Found {
    let Entry { sequence, .. } = *entry;
    tracing::error!(target = target.id.0, sequence, %error, "a message of a stream cannot be read");
    shared.counts.unreadable.add(1);
    Found::Unreadable(Sequence(sequence))
}

/// See [`StreamReader`].
pub(super) struct EmbeddedStreamReader {
    shared: Arc<Shared>,
    target: Arc<Target>,
    id: u64,
    slot: Arc<Slot>,
}

impl EmbeddedStreamReader {
    pub(super) fn join(
        shared: Arc<Shared>,
        target: Arc<Target>,
        id: u64,
        filter: Option<TopicFilter>,
    ) -> Self {
        let slot = Arc::new(Slot { filter, ..Slot::default() });
        target.state.lock().members.join(id, Arc::clone(&slot.bell), 0);
        Self { shared, target, id, slot }
    }

    /// Asks for a page that begins with the first of `entries`.
    fn ask(&self, entries: Vec<Entry>, max: usize, max_bytes: usize) {
        let from = entries.first().map_or(0, |entry| entry.sequence);
        let more = self.target.state.lock().read_on(from, max.max(PAGE_MESSAGES), max_bytes.max(PAGE_BYTES));
        let entries = if more.is_empty() { entries } else { more };
        let (target, slot) = (Arc::clone(&self.target), Arc::clone(&self.slot));
        self.shared.pages.push(Job { target, entries, slot });
    }
}

impl StreamReader for EmbeddedStreamReader {
    fn read(&self, from: Sequence, max: usize, max_bytes: usize) -> Result<StreamPage, EngineError> {
        let mut fetch = self.slot.fetch.lock();
        let is_under = matches!(*fetch, Fetch::Under);
        let (ends, entries) = {
            let mut state = self.target.state.lock();
            if state.gone {
                return Err(EngineError::NoSuchTarget(self.target.id));
            }
            let entries = if is_under { Vec::new() } else { state.read_on(from.0, max, max_bytes) };
            if entries.is_empty() && !is_under {
                state.wait_for_more(&self.slot);
            }
            (state.ends(), entries)
        };
        let Some(first) = entries.first() else { return Ok(StreamPage { ends, ..StreamPage::default() }) };
        match std::mem::take(&mut *fetch) {
            Fetch::Failed(error) => return Err(error),
            Fetch::Done(mut page) => {
                while page.pop_front_if(|(_, found)| found.sequence().0 < first.sequence).is_some() {}
                if page.front().is_some_and(|(_, found)| found.sequence().0 == first.sequence) {
                    let (mut found, mut bytes) = (Vec::new(), 0);
                    while found.len() < max
                        && bytes < max_bytes
                        && let Some((len, next)) = page.pop_front()
                    {
                        bytes += len as usize;
                        found.push(next);
                    }
                    *fetch = if page.is_empty() { Fetch::Nothing } else { Fetch::Done(page) };
                    return Ok(StreamPage { found, ends });
                }
            }
            Fetch::Nothing | Fetch::Under => {}
        }
        let mut bodies = self.shared.bodies.reader();
        let mut found = Vec::with_capacity(entries.len());
        for entry in &entries {
            let Some(body) = bodies.get(entry) else { break };
            found.push(self.slot.found(&self.shared, &self.target, entry, body));
        }
        if found.is_empty() {
            *fetch = Fetch::Under;
            self.ask(entries, max, max_bytes);
        }
        Ok(StreamPage { found, ends })
    }

    fn ready(&self) -> &Arc<Bell> {
        &self.slot.bell
    }
}

impl fmt::Debug for EmbeddedStreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStreamReader")
            .field("target", &self.target.id)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for EmbeddedStreamReader {
    fn drop(&mut self) {
        let mut state = self.target.state.lock();
        state.members.leave(self.id);
        state.wait_no_more(&self.slot);
    }
}
