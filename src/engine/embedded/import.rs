//! Makes a store of what an export holds: all of it or nothing.
//!
//! The store is made beside, see `fresh`, and becomes the data directory's when it is whole, so an import that is killed
//! leaves nothing but what the next one removes. Sequences, attempts, delays and packet ids are kept; a message that
//! several targets had together is stored once for each.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::bodies::Bodies;
use super::body::encode_alone;
use super::copy::{copy_all, detach, sum_of};
use super::dedup::{Dedup, First};
use super::disk::{STORE, Tree, lock, make_directory, unusable};
use super::format::{self, Add, Mark, Place as At, RETAINED};
use super::fresh::{self, Fresh};
use super::hash::{Text, TextHash};
use super::journal;
use super::ledger::Ledger;
use super::log::Log;
use super::marker;
use super::objects;
use super::offline::{Offline, Progress};
use super::open::secret;
use super::pack::{Books, Failed, Packer};
use super::prepare::key_of;
use super::stage::{bodiless, subscription_key};
use super::values::value_of;
use crate::engine::{Cursor, Definition, OpenError, Outgoing, QueueSpec, SubscribeOptions};
use crate::types::topic::FilterSpec;
use crate::types::{CursorName, Message, Priority, Qos, Sequence, TargetId, UnixMillis};

/// sled's cache while a store is made.
const CACHE_BYTES: u64 = 32 << 20;

/// Until the body has its place.
const NOWHERE: At = At { pack: None, offset: 0, len: 0, crc: None };

/// A queue, session, share group, backlog or stream.
#[derive(Debug, Clone)]
pub struct GivenTarget {
    /// What it is.
    pub definition: Definition,
    /// The place that the next message gets there.
    pub next_sequence: u64,
    /// What a session subscribed to.
    pub subscriptions: Vec<(FilterSpec, SubscribeOptions)>,
    /// Packet ids of QoS 2 publishes that a session has not released, and the place of each.
    pub incoming: Vec<(u16, Sequence)>,
    /// How far readers of a stream are.
    pub cursors: Vec<(CursorName, Cursor)>,
}

impl GivenTarget {
    /// One that nothing belongs to.
    #[must_use]
    pub fn new(definition: Definition, next_sequence: u64) -> Self {
        Self {
            definition,
            next_sequence,
            subscriptions: Vec::new(),
            incoming: Vec::new(),
            cursors: Vec::new(),
        }
    }
}

/// A target by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// A queue.
    Queue(String),
    /// A session, by its client id.
    Session(String),
    /// A share group, by its filter.
    Group(String),
    /// What the broker has for itself.
    Backlog(String),
    /// A stream.
    Stream(String),
    /// One whose definition is lost: nothing can be given to it.
    Lost(u32),
}

