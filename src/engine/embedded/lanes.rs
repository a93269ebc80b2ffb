//! What waits for the writer: settlements before new messages, each in the order in which it came.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::format::{Location, Mark};
use super::hash::TextHash;
use super::target::Target;
use crate::engine::{
    Append, Cursor, Definition, EngineError, LeaseRef, Outcome, Outgoing, SubscribeOptions, Usage, View,
};
use crate::types::topic::FilterSpec;
use crate::types::{CursorName, MessageId, Priority, Sequence, TargetId, TopicName, UnixMillis};

/// Where an answer goes. Nobody may wait for it any more.
pub(super) type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

/// An operation with its body encoded.
#[derive(Debug)]
pub(super) enum Prepared {
    Publish(Box<PreparedPublish>),
    All(Vec<PreparedPublish>),
    Move(Box<PreparedMove>),
    Forward(Box<PreparedForward>),
    AppendStream(Box<PreparedStreamAppend>),
    SetCursor(TargetId, CursorName, Option<Cursor>),
    Outgoing { target: TargetId, sequence: Sequence, outgoing: Outgoing },
    ReleaseIncoming { session: TargetId, packet_id: u16 },
    Define(TargetId, Box<Definition>),
    Delete { id: TargetId, only: Option<OnlyIf> },
    Subscribe(TargetId, FilterSpec, SubscribeOptions),
    Unsubscribe(TargetId, FilterSpec),
}

/// What must hold for a target to be deleted.
#[derive(Debug, Clone, Copy)]
pub(super) enum OnlyIf {
    Empty,
    /// It was used no more than so, and is not in use.
    Unused(Usage),
}

/// See [`crate::engine::Publish`].
#[derive(Debug)]
pub(super) struct PreparedPublish {
    /// What queues with a window know it by.
    pub(super) dedup: Option<(TextHash, MessageId)>,
    /// In queues that keep order by key.
    pub(super) key: Option<TextHash>,
    pub(super) body: Bytes,
    pub(super) targets: SmallVec<[Append; 2]>,
    pub(super) expires_at: Option<UnixMillis>,
    pub(super) retained: Option<Retained>,
    pub(super) newest_only: bool,
    pub(super) incoming: Option<(TargetId, u16)>,
}

impl PreparedPublish {
    /// How many records it makes at most.
    pub(super) fn records(&self) -> usize {
        self.targets.len() + 3
    }

    fn weight(&self) -> usize {
        32 + self.body.len() + 24 * self.targets.len()
    }
}

/// See [`crate::engine::Op::Move`].
#[derive(Debug)]
pub(super) struct PreparedMove {
    pub(super) from: TargetId,
    pub(super) sequence: Sequence,
    pub(super) view: View,
    pub(super) to: TargetId,
    pub(super) body: Bytes,
    /// In queues that keep order by key.
    pub(super) key: Option<TextHash>,
    pub(super) priority: Priority,
    pub(super) expires_at: Option<UnixMillis>,
    /// A queue that is full refuses it. One that was given up has to go somewhere.
    pub(super) bounded: bool,
    /// It is counted as leaving.
    pub(super) leaving: bool,
}

/// See [`crate::engine::Forward`].
#[derive(Debug)]
pub(super) struct PreparedForward {
    pub(super) from: TargetId,
    pub(super) lease: LeaseRef,
    pub(super) messages: Vec<PreparedPublish>,
}

/// See [`crate::engine::StreamAppend`].
#[derive(Debug)]
pub(super) struct PreparedStreamAppend {
    pub(super) target: TargetId,
    pub(super) bodies: Vec<Bytes>,
    pub(super) expected: Option<Sequence>,
}

/// What a publish does to the retained value of its topic.
#[derive(Debug)]
pub(super) struct Retained {
    pub(super) topic: TopicName,
    pub(super) clear: bool,
}

/// What a settlement answers.
#[derive(Debug)]
pub(super) enum SettleReply {
    Nobody,
    Done(Reply<()>),
    Count(Reply<u64>, u64),
}

/// What the writer does.
#[derive(Debug)]
pub(super) enum Work {
    Commit {
        ops: SmallVec<[Prepared; 1]>,
        reply: Reply<Vec<Outcome>>,
    },
    Settle {
        target: Arc<Target>,
        entries: Vec<(u64, Location, u32)>,
        reply: SettleReply,
    },
    Mark {
        target: Arc<Target>,
        marks: Vec<(u64, Location, Mark)>,
        reply: Option<Reply<()>>,
    },
    /// Let go what a stream does not keep any longer.
    Retain(Arc<Target>),
}

impl Work {
    pub(super) fn is_commit(&self) -> bool {
        matches!(self, Self::Commit { .. })
    }

    pub(super) fn is_one_commit(&self) -> bool {
        matches!(self, Self::Commit { ops, .. } if ops.len() == 1)
    }

