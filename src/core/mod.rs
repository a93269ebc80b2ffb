//! The broker: what all doors share.
//!
//! Knows no protocol, no socket and no particular store. Of tokio it uses `sync`, `time` and `task`.

pub mod admission;
pub mod delivery;
pub mod error;
pub mod limits;
pub mod publisher;
mod pubsub;
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

impl Broker {
    /// A broker with everything that `engine` has stored.
    pub async fn open(
        engine: Arc<dyn Engine>,
        limits: Limits,
    ) -> Result<Arc<Self>, crate::engine::EngineError> {
        let stored = engine.stored();
        let tasks = TaskTracker::new();
        let broker = Arc::new(Self {
            ids: MessageIds::new(),
            admission: admission::Admission::new(limits.commit_pending_bytes, tasks.clone()),
            queues: queues::Queues::default(),
            routes: route::Routes::default(),
            pubsub: PubSub::new(&limits),
            draining: CancellationToken::new(),
            tasks,
            limits,
            engine,
        });
        broker.restore_pubsub(stored.sessions, stored.groups, stored.retained);
        Ok(broker)
    }

    /// The name of a target, for people.
    pub fn queue_name_of(&self, id: crate::types::TargetId) -> String {
        format!("#{}", id.0)
    }
}

/// The broker. Shared by all doors.
#[derive(Debug)]
pub struct Broker {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) limits: Limits,
    pub(crate) ids: MessageIds,
    pub(crate) admission: admission::Admission,
    pub(crate) queues: queues::Queues,
    pub(crate) routes: route::Routes,
    pub(crate) pubsub: PubSub,
    pub(crate) tasks: TaskTracker,
    pub(crate) draining: CancellationToken,
}
