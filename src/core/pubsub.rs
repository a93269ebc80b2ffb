//! What publishing and subscribing need of the broker.

use std::sync::Arc;

use crate::core::Broker;
use crate::core::route::{Route, RouteKey};
use crate::core::router::Router;
use crate::engine::{GroupSpec, StoredSession};
use crate::types::{Message, TargetId};

/// The parts of the broker that publishing and subscribing share.
#[derive(Debug, Default)]
pub struct PubSub {
    pub(crate) router: Router<RouteKey, Route>,
}

impl PubSub {
    /// Rebuilds sessions, share groups and retained values as they were stored. Called once, after the queues are
    /// there and before the doors open.
    pub fn restore(
        _broker: &Arc<Broker>,
        _sessions: Vec<StoredSession>,
        _groups: Vec<(TargetId, GroupSpec)>,
        _retained: Vec<Message>,
    ) {
    }
}
