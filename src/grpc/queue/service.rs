//! The calls, each checked, handed to the broker and answered.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use crate::core::queues::QueueEntry;
use crate::core::queues::enqueue::{Enqueue, Enqueued, Pipeline};
use crate::core::queues::receive::Receive;
use crate::core::{Broker, CoreError};
use crate::engine::View;
use crate::grpc::bounds::{
    Answer, FRAME_BYTES, MAX_ITEMS, MAX_PAGE, Refused, Sum, answer, count, intake, merged, page_size,
    some_items,
};
use crate::grpc::convert::{Accepted, Intake, at_most, duration_of, optional_duration};
use crate::grpc::feed;
use crate::grpc::proto::v1;
use crate::grpc::status::{self, status};
use crate::types::{Sequence, clock};

use super::definition::{fields_of, filters, queue_name, queue_of, set, spec_of};
use super::{
    CONSUMER_ID_BYTES, MAX_WAIT, QueueService, consume, deliver, failures_of, leases, nack_of, produce,
    view_of,
};

/// Messages that are looked at at once while browsing, at first.
const BROWSE_MESSAGES: usize = 16;

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A message for a queue.
///
/// # Errors
/// [`CoreError::Invalid`] and [`CoreError::TooLarge`] with the field's path below the message.
pub(super) fn enqueue_of(
    queue: &QueueEntry,
    intake: Intake<'_>,
    message: v1::Message,
) -> Result<Enqueue, CoreError> {
    if message.retain {
        return Err(CoreError::invalid("retain", "is for topics: a queue retains nothing"));
    }
    let Accepted { message, priority, not_before } = intake.message(message, Some(queue.topic()))?;
    Ok(Enqueue { message, priority, not_before })
}

fn enqueued(stored: Enqueued) -> v1::EnqueueResponse {
    v1::EnqueueResponse { message_id: stored.id.to_string(), sequence: stored.sequence.0 }
}

impl QueueService {
    async fn create(&self, request: v1::CreateQueueRequest) -> Result<v1::CreateQueueResponse, CoreError> {
        let queue = request.queue.ok_or_else(|| CoreError::invalid("queue", "must be given"))?;
        let spec = spec_of(&queue, self.broker.limits())?;
        let spec = self.broker.create_queue(spec, request.if_not_exists).await?;
        Ok(v1::CreateQueueResponse { queue: Some(queue_of(&spec)) })
    }

    async fn update(&self, request: v1::UpdateQueueRequest) -> Result<v1::UpdateQueueResponse, CoreError> {
        let queue = request.queue.ok_or_else(|| CoreError::invalid("queue", "must be given"))?;
        let name = queue_name("queue.name", &queue.name)?;
        let fields = fields_of(request.update_mask)?;
        let limits = self.broker.limits().clone();
        let change = move |spec: &mut crate::engine::QueueSpec| {
            fields.iter().try_for_each(|field| set(spec, field, &queue, &limits))
        };
        let spec = self.broker.update_queue(&name, change).await?;
        Ok(v1::UpdateQueueResponse { queue: Some(queue_of(&spec)) })
    }

