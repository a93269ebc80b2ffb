//! Who gets what is published on a topic.
//!
//! The router holds one entry per filter and subscriber; here they become the targets of a topic: what one session
//! subscribed to several times over is one target, and a publisher's own no-local subscriptions are left out.

use std::num::NonZeroU32;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::queues::QueueEntry;
use super::router::{Change, Router, Snapshot};
use super::session::{SessionEntry, SessionKey};
use super::share::{ShareGroup, ShareKey};
use super::streams::StreamEntry;
use crate::engine::{Levels, SubscribeOptions};
use crate::types::{Qos, TargetId, TopicFilter, TopicName};

/// Who a subscription of the router belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKey {
    /// A queue's binding.
    Queue(TargetId),
    /// A stream's filter.
    Stream(TargetId),
    /// A session's subscription.
    Session(SessionKey),
    /// A share group.
    Share(ShareKey),
}

/// Where a matching publish goes.
#[derive(Debug, Clone)]
pub enum Route {
    /// Into a queue with a matching binding.
    Queue(Arc<QueueEntry>),
    /// To the end of a stream.
    Stream(Arc<StreamEntry>),
    /// To a session.
    Session(Arc<SessionEntry>, SubscribeOptions),
    /// To one member of a share group.
    Share(Arc<ShareGroup>),
}

/// A change of who gets what.
pub(crate) type RouteChange = Change<RouteKey, Route>;
/// Who gets what, at one moment.
pub(crate) type Routing = Snapshot<RouteKey, Route>;

/// All filters.
#[derive(Debug, Default)]
pub struct Routes {
    router: Router<RouteKey, Route>,
}

impl Routes {
    /// From its return on, every publish that one of `filters` matches goes into `queue` too. Doing it twice
    /// changes nothing.
    ///
    /// Dropping the future, once polled, does not take that back.
    pub async fn bind(&self, queue: &Arc<QueueEntry>, filters: &[TopicFilter]) {
        self.insert(RouteKey::Queue(queue.id()), &Route::Queue(Arc::clone(queue)), filters).await;
    }

    /// The same for a stream.
    ///
    /// Dropping the future, once polled, does not take that back.
    pub async fn record(&self, stream: &Arc<StreamEntry>, filters: &[TopicFilter]) {
        self.insert(RouteKey::Stream(stream.id()), &Route::Stream(Arc::clone(stream)), filters).await;
    }

    async fn insert(&self, key: RouteKey, value: &Route, filters: &[TopicFilter]) {
        let insert =
            |filter: &TopicFilter| Change::Insert { filter: filter.clone(), key, value: value.clone() };
        self.change(filters.iter().map(insert).collect()).await;
    }

    /// Ends what [`Routes::bind`] began.
    ///
    /// Dropping the future, once polled, does not take that back.
    pub async fn unbind(&self, queue: &Arc<QueueEntry>, filters: &[TopicFilter]) {
        self.remove(RouteKey::Queue(queue.id()), filters).await;
    }

    /// Ends what [`Routes::record`] began.
    ///
    /// Dropping the future, once polled, does not take that back.
    pub async fn unrecord(&self, stream: &StreamEntry, filters: &[TopicFilter]) {
        self.remove(RouteKey::Stream(stream.id()), filters).await;
    }

    async fn remove(&self, key: RouteKey, filters: &[TopicFilter]) {
        let remove = |filter: &TopicFilter| Change::Remove { filter: filter.clone(), key };
        self.change(filters.iter().map(remove).collect()).await;
    }

    /// Makes changes together with those of others, within a millisecond or two; they are in effect when this
    /// returns.
    ///
    /// Dropping the future, once polled, does not take them back.
    pub(crate) async fn change(&self, changes: Vec<RouteChange>) {
        if changes.is_empty() {
            return;
        }
        if self.router.submit(changes).await.is_err() {
            // A panic while a batch was applied: a bug, and the batch may be missing.
            tracing::error!("a batch of subscription changes was abandoned");
        }
    }

