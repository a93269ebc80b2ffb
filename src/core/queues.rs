//! Queues: named durable buffers with competing consumers.

use arc_swap::ArcSwap;

use crate::engine::QueueSpec;
use crate::types::TargetId;

/// A queue as the router knows it.
#[derive(Debug)]
pub struct QueueEntry {
    /// Its target.
    pub id: TargetId,
    /// Its settings.
    pub spec: ArcSwap<QueueSpec>,
}
