//! Who writes: the writer's thread, or a caller whose commit is all there is to do.
//!
//! A commit of one's own saves two threads from waking each other, which takes as long as the write. Who commits so waits
//! for the disk where the policy has each commit synced, so it is done only where the last syncs were short, or none is
//! due, and commits come one at a time; else the thread gathers what comes.
//!
//! Invariants: the lanes are emptied and written by who has the pen, so commits come in the order in which they were
//! handed in; one caller at most waits for the disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use parking_lot::Mutex;

use super::backup::Frozen;
use super::lanes::{Next, Work};
use super::pack::Failed;
use super::shared::Shared;
use super::writer::Writer;

/// What one commit takes of each lane, in bytes.
const COMMIT_BYTES: usize = 768 << 10;
/// A caller commits after so many commits that were alone.
const ALONE: u32 = 4;
/// A caller commits no more than this, in bytes.
const SMALL_BYTES: usize = 16 << 10;

/// See the module.
pub(super) struct Pen {
    held: Mutex<Held>,
}

struct Held {
    writer: Writer,
    /// How many commits in a row were alone.
    alone: u32,
    /// When the thread looks again by itself.
    wakes_at: Option<Instant>,
}

impl Pen {
    pub(super) fn new(writer: Writer) -> Self {
        Self { held: Mutex::new(Held { writer, alone: 0, wakes_at: None }) }
    }

    /// Lets a test write.
    #[cfg(test)]
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Writer) -> T) -> T {
        act(&mut self.held.lock().writer)
    }

    /// Writes what waits until the lanes are closed and empty, or a write fails; then all that comes is refused.
    pub(super) fn run(&self, shared: &Shared) {
        let mut work = Vec::new();
        loop {
            let until = {
                let mut held = self.held.lock();
                held.wakes_at = held.writer.wait_until();
                held.wakes_at
            };
            let next = shared.lanes.wait(until);
            let mut held = self.held.lock();
            if shared.failure().is_some() {
                break;
            }
            match next {
                Next::Nudge => {}
                Next::Closed => {
                    guard(&mut held.writer, Writer::close);
                    break;
                }
                Next::Work => {
                    shared.lanes.take(&mut work, COMMIT_BYTES);
                    match &work[..] {
                        [work] if work.is_one_commit() => held.alone = held.alone.saturating_add(1),
                        [] => {}
                        work if work.iter().any(Work::is_commit) => held.alone = 0,
                        _ => {}
                    }
                    guard(&mut held.writer, |writer| writer.round(&mut work));
                }
            }
        }
        while let Some(error) = shared.failure() {
            work.drain(..).for_each(|work| work.fail(&error));
            if matches!(shared.lanes.wait(None), Next::Closed) {
                return;
            }
            shared.lanes.take(&mut work, usize::MAX);
        }
    }

    /// Commits `work` here and now, if nothing else is to be done; else gives it back.
    pub(super) fn commit_alone(&self, shared: &Shared, work: Work) -> Option<Work> {
        let Some(mut held) = self.held.try_lock() else { return Some(work) };
        let alone = held.alone >= ALONE
            && held.writer.waits_briefly()
            && held.writer.is_at_rest()
            && work.weight() <= SMALL_BYTES
            && shared.lanes.is_idle()
            && shared.failure().is_none();
        if !alone {
            return Some(work);
        }
        guard(&mut held.writer, |writer| writer.commit_alone(work));
        if !shared.lanes.is_idle() {
            // Others came meanwhile: together they are faster.
            held.alone = 0;
        }
        let wakes_at = held.writer.wait_until();
        let sooner = match (wakes_at, held.wakes_at) {
            (Some(due), Some(at)) => due < at,
            (due, _) => due.is_some(),
        };
        if sooner || shared.failure().is_some() {
            held.wakes_at = wakes_at;
            shared.lanes.nudge();
        }
        None
    }

    /// What is needed of this moment, between two commits; see [`super::backup`]. Until [`Pen::thaw`] no pack is removed.
    pub(super) fn freeze(&self) -> Result<Frozen, Failed> {
        let mut held = self.held.lock();
        let mut frozen = Err("the store cannot write any more".to_owned());
        guard(&mut held.writer, |writer| {
            frozen = Ok(writer.freeze()?);
            Ok(())
        });
        frozen
    }

    /// Packs may be removed again.
    pub(super) fn thaw(&self) {
        self.held.lock().writer.keeps_packs = false;
    }
}

/// Lets the writer work; after a failure or a panic nothing is acknowledged any more.
fn guard(writer: &mut Writer, act: impl FnOnce(&mut Writer) -> Result<(), Failed>) {
    let why = match catch_unwind(AssertUnwindSafe(|| act(writer))) {
        Ok(Ok(())) => return,
        Ok(Err(why)) => why,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        }
    };
    writer.give_up(&why);
}
