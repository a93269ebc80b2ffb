//! `Produce`: batches into one queue.

use std::sync::Arc;

use crate::core::queues::enqueue::{Enqueue, Enqueued, Pipeline};
use crate::core::{Broker, CoreError, Published};
use crate::engine::EngineError;
use crate::grpc::convert::Intake;
use crate::grpc::feed::{Commit, Event, Feed, Frame, Opened, Results};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::produce_request::Action;
use crate::grpc::proto::v1::produce_response;

use super::batch::enqueue_of;

/// Where the batches of one stream go.
pub(super) struct Produce(Pipeline<Commit>);

impl Feed for Produce {
    type Request = v1::ProduceRequest;
    type Response = v1::ProduceResponse;
    type Open = v1::ProduceOpen;
    type Item = Enqueue;

    fn read(request: v1::ProduceRequest) -> Frame<v1::ProduceOpen> {
        match request.action {
            Some(Action::Open(open)) => Frame::Open(open),
            Some(Action::Batch(batch)) => Frame::Batch(batch),
            Some(Action::Heartbeat(_)) => Frame::Heartbeat,
            None => Frame::None,
        }
    }

    fn say(event: Event) -> v1::ProduceResponse {
        let event = match event {
            Event::Opened(opened) => produce_response::Event::Opened(opened),
            Event::Ack(ack) => produce_response::Event::Ack(ack),
            Event::Closing(closing) => produce_response::Event::Closing(closing),
            Event::Heartbeat(heartbeat) => produce_response::Event::Heartbeat(heartbeat),
        };
        v1::ProduceResponse { event: Some(event) }
    }

    fn open(broker: &Arc<Broker>, open: v1::ProduceOpen) -> Result<Opened<Self>, CoreError> {
        let queue = broker.queue_named("open.queue", &open.queue)?;
        let feed = Self(Pipeline::new(broker, &queue));
        Ok(Opened { feed, want_details: open.want_details, heartbeat: open.heartbeat_interval })
    }

    fn accepts(&self) -> bool {
        self.0.accepts()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, intake: Intake<'_>, message: v1::Message) -> Result<(Enqueue, usize), CoreError> {
        let item = enqueue_of(self.0.queue(), intake, message)?;
        let bytes = item.message.payload.len();
        Ok((item, bytes))
    }

    fn push(&mut self, items: Vec<Enqueue>, commit: Commit) {
        self.0.push(items, commit);
    }

    async fn completed(&mut self) -> Result<(Results, Commit), EngineError> {
        let (batch, commit) = self.0.completed().await?;
        let stored = batch.results().map(|result| {
            let queued = |Enqueued { id, duplicate, .. }| Published {
                id,
                subscribers: 0,
                queues: 1,
                streams: 0,
                duplicate,
            };
            result.map(queued)
        });
        Ok((stored.collect(), commit))
    }
}