impl Place {
    fn of(definition: &Definition) -> Self {
        match definition {
            Definition::Queue(queue) => Self::Queue(queue.name.to_string()),
            Definition::Session(session) => Self::Session(session.client_id.to_string()),
            Definition::Group(group) => Self::Group(group.filter.to_string()),
            Definition::Backlog(backlog) => Self::Backlog(backlog.name.to_string()),
            Definition::Stream(stream) => Self::Stream(stream.name.to_string()),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Queue(name) => write!(f, "queue {name}"),
            Self::Session(name) => write!(f, "session {name}"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Backlog(name) => write!(f, "backlog {name}"),
            Self::Stream(name) => write!(f, "stream {name}"),
            Self::Lost(number) => write!(f, "target {number}"),
        }
    }
}

/// A message that waits in a target.
#[derive(Debug, Clone)]
pub struct GivenMessage {
    /// Where.
    pub place: Place,
    /// Its place there.
    pub sequence: Sequence,
    /// What the subscription granted.
    pub qos: Qos,
    /// The retain flag to hand on.
    pub retain: bool,
    /// Its priority there.
    pub priority: Priority,
    /// From then on it is not delivered there. Means nothing in a stream.
    pub expires_at: Option<UnixMillis>,
    /// When it was appended. Means nothing but in a stream, where it must be there.
    pub appended_at: Option<UnixMillis>,
    /// Deliveries that were counted and not settled.
    pub attempts: u32,
    /// How many of them ended with their consumer.
    pub losses: u8,
    /// Not delivered earlier.
    pub not_before: Option<UnixMillis>,
    /// It rests until then because it was given back, and keeps the place of its key.
    pub rests: bool,
    /// How far its delivery to a session is.
    pub outgoing: Option<Outgoing>,
    /// The message.
    pub message: Message,
}

/// Why something cannot be imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is something already.
    #[error("{} is not empty: it has {found}", path.display())]
    NotEmpty {
        /// The data directory.
        path: PathBuf,
        /// A file or directory of a store.
        found: &'static str,
    },
    /// Two of one name.
    #[error("{0} is there already")]
    Twice(Place),
    /// A message for what is not there.
    #[error("{0} is not there")]
    NoSuchTarget(Place),
    /// A message for what was lost to damage before the export.
    #[error("the definition of target {0} is lost")]
    Lost(u32),
    /// Messages of a target come in the order of their sequences, and no two have the same; those of a stream in the order
    /// in which they were appended too.
    #[error("message {sequence} of {place} does not follow those before it")]
    Order {
        /// Where.
        place: Place,
        /// Which.
        sequence: u64,
    },
    /// A sequence that is to be given out later.
    #[error("message {sequence} of {place} is not below its next_sequence")]
    Beyond {
        /// Where.
        place: Place,
        /// Which.
        sequence: u64,
    },
    /// A message of a stream without its time.
    #[error("message {sequence} of {place} does not say when it was appended")]
    NoTime {
        /// Where.
        place: Place,
        /// Which.
        sequence: u64,
    },
    /// The store cannot be written.
    #[error("cannot write the store: {0}")]
    Write(String),
}

impl From<Failed> for ImportError {
    fn from(what: Failed) -> Self {
        Self::Write(what)
    }
}

/// What is known of a target that was given.
#[derive(Debug)]
struct Known {
    id: u32,
    next_sequence: u64,
    /// The newest message's.
    last: u64,
    /// Those of packet ids.
    incoming: BTreeSet<u64>,
    /// Of a stream: when its newest message was appended.
    appended: Option<UnixMillis>,
    /// If it is a queue.
    queue: Option<QueueSpec>,
}

/// A store that is being made. Dropping it makes nothing of it.
#[derive(Debug)]
pub struct Import {
    fresh: Fresh,
    packer: Packer,
    ledger: Ledger,
    bodies: Bodies,
    dedup: Dedup,
    secret: [u8; 16],
    known: HashMap<Place, Known>,
    next_retained: u64,
}

impl Import {
    /// Begins in a data directory that has no store; it is made if it is absent. Blocks, as all of it does.
    ///
    /// # Errors
    /// [`ImportError::NotEmpty`], [`ImportError::Open`] if the directory cannot be used or is in use.
    pub fn begin(data_dir: &Path) -> Result<Self, ImportError> {
        let fresh = empty(data_dir)?;
        let disk = fresh.disk()?;
        let writable = |e: sled::Error| ImportError::Write(e.to_string());
        disk.trees.meta.insert("format", &format::FORMAT.to_be_bytes()).map_err(writable)?;
        let secret = secret(&disk.trees).map_err(writable)?;
        let log = Log::open(disk, false).map_err(writable)?;
        Ok(Self {
            fresh,
            packer: Packer::new(0, 1, log),
            ledger: Ledger::default(),
            bodies: Bodies::new(0),
            dedup: Dedup::default(),
            secret,
            known: HashMap::new(),
            next_retained: 1,
        })
    }