    fn list(&self, request: &v1::ListQueuesRequest) -> Result<v1::ListQueuesResponse, CoreError> {
        let size = page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(queue_name("page_token", token)?),
        };
        let mut page = self.broker.queues().page(&request.name_prefix, after.as_ref(), size + 1);
        let more = page.len() > size;
        page.truncate(size);
        let next = page.last().filter(|_| more).map(|last| last.name().to_string());
        let queues = page.iter().map(|entry| queue_of(&entry.spec())).collect();
        Ok(v1::ListQueuesResponse { queues, next_page_token: next.unwrap_or_default() })
    }

    async fn enqueue_one(&self, request: v1::EnqueueRequest) -> Result<v1::EnqueueResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        let message = request.message.ok_or_else(|| CoreError::invalid("message", "must be given"))?;
        let item = enqueue_of(&queue, self.intake(), message).map_err(|error| error.within("message"))?;
        let batch = self.broker.enqueue(&queue, vec![item]).await.await?;
        batch.results().next().unwrap_or(Err(CoreError::Draining)).map(enqueued)
    }

    async fn enqueue_batch_of(
        &self,
        request: v1::EnqueueBatchRequest,
    ) -> Result<v1::EnqueueBatchResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        some_items("messages", request.messages.len(), MAX_ITEMS)?;
        let (items, refused) = sort(&queue, self.intake(), request.messages);
        let batch = self.broker.enqueue(&queue, items).await.await?;
        let outcome = |result: Result<Enqueued, CoreError>| match result {
            Ok(stored) => v1::enqueue_result::Outcome::Ok(enqueued(stored)),
            Err(error) => v1::enqueue_result::Outcome::Error(status::item(&error)),
        };
        let results = merged(batch.results(), refused)
            .map(|result| v1::EnqueueResult { outcome: Some(outcome(result)) })
            .collect();
        Ok(v1::EnqueueBatchResponse { results })
    }

    async fn receive_some(&self, request: v1::ReceiveRequest) -> Result<v1::ReceiveResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        at_most("consumer_id", request.consumer_id.len(), CONSUMER_ID_BYTES)?;
        let wait = optional_duration("wait", request.wait.as_ref(), std::time::Duration::ZERO..=MAX_WAIT)?;
        let lease = optional_duration("lease", request.lease.as_ref(), leases(self.broker.limits()))?;
        let receive = Receive {
            max: count("max_messages", request.max_messages, 1, MAX_PAGE)?,
            max_bytes: FRAME_BYTES,
            wait: wait.unwrap_or_default(),
            lease,
            auto_ack: request.auto_ack,
        };
        let messages = self.broker.receive(&queue, receive).await?;
        let now = clock::unix_now();
        let messages = messages.into_iter().map(|leased| {
            let token = if request.auto_ack {
                Bytes::new()
            } else {
                Bytes::copy_from_slice(&self.broker.lease_token(&queue, &leased))
            };
            let mut message = deliver::leased(leased, 0, token, now);
            if request.auto_ack {
                message.lease_expires = None;
            }
            message
        });
        Ok(v1::ReceiveResponse { messages: messages.collect() })
    }

    async fn acknowledge_all(
        &self,
        request: v1::AcknowledgeRequest,
    ) -> Result<v1::AcknowledgeResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        some_items("lease_tokens", request.lease_tokens.len(), MAX_ITEMS)?;
        let failures = self.broker.acknowledge(&queue, &request.lease_tokens).await?;
        Ok(v1::AcknowledgeResponse { failures: failures_of(&request.lease_tokens, failures) })
    }

    fn nack_all(&self, request: v1::NackRequest) -> Result<v1::NackResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        some_items("lease_tokens", request.lease_tokens.len(), MAX_ITEMS)?;
        let (kind, limits) = (request.kind(), self.broker.limits());
        let (how, delay) = nack_of(&queue, limits, kind, request.delay.as_ref(), request.reason)?;
        let failures = self.broker.nack(&queue, &request.lease_tokens, how, delay)?;
        Ok(v1::NackResponse { failures: failures_of(&request.lease_tokens, failures) })
    }

    fn extend_all(&self, request: v1::ExtendLeaseRequest) -> Result<v1::ExtendLeaseResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        some_items("lease_tokens", request.lease_tokens.len(), MAX_ITEMS)?;
        let lease = optional_duration("lease", request.lease.as_ref(), leases(self.broker.limits()))?;
        let failures = self.broker.extend(&queue, &request.lease_tokens, lease)?;
        Ok(v1::ExtendLeaseResponse { failures: failures_of(&request.lease_tokens, failures) })
    }

    async fn peek_some(&self, request: v1::PeekRequest) -> Result<v1::PeekResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        let max = count("max_messages", request.max_messages, 1, MAX_PAGE)?;
        let view = view_of("view", request.view(), Some(View::Ready))?;
        let mut pages = Pages::new(Arc::clone(&self.broker), queue, view, Sequence(0));
        let mut messages = Vec::new();
        while messages.len() < max {
            let Some(page) = pages.next(max - messages.len()).await? else { break };
            messages.extend(page);
        }
        Ok(v1::PeekResponse { messages })
    }

    async fn purge_view(&self, request: v1::PurgeRequest) -> Result<v1::PurgeResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        let view = view_of("view", request.view(), None)?;
        if view == View::Leased {
            return Err(CoreError::invalid("view", "what a consumer holds cannot be purged"));
        }
        Ok(v1::PurgeResponse { purged: self.broker.purge(&queue, view).await? })
    }

    async fn redrive_some(&self, request: v1::RedriveRequest) -> Result<v1::RedriveResponse, CoreError> {
        let from = self.broker.queue_named("dead_letter_queue", &request.dead_letter_queue)?;
        let to = match request.destination.as_str() {
            "" => None,
            name => Some(self.broker.queue_named("destination", name)?),
        };
        let max = Some(u64::from(request.max_messages)).filter(|&max| max > 0);
        Ok(v1::RedriveResponse { moved: self.broker.redrive(&from, to.as_ref(), max).await? })
    }

    fn stats_of(&self, name: &str) -> Result<v1::QueueStats, CoreError> {
        let stats = self.broker.queue_stats(&*self.broker.queue_named("name", name)?)?;
        Ok(v1::QueueStats {
            ready: stats.ready,
            delayed: stats.delayed,
            leased: stats.leased,
            bytes: stats.bytes,
            oldest_age: stats.oldest.map(|at| duration_of(clock::unix_now().since(at))),
            enqueued_total: stats.enqueued_total,
            acked_total: stats.acked_total,
            dead_lettered_total: stats.dead_lettered_total,
            expired_total: stats.expired_total,
            consumers: stats.consumers,
        })
    }
}

