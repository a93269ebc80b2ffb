//! What is known of a session beside its handle: publishers, share groups and the registry hold it.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytestring::ByteString;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::sources::Sources;
use super::subscriptions::Subscriptions;
use super::will::Will;
use crate::bell::Bell;
use crate::core::Limits;
use crate::core::delivery::Outbox;
use crate::core::retained::replay::Replays;
use crate::core::share::ShareGroup;
use crate::engine::{Definition, Op, SessionSpec, SubscribeOptions};
use crate::types::topic::FilterSpec;
use crate::types::{ClientId, TargetId, TopicName, UnixMillis};

/// Identifies a session while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub(crate) u64);

/// A named subscriber that may be away.
pub struct SessionEntry {
    pub(crate) key: SessionKey,
    pub(crate) client_id: ClientId,
    /// Where its backlog is, if it outlives its connection (or did so when it was made).
    pub(crate) target: Option<TargetId>,
    pub(crate) created_at: UnixMillis,
    /// A crash of the broker has cut its connection off: what was stored by then may have been sent.
    pub(crate) cut_off: bool,
    /// Its connection.
    pub(crate) attached: ArcSwapOption<Attachment>,
    /// Deliveries that its outboxes did not take.
    pub(crate) dropped: AtomicU64,
    /// The same of all sessions.
    pub(crate) all_dropped: Arc<AtomicU64>,
    /// Of what its full backlog dropped, how much its connections were told of.
    pub(crate) told_dropped: AtomicU64,
    /// Of a session that outlives its connection (or did so when it was made).
    pub(crate) incoming: Option<Box<Incoming>>,
    pub(crate) replays: Mutex<Replays>,
    pub(crate) state: Mutex<State>,
}

/// What of a session changes.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Whose it is; empty: nobody's, and the first who is somebody makes it theirs.
    pub(crate) principal: ByteString,
    pub(crate) expiry: Duration,
    pub(crate) subscriptions: Subscriptions,
    /// How many subscriptions have an identifier.
    pub(crate) identified: usize,
    /// It is being deleted: nothing may be added any more.
    pub(crate) ended: bool,
    /// When it ends or is written down next, as the timers know it.
    pub(crate) due: Option<tokio::time::Instant>,
}

/// One subscription of a session.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub(crate) options: SubscribeOptions,
    /// The share group that it is a part in.
    pub(crate) group: Option<Arc<ShareGroup>>,
}

/// A session's connection.
pub(crate) struct Attachment {
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) sources: Mutex<Sources>,
    /// Woken when there is another source or replay.
    pub(crate) changed: Bell,
    /// The session has gone to another connection, or is deleted.
    pub(crate) detached: AtomicBool,
    /// Rung when the connection has given everything back.
    pub(crate) released: Bell,
    /// Left once, by whoever takes the connection off.
    pub(super) will: Mutex<Option<Box<Will>>>,
}

impl Attachment {
    pub(crate) fn new(outbox: Arc<dyn Outbox>) -> Arc<Self> {
        Arc::new(Self {
            outbox,
            sources: Mutex::default(),
            changed: Bell::default(),
            detached: AtomicBool::new(false),
            released: Bell::default(),
            will: Mutex::default(),
        })
    }
}

impl State {
    /// Adds or replaces a subscription. Returns what it was before.
    pub(crate) fn put(&mut self, spec: FilterSpec, subscription: Subscription) -> Option<Subscription> {
        self.identified += usize::from(subscription.options.identifier.is_some());
        let old = self.subscriptions.insert(spec, subscription);
        self.identified -= usize::from(old.as_ref().is_some_and(|old| old.options.identifier.is_some()));
        old
    }

    pub(crate) fn take(&mut self, spec: &FilterSpec) -> Option<Subscription> {
        let old = self.subscriptions.remove(spec)?;
        self.identified -= usize::from(old.options.identifier.is_some());
        Some(old)
    }

    /// The identifiers of all subscriptions of its own that match.
    pub(crate) fn identifiers(&self, topic: &TopicName) -> SmallVec<[std::num::NonZeroU32; 1]> {
        if self.identified == 0 {
            return SmallVec::new();
        }
        let own = self.subscriptions.iter().filter(|(spec, _)| matches!(spec, FilterSpec::Plain(_)));
        own.filter(|(spec, _)| spec.filter().matches(topic))
            .filter_map(|(_, s)| s.options.identifier)
            .collect()
    }
}

impl SessionEntry {
    /// Its definition as of now, for a session with a target.
    pub(crate) fn definition(&self, limits: &Limits, last_connected: UnixMillis) -> Option<Op> {
        let (principal, expiry) = {
            let state = self.state.lock();
            (state.principal.clone(), state.expiry)
        };
        let spec = SessionSpec {
            client_id: self.client_id.clone(),
            principal,
            expiry,
            created_at: self.created_at,
            last_connected,
            connected: self.attached.load().is_some(),
            max_messages: limits.session_messages,
            max_bytes: limits.session_bytes,
        };
        Some(Op::Define(self.target?, Definition::Session(spec)))
    }

    /// Whether it does not outlive its connection.
    pub(crate) fn ends_with_its_connection(&self) -> bool {
        self.target.is_none() || self.state.lock().expiry.is_zero()
    }

    /// Whether `attachment` is its connection.
    pub(crate) fn has(&self, attachment: &Arc<Attachment>) -> bool {
        self.attached.load().as_ref().is_some_and(|attached| Arc::ptr_eq(attached, attachment))
    }

    /// Takes a connection off, if it is the session's.
    pub(crate) fn detach(&self, attachment: &Arc<Attachment>) -> bool {
        let old = self.attached.compare_and_swap(attachment, None);
        old.as_ref().is_some_and(|old| Arc::ptr_eq(old, attachment))
    }
}

impl fmt::Debug for SessionEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", self.client_id, self.key.0)
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").field("sources", &self.sources).finish_non_exhaustive()
    }
}

/// QoS 2 packet ids of publishes of a durable session: those that are stored and not released.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    state: Mutex<IncomingState>,
    /// Woken when nothing is on its way any more.
    quiet: Notify,
}

#[derive(Debug, Default)]
struct IncomingState {
    stored: HashSet<u16>,
    /// How many are on their way to the disk.
    on_their_way: usize,
}

impl Incoming {
    pub(crate) fn restore(&self, ids: Vec<u16>) {
        self.state.lock().stored.extend(ids);
    }

    /// These are on their way to the disk.
    pub(crate) fn begin(&self, ids: impl Iterator<Item = u16>) {
        self.state.lock().on_their_way += ids.count();
    }

    /// One has come to its end.
    pub(crate) fn end(&self, id: u16, stored: bool) {
        let mut state = self.state.lock();
        state.on_their_way = state.on_their_way.saturating_sub(1);
        if stored {
            state.stored.insert(id);
        }
        if state.on_their_way == 0 {
            self.quiet.notify_waiters();
        }
    }

    pub(crate) fn release(&self, id: u16) {
        self.state.lock().stored.remove(&id);
    }

    /// All that are stored, when nothing is on its way. Cancel safe.
    pub(crate) async fn all(&self) -> Vec<u16> {
        loop {
            let quiet = self.quiet.notified();
            tokio::pin!(quiet);
            quiet.as_mut().enable();
            {
                let state = self.state.lock();
                if state.on_their_way == 0 {
                    let mut ids: Vec<u16> = state.stored.iter().copied().collect();
                    ids.sort_unstable();
                    return ids;
                }
            }
            quiet.await;
        }
    }
}