    /// Makes a target.
    ///
    /// # Errors
    /// [`ImportError::Twice`], [`ImportError::Write`].
    pub fn target(&mut self, given: &GivenTarget) -> Result<(), ImportError> {
        let place = Place::of(&given.definition);
        if self.known.contains_key(&place) {
            return Err(ImportError::Twice(place));
        }
        let id = RETAINED + 1 + u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        let (key, disk) = (id.to_be_bytes(), self.fresh.disk()?);
        self.packer.log.insert(disk, Tree::Obj, &key, objects::encode(&given.definition))?;
        for (filter, options) in &given.subscriptions {
            let key = subscription_key(TargetId(id), &filter.to_string());
            self.packer.log.insert(disk, Tree::Sub, &key, objects::encode_subscription(options))?;
        }
        for (name, cursor) in &given.cursors {
            let key = subscription_key(TargetId(id), name.as_str());
            self.packer.log.insert(disk, Tree::Sub, &key, objects::encode_cursor(*cursor))?;
        }
        let next_sequence = given.next_sequence.max(1);
        self.packer.log.insert(disk, Tree::Seq, &key, &next_sequence.to_be_bytes())?;
        self.packer.log.insert(disk, Tree::Meta, b"next_target", &(id + 1).to_be_bytes())?;
        let mut incoming = BTreeSet::new();
        for &(packet_id, Sequence(sequence)) in &given.incoming {
            if sequence >= next_sequence {
                return Err(ImportError::Beyond { place, sequence });
            }
            if !incoming.insert(sequence) {
                return Err(ImportError::Order { place, sequence });
            }
            self.add(None, bodiless(id, sequence, NOWHERE, None, Some(packet_id)))?;
        }
        let queue = match &given.definition {
            Definition::Queue(queue) => Some(queue.clone()),
            _ => None,
        };
        let appended = matches!(given.definition, Definition::Stream(_)).then(UnixMillis::default);
        self.known.insert(place, Known { id, next_sequence, last: 0, incoming, appended, queue });
        Ok(())
    }

    /// Makes a message the retained value of its topic.
    ///
    /// # Errors
    /// [`ImportError::Write`].
    pub fn retained(&mut self, message: &Message) -> Result<(), ImportError> {
        let add = bodiless(RETAINED, self.next_retained, NOWHERE, message.expires_at, None);
        self.next_retained += 1;
        self.add(Some(message), add)
    }

    /// Puts a message where it waits, behind those that are there.
    ///
    /// # Errors
    /// [`ImportError::NoSuchTarget`], [`ImportError::Order`], [`ImportError::Beyond`], [`ImportError::NoTime`],
    /// [`ImportError::Write`].
    pub fn message(&mut self, given: &GivenMessage) -> Result<(), ImportError> {
        let Some(known) = self.known.get_mut(&given.place) else {
            return Err(match given.place.clone() {
                Place::Lost(number) => ImportError::Lost(number),
                place => ImportError::NoSuchTarget(place),
            });
        };
        let sequence = given.sequence.0;
        if sequence >= known.next_sequence {
            return Err(ImportError::Beyond { place: given.place.clone(), sequence });
        }
        if sequence <= known.last || known.incoming.contains(&sequence) {
            return Err(ImportError::Order { place: given.place.clone(), sequence });
        }
        let expires_at = match &mut known.appended {
            None => given.expires_at,
            Some(last) => {
                let place = || given.place.clone();
                let at = given.appended_at.ok_or_else(|| ImportError::NoTime { place: place(), sequence })?;
                if at < *last {
                    return Err(ImportError::Order { place: place(), sequence });
                }
                *last = at;
                Some(at)
            }
        };
        known.last = sequence;
        let (message, queue) = (&given.message, known.queue.as_ref());
        let extras = message.extras.as_ref();
        let dedup_id = extras.and_then(|it| it.dedup_id.as_ref());
        if let Some(dedup_id) = dedup_id
            && queue.is_some_and(|queue| queue.dedup_window.is_some())
        {
            let first = First { id: given.message.id, sequence };
            let hash = TextHash::new(&self.secret, Text::DedupId, dedup_id);
            self.dedup.remember(TargetId(known.id), hash, first);
        }
        let GivenMessage { attempts, losses, not_before, rests, outgoing, .. } = *given;
        let add = Add {
            qos: given.qos,
            retain: given.retain,
            priority: given.priority,
            key: queue.filter(|queue| queue.ordered_by_key).and_then(|_| key_of(message, &self.secret)),
            value: queue
                .and_then(|queue| queue.last_value_key.as_ref())
                .and_then(|name| value_of(message, name, &self.secret)),
            mark: Mark { attempts, losses, not_before, rests, outgoing },
            ..bodiless(known.id, sequence, NOWHERE, expires_at, None)
        };
        self.add(Some(&given.message), add)
    }