/// Messages that may go in, and those that may not, each with its place.
type Sorted = (Vec<Enqueue>, Refused);

fn sort(queue: &QueueEntry, intake: Intake<'_>, messages: Vec<v1::Message>) -> Sorted {
    let mut items = Vec::with_capacity(messages.len());
    let mut refused = Refused::new();
    for (place, message) in messages.into_iter().enumerate() {
        match enqueue_of(queue, intake, message) {
            Ok(item) => items.push(item),
            Err(error) => refused.push_back((place, error.within(format_args!("messages[{place}]")))),
        }
    }
    (items, refused)
}

/// Looks at a view page by page; bounded in bytes as far as the pages before tell.
struct Pages {
    broker: Arc<Broker>,
    queue: Arc<QueueEntry>,
    view: View,
    from: Sequence,
    size: usize,
    ended: bool,
}

impl Pages {
    fn new(broker: Arc<Broker>, queue: Arc<QueueEntry>, view: View, from: Sequence) -> Self {
        Self { broker, queue, view, from, size: BROWSE_MESSAGES, ended: false }
    }

    /// At most `max` messages more; none at the end.
    async fn next(&mut self, max: usize) -> Result<Option<Vec<v1::LeasedMessage>>, CoreError> {
        if self.ended {
            return Ok(None);
        }
        let size = self.size.min(max);
        let page = self.broker.browse(&self.queue, self.view, self.from, size).await?;
        self.ended = page.len() < size;
        let Some(last) = page.last() else { return Ok(None) };
        self.from = Sequence(last.sequence.0.saturating_add(1));
        let bytes: usize = page.iter().map(|browsed| browsed.message.weight()).sum();
        self.size = (FRAME_BYTES / (bytes / page.len() + 1).max(1)).clamp(1, MAX_PAGE);
        let now = clock::unix_now();
        Ok(Some(page.into_iter().map(|browsed| deliver::browsed(browsed, now)).collect()))
    }
}

