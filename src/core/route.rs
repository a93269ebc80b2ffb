//! What the router leads to.

use std::sync::Arc;

use crate::core::pubsub::PubSub;
use crate::core::queues::QueueEntry;
use crate::core::router::{BatchAbandoned, Change};
use crate::core::session::{SessionEntry, SessionKey};
use crate::core::share::{ShareGroup, ShareKey};
use crate::engine::SubscribeOptions;
use crate::types::{TargetId, TopicFilter};

/// Who a subscription of the router belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKey {
    /// A queue's binding.
    Queue(TargetId),
    /// A session's subscription.
    Session(SessionKey),
    /// A share group.
    Share(ShareKey),
}

/// Where a matching message goes.
#[derive(Debug, Clone)]
pub enum Route {
    /// Into a queue.
    Queue(Arc<QueueEntry>),
    /// To a session.
    Session(Arc<SessionEntry>, SubscribeOptions),
    /// To one member of a share group.
    Share(Arc<ShareGroup>),
}

impl PubSub {
    /// Copies what `filters` match into a queue from now on. The changes are applied when this returns; dropping
    /// the future does not take them back.
    ///
    /// # Errors
    /// [`BatchAbandoned`].
    pub async fn bind(&self, filters: &[TopicFilter], queue: &Arc<QueueEntry>) -> Result<(), BatchAbandoned> {
        let insert = |filter: &TopicFilter| Change::Insert {
            filter: filter.detached(),
            key: RouteKey::Queue(queue.id),
            value: Route::Queue(Arc::clone(queue)),
        };
        self.router.submit(filters.iter().map(insert).collect()).await.map(drop)
    }

    /// Ends bindings of a queue; as [`bind`](Self::bind).
    ///
    /// # Errors
    /// [`BatchAbandoned`].
    pub async fn unbind(&self, filters: &[TopicFilter], queue: TargetId) -> Result<(), BatchAbandoned> {
        let remove =
            |filter: &TopicFilter| Change::Remove { filter: filter.clone(), key: RouteKey::Queue(queue) };
        self.router.submit(filters.iter().map(remove).collect()).await.map(drop)
    }

    /// Adds the bindings of many queues at once, at start.
    pub fn bind_stored<'a>(&self, queues: impl IntoIterator<Item = &'a Arc<QueueEntry>>) {
        let changes = queues.into_iter().flat_map(|queue| {
            let filters = queue.spec.load().bindings.clone();
            filters.into_iter().map(move |filter| Change::Insert {
                filter,
                key: RouteKey::Queue(queue.id),
                value: Route::Queue(Arc::clone(queue)),
            })
        });
        self.router.apply(changes.collect());
    }
}
