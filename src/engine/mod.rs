//! The seam between the broker and what keeps its messages.
//!
//! An engine stores messages for durable *targets* (queues, sessions, share groups), leases them to consumers
//! and forgets them when they are settled. The seam lies above the lease logic, so that an engine with leases of
//! its own can stand behind it. It routes nothing: the broker names every target.
//!
//! Invariants:
//! - one [`Op`] is one atomic act: after a crash all of it is there or nothing;
//! - a [`Ticket`] completes after what it covers is durable under the engine's [`Durability`];
//! - tickets complete in the order in which their operations were handed in, settlements among themselves;
//! - nothing here blocks: what needs the disk is done by the engine's own threads.

pub mod backup;
mod capabilities;
mod definition;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
mod lease;
mod outcome;
mod outgoing;
mod progress;
mod seen;
pub mod settings;
mod stream;
mod ticket;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::watch;

use crate::bell::Bell;

use crate::types::topic::FilterSpec;
use crate::types::{
    BackupName, CursorName, Message, Priority, Qos, Sequence, TargetId, TopicFilter, UnixMillis,
};

use backup::{BackingUp, BackupError};

pub use capabilities::{Capabilities, Durability, Health};
pub use definition::{
    BacklogSpec, Definition, GroupSpec, Levels, Overflow, QueueSpec, RetainHandling, SessionSpec, Stored,
    StoredSession, SubscribeOptions, queue_topic, stream_topic,
};
pub use error::{EngineError, OpenError};
pub use lease::{ConsumerOptions, LeaseError, LeaseRef, Leased, Nack, Settled};
pub use outcome::{Outcome, Refusal};
pub use outgoing::{Outgoing, OutgoingState};
pub use progress::OpenProgress;
pub use seen::{Browsed, Page, Removed, TargetStats, Usage, View};
pub use settings::EngineSettings;
pub use stream::{
    Cursor, Found, Logged, StoredStream, StreamAppend, StreamEnds, StreamPage, StreamReader, StreamSpec,
    StreamStats,
};
pub use ticket::Ticket;

/// One atomic act.
#[derive(Debug, Clone)]
pub enum Op {
    /// Store a message for its targets, and what goes with it.
    Publish(Publish),
    /// Store messages, each for one target, all or none. None is handed out before all are stored.
    AppendAll(Vec<(Message, Append)>),
    /// Take a message out of one queue and put it, as given, into another. A queue that is full refuses it.
    Move {
        /// Where it is.
        from: TargetId,
        /// Its place there.
        sequence: Sequence,
        /// In which state it has to be there: leased to anyone, or one of those that wait.
        view: View,
        /// Where it goes.
        to: TargetId,
        /// What is stored there.
        message: Message,
        /// Its priority there.
        priority: Priority,
    },
    /// Settle a leased message of one queue and put others into queues: all of it or nothing.
    Forward(Forward),
    /// Store messages at the end of a stream.
    AppendStream(StreamAppend),
    /// Keep how far a reader of a stream is; none: forget it.
    SetCursor(TargetId, CursorName, Option<Cursor>),
    /// What is known of an outgoing QoS 1 or 2 delivery of a session.
    Outgoing {
        /// The session.
        target: TargetId,
        /// The message.
        sequence: Sequence,
        /// How far it is.
        outgoing: Outgoing,
    },
    /// The publisher released this packet id: its number may carry another message.
    ReleaseIncoming {
        /// The publisher's session.
        session: TargetId,
        /// The number.
        packet_id: u16,
    },
    /// Make or change a target.
    Define(TargetId, Definition),
    /// Remove a target with all that it holds.
    Delete(TargetId),
    /// Remove a target that holds nothing; else [`Refusal::NotEmpty`].
    DeleteEmpty(TargetId),
    /// Remove a target with all that it holds, unless it was used since this was its use, or is; else [`Refusal::InUse`].
    DeleteUnused(TargetId, Usage),
    /// Add or replace a subscription of a stored session.
    Subscribe(TargetId, FilterSpec, SubscribeOptions),
    /// Remove a subscription of a stored session.
    Unsubscribe(TargetId, FilterSpec),
}

