//! Makes one batch of changes that come together, without a task of its own.
//!
//! The first caller to submit leads: it lets the others who are ready submit too, rests for as long as
//! the last batch took where that was long, then applies what has come together meanwhile and answers
//! everybody. The others just wait for their answer. A leader that is dropped while it waits applies the batch in
//! its drop, so that no one waits for ever. Each connection has few submissions open at a time, which
//! bounds what is pending; a batch that has grown to [`BATCH_MAX`] changes is applied by whoever
//! filled it.

use std::hash::Hash;
use std::mem;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::{Change, Router};

/// Shorter rests are none: a timer is no finer.
const SHORTEST_REST: Duration = Duration::from_millis(1);
/// A batch with this many changes waits no longer: applying it takes about a millisecond or two.
const BATCH_MAX: usize = 1_024;

/// The batch of a submission was not finished, since its writer panicked; whether the changes took
/// effect is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the batch of subscription changes was abandoned by its writer")]
pub struct BatchAbandoned;

/// Changes of one caller, who waits.
pub(super) struct Submission<K, V> {
    changes: Vec<Change<K, V>>,
    caller: oneshot::Sender<Vec<Option<V>>>,
}

impl<K, V> Submission<K, V> {
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    pub(super) fn take_changes(&mut self) -> Vec<Change<K, V>> {
        mem::take(&mut self.changes)
    }

    pub(super) fn answer(self, before: Vec<Option<V>>) {
        // A caller that has gone wants no answer; its changes hold all the same.
        self.caller.send(before).ok();
    }
}

/// What waits for the next batch.
pub(super) struct Pending<K, V> {
    submissions: Vec<Submission<K, V>>,
    changes: usize,
    /// Whether someone has undertaken to apply the submissions.
    led: bool,
    /// How long the last batch took.
    took: Duration,
}

impl<K, V> Default for Pending<K, V> {
    fn default() -> Self {
        Self { submissions: Vec::new(), changes: 0, led: false, took: Duration::ZERO }
    }
}

/// What a caller has to do for its submission.
enum Part {
    /// Wait for the answer.
    Follow,
    /// Apply the batch after a rest.
    Lead { rest: Option<Duration> },
    /// Apply the batch now.
    Flush,
}

impl<K, V> Pending<K, V> {
    pub(super) fn take(&mut self) -> Vec<Submission<K, V>> {
        self.led = false;
        self.changes = 0;
        mem::take(&mut self.submissions)
    }

    fn push(&mut self, submission: Submission<K, V>) -> Part {
        self.changes += submission.len();
        self.submissions.push(submission);
        if self.changes >= BATCH_MAX {
            Part::Flush
        } else if mem::replace(&mut self.led, true) {
            Part::Follow
        } else {
            Part::Lead { rest: Some(self.took).filter(|&took| took >= SHORTEST_REST) }
        }
    }

    pub(super) fn applied(&mut self, took: Duration) {
        self.took = took;
    }
}

/// Applies what is pending when it is dropped.
struct Lead<'a, K: Clone + Ord + Hash, V: Clone>(&'a Router<K, V>);

impl<K: Clone + Ord + Hash, V: Clone> Drop for Lead<'_, K, V> {
    fn drop(&mut self) {
        self.0.write(Vec::new());
    }
}

impl<K: Clone + Ord + Hash, V: Clone> Router<K, V> {
    /// Hands over `changes`, to be applied in their order together with those of other callers, and
    /// returns once the snapshot with them is published: for each change, the value that the
    /// subscription had before. Takes as long as two batches and a timer's tick at most, usually some
    /// microseconds; needs a tokio runtime with a timer.
    ///
    /// Dropping the future, once polled, does not take the changes back: they are applied with their
    /// batch.
    ///
    /// # Errors
    /// [`BatchAbandoned`] when a panic ended the batch.
    pub async fn submit(&self, changes: Vec<Change<K, V>>) -> Result<Vec<Option<V>>, BatchAbandoned> {
        let (caller, answer) = oneshot::channel();
        let part = self.pending.lock().push(Submission { changes, caller });
        match part {
            Part::Follow => {}
            Part::Lead { rest } => {
                let lead = Lead(self);
                yield_now().await;
                if let Some(rest) = rest {
                    sleep(rest).await;
                }
                drop(lead);
            }
            Part::Flush => drop(Lead(self)),
        }
        answer.await.map_err(|_| BatchAbandoned)
    }

    /// Hands over one change: [`submit`](Self::submit) for a single one, with its errors and its
    /// behaviour when dropped.
    ///
    /// # Errors
    /// [`BatchAbandoned`] when a panic ended the batch.
    pub async fn subscribe(&self, change: Change<K, V>) -> Result<Option<V>, BatchAbandoned> {
        Ok(self.submit(vec![change]).await?.pop().flatten())
    }
}
