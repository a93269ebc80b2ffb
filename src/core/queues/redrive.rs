//! Sending what was given up back to where it came from, or somewhere else.
//!
//! Invariant: each move is one act; the message is never in both queues and never in none. One that cannot be moved stays
//! where it is, as it is.

use std::sync::Arc;

use crate::core::{Broker, CoreError};
use crate::engine::{Browsed, Op, Outcome, Refusal, View};
use crate::types::{Message, Sequence, TargetId};

use super::QueueEntry;
use super::select::{Select, Walk};

/// What a redrive has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Redriven {
    /// How many messages were moved, durably.
    pub moved: u64,
    /// How many were meant and cannot be moved.
    pub stayed: u64,
    /// How many were looked at.
    pub looked_at: u64,
    /// The last place that was looked at.
    pub through: Sequence,
}

/// Those that were meant and stay, by their places, and why.
pub type Stayed = Vec<(Sequence, CoreError)>;

/// Moves messages part by part. Dropping it ends that; what was handed in is moved.
#[derive(Debug)]
pub struct Redriving {
    broker: Arc<Broker>,
    from: Arc<QueueEntry>,
    destination: Option<Arc<QueueEntry>>,
    walk: Walk,
    /// How many more may be moved.
    left: u64,
    /// Queues that were full, and the bound they had reached: nothing more is tried there.
    full: Vec<(TargetId, String)>,
    sum: Redriven,
}

impl Broker {
    /// Moves those of the messages that are ready and meant into `destination`, or else each into the queue that gave it
    /// up: at most `max`, and none that comes after it began.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for a destination that they are taken from, [`CoreError::NotFound`], [`CoreError::Engine`].
    pub fn redrive(
        self: &Arc<Self>,
        from: &Arc<QueueEntry>,
        destination: Option<Arc<QueueEntry>>,
        select: Select,
        max: Option<u64>,
    ) -> Result<Redriving, CoreError> {
        if destination.as_ref().is_some_and(|to| to.id == from.id) {
            return Err(CoreError::invalid("destination", "is the queue that messages are taken from"));
        }
        Ok(Redriving {
            walk: Walk::new(self, from, View::Ready, select)?,
            broker: Arc::clone(self),
            from: Arc::clone(from),
            destination,
            left: max.unwrap_or(u64::MAX),
            full: Vec::new(),
            sum: Redriven::default(),
        })
    }
}

impl Redriving {
    /// Moves a part, durably when it returns, and says what was done so far and what stays of this part; none at the end.
    ///
    /// Dropping the future may or may not have moved the part.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] for the queue that they are taken from, [`CoreError::Engine`].
    pub async fn step(&mut self) -> Result<Option<(Redriven, Stayed)>, CoreError> {
        let Some(found) = self.walk.step(&self.broker, &self.from).await? else { return Ok(None) };
        let mut looked_at = found.looked_at.len();
        self.sum.through = found.through;
        let (mut ops, mut places, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut stayed = Stayed::new();
        for browsed in found.messages {
            if ops.len() as u64 == self.left {
                // There is room for it only if one of those before it cannot be moved.
                self.walk.next = Some(browsed.sequence);
                self.sum.through = Sequence(browsed.sequence.0 - 1);
                looked_at = found.looked_at.partition_point(|place| *place < browsed.sequence);
                break;
            }
            match self.way_back(&browsed.message) {
                Ok(to) => {
                    bytes += browsed.message.weight();
                    places.push((browsed.sequence, to.id));
                    ops.push(self.back(&to, browsed));
                }
                Err(error) => stayed.push((browsed.sequence, error)),
            }
        }
        self.sum.looked_at += looked_at as u64;
        let outcomes = if ops.is_empty() {
            Vec::new()
        } else {
            let admitted = self.broker.admission.admit(bytes).await;
            admitted.until(self.broker.engine.commit(ops)).await?
        };
        for ((place, to), outcome) in places.into_iter().zip(outcomes) {
            match outcome {
                // Leased, settled, expired or deleted meanwhile: not there to be moved.
                Outcome::Refused(Refusal::NotLeased) => {}
                Outcome::Refused(refusal) => {
                    self.note(&refusal, to);
                    stayed.push((place, CoreError::refused(refusal, |id| self.broker.target_name(id))));
                }
                Outcome::Done | Outcome::Published(_) | Outcome::Duplicate { .. } | Outcome::All(_) => {
                    self.sum.moved += 1;
                    self.left -= 1;
                }
            }
        }
        if self.left == 0 {
            self.walk.next = None;
        }
        stayed.sort_by_key(|(place, _)| *place);
        self.sum.stayed += stayed.len() as u64;
        Ok(Some((self.sum, stayed)))
    }

    /// What a refusal says of those that follow.
    fn note(&mut self, refusal: &Refusal, to: TargetId) {
        match refusal {
            Refusal::Full { bound, .. } if !self.full.iter().any(|(full, _)| *full == to) => {
                self.full.push((to, bound.clone()));
            }
            Refusal::LowDisk { .. } => self.walk.next = None,
            _ => {}
        }
    }

    /// Where a message is to go, if that is not known to be full.
    fn way_back(&self, message: &Message) -> Result<Arc<QueueEntry>, CoreError> {
        let to = match &self.destination {
            Some(to) => Arc::clone(to),
            None => self.source(message)?,
        };
        match self.full.iter().find(|(full, _)| *full == to.id) {
            Some((_, bound)) => Err(CoreError::Full { queue: to.name.to_string(), bound: bound.clone() }),
            None => Ok(to),
        }
    }

    fn source(&self, message: &Message) -> Result<Arc<QueueEntry>, CoreError> {
        let refuse = |what| CoreError::Precondition { reason: "NO_WAY_BACK", what };
        let Some(dead) = message.extras.as_ref().and_then(|extras| extras.dead_letter.as_ref()) else {
            return Err(refuse(
                "the message was not moved here from another queue: name a destination".to_owned(),
            ));
        };
        self.broker.queues().get(dead.source.as_str()).ok_or_else(|| {
            refuse(format!("the queue `{}` does not exist any more: name a destination", dead.source))
        })
    }

    fn back(&self, to: &QueueEntry, browsed: Browsed) -> Op {
        let Browsed { sequence, priority, mut message, .. } = browsed;
        if let Some(extras) = &mut message.extras {
            extras.dead_letter = None;
        }
        Op::Move { from: self.from.id, sequence, view: View::Ready, to: to.id, message, priority }
    }
}
