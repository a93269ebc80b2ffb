//! The calls, each checked, handed to the broker and answered.

use std::pin::Pin;

use bytestring::ByteString;
use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::core::CoreError;
use crate::grpc::bounds::{Answer, FRAME_BYTES, MAX_ITEMS, answer, intake, page_size, some_items};
use crate::grpc::convert::{at_most, message, origin, published};
use crate::grpc::feed;
use crate::grpc::proto::v1;
use crate::grpc::status;
use crate::types::{TopicFilter, TopicName, clock};

use super::{PubSubService, publish, receive};

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl PubSubService {
    async fn publish_one(&self, request: v1::PublishRequest) -> Result<v1::PublishResponse, CoreError> {
        let message = request.message.ok_or_else(|| CoreError::invalid("message", "must be given"))?;
        let item = publish::inbound_of(intake(&self.broker, clock::unix_now()), message);
        let item = item.map_err(|error| error.within("message"))?;
        Ok(published(&publish::one(&self.broker, item).await?))
    }

    async fn publish_all(
        &self,
        request: v1::PublishBatchRequest,
    ) -> Result<v1::PublishBatchResponse, CoreError> {
        some_items("messages", request.messages.len(), MAX_ITEMS)?;
        let results = publish::batch(&self.broker, request.messages).await.map(|result| {
            let outcome = match result {
                Ok(done) => v1::publish_result::Outcome::Ok(published(&done)),
                Err(error) => v1::publish_result::Outcome::Error(status::item(&error)),
            };
            v1::PublishResult { outcome: Some(outcome) }
        });
        Ok(v1::PublishBatchResponse { results: results.collect() })
    }

    fn retained(&self, request: v1::GetRetainedRequest) -> Result<v1::GetRetainedResponse, CoreError> {
        let topic = self.topic("topic", request.topic)?;
        let Some(kept) = self.broker.retained(&topic) else {
            return Err(CoreError::NotFound { kind: "retained message", name: topic.to_string() });
        };
        let origin = origin(&kept);
        let qos = kept.qos;
        Ok(v1::GetRetainedResponse {
            message: Some(message(kept, qos, clock::unix_now())),
            origin: Some(origin),
        })
    }

    fn list(&self, request: v1::ListRetainedRequest) -> Result<v1::ListRetainedResponse, CoreError> {
        let size = page_size(request.page_size)?;
        let filter = match request.filter {
            filter if filter.is_empty() => "#".to_owned(),
            filter => filter,
        };
        let filter = self.filter(filter)?;
        let after = match request.page_token {
            token if token.is_empty() => None,
            token => Some(self.topic("page_token", token)?),
        };
        let found = self.broker.list_retained(&filter, after.as_ref(), size + 1);
        let now = clock::unix_now();
        let mut bytes = 0;
        let mut messages = Vec::new();
        let mut next_page_token = String::new();
        for kept in found {
            if messages.len() == size || bytes >= FRAME_BYTES {
                next_page_token =
                    messages.last().map(|last: &v1::Message| last.topic.clone()).unwrap_or_default();
                break;
            }
            bytes += kept.weight();
            let qos = kept.qos;
            messages.push(message(kept, qos, now));
        }
        Ok(v1::ListRetainedResponse { messages, next_page_token })
    }

    async fn delete(
        &self,
        request: v1::DeleteRetainedRequest,
    ) -> Result<v1::DeleteRetainedResponse, CoreError> {
        let filter = self.filter(request.filter)?;
        Ok(v1::DeleteRetainedResponse { deleted: self.broker.delete_retained(&filter).await? })
    }

    fn topic(&self, field: &str, name: String) -> Result<TopicName, CoreError> {
        at_most(field, name.len(), self.broker.limits().max_topic_bytes)?;
        TopicName::parse(ByteString::from(name)).map_err(|error| CoreError::topic(field, &error))
    }

    fn filter(&self, filter: String) -> Result<TopicFilter, CoreError> {
        at_most("filter", filter.len(), self.broker.limits().max_topic_bytes)?;
        TopicFilter::parse(ByteString::from(filter)).map_err(|error| CoreError::topic("filter", &error))
    }
}

#[tonic::async_trait]
impl v1::pub_sub_service_server::PubSubService for PubSubService {
    async fn publish(&self, request: Request<v1::PublishRequest>) -> Answer<v1::PublishResponse> {
        answer(self.publish_one(request.into_inner()).await)
    }

    async fn publish_batch(
        &self,
        request: Request<v1::PublishBatchRequest>,
    ) -> Answer<v1::PublishBatchResponse> {
        answer(self.publish_all(request.into_inner()).await)
    }

    async fn publish_many(
        &self,
        request: Request<Streaming<v1::PublishManyRequest>>,
    ) -> Answer<v1::PublishManyResponse> {
        publish::many(&self.broker, request.into_inner()).await.map(Response::new)
    }

    type PublishStreamStream = Events<v1::PublishStreamResponse>;

    async fn publish_stream(
        &self,
        request: Request<Streaming<v1::PublishStreamRequest>>,
    ) -> Answer<Self::PublishStreamStream> {
        let events = feed::serve::<publish::Publishing<feed::Commit>>(&self.broker, self.streams, request);
        Ok(Response::new(events))
    }

    type SubscribeStream = Events<v1::SubscribeResponse>;

    async fn subscribe(&self, request: Request<v1::SubscribeRequest>) -> Answer<Self::SubscribeStream> {
        let events = receive::subscribe(&self.broker, self.streams, request).await;
        events.map(Response::new).map_err(|error| status::status(&error))
    }

    type SubscribeStreamStream = Events<v1::SubscribeStreamResponse>;

    async fn subscribe_stream(
        &self,
        request: Request<Streaming<v1::SubscribeStreamRequest>>,
    ) -> Answer<Self::SubscribeStreamStream> {
        Ok(Response::new(receive::subscribe_stream(&self.broker, self.streams, request)))
    }

    async fn get_retained(
        &self,
        request: Request<v1::GetRetainedRequest>,
    ) -> Answer<v1::GetRetainedResponse> {
        answer(self.retained(request.into_inner()))
    }

    async fn list_retained(
        &self,
        request: Request<v1::ListRetainedRequest>,
    ) -> Answer<v1::ListRetainedResponse> {
        answer(self.list(request.into_inner()))
    }

    async fn delete_retained(
        &self,
        request: Request<v1::DeleteRetainedRequest>,
    ) -> Answer<v1::DeleteRetainedResponse> {
        answer(self.delete(request.into_inner()).await)
    }
}