    /// Makes changes at once.
    pub(crate) fn change_now(&self, changes: Vec<RouteChange>) {
        if !changes.is_empty() {
            self.router.apply(changes);
        }
    }

    /// Who gets what now, for short use.
    pub(crate) fn now(&self) -> arc_swap::Guard<Arc<Routing>> {
        self.router.load()
    }

    /// How many subscriptions and bindings there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.router.load().subscriptions()
    }
}

/// One target of a topic.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Queue(Arc<QueueEntry>),
    Stream(Arc<StreamEntry>),
    Session(SessionTarget),
    Share(Arc<ShareGroup>),
}

/// A session, with all its subscriptions that match taken together.
#[derive(Debug, Clone)]
pub(crate) struct SessionTarget {
    pub(crate) entry: Arc<SessionEntry>,
    /// The highest of the subscriptions'.
    pub(crate) levels: Levels,
    pub(crate) retain_as_published: bool,
    pub(crate) identifiers: SmallVec<[NonZeroU32; 1]>,
}

impl SessionTarget {
    /// The level of a delivery of what was published at `qos`.
    pub(crate) fn granted(&self, qos: Qos) -> Qos {
        self.levels.of(qos)
    }

    /// Whether what was published at `qos` is kept for this session in the engine.
    pub(crate) fn stores(&self, qos: Qos) -> bool {
        self.entry.target.is_some() && self.granted(qos) > Qos::AtMostOnce
    }
}

/// Beyond so many targets the sessions are looked up in a map.
const SCAN_MAX: usize = 16;

/// The targets of `topic`; without the subscriptions of `publisher` that do not want its own messages.
pub(crate) fn targets(routing: &Routing, topic: &TopicName, publisher: Option<SessionKey>) -> Arc<[Target]> {
    let mut targets: SmallVec<[Target; 8]> = SmallVec::new();
    let mut places: FxHashMap<SessionKey, usize> = FxHashMap::default();
    routing.matches(topic, &mut |_, route| match route {
        Route::Queue(queue) => {
            // Few queues: a scan will do.
            if !targets.iter().any(|target| matches!(target, Target::Queue(seen) if Arc::ptr_eq(seen, queue)))
            {
                targets.push(Target::Queue(Arc::clone(queue)));
            }
        }
        Route::Stream(stream) => {
            let seen = |target: &Target| matches!(target, Target::Stream(seen) if Arc::ptr_eq(seen, stream));
            if !targets.iter().any(seen) {
                targets.push(Target::Stream(Arc::clone(stream)));
            }
        }
        Route::Share(group) => targets.push(Target::Share(Arc::clone(group))),
        Route::Session(entry, options) => {
            if options.no_local && publisher == Some(entry.key) {
                return; // [MQTT-3.8.3-3]
            }
            let at = if targets.len() <= SCAN_MAX {
                targets
                    .iter()
                    .position(|target| matches!(target, Target::Session(s) if s.entry.key == entry.key))
            } else {
                if places.is_empty() {
                    places.extend(targets.iter().enumerate().filter_map(|(at, target)| match target {
                        Target::Session(session) => Some((session.entry.key, at)),
                        _ => None,
                    }));
                }
                places.get(&entry.key).copied()
            };
            if let Some(Target::Session(seen)) = at.and_then(|at| targets.get_mut(at)) {
                // [MQTT-3.3.4-2]: one delivery at the highest level, [MQTT-3.3.4-4]: with all identifiers.
                seen.levels = seen.levels.and(options.levels());
                seen.retain_as_published |= options.retain_as_published;
                seen.identifiers.extend(options.identifier);
            } else {
                if !places.is_empty() {
                    places.insert(entry.key, targets.len());
                }
                targets.push(Target::Session(SessionTarget {
                    entry: Arc::clone(entry),
                    levels: options.levels(),
                    retain_as_published: options.retain_as_published,
                    identifiers: options.identifier.into_iter().collect(),
                }));
            }
        }
    });
    targets.into_iter().collect()
}
