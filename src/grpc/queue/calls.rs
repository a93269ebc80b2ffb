//! What the unary calls do.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::core::CoreError;
use crate::core::queues::enqueue::Enqueued;
use crate::core::queues::receive::Receive;
use crate::core::queues::select::Select;
use crate::engine::QueueSpec;
use crate::grpc::bounds::{
    FRAME_BYTES, MAX_ITEMS, MAX_PAGE, at_most_items, count, merged, page_size, some_items,
};
use crate::grpc::convert::{at_most, optional_duration};
use crate::grpc::proto::v1;
use crate::grpc::status;
use crate::types::{MessageId, Sequence, clock};

use super::batch::{enqueue_of, sort};
use super::browse::Pages;
use super::definition::{fields_of, queue_name, queue_of, set, spec_of};
use super::select::{select_of, waiting};
use super::{
    CONSUMER_ID_BYTES, MAX_WAIT, QueueService, deliver, failures_of, leases, nack_of, view_of, watch,
};

/// Ids of one request: each is looked for.
const MAX_IDS: usize = 100;

pub(super) fn enqueued(stored: Enqueued) -> v1::EnqueueResponse {
    let Enqueued { id, sequence, duplicate } = stored;
    v1::EnqueueResponse { message_id: id.to_string(), sequence: sequence.0, duplicate }
}

impl QueueService {
    pub(super) async fn create(
        &self,
        request: v1::CreateQueueRequest,
    ) -> Result<v1::CreateQueueResponse, CoreError> {
        let queue = request.queue.ok_or_else(|| CoreError::invalid("queue", "must be given"))?;
        let spec = spec_of(&queue, self.broker.limits())?;
        let spec = self.broker.create_queue(spec, request.if_not_exists).await?;
        Ok(v1::CreateQueueResponse { queue: Some(queue_of(&spec)) })
    }

    pub(super) async fn update(
        &self,
        request: v1::UpdateQueueRequest,
    ) -> Result<v1::UpdateQueueResponse, CoreError> {
        let queue = request.queue.ok_or_else(|| CoreError::invalid("queue", "must be given"))?;
        let name = queue_name("queue.name", &queue.name)?;
        let fields = fields_of(request.update_mask)?;
        let limits = self.broker.limits().clone();
        let change =
            move |spec: &mut QueueSpec| fields.iter().try_for_each(|field| set(spec, field, &queue, &limits));
        let spec = self.broker.update_queue(&name, change).await?;
        Ok(v1::UpdateQueueResponse { queue: Some(queue_of(&spec)) })
    }

    pub(super) fn list(&self, request: &v1::ListQueuesRequest) -> Result<v1::ListQueuesResponse, CoreError> {
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

    pub(super) async fn enqueue_one(
        &self,
        request: v1::EnqueueRequest,
    ) -> Result<v1::EnqueueResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        let message = request.message.ok_or_else(|| CoreError::invalid("message", "must be given"))?;
        let item = enqueue_of(&queue, self.intake(), message).map_err(|error| error.within("message"))?;
        let batch = self.broker.enqueue(&queue, vec![item]).await.await?;
        batch.results().next().unwrap_or(Err(CoreError::Draining)).map(enqueued)
    }

    pub(super) async fn enqueue_batch_of(
        &self,
        request: v1::EnqueueBatchRequest,
    ) -> Result<v1::EnqueueBatchResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        some_items("messages", request.messages.len(), MAX_ITEMS)?;
        let (items, mut refused) = sort(&queue, self.intake(), request.messages);
        if request.atomic {
            if let Some((place, error)) = refused.pop_front() {
                return Err(error.of_item(place));
            }
            let stored = self.broker.enqueue_all(&queue, items).await?;
            let ok = |stored| v1::enqueue_result::Outcome::Ok(enqueued(stored));
            let results = stored.into_iter().map(|stored| v1::EnqueueResult { outcome: Some(ok(stored)) });
            return Ok(v1::EnqueueBatchResponse { results: results.collect() });
        }
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

    pub(super) async fn receive_some(
        &self,
        request: v1::ReceiveRequest,
    ) -> Result<v1::ReceiveResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        at_most("consumer_id", request.consumer_id.len(), CONSUMER_ID_BYTES)?;
        let wait = optional_duration("wait", request.wait.as_ref(), Duration::ZERO..=MAX_WAIT)?;
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

