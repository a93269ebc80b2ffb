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
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use arc_swap::{ArcSwap, Guard};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

use crate::engine::{Cursor, EngineError, StoredStream, StreamSpec, StreamStats};
use crate::types::{CursorName, StreamName, TargetId, TopicFilter, TopicName};

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
        let topic = TopicName::parse(format!("$stream/{name}").into()).ok()?;
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

impl fmt::Debug for StreamEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.id.0)
    }
}

/// All streams.
#[derive(Debug, Default)]
pub struct Streams {
    map: RwLock<Map>,
    /// Held by whoever changes a definition, until the change is durable.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// Of subscriptions.
    numbers: AtomicU32,
}

#[derive(Debug, Default)]
struct Map {
    by_name: BTreeMap<StreamName, Arc<StreamEntry>>,
    by_id: FxHashMap<TargetId, Arc<StreamEntry>>,
}

impl Streams {
    pub(super) fn restore(stored: Vec<StoredStream>) -> Result<Self, EngineError> {
        let streams = Self::default();
        for StoredStream { id, spec, cursors } in stored {
            let name = spec.name.clone();
            let entry = StreamEntry::new(id, spec, cursors)
                .ok_or_else(|| EngineError::Damaged(format!("the stream name `{name}` cannot be a topic")))?;
            if !streams.insert(&entry) {
                return Err(EngineError::Damaged(format!("two streams are named `{name}`")));
            }
        }
        Ok(streams)
    }

    /// Lists a stream; false if its name is taken.
    fn insert(&self, entry: &Arc<StreamEntry>) -> bool {
        let mut map = self.map.write();
        let free = map.by_name.insert(entry.name.clone(), Arc::clone(entry)).is_none();
        map.by_id.insert(entry.id, Arc::clone(entry));
        free
    }

    fn remove(&self, entry: &StreamEntry) {
        let mut map = self.map.write();
        map.by_name.remove(&entry.name);
        map.by_id.remove(&entry.id);
    }

    /// The stream of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<StreamEntry>> {
        self.map.read().by_name.get(name).cloned()
    }

    /// The stream that the engine knows by this id.
    #[must_use]
    pub fn by_id(&self, id: TargetId) -> Option<Arc<StreamEntry>> {
        self.map.read().by_id.get(&id).cloned()
    }

    /// All streams, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<StreamEntry>> {
        self.map.read().by_name.values().cloned().collect()
    }

    /// At most `max` streams whose name begins with `prefix`, by name, those after `after`.
    #[must_use]
    pub fn page(&self, prefix: &str, after: Option<&StreamName>, max: usize) -> Vec<Arc<StreamEntry>> {
        let from = match after {
            Some(after) if after.as_str() >= prefix => Bound::Excluded(after.as_str()),
            _ => Bound::Included(prefix),
        };
        let map = self.map.read();
        map.by_name
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(name, _)| name.as_str().starts_with(prefix))
            .take(max)
            .map(|(_, entry)| Arc::clone(entry))
            .collect()
    }

    /// The first stream, by name, that gets everything that `filter` wants, by one of its own filters.
    #[must_use]
    pub fn covering(&self, filter: &TopicFilter) -> Option<Arc<StreamEntry>> {
        let covers = |entry: &&Arc<StreamEntry>| entry.spec().filters.iter().any(|own| own.covers(filter));
        self.map.read().by_name.values().find(covers).cloned()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.map.read().by_name.len()
    }
}

impl Broker {
    /// All streams.
    #[must_use]
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// The stream of this name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn stream(&self, name: &StreamName) -> Result<Arc<StreamEntry>, CoreError> {
        self.streams.get(name.as_str()).ok_or_else(|| no_such_stream(name))
    }

    /// The stream of the name that a peer gave in `field`.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for what cannot be a name, [`CoreError::NotFound`].
    pub fn stream_named(&self, field: &str, name: &str) -> Result<Arc<StreamEntry>, CoreError> {
        if let Some(entry) = self.streams.get(name) {
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

/// What the engine said of a stream, in the words of the core: a target that is gone is a stream that is not found.
fn of_stream(stream: &StreamEntry, error: EngineError) -> CoreError {
    match error {
        EngineError::NoSuchTarget(id) if id == stream.id => no_such_stream(&stream.name),
        error => CoreError::Engine(error),
    }
}

#[cfg(all(test, feature = "embedded"))]
mod tests;