async fn enqueue_many(
    broker: &Arc<Broker>,
    mut frames: Streaming<v1::EnqueueManyRequest>,
) -> Result<v1::EnqueueManyResponse, Status> {
    let Some(mut frame) = frames.message().await? else {
        return Err(status(&CoreError::invalid("queue", "must be given in the first frame")));
    };
    let queue = broker.queue_named("queue", &frame.queue).map_err(|error| status(&error))?;
    let mut pipeline = Pipeline::new(broker, &queue);
    let mut sum = Sum::default();
    let engine = |error| status(&CoreError::Engine(error));
    loop {
        if !frame.queue.is_empty() && frame.queue != queue.name().as_str() {
            return Err(status(&CoreError::invalid("queue", "must be the same in every frame")));
        }
        let (items, refused) = sort(&queue, intake(broker, clock::unix_now()), frame.messages);
        pipeline.push(items, refused);
        frame = loop {
            tokio::select! {
                biased;
                done = pipeline.completed() => {
                    let (batch, refused) = done.map_err(engine)?;
                    sum.add(merged(batch.results(), refused));
                }
                next = frames.message(), if pipeline.accepts() => match next? {
                    Some(frame) => break frame,
                    None => {
                        while !pipeline.is_empty() {
                            let (batch, refused) = pipeline.completed().await.map_err(engine)?;
                            sum.add(merged(batch.results(), refused));
                        }
                        let Sum { accepted, rejected, first_errors } = sum;
                        return Ok(v1::EnqueueManyResponse { accepted, rejected, first_errors });
                    }
                },
            }
        };
    }
}

#[tonic::async_trait]
impl v1::queue_service_server::QueueService for QueueService {
    async fn create_queue(
        &self,
        request: Request<v1::CreateQueueRequest>,
    ) -> Answer<v1::CreateQueueResponse> {
        answer(self.create(request.into_inner()).await)
    }

    async fn get_queue(&self, request: Request<v1::GetQueueRequest>) -> Answer<v1::GetQueueResponse> {
        let queue = self.broker.queue_named("name", &request.into_inner().name);
        answer(queue.map(|entry| v1::GetQueueResponse { queue: Some(queue_of(&entry.spec())) }))
    }

    async fn update_queue(
        &self,
        request: Request<v1::UpdateQueueRequest>,
    ) -> Answer<v1::UpdateQueueResponse> {
        answer(self.update(request.into_inner()).await)
    }

    async fn list_queues(&self, request: Request<v1::ListQueuesRequest>) -> Answer<v1::ListQueuesResponse> {
        answer(self.list(&request.into_inner()))
    }

    async fn add_bindings(
        &self,
        request: Request<v1::AddBindingsRequest>,
    ) -> Answer<v1::AddBindingsResponse> {
        let request = request.into_inner();
        let changed = async {
            let name = queue_name("queue", &request.queue)?;
            some_items("filters", request.filters.len(), MAX_ITEMS)?;
            self.broker.bind_queue(&name, filters("filters", &request.filters)?).await
        };
        answer(changed.await.map(|spec| v1::AddBindingsResponse { queue: Some(queue_of(&spec)) }))
    }

    async fn remove_bindings(
        &self,
        request: Request<v1::RemoveBindingsRequest>,
    ) -> Answer<v1::RemoveBindingsResponse> {
        let request = request.into_inner();
        let changed = async {
            let name = queue_name("queue", &request.queue)?;
            some_items("filters", request.filters.len(), MAX_ITEMS)?;
            self.broker.unbind_queue(&name, filters("filters", &request.filters)?).await
        };
        answer(changed.await.map(|spec| v1::RemoveBindingsResponse { queue: Some(queue_of(&spec)) }))
    }

    async fn delete_queue(
        &self,
        request: Request<v1::DeleteQueueRequest>,
    ) -> Answer<v1::DeleteQueueResponse> {
        let request = request.into_inner();
        let deleted = async {
            let name = queue_name("name", &request.name)?;
            self.broker.delete_queue(&name, request.only_if_empty).await
        };
        answer(deleted.await.map(|deleted_messages| v1::DeleteQueueResponse { deleted_messages }))
    }

