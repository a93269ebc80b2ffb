//! What is published: one message, several, or a stream of batches.

use std::collections::VecDeque;
use std::sync::Arc;

use tonic::{Status, Streaming};

use crate::core::{Broker, CoreError, Inbound, Publisher, PublisherInfo, Receipt};
use crate::engine::EngineError;
use crate::grpc::bounds::{Refused, Sum, intake, merged};
use crate::grpc::convert::{Accepted, Intake};
use crate::grpc::feed::{Commit, Event, Feed, Frame, Opened, Results};
use crate::grpc::proto::v1;
use crate::grpc::proto::v1::publish_stream_request::Action;
use crate::grpc::proto::v1::publish_stream_response;
use crate::types::{TopicName, clock};

/// A call's publisher remembers so many topics at most.
const TOPICS: usize = 64;

/// A message on its way in.
///
/// # Errors
/// [`CoreError::Invalid`] and [`CoreError::TooLarge`] with the field's path below the message.
pub(super) fn inbound_of(intake: Intake<'_>, message: v1::Message) -> Result<Inbound, CoreError> {
    let Accepted { message, priority, not_before } = intake.message(message, None)?;
    Ok(Inbound { priority, not_before, ..Inbound::new(message, 0) })
}

/// Messages that may go in, and those that may not, each with its place.
fn sort(broker: &Broker, messages: Vec<v1::Message>) -> (Vec<Inbound>, Refused) {
    let intake = intake(broker, clock::unix_now());
    let mut items = Vec::with_capacity(messages.len());
    let mut refused = Refused::new();
    for (place, message) in messages.into_iter().enumerate() {
        match inbound_of(intake, message) {
            Ok(item) => items.push(item),
            Err(error) => refused.push_back((place, error.within(format_args!("messages[{place}]")))),
        }
    }
    (items, refused)
}

/// Publishes one message and waits for what its level promises.
pub(super) async fn one(broker: &Arc<Broker>, item: Inbound) -> Result<crate::core::Published, CoreError> {
    let mut results = all(broker, vec![item]).await;
    results.pop().unwrap_or(Err(CoreError::Engine(EngineError::Stopped)))
}

/// Publishes messages in their order and waits for what became of each.
async fn all(broker: &Arc<Broker>, items: Vec<Inbound>) -> Results {
    let count = items.len();
    let topics = Some(count.min(TOPICS));
    let mut publisher = broker.publisher(PublisherInfo { topics, ..PublisherInfo::default() });
    publisher.room().await;
    publisher.publish(items);
    let mut receipts = Vec::with_capacity(count);
    while receipts.len() < count {
        publisher.completed(&mut receipts).await;
    }
    receipts.into_iter().map(|receipt| receipt.result).collect()
}

/// The same, with those that may not go in.
pub(super) async fn batch(
    broker: &Arc<Broker>,
    messages: Vec<v1::Message>,
) -> impl Iterator<Item = Result<crate::core::Published, CoreError>> {
    let (items, refused) = sort(broker, messages);
    merged(all(broker, items).await.into_iter(), refused)
}

/// Publishes what a client streams, and sums up.
pub(super) async fn many(
    broker: &Arc<Broker>,
    mut frames: Streaming<v1::PublishManyRequest>,
) -> Result<v1::PublishManyResponse, Status> {
    let mut publishing = Publishing::<Refused>::new(broker);
    let mut sum = Sum::default();
    let mut more = true;
    while more || !publishing.is_empty() {
        tokio::select! {
            biased;
            (results, refused) = publishing.completed() => sum.add(merged(results.into_iter(), refused)),
            frame = frames.message(), if more && publishing.accepts() => match frame? {
                Some(frame) => {
                    let (items, refused) = sort(broker, frame.messages);
                    publishing.push(items, refused);
                }
                None => more = false,
            },
        }
    }
    let Sum { accepted, rejected, first_errors } = sum;
    Ok(v1::PublishManyResponse { accepted, rejected, first_errors })
}

