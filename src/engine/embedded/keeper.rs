//! Two threads beside the writer: one for what becomes due, one for what must be read back.
//!
//! The timer looks at a target when its earliest deadline has come: delayed messages, leases that end, messages
//! whose time is over. The reader brings bodies into memory, browses, and moves messages to dead letter queues.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use parking_lot::{Condvar, Mutex};

use super::body::decode_message;
use super::burial::{self, Burial, Burials, SetAside, Why};
use super::entry::Entry;
use super::format::Mark;
use super::index::State;
use super::lanes::{Reply, SettleReply, Work, deadline};
use super::returns::{Due, Over};
use super::shared::Shared;
use super::target::Target;
use crate::engine::{Browsed, EngineError, Page, View};
use crate::types::clock::unix_now;
use crate::types::{Message, Sequence, TargetId, UnixMillis};

/// The timer looks at the clock so often while something is to become due, in milliseconds: it may have been set.
const LOOK_MS: u64 = 5_000;

/// Something to be read back.
#[derive(Debug)]
pub(super) enum Job {
    /// Bring bodies into memory, then wake who waits for them.
    Load { target: Arc<Target>, entries: Vec<Entry> },
    /// Move messages that are set aside to the dead letter queue.
    Bury(Burial),
    /// Look at messages.
    Browse {
        target: Arc<Target>,
        view: View,
        from: Sequence,
        max: usize,
        max_bytes: usize,
        reply: Reply<Page>,
    },
    /// Find out how old the oldest message is.
    Oldest { target: Arc<Target>, reply: Reply<Option<UnixMillis>> },
}

#[derive(Debug, Default)]
struct Deadlines {
    due: BTreeSet<(u64, TargetId)>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Jobs {
    reads: VecDeque<Job>,
    burials: Burials,
    /// The last job was a burial: who waits for something to be read goes before the next one.
    buried: bool,
    closed: bool,
}

/// What waits for the two threads.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    deadlines: Mutex<Deadlines>,
    earlier: Condvar,
    jobs: Mutex<Jobs>,
    more: Condvar,
}

impl Tasks {
    /// Lets the timer know the earliest deadline of a target. Call it after each change that may have made one.
    pub(super) fn register(&self, target: &Target, state: &mut State, at: UnixMillis) {
        let Some(next) = state.next_deadline(at) else { return };
        if state.registered.is_some_and(|known| known <= next) {
            return;
        }
        let mut deadlines = self.deadlines.lock();
        if let Some(known) = state.registered.replace(next) {
            deadlines.due.remove(&(known, target.id));
        }
        deadlines.due.insert((next, target.id));
        let first = deadlines.due.first() == Some(&(next, target.id));
        drop(deadlines);
        if first {
            self.earlier.notify_one();
        }
    }

    /// Hands a job to the reader.
    pub(super) fn push(&self, job: Job) {
        let mut jobs = self.jobs.lock();
        match job {
            Job::Bury(burial) => jobs.burials.push(burial),
            read => jobs.reads.push_back(read),
        }
        drop(jobs);
        self.more.notify_one();
    }

    /// What is left of a burial goes before the others of its target.
    fn go_on(&self, burial: Burial) {
        self.jobs.lock().burials.go_on(burial);
    }

    /// Lets both threads end.
    pub(super) fn close(&self) {
        self.deadlines.lock().closed = true;
        self.earlier.notify_all();
        self.jobs.lock().closed = true;
        self.more.notify_all();
    }

