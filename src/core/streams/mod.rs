//! Streams: named logs of what was published, kept for a while, that anybody reads from where he likes.
//!
//! Here is which streams there are; [`define`] makes and changes them, [`append`] puts messages straight into one, [`read`] reads,
//! [`cursors`] keeps how far readers are, `subscription` is a session that reads. Sequences and retention are the engine's.
//!
//! Invariant: a stream is listed here from the moment its definition is durable until its deletion is.

pub mod append;
pub mod cursors;
pub mod define;
pub mod read;
pub(super) mod subscription;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use crate::engine::{Cursor, EngineError, Refusal, StoredStream, StreamSpec, StreamStats, stream_topic};
use crate::types::{CursorName, StreamName, TargetId, TopicFilter, TopicName};

use super::listing::{Listed, Listing};
use super::{Broker, CoreError};

/// One stream, shared by all who use it.
pub struct StreamEntry {
    id: TargetId,
    name: StreamName,
    topic: TopicName,
    spec: ArcSwap<StreamSpec>,
    cursors: Mutex<BTreeMap<CursorName, Cursor>>,
}

impl StreamEntry {
    fn new(id: TargetId, spec: StreamSpec, cursors: Vec<(CursorName, Cursor)>) -> Option<Arc<Self>> {
        let name = spec.name.clone();
        let topic = stream_topic(&name)?;
        let cursors = Mutex::new(cursors.into_iter().collect());
        Some(Arc::new(Self { id, name, topic, spec: ArcSwap::from_pointee(spec), cursors }))
    }

    /// What the engine knows it by.
    #[must_use]
    pub fn id(&self) -> TargetId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &StreamName {
        &self.name
    }

    /// The topic of messages that were put straight into it and have none: `$stream/<name>`.
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Its settings now; for short use.
    #[must_use]
    pub fn spec(&self) -> Guard<Arc<StreamSpec>> {
        self.spec.load()
    }

    /// Its settings now, to keep.
    #[must_use]
    pub fn spec_owned(&self) -> Arc<StreamSpec> {
        self.spec.load_full()
    }
}

impl Listed for StreamEntry {
    type Name = StreamName;

    fn id(&self) -> TargetId {
        self.id
    }

    fn name(&self) -> &StreamName {
        &self.name
    }
}

impl fmt::Debug for StreamEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.id.0)
    }
}

/// All streams.
#[derive(Debug, Default)]
pub struct Streams {
    list: Listing<StreamEntry>,
    /// Held by whoever changes a definition, until the change is durable.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// Of subscriptions.
    numbers: AtomicU32,
}

impl Streams {
    pub(super) fn restore(stored: Vec<StoredStream>) -> Result<Self, EngineError> {
        let streams = Self::default();
        for StoredStream { id, spec, cursors } in stored {
            let name = spec.name.clone();
            let entry = StreamEntry::new(id, spec, cursors)
                .ok_or_else(|| EngineError::Damaged(format!("the stream name `{name}` cannot be a topic")))?;
            if !streams.list.insert(&entry) {
                return Err(EngineError::Damaged(format!("two streams are named `{name}`")));
            }
        }
        Ok(streams)
    }

    /// The first stream, by name, that gets everything that `filter` wants, by one of its own filters.
    fn covering(&self, filter: &TopicFilter) -> Option<Arc<StreamEntry>> {
        self.list.find(|entry| entry.spec().filters.iter().any(|own| own.covers(filter)))
    }
}

impl Broker {
    /// All streams.
    #[must_use]
    pub fn streams(&self) -> &Listing<StreamEntry> {
        &self.streams.list
    }

    /// The stream of this name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn stream(&self, name: &StreamName) -> Result<Arc<StreamEntry>, CoreError> {
        self.streams.list.get(name.as_str()).ok_or_else(|| no_such_stream(name))
    }

    /// The stream of the name that a peer gave in `field`.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for what cannot be a name, [`CoreError::NotFound`].
    pub fn stream_named(&self, field: &str, name: &str) -> Result<Arc<StreamEntry>, CoreError> {
        if let Some(entry) = self.streams.list.get(name) {
            return Ok(entry);
        }
        let name = StreamName::parse(name.to_owned()).map_err(|error| CoreError::name(field, &error))?;
        Err(no_such_stream(&name))
    }

    /// Counts of a stream. Never waits.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn stream_stats(&self, stream: &StreamEntry) -> Result<StreamStats, CoreError> {
        self.engine.stream_stats(stream.id).map_err(|error| of_stream(stream, error))
    }
}

fn no_such_stream(name: &StreamName) -> CoreError {
    CoreError::NotFound { kind: "stream", name: name.to_string() }
}

/// What the engine refused of a stream, in the words of the core.
fn refused(stream: &StreamName, refusal: Refusal) -> CoreError {
    match refusal {
        Refusal::Gone(_) => no_such_stream(stream),
        refusal => CoreError::refused(refusal, |_| stream.to_string()),
    }
}

/// What the engine said of a stream, in the words of the core: a target that is gone is a stream that is not found.
fn of_stream(stream: &StreamEntry, error: EngineError) -> CoreError {
    match error {
        EngineError::NoSuchTarget(id) if id == stream.id => no_such_stream(&stream.name),
        error => CoreError::Engine(error),
    }
}

#[cfg(all(test, feature = "embedded"))]
mod tests;