    pub(super) async fn acknowledge_all(
        &self,
        request: v1::AcknowledgeRequest,
    ) -> Result<v1::AcknowledgeResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        some_items("lease_tokens", request.lease_tokens.len(), MAX_ITEMS)?;
        let failures = self.broker.acknowledge(&queue, &request.lease_tokens).await?;
        Ok(v1::AcknowledgeResponse { failures: failures_of(&request.lease_tokens, failures) })
    }

    pub(super) fn nack_all(&self, request: v1::NackRequest) -> Result<v1::NackResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        some_items("lease_tokens", request.lease_tokens.len(), MAX_ITEMS)?;
        let (kind, limits) = (request.kind(), self.broker.limits());
        let (how, delay) = nack_of(&queue, limits, kind, request.delay.as_ref(), request.reason)?;
        let failures = self.broker.nack(&queue, &request.lease_tokens, how, delay)?;
        Ok(v1::NackResponse { failures: failures_of(&request.lease_tokens, failures) })
    }

    pub(super) fn extend_all(
        &self,
        request: v1::ExtendLeaseRequest,
    ) -> Result<v1::ExtendLeaseResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        some_items("lease_tokens", request.lease_tokens.len(), MAX_ITEMS)?;
        let lease = optional_duration("lease", request.lease.as_ref(), leases(self.broker.limits()))?;
        let failures = self.broker.extend(&queue, &request.lease_tokens, lease)?;
        Ok(v1::ExtendLeaseResponse { failures: failures_of(&request.lease_tokens, failures) })
    }

    pub(super) async fn peek_some(&self, request: v1::PeekRequest) -> Result<v1::PeekResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        let max = count("max_messages", request.max_messages, 1, MAX_PAGE)?;
        let view = view_of(request.view());
        let mut pages = Pages::new(Arc::clone(&self.broker), queue, view, Select::default(), max);
        let mut messages = Vec::new();
        while let Some(page) = pages.next().await? {
            messages.extend(page.messages);
        }
        Ok(v1::PeekResponse { messages })
    }

    /// What a browse shows.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Invalid`].
    pub(super) fn pages(&self, request: v1::BrowseRequest) -> Result<Pages, CoreError> {
        let queue = self.queue(&request.queue)?;
        let view = view_of(request.view());
        let mut select = select_of(request.filter)?;
        select.from = select.from.max(Sequence(request.from_sequence));
        let max = usize::try_from(request.max_messages).ok().filter(|&max| max > 0).unwrap_or(usize::MAX);
        Ok(Pages::new(Arc::clone(&self.broker), queue, view, select, max))
    }

    pub(super) async fn purge_view(&self, request: v1::PurgeRequest) -> Result<v1::PurgeResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        let views = waiting(request.view())?;
        let select = select_of(request.filter)?;
        let mut purged = 0;
        for &view in views {
            purged += self.broker.purge_some(&queue, view, &select).await?;
        }
        Ok(v1::PurgeResponse { purged })
    }

    pub(super) async fn delete_some(
        &self,
        request: v1::DeleteMessagesRequest,
    ) -> Result<v1::DeleteMessagesResponse, CoreError> {
        let queue = self.queue(&request.queue)?;
        let views = waiting(request.view())?;
        let v1::DeleteMessagesRequest { sequences, message_ids, .. } = request;
        if message_ids.is_empty() {
            some_items("sequences", sequences.len(), MAX_ITEMS)?;
        }
        at_most_items("sequences", sequences.len(), MAX_ITEMS)?;
        at_most_items("message_ids", message_ids.len(), MAX_IDS)?;
        let id = |(at, text): (usize, &String)| {
            let wrong = || CoreError::invalid(format!("message_ids[{at}]"), format!("{text:?} is no id"));
            MessageId::parse(text).ok_or_else(wrong)
        };
        let ids = message_ids.iter().enumerate().map(id).collect::<Result<Vec<_>, _>>()?;
        let sequences: Vec<_> = sequences.into_iter().map(Sequence).collect();
        let mut deleted_sequences = Vec::new();
        for &view in views {
            let deleted = self.broker.delete_messages(&queue, view, &sequences, &ids).await?;
            deleted_sequences.extend(deleted.into_iter().map(|sequence| sequence.0));
        }
        deleted_sequences.sort_unstable();
        Ok(v1::DeleteMessagesResponse { deleted_sequences })
    }

    pub(super) async fn stats_of(&self, name: &str) -> Result<v1::QueueStats, CoreError> {
        let queue = self.broker.queue_named("name", name)?;
        Ok(watch::stats(self.broker.queue_stats(&queue).await?))
    }
}