    /// About its bytes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Commit { ops, .. } => ops
                .iter()
                .map(|op| match op {
                    Prepared::Publish(publish) => publish.weight(),
                    Prepared::All(items) => items.iter().map(PreparedPublish::weight).sum(),
                    Prepared::Move(moved) => 64 + moved.body.len(),
                    Prepared::Forward(forward) => {
                        64 + forward.messages.iter().map(PreparedPublish::weight).sum::<usize>()
                    }
                    Prepared::AppendStream(append) => {
                        64 + append.bodies.iter().map(|body| 64 + body.len()).sum::<usize>()
                    }
                    _ => 128,
                })
                .sum(),
            Self::Settle { entries, .. } => 32 + 12 * entries.len(),
            Self::Mark { marks, .. } => 32 + 24 * marks.len(),
            Self::Retain(_) => 32,
        }
    }

    /// Answers that nothing of it was done.
    pub(super) fn fail(self, error: &EngineError) {
        match self {
            Self::Commit { reply, .. } => drop(reply.send(Err(error.clone()))),
            Self::Settle { reply: SettleReply::Done(reply), .. } | Self::Mark { reply: Some(reply), .. } => {
                drop(reply.send(Err(error.clone())));
            }
            Self::Settle { reply: SettleReply::Count(reply, _), .. } => drop(reply.send(Err(error.clone()))),
            Self::Settle { .. } | Self::Mark { .. } | Self::Retain(_) => {}
        }
    }
}

#[derive(Debug, Default)]
struct Queues {
    settlements: VecDeque<Work>,
    commits: VecDeque<Work>,
    closed: bool,
    /// How many settlements were ever put in and taken out.
    put: u64,
    taken: u64,
    nudged: bool,
}

impl Queues {
    fn is_empty(&self) -> bool {
        self.settlements.is_empty() && self.commits.is_empty()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    queues: Mutex<Queues>,
    waiting: Condvar,
    placing: RwLock<()>,
}

/// What [`Lanes::wait`] ends with.
#[derive(Debug)]
pub(super) enum Next {
    /// There may be something to do.
    Work,
    /// When there is something to do may be sooner than it was.
    Nudge,
    /// There is nothing, and nothing comes any more.
    Closed,
}

impl Lanes {
    /// Hands work in. After closing it is answered with [`EngineError::Stopped`].
    pub(super) fn push(&self, work: Work) {
        let mut queues = self.queues.lock();
        if queues.closed {
            drop(queues);
            work.fail(&EngineError::Stopped);
            return;
        }
        match work {
            Work::Commit { .. } => queues.commits.push_back(work),
            Work::Settle { .. } | Work::Mark { .. } | Work::Retain(_) => {
                queues.put += 1;
                queues.settlements.push_back(work);
            }
        }
        drop(queues);
        self.waiting.notify_one();
    }

    /// Waits until there is work, somebody [nudges](Lanes::nudge), or `deadline`.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Next {
        let mut queues = self.queues.lock();
        loop {
            if !queues.is_empty() {
                return Next::Work;
            }
            if std::mem::take(&mut queues.nudged) {
                return Next::Nudge;
            }
            if queues.closed {
                return Next::Closed;
            }
            match deadline {
                None => self.waiting.wait(&mut queues),
                Some(deadline) => {
                    if self.waiting.wait_until(&mut queues, deadline).timed_out() && !queues.closed {
                        return Next::Work;
                    }
                }
            }
        }
    }

    /// Takes settlements and commits of about `max_bytes` each. Only who has the [pen](super::pen) does.
    pub(super) fn take(&self, out: &mut Vec<Work>, max_bytes: usize) {
        let mut queues = self.queues.lock();
        let before = out.len();
        take(&mut queues.settlements, out, max_bytes);
        queues.taken += (out.len() - before) as u64;
        take(&mut queues.commits, out, max_bytes);
    }

    /// Wakes who waits for work, so that it asks anew until when to wait.
    pub(super) fn nudge(&self) {
        self.queues.lock().nudged = true;
        self.waiting.notify_one();
    }

    /// Whether nothing waits, and more may come.
    pub(super) fn is_idle(&self) -> bool {
        let queues = self.queues.lock();
        queues.is_empty() && !queues.closed
    }

    /// Held from reading places in an index until what names them is handed in.
    pub(super) fn placing(&self) -> RwLockReadGuard<'_, ()> {
        self.placing.read()
    }

    /// How many settlements were put in so far, and how many taken out. What names places that were read before is among
    /// them.
    pub(super) fn settlements(&self) -> (u64, u64) {
        drop(self.placing.write());
        let queues = self.queues.lock();
        (queues.put, queues.taken)
    }

    /// Nothing more comes in; what is there is still done.
    pub(super) fn close(&self) {
        self.queues.lock().closed = true;
        self.waiting.notify_all();
    }
}

fn take(queue: &mut VecDeque<Work>, out: &mut Vec<Work>, max_bytes: usize) {
    let mut bytes = 0;
    while bytes < max_bytes
        && let Some(work) = queue.pop_front()
    {
        bytes += work.weight();
        out.push(work);
    }
}

/// The moment `after` from now, for [`Lanes::wait`].
pub(super) fn deadline(after: Duration) -> Instant {
    crate::types::clock::now() + after
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::engine::GroupSpec;
    use crate::engine::embedded::target::Settings;

    #[test]
    fn what_names_a_place_that_was_read_before_is_counted() {
        for _ in 0..500 {
            let (lanes, both) = (Lanes::default(), Barrier::new(2));
            std::thread::scope(|scope| {
                let counted = scope.spawn(|| {
                    both.wait();
                    lanes.settlements()
                });
                let placing = lanes.placing();
                both.wait();
                std::thread::yield_now();
                let filter = FilterSpec::parse(&"$share/g/a".into()).unwrap();
                let group = Definition::Group(GroupSpec { filter, max_messages: 1, max_bytes: 1 });
                let target = Arc::new(Target::new(TargetId(1), Settings::from(&group), 1));
                lanes.push(Work::Settle { target, entries: Vec::new(), reply: SettleReply::Nobody });
                drop(placing);
                assert_eq!(counted.join().unwrap(), (1, 0));
            });
        }
    }
}