/// One message for all its targets.
#[derive(Debug, Clone)]
pub struct Publish {
    /// What is stored, once.
    pub message: Message,
    /// Who gets it. May be empty when it is only retained or only a QoS 2 id.
    pub targets: SmallVec<[Append; 2]>,
    /// Whether it becomes (or, with an empty payload, removes) the retained value of its topic.
    pub retain: bool,
    /// Nobody waits for this one: of several retained values of a topic in one commit the last is enough.
    pub newest_only: bool,
    /// The publisher's session and packet id, for a QoS 2 publish of a session that outlives its connection.
    pub incoming: Option<(TargetId, u16)>,
}

/// What follows from a message that is settled.
#[derive(Debug, Clone)]
pub struct Forward {
    /// Where it is leased.
    pub from: TargetId,
    /// By whom.
    pub lease: LeaseRef,
    /// What is stored, each in one queue.
    pub messages: Vec<(Message, Append)>,
}

/// One target of a publish.
#[derive(Debug, Clone, Copy)]
pub struct Append {
    /// The target.
    pub target: TargetId,
    /// What the subscription granted.
    pub qos: Qos,
    /// Matters in queues with priorities only.
    pub priority: Priority,
    /// Not delivered earlier.
    pub not_before: Option<UnixMillis>,
    /// Not delivered later, but for up to a tenth of a second; the message's own expiry holds too.
    pub expires_at: Option<UnixMillis>,
    /// The retain flag is handed on.
    pub retain: bool,
}

impl Append {
    /// A plain one.
    #[must_use]
    pub fn to(target: TargetId) -> Self {
        Self {
            target,
            qos: Qos::AtLeastOnce,
            priority: Priority::default(),
            not_before: None,
            expires_at: None,
            retain: false,
        }
    }
}

/// A future of an engine.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, EngineError>> + Send>>;

/// Keeps messages. See the module for what it promises.
pub trait Engine: Send + Sync + fmt::Debug + 'static {
    /// What it can honour.
    fn capabilities(&self) -> &Capabilities;

    /// Tells this start of the engine from every other.
    fn boot(&self) -> u64;

    /// A secret of this store, for tokens that peers hand back.
    fn secret(&self) -> [u8; 16];

    /// What was there when it opened. The first call has it, later ones have nothing.
    fn stored(&self) -> Stored;

    /// An id for a target that is to be defined.
    fn next_target(&self) -> TargetId;

    /// Hands in operations. One ticket for all, their outcomes in the same order.
    fn commit(&self, ops: Vec<Op>) -> Ticket;

    /// The same for one publish of a caller that holds no lock. It may be written before this returns: then this thread
    /// has waited for the disk, as [`callers_wait`](settings::EngineSettings::callers_wait) permits.
    fn commit_alone(&self, publish: Publish) -> Ticket {
        self.commit(vec![Op::Publish(publish)])
    }

    /// Joins the consumers of a target.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`].
    fn consumer(&self, target: TargetId, options: ConsumerOptions) -> Result<Box<dyn Consumer>, EngineError>;

    /// Takes leased messages out.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`].
    fn settle(&self, target: TargetId, leases: &[LeaseRef]) -> Result<Settled, EngineError>;

    /// Gives leased messages back, to be due after `delay`; none: what counts rests as its target says, what does not is
    /// due at once. Nobody needs to wait for the ticket.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`].
    fn nack(
        &self,
        target: TargetId,
        leases: &[LeaseRef],
        how: Nack,
        delay: Option<Duration>,
    ) -> Result<Settled, EngineError>;

    /// Lets leases end `lease` from now.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`].
    fn extend(
        &self,
        target: TargetId,
        leases: &[LeaseRef],
        lease: Duration,
    ) -> Result<Vec<(usize, LeaseError)>, EngineError>;

    /// Looks at messages in sequence order from `from` on: at most `max`, and no more after `max_bytes` as they are stored
    /// (one may overdraw). One that cannot be read ends the page before it, and is the error of a page that is asked for from
    /// it on.
    fn browse(
        &self,
        target: TargetId,
        view: View,
        from: Sequence,
        max: usize,
        max_bytes: usize,
    ) -> Pending<Page>;

    /// Takes messages out without consuming them. Completes with their number when that is durable.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`].
    fn purge(&self, target: TargetId, view: View) -> Result<Ticket<u64>, EngineError>;

    /// Takes those of these messages out that wait in this view; what is leased stays.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`].
    fn remove(&self, target: TargetId, view: View, sequences: &[Sequence]) -> Result<Removed, EngineError>;

    /// Counts of a target.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`].
    fn stats(&self, target: TargetId) -> Result<TargetStats, EngineError>;

    /// How much a target was used. Never waits.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`].
    fn usage(&self, target: TargetId) -> Result<Usage, EngineError>;

    /// When the message was accepted that has the first place of all in a target. None: there is no message, or it cannot
    /// be read.
    fn oldest(&self, target: TargetId) -> Pending<Option<UnixMillis>>;

    /// Joins the readers of a stream; with a filter, for the messages whose topic it matches. The others cost a look at their
    /// topic.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`], also for a target that is no stream.
    fn stream_reader(
        &self,
        target: TargetId,
        filter: Option<TopicFilter>,
    ) -> Result<Box<dyn StreamReader>, EngineError>;

    /// Counts of a stream.
    ///
    /// # Errors
    /// As [`Engine::stream_reader`].
    fn stream_stats(&self, target: TargetId) -> Result<StreamStats, EngineError>;

    /// The place of the first message that was appended at `time` or later, or what will get the next one. It may be one that was
    /// appended up to a tenth of a second before.
    ///
    /// # Errors
    /// As [`Engine::stream_reader`].
    fn stream_at(&self, target: TargetId, time: UnixMillis) -> Result<Sequence, EngineError>;

    /// What it counts over all targets since it opened, by the names that operators see.
    fn counters(&self) -> Vec<(&'static str, u64)>;

    /// Begins to copy all that is stored at this moment to where backups of this engine go. Nobody waits for it meanwhile
    /// but for a moment, which is longer the more is defined.
    ///
    /// # Errors
    /// [`BackupError::NotConfigured`], [`BackupError::Running`], [`BackupError::Exists`].
    fn back_up(&self, name: &BackupName) -> Result<BackingUp, BackupError>;

    /// How it does, as it changes.
    fn health(&self) -> watch::Receiver<Health>;

    /// Makes everything durable that was handed in and stops. Blocks; call it on a thread that may.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the last write failed.
    fn close(&self) -> Result<(), EngineError>;
}