    async fn enqueue(&self, request: Request<v1::EnqueueRequest>) -> Answer<v1::EnqueueResponse> {
        answer(self.enqueue_one(request.into_inner()).await)
    }

    async fn enqueue_batch(
        &self,
        request: Request<v1::EnqueueBatchRequest>,
    ) -> Answer<v1::EnqueueBatchResponse> {
        answer(self.enqueue_batch_of(request.into_inner()).await)
    }

    async fn enqueue_many(
        &self,
        request: Request<Streaming<v1::EnqueueManyRequest>>,
    ) -> Answer<v1::EnqueueManyResponse> {
        enqueue_many(&self.broker, request.into_inner()).await.map(Response::new)
    }

    type ProduceStream = Events<v1::ProduceResponse>;

    async fn produce(&self, request: Request<Streaming<v1::ProduceRequest>>) -> Answer<Self::ProduceStream> {
        Ok(Response::new(feed::serve::<produce::Produce>(&self.broker, self.streams, request)))
    }

    async fn receive(&self, request: Request<v1::ReceiveRequest>) -> Answer<v1::ReceiveResponse> {
        answer(self.receive_some(request.into_inner()).await)
    }

    async fn acknowledge(&self, request: Request<v1::AcknowledgeRequest>) -> Answer<v1::AcknowledgeResponse> {
        answer(self.acknowledge_all(request.into_inner()).await)
    }

    async fn nack(&self, request: Request<v1::NackRequest>) -> Answer<v1::NackResponse> {
        answer(self.nack_all(request.into_inner()))
    }

    async fn extend_lease(
        &self,
        request: Request<v1::ExtendLeaseRequest>,
    ) -> Answer<v1::ExtendLeaseResponse> {
        answer(self.extend_all(request.into_inner()))
    }

    type ConsumeStream = Events<v1::ConsumeResponse>;

    async fn consume(&self, request: Request<Streaming<v1::ConsumeRequest>>) -> Answer<Self::ConsumeStream> {
        Ok(Response::new(consume::serve(&self.broker, self.streams, request)))
    }

    async fn peek(&self, request: Request<v1::PeekRequest>) -> Answer<v1::PeekResponse> {
        answer(self.peek_some(request.into_inner()).await)
    }

    type BrowseStream = Events<v1::BrowseResponse>;

    async fn browse(&self, request: Request<v1::BrowseRequest>) -> Answer<Self::BrowseStream> {
        let request = request.into_inner();
        let pages = async {
            let queue = self.queue(&request.queue)?;
            let view = view_of("view", request.view(), Some(View::Ready))?;
            Ok(Pages::new(Arc::clone(&self.broker), queue, view, Sequence(request.from_sequence)))
        };
        let pages = pages.await.map_err(|error: CoreError| status(&error))?;
        let pages = stream::unfold(pages, async |mut pages| match pages.next(MAX_PAGE).await {
            Ok(Some(messages)) => Some((Ok(v1::BrowseResponse { messages }), pages)),
            Ok(None) => None,
            Err(error) => {
                pages.ended = true;
                Some((Err(status(&error)), pages))
            }
        });
        Ok(Response::new(pages.boxed()))
    }

    async fn purge(&self, request: Request<v1::PurgeRequest>) -> Answer<v1::PurgeResponse> {
        answer(self.purge_view(request.into_inner()).await)
    }

    async fn redrive(&self, request: Request<v1::RedriveRequest>) -> Answer<v1::RedriveResponse> {
        answer(self.redrive_some(request.into_inner()).await)
    }

    async fn get_queue_stats(
        &self,
        request: Request<v1::GetQueueStatsRequest>,
    ) -> Answer<v1::GetQueueStatsResponse> {
        let stats = self.stats_of(&request.into_inner().name);
        answer(stats.map(|stats| v1::GetQueueStatsResponse { stats: Some(stats) }))
    }
}
