//! The way of messages to the dead letter queue, a bounded part of them in each commit.

use std::collections::{HashMap, VecDeque};
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
            key: key_of(&message, &shared.hash_secret),
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

/// Burials that wait: those of one target in their order, the targets in turn, so that none waits for much of another.
#[derive(Debug, Default)]
pub(super) struct Burials {
    turn: VecDeque<TargetId>,
    of: HashMap<TargetId, VecDeque<Burial>>,
}

impl Burials {
    pub(super) fn is_empty(&self) -> bool {
        self.turn.is_empty()
    }

    pub(super) fn push(&mut self, burial: Burial) {
        self.of(burial.target.id).push_back(burial);
    }

    /// What is left of one that was taken goes before the others of its target.
    pub(super) fn go_on(&mut self, burial: Burial) {
        self.of(burial.target.id).push_front(burial);
    }

    pub(super) fn pop(&mut self) -> Option<Burial> {
        let id = self.turn.pop_front()?;
        let waiting = self.of.get_mut(&id)?;
        let burial = waiting.pop_front();
        if waiting.is_empty() {
            self.of.remove(&id);
        } else {
            self.turn.push_back(id);
        }
        burial
    }

    fn of(&mut self, target: TargetId) -> &mut VecDeque<Burial> {
        let turn = &mut self.turn;
        self.of.entry(target).or_insert_with(|| {
            turn.push_back(target);
            VecDeque::new()
        })
    }
}

/// What could not be moved stays, and is tried again after a while.
fn restore(shared: &Shared, target: &Target, sequences: impl Iterator<Item = u64>) {
    let now = unix_now();
    let mut state = target.state.lock();
    sequences.for_each(|sequence| state.restore(sequence, now));
    shared.tasks.register(target, &mut state, now);
}

#[cfg(test)]
mod tests {
    use super::super::Embedded;
    use super::super::testing::settings;
    use super::*;
    use crate::engine::{Definition, Engine, Op};

    #[tokio::test]
    async fn targets_take_turns_and_each_has_its_order() {
        let dir = tempfile::TempDir::new().unwrap();
        let engine = Embedded::open(settings(dir.path())).unwrap();
        let mut targets = Vec::new();
        for name in ["a", "b"] {
            let id = engine.next_target();
            let spec = crate::engine::BacklogSpec { name: name.into() };
            engine.commit(vec![Op::Define(id, Definition::Backlog(spec))]).await.unwrap();
            targets.push(engine.shared.target(id).unwrap());
        }
        let burial = |at: usize, words: &'static str| {
            Burial::new(Arc::clone(&targets[at]), Vec::new(), Why::Said(words.into()), None)
        };
        let mut burials = Burials::default();
        for words in ["a1", "a2", "a3"] {
            burials.push(burial(0, words));
        }
        burials.push(burial(1, "b1"));
        let said = |burial: &Burial| burial.why.text().to_string();
        let first = burials.pop().unwrap();
        assert_eq!(said(&first), "a1");
        // Much of it is left.
        burials.go_on(first);
        let mut order = Vec::new();
        while let Some(burial) = burials.pop() {
            order.push(said(&burial));
        }
        assert_eq!(order, ["b1", "a1", "a2", "a3"]);
        assert!(burials.is_empty() && burials.of.is_empty());
        drop(targets);
        engine.close().unwrap();
    }
}