/// One of the consumers of a target. Dropping it gives back what it has, uncounted, unless it was made with
/// [`ConsumerOptions::keep_leases`].
pub trait Consumer: Send + Sync + fmt::Debug {
    /// Leases what is ready: at most `max` messages, and no more after `max_bytes` of [`Message::weight`]
    /// (one message may overdraw). Never waits: when it gives less than asked, [`Consumer::ready`] is woken as
    /// soon as there may be more. From a queue that is paused it gives nothing. With a `max` of 0 it waits no more: another consumer is woken in its stead.
    ///
    /// Where the target has a single active consumer, the others are given nothing; the one of the highest priority that
    /// joined first becomes active when there is none. Of consumers with different priorities a lower one is given nothing
    /// while a higher one has room; who has room and does not come for a second is not waited for.
    ///
    /// Where deliveries have a maximum, a message with two losses ([`Nack::Lost`], [`Consumer::release_all`]) is given to
    /// a consumer that has nothing else, and nothing is given to that one until it is settled or given back: so that
    /// nothing is counted as lost with it. It keeps its place, so that who has something else gets nothing behind it.
    ///
    /// # Errors
    /// [`EngineError::NoSuchTarget`] when the target was deleted, [`EngineError::Damaged`].
    fn take(&self, max: usize, max_bytes: usize, out: &mut Vec<Leased>) -> Result<(), EngineError>;

    /// Whether it may be given something: not while another is the single active consumer of its target. One that becomes
    /// active is woken.
    fn is_active(&self) -> bool;

    /// Whether others of a lower priority get nothing until it says, by a `max` of 0, that it has no room.
    fn is_preferred(&self) -> bool;

    /// Whether the last [`Consumer::take`] came upon a message that is ready and not in memory. It is being read;
    /// [`Consumer::ready`] is woken when it is there.
    fn is_reading(&self) -> bool;

    /// Woken when [`Consumer::take`] may give more, or the target is gone.
    fn ready(&self) -> &Bell;

    /// The numbers that a session's peer knows unsettled deliveries by.
    fn outgoing(&self) -> Vec<u16>;

    /// Gives back all that it has, counted as lost or not at all.
    fn release_all(&self, counted: bool);

    /// Whose consumer it is.
    fn target(&self) -> TargetId;
}
