//! Queues: named durable buffers with competing consumers.
//!
//! Here is which queues there are; what may be done with one stands in the modules: [`define`] makes and changes
//! them, [`enqueue`] puts messages in, [`receive`] takes them out one answer at a time, [`consumer`] as a stream, [`forward`]
//! settles one and puts others in, [`inspect`] counts and removes them, [`redrive`] moves them back, [`select`] says which are
//! meant, `expiry` deletes queues that nobody uses. Leases and order are the engine's.
//!
//! Invariant: a queue is listed here from the moment its definition is durable until its deletion is.

pub mod consumer;
pub mod define;
pub mod enqueue;
mod expiry;
pub mod forward;
pub mod inspect;
pub mod receive;
pub mod redrive;
pub mod select;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use crate::engine::{Append, EngineError, QueueSpec, queue_topic};
use crate::types::{Message, Priority, QueueName, TargetId, TopicName, UnixMillis};

use self::expiry::Expiry;
use super::listing::{Listed, Listing};
use super::{Broker, CoreError, Limits};

pub(super) use self::expiry::delete_unused;

/// One queue, shared by all who use it.
pub struct QueueEntry {
    id: TargetId,
    name: QueueName,
    topic: TopicName,
    spec: ArcSwap<QueueSpec>,
}

impl QueueEntry {
    fn new(id: TargetId, spec: QueueSpec) -> Option<Arc<Self>> {
        let topic = queue_topic(&spec.name)?;
        let name = spec.name.clone();
        Some(Arc::new(Self { id, name, topic, spec: ArcSwap::from_pointee(spec) }))
    }

    /// What the engine knows it by.
    #[must_use]
    pub fn id(&self) -> TargetId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &QueueName {
        &self.name
    }

    /// The topic of messages that were put straight into it: `$queue/<name>`.
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Its settings now; for short use.
    #[must_use]
    pub fn spec(&self) -> Guard<Arc<QueueSpec>> {
        self.spec.load()
    }

    /// Its settings now, to keep.
    #[must_use]
    pub fn spec_owned(&self) -> Arc<QueueSpec> {
        self.spec.load_full()
    }

    /// Whether it can do what a message asks for that is put straight into it.
    ///
    /// # Errors
    /// [`CoreError::Precondition`] naming what it has not.
    pub fn check_asked(&self, message: &Message) -> Result<(), CoreError> {
        let Some(extras) = &message.extras else { return Ok(()) };
        if extras.ordering_key.is_some() && !self.spec.load().ordered_by_key {
            return Err(CoreError::Precondition {
                reason: "NOT_ORDERED_BY_KEY",
                what: format!(
                    "the queue `{}` is not ordered_by_key, so an ordering_key promises nothing",
                    self.name
                ),
            });
        }
        if extras.dedup_id.is_some() && self.spec.load().dedup_window.is_none() {
            return Err(CoreError::Precondition {
                reason: "NO_DEDUP_WINDOW",
                what: format!(
                    "the queue `{}` has no dedup_window, so a dedup_id promises nothing",
                    self.name
                ),
            });
        }
        Ok(())
    }

    /// The place of `message` in this queue, by its settings.
    #[must_use]
    pub fn append(
        &self,
        message: &Message,
        priority: Priority,
        not_before: Option<UnixMillis>,
        now: UnixMillis,
    ) -> Append {
        let expires_at = match message.expires_at {
            Some(_) => None,
            None => self.spec.load().default_ttl.map(|ttl| now.after(ttl)),
        };
        Append { priority, not_before, expires_at, ..Append::to(self.id) }
    }
}

impl Listed for QueueEntry {
    type Name = QueueName;

    fn id(&self) -> TargetId {
        self.id
    }

    fn name(&self) -> &QueueName {
        &self.name
    }
}

impl fmt::Debug for QueueEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.id.0)
    }
}

/// All queues.
#[derive(Debug)]
pub struct Queues {
    list: Listing<QueueEntry>,
    /// Held by whoever changes a definition, until the change is durable: checks that span queues (a dead letter
    /// queue exists) hold while the change is under way.
    changing: Arc<tokio::sync::Mutex<()>>,
    expiry: Expiry,
}

impl Queues {
    pub(super) fn restore(stored: Vec<(TargetId, QueueSpec)>) -> Result<Self, EngineError> {
        let queues = Self { list: Listing::default(), changing: Arc::default(), expiry: Expiry::default() };
        for (id, spec) in stored {
            let name = spec.name.clone();
            let entry = QueueEntry::new(id, spec)
                .ok_or_else(|| EngineError::Damaged(format!("the queue name `{name}` cannot be a topic")))?;
            if !queues.list.insert(&entry) {
                return Err(EngineError::Damaged(format!("two queues are named `{name}`")));
            }
        }
        Ok(queues)
    }

    /// How many were deleted because nobody used them.
    pub(in crate::core) fn expired(&self) -> u64 {
        self.expiry.deleted()
    }
}

impl Broker {
    /// All queues.
    #[must_use]
    pub fn queues(&self) -> &Listing<QueueEntry> {
        &self.queues.list
    }

    /// The queue of this name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn queue(&self, name: &QueueName) -> Result<Arc<QueueEntry>, CoreError> {
        self.queues.list.get(name.as_str()).ok_or_else(|| no_such_queue(name))
    }

    /// The queue of the name that a peer gave in `field`.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for what cannot be a name, [`CoreError::NotFound`].
    pub fn queue_named(&self, field: &str, name: &str) -> Result<Arc<QueueEntry>, CoreError> {
        if let Some(entry) = self.queues.list.get(name) {
            return Ok(entry);
        }
        let name = QueueName::parse(name.to_owned()).map_err(|error| CoreError::name(field, &error))?;
        Err(no_such_queue(&name))
    }

    /// The name of a target, for people.
    #[must_use]
    pub fn target_name(&self, id: TargetId) -> String {
        match (self.queues().by_id(id), self.streams().by_id(id)) {
            (Some(queue), _) => queue.name.to_string(),
            (None, Some(stream)) => stream.name().to_string(),
            (None, None) => format!("#{}", id.0),
        }
    }
}

fn no_such_queue(name: &QueueName) -> CoreError {
    CoreError::NotFound { kind: "queue", name: name.to_string() }
}

/// What the engine said of a queue, in the words of the core: a target that is gone is a queue that is not found.
fn of_queue(queue: &QueueEntry, error: EngineError) -> CoreError {
    match error {
        EngineError::NoSuchTarget(id) if id == queue.id => no_such_queue(&queue.name),
        error => CoreError::Engine(error),
    }
}

/// A lease that a caller asked for.
fn checked_lease(field: &str, lease: Duration, limits: &Limits) -> Result<Duration, CoreError> {
    if lease < limits.min_lease || lease > limits.max_lease {
        let (min, max) = (limits.min_lease, limits.max_lease);
        return Err(CoreError::invalid(field, format!("{lease:?} is not within {min:?} and {max:?}")));
    }
    Ok(lease)
}
