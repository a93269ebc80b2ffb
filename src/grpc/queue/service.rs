//! The methods of the contract, each answered by one of `calls`, `batch`, `browse`, `produce`, `consume` and `watch`.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use crate::grpc::bounds::{Answer, MAX_ITEMS, answer, some_items};
use crate::grpc::convert::filters;
use crate::grpc::feed;
use crate::grpc::proto::v1;
use crate::grpc::status::status;

use super::batch::enqueue_many;
use super::definition::{queue_name, queue_of};
use super::{QueueService, consume, produce, watch};

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

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

    async fn forward(&self, request: Request<v1::ForwardRequest>) -> Answer<v1::ForwardResponse> {
        answer(self.forward_all(request.into_inner()).await)
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
        let pages = self.pages(request.into_inner()).map_err(|error| status(&error))?;
        let pages = stream::unfold(pages, async |mut pages| {
            let page = pages.next().await.transpose()?;
            Some((page.map_err(|error| status(&error)), pages))
        });
        Ok(Response::new(pages.boxed()))
    }

    async fn purge(&self, request: Request<v1::PurgeRequest>) -> Answer<v1::PurgeResponse> {
        answer(self.purge_view(request.into_inner()).await)
    }

    async fn delete_messages(
        &self,
        request: Request<v1::DeleteMessagesRequest>,
    ) -> Answer<v1::DeleteMessagesResponse> {
        answer(self.delete_some(request.into_inner()).await)
    }

    async fn redrive(&self, request: Request<v1::RedriveRequest>) -> Answer<v1::RedriveResponse> {
        answer(self.redrive_all(request.into_inner()).await)
    }

    type RedriveStreamStream = Events<v1::RedriveProgress>;

    async fn redrive_stream(
        &self,
        request: Request<v1::RedriveRequest>,
    ) -> Answer<Self::RedriveStreamStream> {
        let moving = self.redriving(request.into_inner()).map_err(|error| status(&error))?;
        let parts = stream::unfold(Some(moving), async |moving| {
            let mut moving = moving?;
            match moving.next().await.transpose()? {
                Ok(progress) => Some((Ok(progress), Some(moving))),
                Err(error) => Some((Err(status(&error)), None)),
            }
        });
        Ok(Response::new(parts.boxed()))
    }

    async fn get_queue_stats(
        &self,
        request: Request<v1::GetQueueStatsRequest>,
    ) -> Answer<v1::GetQueueStatsResponse> {
        let stats = self.stats_of(&request.into_inner().name).await;
        answer(stats.map(|stats| v1::GetQueueStatsResponse { stats: Some(stats) }))
    }

    type WatchQueueStatsStream = Events<v1::WatchQueueStatsResponse>;

    async fn watch_queue_stats(
        &self,
        request: Request<v1::WatchQueueStatsRequest>,
    ) -> Answer<Self::WatchQueueStatsStream> {
        answer(watch::serve(&self.broker, self.streams, request))
    }
}