    /// The next target that is due, or none when closed.
    fn next_due(&self) -> Option<TargetId> {
        let mut deadlines = self.deadlines.lock();
        loop {
            if deadlines.closed {
                return None;
            }
            match deadlines.due.first().copied() {
                None => self.earlier.wait(&mut deadlines),
                Some((at, id)) => {
                    let left = at.saturating_sub(unix_now().0);
                    if left == 0 {
                        deadlines.due.pop_first();
                        return Some(id);
                    }
                    self.earlier
                        .wait_until(&mut deadlines, deadline(Duration::from_millis(left.min(LOOK_MS))));
                }
            }
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        loop {
            let read = if jobs.buried || jobs.burials.is_empty() { jobs.reads.pop_front() } else { None };
            let job = read.or_else(|| jobs.burials.pop().map(Job::Bury));
            if let Some(job) = job {
                jobs.buried = matches!(job, Job::Bury(_));
                return Some(job);
            }
            if jobs.closed {
                return None;
            }
            self.more.wait(&mut jobs);
        }
    }
}

/// The timer's thread.
pub(super) fn keep_time(shared: &Shared) {
    while let Some(id) = shared.tasks.next_due() {
        let Ok(target) = shared.target(id) else { continue };
        let at = unix_now();
        let settings = target.settings.load_full();
        if settings.stream {
            target.state.lock().registered = None;
            shared.lanes.push(Work::Retain(target));
            continue;
        }
        let _placing = shared.lanes.placing();
        let due = {
            let mut state = target.state.lock();
            state.registered = None;
            let mut due = state.due(at, settings.retries, settings.buries_expired);
            shared.tasks.register(&target, &mut state, at);
            // Under the lock: what a consumer gives back later is written later.
            write_marks(shared, &target, std::mem::take(&mut due.marks));
            due
        };
        shared.counts.leases_expired.add(due.ended);
        shared.counts.leases_written.add(due.noted);
        follow_up(shared, &target, due, burial::ENDED);
    }
}

/// What became due, was lost or expired is written; nobody waits for it. `why` leases ended is kept with dead letters.
pub(super) fn follow_up(shared: &Shared, target: &Arc<Target>, due: Due, why: ByteString) {
    write_marks(shared, target, due.marks);
    give_up(shared, target, due.exhausted, Some(why));
    run_out(shared, target, due.over);
}

/// Messages that had their last delivery and wait as leased are moved; nobody waits for it.
pub(super) fn give_up(shared: &Shared, target: &Arc<Target>, entries: SetAside, why: Option<ByteString>) {
    bury_later(shared, target, entries, Why::Exhausted(why));
}

/// Messages that wait as leased are moved, to make room for others.
pub(super) fn make_room(shared: &Shared, target: &Arc<Target>, entries: SetAside) {
    bury_later(shared, target, entries, Why::Overflow);
}

fn bury_later(shared: &Shared, target: &Arc<Target>, entries: SetAside, why: Why) {
    if !entries.is_empty() {
        shared.tasks.push(Job::Bury(Burial::new(target.clone(), entries, why, None)));
    }
}

/// Hands marks to the writer; nobody waits for it.
pub(super) fn write_marks(shared: &Shared, target: &Arc<Target>, marks: Vec<(Entry, Mark)>) {
    if !marks.is_empty() {
        let marks = marks.iter().map(|(entry, mark)| (entry.sequence, entry.location(), *mark)).collect();
        shared.lanes.push(Work::Mark { target: target.clone(), marks, reply: None });
    }
}

/// Messages whose time is over, already out of the index, are settled or moved.
pub(super) fn run_out(shared: &Shared, target: &Arc<Target>, over: Over) {
    bury_later(shared, target, over.buried, Why::Expired);
    let expired = over.dropped;
    if expired.is_empty() {
        return;
    }
    count_expired(shared, target, expired.len() as u64);
    let entries = expired.iter().map(|entry| (entry.sequence, entry.location(), entry.len)).collect();
    shared.lanes.push(Work::Settle { target: target.clone(), entries, reply: SettleReply::Nobody });
}

/// Messages that newer ones had the place of, already out of the index or with somebody, are settled.
pub(super) fn settle_replaced(shared: &Shared, target: &Arc<Target>, replaced: &[Entry]) {
    if replaced.is_empty() {
        return;
    }
    target.totals.replaced.fetch_add(replaced.len() as u64, Ordering::Relaxed);
    shared.counts.replaced.add(replaced.len() as u64);
    let entries = replaced.iter().map(|entry| (entry.sequence, entry.location(), entry.len)).collect();
    shared.lanes.push(Work::Settle { target: target.clone(), entries, reply: SettleReply::Nobody });
}

pub(super) fn count_expired(shared: &Shared, target: &Target, count: u64) {
    target.totals.expired.fetch_add(count, Ordering::Relaxed);
    shared.counts.expired.add(count);
}

/// The reader's thread.
pub(super) fn read_back(shared: &Shared) {
    while let Some(job) = shared.tasks.next_job() {
        match job {
            Job::Load { target, entries } => load(shared, &target, &entries),
            Job::Bury(burial) => {
                if let Some(rest) = burial.advance(shared) {
                    shared.tasks.go_on(rest);
                }
            }
            Job::Browse { target, view, from, max, max_bytes, reply } => {
                drop(reply.send(browse(shared, &target, view, from, (max, max_bytes))));
            }
            Job::Oldest { target, reply } => drop(reply.send(Ok(oldest(shared, &target)))),
        }
    }
}

fn load(shared: &Shared, target: &Arc<Target>, entries: &[Entry]) {
    for entry in entries {
        if let Err(error) = body_of(target, entry, |entry| shared.bodies.load(&shared.disk.trees, entry)) {
            discard(target, entry.sequence, &error);
        }
    }
    target.state.lock().members.wake(entries.len());
}

/// A message cannot be read: the others must not wait behind it. One that is gone meanwhile is nobody's loss.
pub(super) fn discard(target: &Target, sequence: u64, error: &EngineError) {
    if target.state.lock().entry(sequence).is_none() {
        return;
    }
    tracing::error!(target = target.id.0, sequence, %error, "a stored message cannot be read and is not delivered");
    target.state.lock().discard(sequence);
}

/// The bytes of an entry, also when its message was written to another place since the entry was read. Blocks.
pub(super) fn body_of(
    target: &Target,
    entry: &Entry,
    mut load: impl FnMut(&Entry) -> Result<Bytes, EngineError>,
) -> Result<Bytes, EngineError> {
    let mut entry = *entry;
    loop {
        let error = match load(&entry) {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        match target.state.lock().entry(entry.sequence) {
            Some(now) if now.location() != entry.location() => entry = now,
            _ => return Err(error),
        }
    }
}

pub(super) fn read(shared: &Shared, target: &Target, entry: &Entry) -> Result<Message, EngineError> {
    let bytes = body_of(target, entry, |entry| shared.bodies.load(&shared.disk.trees, entry))?;
    decode_message(bytes).map_err(|e| EngineError::Damaged(e.to_string()))
}

/// What is read for this is not kept: consumers have their bodies in memory before as after.
fn browse(
    shared: &Shared,
    target: &Arc<Target>,
    view: View,
    from: Sequence,
    (max, max_bytes): (usize, usize),
) -> Result<Page, EngineError> {
    let found = target.state.lock().list(view, from.0, max.saturating_add(1));
    let mut reader = shared.bodies.reader();
    let mut page = Page::default();
    let mut bytes = 0;
    for (count, (entry, view, attempts, until)) in found.into_iter().enumerate() {
        if count == max || bytes >= max_bytes {
            page.next = Some(Sequence(entry.sequence));
            break;
        }
        bytes += entry.len as usize;
        let read = body_of(target, &entry, |entry| reader.read(&shared.disk.trees, entry));
        let mut message = match read
            .and_then(|b| decode_message(b).map_err(|e| EngineError::Damaged(e.to_string())))
        {
            Ok(message) => message,
            // Settled and removed since it was listed.
            Err(EngineError::Damaged(_)) if target.state.lock().entry(entry.sequence).is_none() => continue,
            // Who is told from where on it is can go on behind it.
            Err(EngineError::Damaged(_)) if entry.sequence != from.0 => {
                page.next = Some(Sequence(entry.sequence));
                break;
            }
            Err(error) => return Err(error),
        };
        message.expires_at = message.expires_at.or_else(|| entry.expires_at());
        page.messages.push(Browsed {
            sequence: Sequence(entry.sequence),
            attempts,
            view,
            priority: entry.priority(),
            until: until.map(UnixMillis),
            message,
        });
    }
    Ok(page)
}

fn oldest(shared: &Shared, target: &Target) -> Option<UnixMillis> {
    loop {
        let entry = target.state.lock().oldest()?;
        match read(shared, target, &entry) {
            Ok(message) => return Some(message.id.time()),
            // Settled and removed meanwhile: another one is the oldest.
            Err(_) if target.state.lock().oldest().is_some_and(|now| now.sequence != entry.sequence) => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Embedded;
    use super::super::testing::{publish, settings};
    use super::*;
    use crate::engine::{BacklogSpec, Definition, Engine, Op};
    use crate::types::Qos;

    #[tokio::test]
    async fn what_cannot_be_read_ends_a_page_and_is_its_error_when_asked_for_first() {
        let dir = tempfile::TempDir::new().unwrap();
        let engine = Embedded::open(settings(dir.path())).unwrap();
        let id = engine.next_target();
        let backlog = Definition::Backlog(BacklogSpec { name: "kept".into() });
        engine.commit(vec![Op::Define(id, backlog)]).await.unwrap();
        for payload in ["a", "b", "c"] {
            let large: &str = payload.repeat(100_000).leak();
            engine.commit(vec![publish(id, large, Qos::AtLeastOnce)]).await.unwrap();
        }
        engine.close().unwrap();
        drop(engine);

        let engine = Embedded::open(settings(dir.path())).unwrap();
        // Now each has rows of its own, which begin with its pack and its number there.
        let parts = &engine.shared.disk.trees.part;
        let keys: Vec<_> = parts.iter().map(|row| row.unwrap().0).collect();
        let mut messages: Vec<_> = keys.iter().map(|key| &key[..10]).collect();
        messages.dedup();
        assert_eq!(messages.len(), 3);
        for key in keys.iter().filter(|key| key.starts_with(messages[1])) {
            parts.remove(key).unwrap();
        }
        let first =
            |page: &Page| page.messages.iter().map(|found| found.message.payload[0]).collect::<Vec<_>>();
        let page = engine.browse(id, View::Ready, Sequence(0), 9, usize::MAX).await.unwrap();
        assert_eq!(first(&page), [b'a']);
        let damaged = page.next.unwrap();
        let error = engine.browse(id, View::Ready, damaged, 9, usize::MAX).await.unwrap_err();
        assert!(matches!(error, EngineError::Damaged(_)), "{error}");
        let page = engine.browse(id, View::Ready, Sequence(damaged.0 + 1), 9, usize::MAX).await.unwrap();
        assert_eq!((first(&page), page.next), (vec![b'c'], None));
        engine.close().unwrap();
    }
}
