//! The broker: what all doors share.
//!
//! Knows no protocol, no socket and no particular store. Of tokio it uses `sync`, `time` and `task`.

pub mod delivery;
pub mod error;
pub mod limits;
pub mod publisher;
pub mod pubsub;
pub mod queues;
pub mod retained;
pub mod route;
pub mod router;
pub mod session;
pub mod share;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use delivery::{CloseReason, Offer, Outbox};
pub use error::CoreError;
pub use limits::Limits;
pub use publisher::{Inbound, Published, Publisher, PublisherInfo, Receipt};
pub use session::{End, OpenSession, Opened, Session, SessionDelivery};

use crate::engine::Engine;
use crate::types::MessageIds;
use pubsub::PubSub;

/// The broker. Shared by all doors.
#[derive(Debug)]
pub struct Broker {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) limits: Limits,
    pub(crate) ids: MessageIds,
    pub(crate) pubsub: PubSub,
    pub(crate) tasks: TaskTracker,
    pub(crate) draining: CancellationToken,
}
