//! The broker: what all doors share.
//!
//! Knows no protocol, no socket and no particular store. Of tokio it uses `sync`, `time` and `task`.
//!
//! Invariants: a change of a definition is durable before anyone is told of it, and before it has an effect; no
//! lock is held across an await, except the one that puts changes of definitions in a line.

pub mod admission;
pub mod backup;
pub mod calls;
pub mod delivery;
mod difference;
pub mod error;
mod filters;
pub mod limits;
pub mod listing;
pub mod publisher;
mod pubsub;
pub mod queues;
pub mod retained;
pub mod route;
pub mod router;
pub mod session;
pub mod share;
pub mod streams;
mod system;
pub mod token;

use std::fmt;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::counters::Traffic;
use crate::engine::{Engine, EngineError};
use crate::types::MessageIds;

use admission::Admission;
use calls::Calls;
use pubsub::PubSub;
use queues::Queues;
use route::Routes;
use streams::Streams;
use token::TokenKey;

pub use delivery::{Answers, CloseReason, Offer, Outbox, TooLarge};
pub use error::CoreError;
pub use limits::Limits;
pub use publisher::{Inbound, Published, Publisher, PublisherInfo, Receipt};
pub use session::{End, Numbered, OpenSession, Opened, Session, SessionDelivery, SessionInfo, Will};
pub use system::SYSTEM;

/// One broker over one engine.
pub struct Broker {
    engine: Arc<dyn Engine>,
    limits: Limits,
    ids: MessageIds,
    tokens: TokenKey,
    admission: Admission,
    queues: Queues,
    streams: Streams,
    routes: Routes,
    calls: Arc<Calls>,
    pubsub: PubSub,
    /// What publishers sent, and what connections were given, in payload bytes.
    traffic: Traffic,
    tasks: TaskTracker,
    draining: CancellationToken,
}

impl Broker {
    /// A broker with everything that `engine` has stored.
    ///
    /// # Errors
    /// [`EngineError::Damaged`] if what is stored contradicts itself.
    pub async fn open(engine: Arc<dyn Engine>, limits: Limits) -> Result<Arc<Self>, EngineError> {
        let stored = engine.stored();
        let tasks = TaskTracker::new();
        let draining = CancellationToken::new();
        let broker = Arc::new(Self {
            tokens: TokenKey::new(&engine.secret()),
            ids: MessageIds::new(),
            admission: Admission::new(limits.commit_pending_bytes, tasks.clone()),
            queues: Queues::restore(stored.queues)?,
            streams: Streams::restore(stored.streams)?,
            routes: Routes::default(),
            calls: Calls::new(&limits, tasks.clone(), draining.clone()),
            pubsub: PubSub::new(&limits),
            traffic: Traffic::default(),
            draining,
            tasks,
            limits,
            engine,
        });
        for queue in broker.queues().all() {
            broker.routes.bind(&queue, &queue.spec().bindings).await;
        }
        broker.pull_back_cursors().await?;
        for stream in broker.streams().all() {
            broker.routes.record(&stream, &stream.spec().filters).await;
        }
        broker.tasks.spawn(queues::delete_unused(Arc::clone(&broker)));
        broker.restore_pubsub(stored.sessions, stored.groups, stored.retained);
        broker.restore_calls(stored.backlogs).await?;
        Ok(broker)
    }

    /// Where messages are kept.
    #[must_use]
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// The bounds of everything.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Names messages.
    #[must_use]
    pub fn ids(&self) -> &MessageIds {
        &self.ids
    }

    /// How many bytes may wait for the writer.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Who gets what is published.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Cancelled when streams are to end and long waits are to return.
    #[must_use]
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Begins to end; does nothing the second time.
    pub fn drain(&self) {
        self.draining.cancel();
        self.tasks.close();
    }

    /// Waits, after [`Broker::drain`], for what the broker still does on its own.
    ///
    /// Cancel safe: another call waits again.
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }

    /// Runs `act` to its end even when the caller stops waiting for it. Dropping the future loses the answer alone.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        act: impl Future<Output = Result<T, CoreError>> + Send + 'static,
    ) -> Result<T, CoreError> {
        // A task fails when it panics or its runtime ends.
        self.tasks.spawn(act).await.unwrap_or(Err(CoreError::Engine(EngineError::Stopped)))
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("engine", &self.engine)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}
