//! The way of messages to the dead letter queue, a bounded part of them in each commit.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytestring::ByteString;
use smallvec::SmallVec;

use super::body::encode_message;
use super::entry::Entry;
use super::keeper::{count_expired, discard, read};
use super::lanes::{Prepared, PreparedMove, Reply, Work};
use super::prepare::key_of;
use super::shared::Shared;
use super::target::Target;
use crate::engine::{EngineError, Outcome, Ticket, View};
use crate::types::clock::unix_now;
use crate::types::{DeadLetter, QueueName, Sequence, TargetId};

/// How the last delivery of a message failed whose consumer was lost with it.
pub(super) const LOST: ByteString = ByteString::from_static("its consumer was lost");
/// The same when nothing was heard of it in time.
pub(super) const ENDED: ByteString = ByteString::from_static("its lease ended");

/// So many messages are moved in one commit.
const PART_MESSAGES: usize = 256;
/// The same in bytes; a larger one is moved alone.
const PART_BYTES: u64 = 1 << 20;

/// So many bytes of what a consumer said are kept.
const SAID_BYTES: usize = 1024;

/// Messages that wait as leased for being moved, with their counted deliveries.
pub(super) type SetAside = Vec<(Entry, u32)>;

/// Why messages go to the dead letter queue.
#[derive(Debug)]
pub(super) enum Why {
    /// Their time was over.
    Expired,
    /// They made room for others, and are counted as leaving.
    Overflow,
    /// They had their last delivery; how that failed.
    Exhausted(Option<ByteString>),
    /// A consumer wanted it, with these words.
    Said(ByteString),
}

impl Why {
    /// What the dead letters say.
    fn text(&self) -> ByteString {
        const EXHAUSTED: &str = "max deliveries reached";
        match self {
            Self::Expired => ByteString::from_static("expired"),
            Self::Overflow => ByteString::from_static("overflow"),
            Self::Exhausted(None) => ByteString::from_static(EXHAUSTED),
            Self::Exhausted(Some(how)) => format!("{EXHAUSTED}: {}", kept(how)).into(),
            Self::Said(words) => kept(words).into(),
        }
    }
}

/// As much of what a consumer said as is kept.
fn kept(words: &str) -> &str {
    words.split_at(words.floor_char_boundary(SAID_BYTES)).0
}

/// Messages to be moved.
#[derive(Debug)]
pub(super) struct Burial {
    target: Arc<Target>,
    entries: VecDeque<(Entry, u32)>,
    why: Why,
    reply: Option<Reply<()>>,
}

impl Burial {
    pub(super) fn new(target: Arc<Target>, entries: SetAside, why: Why, reply: Option<Reply<()>>) -> Self {
        Self { target, entries: entries.into(), why, reply }
    }

    /// Moves the first of them. What is left is to be moved next; if there is none, who waits is told.
    pub(super) fn advance(mut self, shared: &Shared) -> Option<Self> {
        let part = self.part();
        let result = self.bury(shared, &part);
        if result.is_ok() && !self.entries.is_empty() {
            return Some(self);
        }
        if let Some(reply) = self.reply {
            drop(reply.send(result));
        }
        None
    }

    fn part(&mut self) -> Vec<(Entry, u32)> {
        let (mut count, mut bytes) = (0, 0);
        for (entry, _) in self.entries.iter().take(PART_MESSAGES) {
            bytes += u64::from(entry.len);
            if count > 0 && bytes > PART_BYTES {
                break;
            }
            count += 1;
        }
        self.entries.drain(..count).collect()
    }

    fn bury(&self, shared: &Shared, part: &[(Entry, u32)]) -> Result<(), EngineError> {
        let target = &self.target;
        let settings = target.settings.load_full();
        let grave =
            settings.dead_letter.as_ref().and_then(|name| shared.registry.read().queue(name).cloned());
        let (Some(source), Some(grave)) = (settings.queue.clone(), grave) else {
            tracing::warn!(
                target = target.id.0,
                "there is no dead letter queue: the messages are ready again"
            );
            part.iter().for_each(|(entry, _)| self.stays(entry));
            restore(shared, target, part.iter().map(|(entry, _)| entry.sequence));
            return Ok(());
        };
        let mut ops = SmallVec::new();
        let mut moved = Vec::new();
        for (entry, attempts) in part {
            match self.prepare(shared, (entry, *attempts), &source, grave.id) {
                Ok(op) => {
                    ops.push(Prepared::Move(Box::new(op)));
                    moved.push(entry);
                }
                Err(error) => {
                    discard(target, entry.sequence, &error);
                    self.stays(entry);
                }
            }
        }
        let (reply, ticket) = Ticket::new();
        shared.lanes.push(Work::Commit { ops, reply });
        let outcomes = ticket.wait_blocking()?;
        let mut stay = Vec::new();
        for (entry, outcome) in moved.into_iter().zip(outcomes) {
            if let Outcome::Refused(why) = outcome {
                let sequence = entry.sequence;
                tracing::warn!(target = target.id.0, sequence, %why, "cannot move a message to its dead letter queue");
                self.stays(entry);
                stay.push(sequence);
            } else {
                target.totals.dead_lettered.fetch_add(1, Ordering::Relaxed);
                shared.counts.dead_lettered.add(1);
                if matches!(self.why, Why::Expired) {
                    count_expired(shared, target, 1);
                }
            }
        }
        restore(shared, target, stay.into_iter());
        Ok(())
    }

    fn prepare(
        &self,
        shared: &Shared,
        (entry, attempts): (&Entry, u32),
        source: &QueueName,
        grave: TargetId,
    ) -> Result<PreparedMove, EngineError> {
        let mut message = read(shared, &self.target, entry)?;
        message.extras_mut().dead_letter =
            Some(DeadLetter { source: source.clone(), reason: self.why.text(), attempts, at: unix_now() });
        message.expires_at = None;
        let mut body = bytes::BytesMut::new();
        encode_message(&message, &mut body);
        Ok(PreparedMove {
            from: self.target.id,
            sequence: Sequence(entry.sequence),
            view: View::Leased,
            to: grave,
            body: body.freeze(),
            key: key_of(&message, &shared.secret),
            priority: entry.priority(),
            expires_at: None,
            bounded: false,
            leaving: self.is_leaving(),
        })
    }

    fn is_leaving(&self) -> bool {
        matches!(self.why, Why::Overflow)
    }

    /// It is not moved: it counts against the bounds again.
    fn stays(&self, entry: &Entry) {
        if self.is_leaving() {
            self.target.left(entry);
        }
    }
}

/// What could not be moved stays, and is tried again after a while.
fn restore(shared: &Shared, target: &Target, sequences: impl Iterator<Item = u64>) {
    let now = unix_now();
    let mut state = target.state.lock();
    sequences.for_each(|sequence| state.restore(sequence, now));
    shared.tasks.register(target, &mut state, now);
}
