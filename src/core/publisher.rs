//! One connection's way in: routes what it publishes, stores what has durable targets, and fans out in order.
//!
//! Invariants:
//! - a publish with a durable target, or QoS 2 of a session that outlives its connection, reaches anyone only when
//!   its ticket completes; while one is open, later publishes of the same publisher wait behind it;
//! - without a durable target and with nothing waiting, a publish is offered before [`Publisher::publish`] returns;
//! - receipts come in the order of the publishes.

use std::sync::Arc;

use crate::core::session::SessionKey;
use crate::core::{Broker, CoreError};
use crate::types::{ClientId, Message, MessageId, Priority, TargetId, UnixMillis};

/// Who publishes.
#[derive(Debug, Clone, Default)]
pub struct PublisherInfo {
    /// Its name, where it has one; told to subscribers as the publisher.
    pub client_id: Option<ClientId>,
    /// Its session's target, if the session outlives its connection: QoS 2 packet ids are stored for it.
    pub session: Option<TargetId>,
    /// Its own session: subscriptions with *no local* do not get what it publishes.
    pub no_local: Option<SessionKey>,
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
    /// Not delivered earlier; for queues only.
    pub not_before: Option<UnixMillis>,
}

impl Inbound {
    /// A plain one, with a receipt.
    #[must_use]
    pub fn new(message: Message, tag: u64) -> Self {
        Self { message, tag, incoming: None, receipt: true, priority: Priority::default(), not_before: None }
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
#[derive(Debug)]
pub struct Publisher {
    _broker: Arc<Broker>,
}

impl Broker {
    /// A way in for one connection.
    pub fn publisher(self: &Arc<Self>, _info: PublisherInfo) -> Publisher {
        Publisher { _broker: Arc::clone(self) }
    }
}

impl Publisher {
    /// Takes what one read brought. Never waits: what needs the store is handed to it, and
    /// [`completed`](Self::completed) says when that is done.
    pub fn publish(&mut self, _batch: Vec<Inbound>) {}

    /// Waits for receipts and appends them to `out`; fans out what waited for its ticket. Needs to be polled while
    /// [`pending`](Self::pending) is not 0.
    ///
    /// Cancel safe. Never returns without a receipt; pends for ever when nothing is pending.
    pub async fn completed(&mut self, _out: &mut Vec<Receipt>) {
        std::future::pending().await
    }

    /// How many publishes wait. The door stops reading at [`Limits::publish_pending`](crate::core::Limits).
    #[must_use]
    pub fn pending(&self) -> usize {
        0
    }

    /// Waits until the server has room for what this connection sends next. Cancel safe. A door asks before it reads.
    pub async fn room(&self) {}
}
