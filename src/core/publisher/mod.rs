//! One connection's way in: routes what it publishes, stores what has durable targets, and fans out in order.
//!
//! ```text
//! publish(batch) ─ route all ─┬─ no durable target, nothing waits ─▶ offered at once
//!                             └─ commit ─▶ flight ─ ticket completes ─▶ offered, receipts
//! ```
//!
//! Invariants:
//! - a publish with a durable target, or QoS 2 of a session that outlives its connection, reaches anyone only when
//!   its ticket completes; while one is open, later publishes of the same publisher wait behind it;
//! - without a durable target and with nothing waiting, a publish is offered before [`Publisher::publish`] returns;
//! - receipts come in the order of the publishes.

pub(crate) mod batch;
pub(crate) mod line;

use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::delivery::FanOut;
use super::route::Target;
use super::router::RouteCache;
use super::session::SessionKey;
use super::{Broker, CoreError};
use crate::counters::Passed;
use crate::types::{ClientId, Message, MessageId, Priority, TargetId, UnixMillis, clock};
use batch::{Batch, Planner};
use line::Line;

/// Who publishes.
#[derive(Debug, Clone, Default)]
pub struct PublisherInfo {
    /// Its name, where it has one; told to subscribers as the publisher.
    pub client_id: Option<ClientId>,
    /// Its session's target, if the session outlives its connection: QoS 2 packet ids are stored for it.
    pub session: Option<TargetId>,
    /// Its own session: subscriptions with *no local* do not get what it publishes.
    pub no_local: Option<SessionKey>,
    /// For how many topics it remembers where they go: fewer than usual for one that publishes once.
    pub topics: Option<usize>,
}

/// A message on its way in.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// The message. Its id is given by the publisher, what stands there does not matter.
    pub message: Message,
    /// Returned with the receipt.
    pub tag: u64,
    /// The packet id of a QoS 2 publish of a session that outlives its connection.
    pub incoming: Option<u16>,
    /// Whether a receipt is wanted.
    pub receipt: bool,
    /// Its priority in queues that have priorities.
    pub priority: Priority,
    /// Not delivered earlier; for messages that go to queues only.
    pub not_before: Option<UnixMillis>,
}

impl Inbound {
    /// A plain one, with a receipt.
    #[must_use]
    pub fn new(message: Message, tag: u64) -> Self {
        Self { message, tag, incoming: None, receipt: true, priority: Priority::default(), not_before: None }
    }
}

impl AsRef<Message> for Inbound {
    fn as_ref(&self) -> &Message {
        &self.message
    }
}

/// What became of a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The id it was given.
    pub id: MessageId,
    /// How many sessions and share groups it matched.
    pub subscribers: u32,
    /// How many queues took it.
    pub queues: u32,
    /// How many streams took it.
    pub streams: u32,
    /// All of them had it before, by its deduplication id: the id is the first one's, and nothing was stored.
    pub duplicate: bool,
}

/// The answer to one publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// As given.
    pub tag: u64,
    /// What became of it. An error means that nothing was stored or offered anywhere.
    pub result: Result<Published, CoreError>,
}

/// See the module. Owned by one connection. Dropping it with open tickets loses nothing: a task of the broker
/// finishes the fan-out.
pub struct Publisher {
    line: Arc<Line>,
    cache: RouteCache<Target>,
    fan: FanOut,
    /// Kept for its memory.
    spare: Batch,
}

impl Broker {
    /// A way in for one connection.
    pub fn publisher(self: &Arc<Self>, info: PublisherInfo) -> Publisher {
        let session =
            info.session.and_then(|target| self.pubsub.sessions.of_target(info.client_id.as_ref()?, target));
        Publisher {
            line: Arc::new(Line::new(Arc::clone(self), info.client_id, session, info.no_local)),
            cache: info.topics.map_or_else(RouteCache::default, RouteCache::with_capacity),
            fan: FanOut::default(),
            spare: Batch::default(),
        }
    }
}

impl Publisher {
    /// Takes what one read brought. Never waits: what needs the store is handed to it, and
    /// [`completed`](Self::completed) says when that is done.
    pub fn publish(&mut self, items: Vec<Inbound>) {
        if items.is_empty() {
            return;
        }
        let line = &*self.line;
        line.broker.traffic.received(Passed::of(items.iter().map(|item| item.message.payload.len())));
        let mut batch = mem::take(&mut self.spare);
        batch.items = items;
        let first_stored = Planner {
            broker: &line.broker,
            name: line.name(),
            cache: &mut self.cache,
            no_local: line.no_local,
            durable_session: line.session.is_some(),
            now: clock::unix_now(),
        }
        .plan(&mut batch);

        // Only the owner adds to the line, so an empty one stays empty.
        let waits = if line.pending() > 0 { Some(0) } else { first_stored };
        if waits != Some(0) {
            let end = waits.unwrap_or(batch.items.len());
            let wants_receipts = batch.deliver(0..end, line.sender(&mut self.fan));
            if wants_receipts {
                let mut state = line.state.lock();
                batch.receipts(0..end, &mut state.receipts);
                // Polled from this task: whoever waits for receipts asks again after publishing.
                state.wake();
            }
        }
        match waits {
            None => {
                batch.clear();
                self.spare = batch;
            }
            Some(from) => Line::enqueue(&self.line, batch, from, first_stored.is_some()),
        }
    }

    /// Waits for receipts and appends them to `out`; fans out what waited for its ticket. Needs to be polled while
    /// [`pending`](Self::pending) is not 0.
    ///
    /// Cancel safe. Never returns without a receipt; waits for ever when nothing is pending.
    pub async fn completed(&mut self, out: &mut Vec<Receipt>) {
        poll_fn(|cx| self.poll_completed(cx, out)).await;
    }

    /// The same for one task, which is woken when there is a receipt.
    pub fn poll_completed(&self, cx: &mut Context<'_>, out: &mut Vec<Receipt>) -> Poll<()> {
        self.line.poll_receipts(cx, out)
    }

    /// The receipts that are there now, without waiting.
    pub fn completed_now(&mut self, out: &mut Vec<Receipt>) {
        out.append(&mut self.line.state.lock().receipts);
    }

    /// How many publishes wait. The door stops reading at [`Limits::publish_pending`](super::Limits).
    #[must_use]
    pub fn pending(&self) -> usize {
        self.line.pending()
    }

    /// Waits until the server has room for what this connection sends next. Cancel safe. A door that reads from a
    /// peer asks before it reads.
    pub async fn room(&self) {
        self.line.broker.admission.room().await;
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        Line::finish(&self.line);
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

/// Who sends a batch, and what with.
pub(crate) struct Sender<'a> {
    pub(crate) broker: &'a Broker,
    pub(crate) name: Option<&'a ClientId>,
    pub(crate) no_local: Option<SessionKey>,
    pub(crate) fan: &'a mut FanOut,
}