    fn add(&mut self, message: Option<&Message>, mut add: Add) -> Result<(), ImportError> {
        let body = message.map(encode_alone);
        let Self { fresh, packer, ledger, bodies, dedup, .. } = self;
        let mut books = Books { disk: fresh.disk()?, bodies, ledger, dedup };
        packer.begin_op(&mut books, 1, body.as_ref().map_or(0, bytes::Bytes::len))?;
        if let Some(body) = &body {
            add.place = packer.body(&mut books, body)?;
        }
        packer.add(&mut books, add)?;
        packer.end_op(&mut books)?;
        Ok(())
    }

    /// Makes it durable, and the store of the data directory.
    ///
    /// # Errors
    /// [`ImportError::Write`], [`ImportError::Open`].
    pub fn finish(mut self) -> Result<(), ImportError> {
        let Self { fresh, packer, ledger, bodies, dedup, .. } = &mut self;
        let mut books = Books { disk: fresh.disk()?, bodies, ledger, dedup };
        packer.seal(&mut books, 0)?;
        let key = RETAINED.to_be_bytes();
        self.packer.log.insert(self.fresh.disk()?, Tree::Seq, &key, &self.next_retained.to_be_bytes())?;
        self.packer.log.catch_up(self.fresh.disk()?)?;
        Ok(self.fresh.put_in_place()?)
    }
}

/// An empty store for a data directory that has none.
fn empty(data_dir: &Path) -> Result<Fresh, ImportError> {
    make_directory(data_dir)?;
    let lock = lock(data_dir)?;
    fresh::settle(data_dir).map_err(|e| unusable(data_dir, e))?;
    let of_a_store = [STORE, journal::NAME, marker::NAME];
    if let Some(found) = of_a_store.into_iter().find(|it| data_dir.join(it).exists()) {
        return Err(ImportError::NotEmpty { path: data_dir.to_owned(), found });
    }
    Ok(Fresh::make(data_dir, &lock, CACHE_BYTES)?)
}

/// Makes the store in `from`, a backup or another store that nobody serves, the store of a data directory that has none.
/// Returns how many rows it has. Blocks.
///
/// # Errors
/// [`ImportError::NotEmpty`], [`ImportError::Open`] if either directory cannot be used, [`ImportError::Write`].
pub fn copy(from: &Path, data_dir: &Path, tell: &mut dyn FnMut(Progress)) -> Result<u64, ImportError> {
    let source = Offline::open(from)?.sound(from)?;
    let mut fresh = empty(data_dir)?;
    let mut done = 0;
    let mut count = |bytes| {
        done += bytes;
        tell(Progress { phase: "bytes copied", done, total: None });
        Ok(())
    };
    let copied = copy_all(&source, fresh.disk()?, &mut count)?;
    if sum_of(fresh.reopen()?, &mut |_| Ok(()))? != copied {
        return Err(ImportError::Write("what is there is not what was read".to_owned()));
    }
    detach(fresh.disk()?).map_err(|e| ImportError::Write(e.to_string()))?;
    fresh.put_in_place()?;
    Ok(copied.iter().map(|(_, sum)| sum.rows).sum())
}
