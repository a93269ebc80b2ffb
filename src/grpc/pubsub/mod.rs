//! `PubSubService`.
//!
//! The unary calls are in `service`; `publish` is the stream of batches in, `receive` the streams of deliveries out,
//! with the client's `session` and its `will`, what waits for it in `mailbox` and what is unsettled in `held`. Invariant: nothing is
//! kept here but the broker.

mod filters;
mod held;
mod mailbox;
mod publish;
mod receive;
mod service;
mod session;
mod unsettled;
mod voice;
mod will;

use std::sync::Arc;

use bytestring::ByteString;

use crate::core::Broker;
use crate::core::queues::consumer::Window;

use super::stream::Bounds;

pub(super) use filters::filter_of;

/// What one frame of deliveries carries at most, one message aside: little enough that the client settles the first of a
/// window while the last are on their way.
const FRAME: Window = Window { messages: 256, bytes: 64 << 10 };
/// Filters of one frame.
const MAX_FILTERS: usize = 1_000;
/// Who acts: there is nobody else yet.
const ANYONE: ByteString = ByteString::from_static("");

/// The service.
#[derive(Debug)]
pub(super) struct PubSubService {
    broker: Arc<Broker>,
    streams: Bounds,
}

impl PubSubService {
    /// Serves the topics of `broker`.
    pub(super) fn new(broker: Arc<Broker>, streams: Bounds) -> Self {
        Self { broker, streams }
    }
}