/// Groups of publishes on their way, in order; each carries a `T` of the caller's.
pub(super) struct Publishing<T> {
    broker: Arc<Broker>,
    publisher: Publisher,
    /// Groups on their way: how many receipts each is to have.
    open: VecDeque<(usize, T)>,
    /// For the oldest of them.
    receipts: Vec<Receipt>,
    /// The newest, while there is no room for it.
    waiting: Option<Vec<Inbound>>,
    /// What was published to last.
    recent: Option<TopicName>,
}

impl<T> Publishing<T> {
    pub(super) fn new(broker: &Arc<Broker>) -> Self {
        Self {
            broker: Arc::clone(broker),
            publisher: broker.publisher(PublisherInfo::default()),
            open: VecDeque::new(),
            receipts: Vec::new(),
            waiting: None,
            recent: None,
        }
    }

    /// Whether there is room for another group.
    fn accepts(&self) -> bool {
        self.waiting.is_none() && self.publisher.pending() < self.broker.limits().publish_pending
    }

    fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Adds a group; who watches `accepts` bounds how many there are.
    fn push(&mut self, items: Vec<Inbound>, tag: T) {
        self.open.push_back((items.len(), tag));
        if self.broker.admission().free_bytes() > 0 {
            self.publisher.publish(items);
        } else {
            self.waiting = Some(items);
        }
    }

    /// The oldest group, when all its receipts are there; waits for ever when nothing is on its way.
    ///
    /// Cancel safe. Must be polled while the caller waits for anything: it also brings in the group that waits.
    async fn completed(&mut self) -> (Results, T) {
        loop {
            if self.open.front().is_some_and(|(count, _)| self.receipts.len() >= *count)
                && let Some((count, tag)) = self.open.pop_front()
            {
                let results = self.receipts.drain(..count).map(|receipt| receipt.result);
                return (results.collect(), tag);
            }
            tokio::select! {
                () = self.broker.admission().room(), if self.waiting.is_some() => {
                    self.publisher.publish(self.waiting.take().unwrap_or_default());
                }
                () = self.publisher.completed(&mut self.receipts) => {}
            }
        }
    }
}

impl Feed for Publishing<Commit> {
    type Request = v1::PublishStreamRequest;
    type Response = v1::PublishStreamResponse;
    type Open = v1::PublishOpen;
    type Item = Inbound;

    fn read(request: v1::PublishStreamRequest) -> Frame<v1::PublishOpen> {
        match request.action {
            Some(Action::Open(open)) => Frame::Open(open),
            Some(Action::Batch(batch)) => Frame::Batch(batch),
            Some(Action::Heartbeat(_)) => Frame::Heartbeat,
            None => Frame::None,
        }
    }

    fn say(event: Event) -> v1::PublishStreamResponse {
        let event = match event {
            Event::Opened(opened) => publish_stream_response::Event::Opened(opened),
            Event::Ack(ack) => publish_stream_response::Event::Ack(ack),
            Event::Closing(closing) => publish_stream_response::Event::Closing(closing),
            Event::Heartbeat(heartbeat) => publish_stream_response::Event::Heartbeat(heartbeat),
        };
        v1::PublishStreamResponse { event: Some(event) }
    }

    fn open(broker: &Arc<Broker>, open: v1::PublishOpen) -> Result<Opened<Self>, CoreError> {
        Ok(Opened {
            feed: Self::new(broker),
            want_details: open.want_details,
            heartbeat: open.heartbeat_interval,
        })
    }

    fn accepts(&self) -> bool {
        Publishing::accepts(self)
    }

    fn is_empty(&self) -> bool {
        Publishing::is_empty(self)
    }

    fn take(&mut self, intake: Intake<'_>, message: v1::Message) -> Result<(Inbound, usize), CoreError> {
        let item = inbound_of(Intake { recent: self.recent.as_ref(), ..intake }, message)?;
        if self.recent.as_ref() != Some(&item.message.topic) {
            self.recent = Some(item.message.topic.clone());
        }
        let bytes = item.message.payload.len();
        Ok((item, bytes))
    }

    fn push(&mut self, items: Vec<Inbound>, commit: Commit) {
        Publishing::push(self, items, commit);
    }

    async fn completed(&mut self) -> Result<(Results, Commit), EngineError> {
        Ok(Publishing::completed(self).await)
    }
}
